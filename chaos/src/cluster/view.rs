//! What the cluster says of itself, and asking it to change.

use super::{ASK_WITHIN, Cluster, REPLICAS};
use crate::client::Client;
use crate::error::Error;
use engram_model::time::{Clock, Stopwatch};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

impl Cluster {
    /// What a node says of the cluster.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) async fn status(&self, index: usize) -> Result<Value, Error> {
        Ok(self.asker(index)?.ask("cluster/status", &[], None).await?["data"].take())
    }

    /// How many milliseconds a node's clock is ahead of ours, as far as its answers tell; `None`: it did not answer.
    pub(crate) async fn clock_off(&self, index: usize) -> Option<f64> {
        let asker = self.asker(index).ok()?;
        let (before, watch) = (Clock::real().now(), Stopwatch::start());
        let answer = asker.ask("query", &[("query", "time()".to_owned())], None).await.ok()?;
        let told: f64 = answer["data"]["result"][1].as_str()?.parse().ok()?;
        #[allow(clippy::cast_precision_loss, reason = "milliseconds of this age, far below 2^53")]
        let ours = before as f64 + watch.elapsed().as_secs_f64() * 500.0;
        Some(told * 1000.0 - ours)
    }

    fn asker(&self, index: usize) -> Result<Client, Error> {
        let root = format!("http://{}", self.nodes[index].http);
        Client::new(&format!("{root}/api/v1/push"), &root, ASK_WITHIN)
    }

    /// The node that leads the metadata group, as any running node knows it.
    pub(crate) async fn leader(&self) -> Option<usize> {
        for node in self.running() {
            let Ok(status) = self.status(node).await else { continue };
            if let Some(leader) = self.index_of(&status, &status["raft"]["leader"]) {
                return Some(leader);
            }
        }
        None
    }

    fn index_of(&self, status: &Value, id: &Value) -> Option<usize> {
        let row = status["nodes"].as_array()?.iter().find(|row| row["id"] == *id)?;
        let address = row["grpc"].as_str()?;
        self.nodes.iter().position(|node| node.advertised().to_string() == address)
    }

    /// The id the cluster has given a node.
    pub(crate) fn id_of(&self, status: &Value, index: usize) -> Option<u64> {
        let address = self.nodes[index].advertised().to_string();
        let row =
            status["nodes"].as_array()?.iter().find(|row| row["grpc"] == address.as_str() && row["state"] != "dead");
        row?["id"].as_u64()
    }

    /// Has the cluster do something with a node, asked at another.
    ///
    /// # Errors
    /// It was refused, with why.
    pub(crate) async fn steer(&self, at: usize, id: u64, act: &str) -> Result<(), Error> {
        self.asker(at)?.post(&format!("cluster/nodes/{id}/{act}")).await
    }

    /// The nodes of each partition, those it has and those it is about to have, as the node `at` knows it.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) async fn replicas(&self, at: usize) -> Result<Vec<Vec<usize>>, Error> {
        let status = self.status(at).await?;
        let of = |row: &Value, name: &str| {
            let ids = row[name].as_array().into_iter().flatten();
            ids.filter_map(|id| self.index_of(&status, id)).collect::<Vec<_>>()
        };
        let rows = status["partitions"].as_array().into_iter().flatten();
        Ok(rows.map(|row| [of(row, "replicas"), of(row, "next")].concat()).collect())
    }

    /// Whether the others miss these nodes, at the latest after `within`.
    pub(crate) async fn lost(&self, nodes: &[usize], within: Duration) -> bool {
        let watch = Stopwatch::start();
        let Some(at) = self.running().into_iter().find(|node| !nodes.contains(node)) else { return false };
        while watch.elapsed() < within {
            if let Ok(status) = self.status(at).await {
                let rows = status["nodes"].as_array().into_iter().flatten();
                let active = rows.filter(|row| row["state"] == "active");
                let all: BTreeSet<usize> = active.filter_map(|row| self.index_of(&status, &row["id"])).collect();
                if !nodes.iter().any(|node| all.contains(node)) {
                    return true;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        false
    }

    /// Waits until every listed node sees all of them active, all partitions whole and nothing moving.
    ///
    /// # Errors
    /// It is not so in time; what is missing is told.
    pub(crate) async fn whole(&mut self, within: Duration) -> Result<Duration, Error> {
        let (watch, wanted) = (Stopwatch::start(), self.roster.listed());
        if self.spec.peer.is_some() {
            // What it says of itself is not known here; ready is what can be asked.
            for node in wanted {
                self.ready(node).await?;
            }
            return Ok(watch.elapsed());
        }
        let mut missing = String::new();
        'look: while watch.elapsed() < within {
            for node in &wanted {
                self.alive(*node)?;
                if let Err(why) = self.sees_all(*node, &wanted).await {
                    missing = format!("node {node}: {why}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue 'look;
                }
            }
            return Ok(watch.elapsed());
        }
        Err(Error::Usage(format!("the cluster is not whole after {} s: {missing}", within.as_secs())))
    }

    async fn sees_all(&self, node: usize, wanted: &[usize]) -> Result<(), String> {
        let status = self.status(node).await.map_err(|e| e.to_string())?;
        let number = |name: &str| status[name].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(1_000_000);
        let active: BTreeSet<usize> = status["nodes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|row| (row["state"] == "active").then(|| self.index_of(&status, &row["id"])).flatten())
            .collect();
        let absent: Vec<_> = wanted.iter().filter(|node| !active.contains(node)).collect();
        let partitions = status["partitions"].as_array().map_or(&[][..], Vec::as_slice);
        // Counted here: `underReplicated` compares partitions with each other, and is 0 when all have one replica.
        let few = REPLICAS.min(wanted.len());
        let short =
            partitions.iter().filter(|row| row["replicas"].as_array().is_none_or(|all| all.len() < few)).count();
        let (under, moving, leader) = (number("underReplicated"), number("moving"), status["raft"]["leader"].as_u64());
        if !absent.is_empty() || partitions.is_empty() || short + under + moving > 0 || leader.is_none() {
            return Err(format!(
                "not active: {absent:?}; short of replicas: {short} and {under} of {}, moving: {moving}; leader {leader:?}",
                partitions.len()
            ));
        }
        Ok(())
    }
}
