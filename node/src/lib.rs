//! The running member of an Engram cluster: this crate puts all rooms together.
//!
//! Map: [`config`] and [`cli`] what a person may say · [`actor`] the actor kit · [`meta`] the agreed metadata ·
//! [`http`] the API · [`write`] and [`read`] the two paths · [`blocks`] snapshots · [`peer`] the way to a replica · [`grpc`] the door for
//! other nodes · [`members`] how nodes find each other · [`reconciler`] what the leader brings about · [`ingest`] the partitions of
//! this node · [`metrics`] and [`telemetry`] what is seen from outside · [`data_dir`] the directory and its lock ·
//! [`memory`] what is freed goes back · [`error`] from failure to code.
//!
//! [`Node::start`] is the only place that knows all of them; what of it a cluster needs is in `cluster`, what blocks need in
//! `shelves`, how the heads come back in `recovery`. Order of start: directory, ports, metadata, log, partitions,
//! paths; the HTTP port answers from the second step on and says what is missing; while the last entries of the log are
//! applied, partitions that are whole are served already. Order of stop: requests, partitions,
//! log, metadata: each may still use what comes after it.

pub mod actor;
pub mod blocks;
pub mod cli;
pub mod config;
pub mod data_dir;
pub mod error;
pub mod grpc;
pub mod http;
pub mod ingest;
pub mod members;
pub mod memory;
pub mod meta;
pub mod metrics;
pub mod peer;
pub mod read;
pub mod reconciler;
pub mod telemetry;
pub mod tls;
pub mod write;

mod assembly;
mod cluster;
mod recovery;
mod shelves;
mod status;

pub use assembly::{Node, StartError};
pub use error::Error;

pub use program::run;

mod program;
