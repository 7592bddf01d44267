//! How nodes find each other, become members of one cluster, and say that they are there.
//!
//! Why beside the metadata: a node that has no cluster yet has no metadata to ask, and the leader's look at a node
//! must not depend on the node's log. Everything said carries a version, a cluster and a clock; who differs is refused
//! with words that both sides log.
//!
//! ```text
//! no data, no seeds ────────────────────────────────→ founds a cluster of one
//! no data, seeds ─→ Meet every seed ─ a member answers → Join → learner → active
//!                      └ enough without a cluster see each other → the lowest address asks for promises → founds
//! data ─→ opens its metadata; tells the others its address until they know it
//! ```
//! Map: [`identity`] what a node remembers of itself · [`join`] finding and founding · [`service`] the answering side ·
//! [`call`] the asking side · [`sizes`] what is held. Why two clusters cannot be made: `docs/decisions` on founding.

pub mod call;
pub mod identity;
pub mod join;
pub mod service;
pub mod sizes;

/// The stubs of `proto/cluster.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    clippy::missing_errors_doc,
    reason = "generated"
)]
pub(crate) mod proto {
    tonic::include_proto!("engram.cluster.v1");
}

/// Version of all that nodes say to each other. Nodes of different ones do not talk.
pub const PROTOCOL: u32 = 1;

/// What this node tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// What fails together with it.
    pub zone: String,
    /// Where others reach its gRPC port.
    pub grpc: String,
    /// Where its HTTP port is reached.
    pub http: String,
    /// Where it keeps blocks, in words that nodes of one cluster share.
    pub store: String,
}

impl About {
    /// As the metadata holds it.
    #[must_use]
    pub fn spec(&self) -> crate::meta::nodes::NodeSpec {
        crate::meta::nodes::NodeSpec {
            zone: self.zone.clone(),
            grpc: self.grpc.clone(),
            http: self.http.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn hello(&self, identity: &identity::Identity, clock_ms: i64) -> proto::Hello {
        proto::Hello {
            protocol: PROTOCOL,
            token: identity.token.clone(),
            cluster: identity.cluster.clone().unwrap_or_default(),
            clock_ms,
            zone: self.zone.clone(),
            grpc: self.grpc.clone(),
            http: self.http.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: identity.node.unwrap_or(0),
            store: self.store.clone(),
        }
    }
}
