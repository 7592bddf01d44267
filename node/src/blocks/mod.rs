//! Blocks: what a tenant has, as immutable directories that any tool of Prometheus reads.
//!
//! Why: the heads and the log are our own formats and belong to a running node; a block needs neither. It can be
//! copied, kept, checked and read without Engram.
//!
//! Map: [`reach`] whether blocks may be made here at all · [`sealer`] when a window has ended, [`flush`] because somebody
//! says so · [`cutter`] seals → blocks: [`parts`] what replicas set aside, [`build`] → a verified directory, [`uploader`] → objects
//! and what is agreed of them, [`late`] what a cut lacked · [`compactor`] many small
//! blocks become few large ones: [`planning`] which, [`job`] one of them, [`fetch`] its sources · [`sweeper`] takes away
//! what is old, replaced or orphaned · [`heads`] what heads still hold · [`orphans`] what nobody knows, for a person
//! to judge · [`catalog`] what a person may ask of blocks · [`keeping`] compaction and sweeping put together from a node's options · [`snapshot`] all of a tenant at one moment →
//! verified blocks below the data directory · [`import`] blocks of other systems, [`tar`] how they come · [`check`] one
//! block against the metadata, [`survey`] all of them · [`scrubber`] all of them for ever, [`repair`] a damaged one.
//!
//! Samples come through the port of replicas, as queries have them: this room knows no head and no log.

pub mod build;
pub mod catalog;
pub mod check;
pub mod compactor;
pub mod cutter;
pub mod fetch;
pub mod flush;
pub mod heads;
pub mod import;
pub mod job;
pub mod keeping;
pub mod late;
pub mod orphans;
pub mod parts;
pub mod planning;
pub mod reach;
pub mod repair;
pub mod scrubber;
pub mod sealer;
pub mod snapshot;
pub mod survey;
pub mod sweeper;
pub mod tar;
pub mod uploader;

pub use flush::{Flusher, SealedWindow};
pub use import::Imports;
pub use snapshot::{Snapshots, Taken};
pub use survey::Surveyor;
