//! Blocks: what a tenant has, as immutable directories that any tool of Prometheus reads.
//!
//! Why: the heads and the log are our own formats and belong to a running node; a block needs neither. It can be
//! copied, kept, checked and read without Engram.
//!
//! Map: [`sealer`] when a window has ended, [`flush`] because somebody says so · [`cutter`] seals → blocks: [`build`] what
//! replicas set aside → a verified directory, [`uploader`] → objects and what is agreed of them · [`snapshot`] all of a
//! tenant at one moment → verified blocks below the data directory · [`import`] blocks of other systems, [`tar`] how they
//! come · [`check`] one block against the metadata, [`survey`] all of them · [`scrubber`] all of them for ever, [`repair`]
//! a damaged one.
//!
//! Samples come through the port of replicas, as queries have them: this room knows no head and no log.

pub mod build;
pub mod check;
pub mod cutter;
pub mod flush;
pub mod import;
pub mod repair;
pub mod scrubber;
pub mod sealer;
pub mod snapshot;
pub mod survey;
pub mod tar;
pub mod uploader;

pub use flush::{Flusher, SealedWindow};
pub use import::Imports;
pub use snapshot::{Snapshots, Taken};
pub use survey::Surveyor;
