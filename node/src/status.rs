//! What the API may tell about the node and its cluster: the port [`http::port::Node`] over the rooms behind it.

use std::sync::Arc;
use std::time::Duration;

use engram_model::place::NodeId;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::actor::Health;
use crate::cluster;
use crate::config::Config;
use crate::http;
use crate::ingest::LocalReplica;
use crate::ingest::own::Own;
use crate::members::service::Door;
use crate::meta::Meta;
use crate::meta::nodes::Steer;
use crate::meta::plans::What;
use crate::metrics::Metrics;
use crate::reconciler::Operator;

/// How long a change of a node's state may take.
const STEER_WITHIN: Duration = Duration::from_secs(10);
/// How long the metadata may take to confirm that what is backed up is the newest.
const BACKUP_WITHIN: Duration = Duration::from_secs(10);

/// What the API may tell about the node.
pub(crate) struct Status {
    pub(crate) meta: Meta,
    operator: Operator,
    own: Own,
    metrics: Metrics,
    health: Health,
}

impl Status {
    pub(crate) fn new(
        config: &Config,
        (meta, door): (Meta, &Arc<Door>),
        (local, metrics): (LocalReplica, Metrics),
        health: &Health,
    ) -> Self {
        let operator = cluster::operator(config, &meta, door, &metrics);
        let own = Own { local, meta: meta.clone(), complete: door.complete.clone() };
        Self { meta, operator, own, metrics, health: health.clone() }
    }
}

impl http::port::Node for Status {
    fn parts(&self) -> Vec<http::port::Part> {
        http::parts(&self.health)
    }

    fn cluster_json(&self) -> String {
        self.operator.status().to_string()
    }

    fn metrics_text(&self) -> String {
        self.metrics.encode()
    }

    fn steer(&self, node: NodeId, act: Steer) -> BoxFuture<'_, Result<(), crate::error::Error>> {
        self.meta.steer(node, act, STEER_WITHIN).boxed()
    }

    fn plan(&self, what: What) -> BoxFuture<'_, Result<serde_json::Value, crate::error::Error>> {
        async move { self.operator.plan(&what).await }.boxed()
    }

    fn apply(&self, plan: String) -> BoxFuture<'_, Result<serde_json::Value, crate::error::Error>> {
        async move { self.operator.apply(&plan).await }.boxed()
    }

    fn backup(&self) -> BoxFuture<'_, Result<std::fs::File, crate::error::Error>> {
        self.meta.backup(BACKUP_WITHIN).boxed()
    }

    fn replicas(&self, asked: http::port::OwnAsked) -> BoxFuture<'_, Result<serde_json::Value, crate::error::Error>> {
        async move { self.own.json(asked.tenant, asked.partition, asked.slots).await }.boxed()
    }

    fn overview(&self) -> BoxFuture<'_, serde_json::Value> {
        self.operator.overview().boxed()
    }
}
