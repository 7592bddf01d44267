//! Blocks: immutable directories of one time range, in the format of Prometheus' TSDB, version 1.
//!
//! Why that format and not our own: `promtool`, Thanos, Cortex and Mimir read our buckets and we read theirs, so
//! moving in or out is no conversion. What is ours stands in sections of `meta.json` that the others pass over.
//!
//! ```text
//! 01ARZ3…/meta.json       what it is: range, counts, sources, Thanos' section, our digest
//! 01ARZ3…/index           symbols, series, posting lists
//! 01ARZ3…/chunks/000001   compressed samples, 512 MiB a file
//! 01ARZ3…/tombstones      deleted intervals; ours have none
//! ```
//!
//! A block is written under a temporary name, made durable, read back and recomputed, and only then renamed: what has
//! its final name is whole. `docs/formats/block.md` draws the bytes.
//!
//! Map: [`meta`] `meta.json` · `chunks` segment files · `tombstones` · [`writer`] series → directory · [`dir`] a block
//! on a disk · [`reader`] matchers → ranges wanted → series · [`verify`](mod@verify) everything recomputed · `walk` all series
//! of a block in order.

pub(crate) mod chunks;
pub mod dir;
pub mod meta;
pub mod reader;
mod tombstones;
pub mod verify;
pub(crate) mod walk;
pub mod writer;

pub use chunks::SEGMENT_BYTES_MAX;
pub use dir::{BlockDir, remove};
pub use engram_model::block::BlockId;
pub use meta::Meta;
pub use reader::{Block, BlockChunks, Found, LabelValues, Load, Open, Select};
pub use tombstones::Tombstones;
pub use verify::{Report, verify};
pub use writer::{BlockWriter, Spec, Written};
