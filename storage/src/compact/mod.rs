//! Compaction: many small blocks become few large ones, and no sample is lost or made on the way.
//!
//! Why: a window is cut once per partition, so a day of one tenant is hundreds of blocks; a query opens each, and each
//! has an index of its own. Larger blocks cost fewer requests and fewer bytes. Late samples come in blocks that overlap
//! older ones; merging them takes the doubles away.
//!
//! ```text
//! BlockMetas ── plan (pure) ──> jobs ── merge (reads and writes block directories) ──> verified blocks + what it dropped
//! ```
//!
//! The law that holds at the end of each merge, checked before anything is handed out: the digests of the results, of
//! the doubles that were dropped and of the deleted samples that were taken out sum to the digests of the sources.
//!
//! Map: [`plan`](mod@plan) which blocks next · [`merge`](mod@merge) many block directories → one or several ·
//! `series` the chunks of one series from several blocks → one list · `cursor` the series of a block, in order.

mod cursor;
pub mod merge;
pub mod plan;
mod series;

pub use cursor::{At, Cursor};
pub use merge::{Failure, Hidden, Input, Merged, Progress, Target, Task, merge};
pub use plan::{Facts, Job, JobKind, Order, Output, Rules, plan};
