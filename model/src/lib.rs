//! The words of Engram as types: labels, samples, matchers, tenants, placement, digests, time.
//!
//! Why a crate of its own: storage, query and raft must mean the same thing by "series" or "epoch" without
//! knowing each other. Nothing here does I/O, starts a task or knows another crate of ours.
//!
//! Map: [`labels`] who a series is · [`matcher`] a test on it, [`pattern`] its expressions · [`histogram`] and [`sample`] its values ·
//! [`series`] how rooms hand samples to each other · [`merge`] several places as one · [`batch`] what a write request becomes ·
//! [`block`] blocks, seals and deletions · [`digest`] the conservation law · [`tenant`] owners and limits · [`place`] where data lies ·
//! [`time`] clocks and ranges · [`error`] who must act on a failure · `mutant` (never in a release) what tests must notice.

pub mod batch;
pub mod block;
pub mod digest;
pub mod error;
pub mod histogram;
pub mod labels;
pub mod matcher;
pub mod merge;
#[cfg(feature = "mutants")]
pub mod mutant;
pub mod pattern;
pub mod place;
pub mod sample;
pub mod series;
pub mod tenant;
pub mod time;

pub use error::{Class, Classed};
pub use labels::Labels;
pub use matcher::{MatchOp, Matcher};
pub use time::{Millis, TimeRange};
