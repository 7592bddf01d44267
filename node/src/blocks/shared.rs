//! Whether all nodes reach the place where blocks are.
//!
//! Why asked each time and not once: a node that started alone, with blocks in its own data directory, may be joined by
//! others, who cannot read what it puts there. From then on nothing more is put there: heads keep what they hold until
//! somebody names a store that all reach. What is shared in truth is seen when a replica looks for a block before it
//! forgets, see [`crate::ingest::follower`].

use crate::error::Error;
use crate::meta::Meta;
use crate::metrics::Reading;

/// Cheap to clone.
#[derive(Clone)]
pub struct Shared {
    meta: Meta,
    /// Whether somebody chose a place.
    is_chosen: bool,
}

impl Shared {
    /// `is_chosen`: the place is not the data directory of this node.
    #[must_use]
    pub fn new(meta: Meta, is_chosen: bool) -> Self {
        Self { meta, is_chosen }
    }

    /// Whether a block that is put by this node can be read by all.
    ///
    /// # Errors
    /// Unavailable, saying what to do.
    pub fn check(&self) -> Result<(), Error> {
        let nodes = self.meta.members().len();
        if self.is_chosen || nodes <= 1 {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "the cluster has {nodes} nodes and no object store that all of them reach, so no blocks are made and samples stay \
             in memory: set object-store.url on every node, to a bucket or to a directory they share (file:///path)"
        )))
    }

    /// For the node's telemetry.
    #[must_use]
    pub fn readings(&self) -> Vec<Reading> {
        let value = f64::from(u8::from(self.check().is_ok()));
        vec![Reading::gauge(
            "blocks_store_shared",
            "Whether all nodes reach the store of blocks; 0 needs a hand",
            value,
        )]
    }
}
