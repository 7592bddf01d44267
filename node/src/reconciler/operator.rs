//! What operators ask of the cluster: how it is, what would happen if, and that it may.
//!
//! Any node answers: it asks all the others at once, so that what is shown is of now and not what the metadata
//! remembers. Answers are JSON; `docs/api.md` describes them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engram_model::place::{NodeId, majority};
use serde_json::{Value, json};

use super::round::{Held, ask_all};
use crate::error::Error;
use crate::members::call::Calls;
use crate::members::proto::Beating;
use crate::members::service::Door;
use crate::meta::Meta;
use crate::meta::nodes::{ClusterView, NodeState, Why};
use crate::meta::plans::{Margin, PlanName, Preview, Shard, What};

/// How long a change may take.
const APPLY_WITHIN: Duration = Duration::from_secs(10);

/// See the module's text. Cheap to clone.
#[derive(Clone)]
pub struct Operator {
    /// The metadata.
    pub meta: Meta,
    /// This node's own answer.
    pub door: Arc<Door>,
    /// Ways to the others.
    pub calls: Arc<Calls>,
    /// Replicas of each partition, unless the cluster has agreed on another number.
    pub replication_factor: usize,
}

/// All nodes' answers.
type Answers = BTreeMap<NodeId, Result<Beating, String>>;

impl Operator {
    /// What would happen.
    ///
    /// # Errors
    /// Conflict when it cannot be asked of the cluster as it is.
    pub async fn plan(&self, what: &What) -> Result<Value, Error> {
        let answers = ask_all(&self.meta, &self.door, &self.calls, true).await;
        let preview = self.meta.preview(what, self.replication_factor)?;
        Ok(plan_json(&preview, &self.meta.cluster(), &answers))
    }

    /// Has a plan happen, if nothing has changed since it was made.
    ///
    /// # Errors
    /// Conflict when something has; Invalid for what is no plan or only a question; what the group answers.
    pub async fn apply(&self, plan: &str) -> Result<Value, Error> {
        let name: PlanName = plan.parse().map_err(Error::invalid)?;
        self.meta.preview(&name.what, self.replication_factor)?;
        self.meta.apply_plan(&name, APPLY_WITHIN).await?;
        Ok(json!({ "plan": name.to_string(), "applied": true }))
    }

    /// How the cluster is now.
    pub async fn overview(&self) -> Value {
        let answers = ask_all(&self.meta, &self.door, &self.calls, true).await;
        let preview = self.meta.preview(&What::Rebalance, self.replication_factor);
        overview_json(self, &self.meta.cluster(), preview.ok().as_ref(), &answers)
    }

    /// The cluster as the metadata on this node has it.
    #[must_use]
    pub fn status(&self) -> Value {
        self.meta.status_json(self.replication_factor)
    }
}

fn held_of(answers: &Answers) -> Held {
    Held::of(answers.iter().filter_map(|(id, answer)| Some((*id, answer.as_ref().ok()?))))
}

fn ids(nodes: &[NodeId]) -> Vec<u64> {
    nodes.iter().map(|id| id.0).collect()
}

fn margin_json(margin: &Margin) -> Value {
    json!({ "withoutQuorum": margin.without_quorum, "nodes": margin.nodes, "zones": margin.zones, "short": margin.short })
}

fn why_word(why: Why) -> &'static str {
    match why {
        Why::Missing => "missing",
        Why::Leaving => "leaving",
        Why::Spread => "spread",
        Why::Surplus => "surplus",
        Why::Balance => "balance",
    }
}

fn plan_json(preview: &Preview, view: &ClusterView, answers: &Answers) -> Value {
    let held = held_of(answers);
    let mut bytes_to: BTreeMap<NodeId, u64> = BTreeMap::new();
    let (mut copies, mut bytes, mut samples) = (0_u64, 0_u64, 0_u64);
    let moves: Vec<Value> = preview
        .changes
        .iter()
        .map(|change| {
            let size = held.fullest(change.partition, &change.from);
            for node in change.comes() {
                *bytes_to.entry(node).or_default() += size.bytes;
                copies += 1;
                bytes += size.bytes;
                samples += size.samples;
            }
            json!({ "partition": change.partition.0, "why": why_word(change.why), "from": ids(&change.from),
                    "to": ids(&change.to), "comes": change.comes().map(|id| id.0).collect::<Vec<_>>(),
                    "bytes": size.bytes, "samples": size.samples })
        })
        .collect();
    let nodes: Vec<Value> = preview
        .nodes
        .iter()
        .map(|load| {
            json!({ "id": load.id.0, "zone": load.zone.0, "new": load.is_new, "before": load.before,
                    "after": load.after, "comes": load.comes, "bytes": bytes_to.get(&load.id).copied().unwrap_or(0) })
        })
        .collect();
    let silent: Vec<u64> = answers.iter().filter(|(_, answer)| answer.is_err()).map(|(id, _)| id.0).collect();
    let answers_now = |id: &&NodeId| answers.get(id).is_some_and(Result::is_ok) && !preview.lost.contains(id);
    let left = view.voters.iter().filter(answers_now).count();
    let has_quorum = left >= majority(view.voters.len());
    let is_question =
        matches!(preview.name.what, What::Rebalance | What::LoseNode(_) | What::LoseZone(_) | What::AddNodes(..));
    json!({
        "plan": preview.name.to_string(), "what": preview.name.what.to_string(), "ring": preview.name.ring,
        "applicable": !is_question, "replicationFactor": preview.replication_factor,
        "tenant": preview.shard.as_ref().map(shard_json),
        "moves": moves, "copies": copies, "bytes": bytes, "samples": samples, "nodes": nodes, "silent": silent,
        "quorum": { "now": margin_json(&preview.now), "during": margin_json(&preview.during), "after": margin_json(&preview.after) },
        "metadata": { "voters": view.voters.len(), "left": left, "hasQuorum": has_quorum },
        "warnings": warnings(preview, view, (&silent, has_quorum)),
    })
}

#[allow(clippy::cast_precision_loss, reason = "a number in thousandths")]
fn shard_json(shard: &Shard) -> Value {
    json!({ "name": shard.tenant.as_str(), "before": shard.before, "after": shard.after, "read": shard.read,
            "seriesShare": shard.series_permille as f64 / 1000.0 })
}

/// What a person should know before they go on.
fn warnings(preview: &Preview, view: &ClusterView, (silent, has_quorum): (&[u64], bool)) -> Vec<String> {
    let mut all = Vec::new();
    let (now, during, after) = (&preview.now, &preview.during, &preview.after);
    if during.without_quorum > 0 {
        all.push(format!(
            "{} partitions have no majority: writes and queries of them are answered 503 until enough of their nodes are back",
            during.without_quorum
        ));
    }
    if !has_quorum {
        all.push("the metadata group has no majority: nothing is placed elsewhere until it has one".to_owned());
    }
    if during.without_quorum == 0 && during.nodes == 0 && now.nodes > 0 {
        all.push("until the copies are made, no further node may fail".to_owned());
    }
    if after.short > 0 {
        let (short, factor) = (after.short, preview.replication_factor);
        all.push(format!("{short} partitions stay below {factor} replicas: there are not enough nodes"));
    }
    if after.zones < now.zones {
        all.push(format!("afterwards {} zones may fail, now {} may", after.zones, now.zones));
    }
    if !silent.is_empty() {
        let silent: Vec<String> = silent.iter().map(u64::to_string).collect();
        all.push(format!("no answer from node {}: what it holds is not counted", silent.join(", ")));
    }
    let moving = view.partitions.iter().filter(|placed| placed.next.is_some()).count();
    if moving > 0 {
        all.push(format!("{moving} partitions are being moved now, which is counted as done"));
    }
    all
}

fn overview_json(operator: &Operator, view: &ClusterView, preview: Option<&Preview>, answers: &Answers) -> Value {
    let (held, status) = (held_of(answers), operator.status());
    let leader = status["raft"]["leader"].as_u64();
    let of_leader = leader.and_then(|id| answers.get(&NodeId(id))).and_then(|answer| answer.as_ref().ok());
    let backfill = of_leader.and_then(|beating| beating.backfill.as_ref()).map(|left| {
        json!({ "copies": left.copies, "bytesLeft": left.bytes_left,
                "secondsLeft": (left.seconds_left >= 0.0).then_some(left.seconds_left.ceil()) })
    });
    let newest = answers.values().flatten().map(|beating| beating.applied).max().unwrap_or(0);
    let mut replicas: BTreeMap<NodeId, u64> = BTreeMap::new();
    view.partitions.iter().flat_map(|p| &p.current.replicas).for_each(|id| *replicas.entry(*id).or_default() += 1);
    let living = || view.members.iter().filter(|member| member.state != NodeState::Dead);
    let nodes: Vec<Value> = living()
        .map(|member| {
            let (size, answer) = (held.node(member.id), answers.get(&member.id));
            let beating = answer.and_then(|answer| answer.as_ref().ok());
            json!({
                "id": member.id.0, "zone": member.spec.zone, "state": member.state.to_string(),
                "version": member.spec.version, "http": member.spec.http, "grpc": member.spec.grpc,
                "answers": beating.is_some(), "ready": beating.is_some_and(|b| b.ready),
                "why": answer.and_then(|answer| answer.as_ref().err()),
                "behind": beating.map(|b| newest.saturating_sub(b.applied)),
                "life": beating.map(|b| format!("{:016x}", b.life)),
                "voter": view.voters.contains(&member.id), "leads": leader == Some(member.id.0),
                "replicas": replicas.get(&member.id).copied().unwrap_or(0),
                "samples": size.samples, "bytes": size.bytes,
            })
        })
        .collect();
    let moving = view.partitions.iter().filter(|placed| placed.next.is_some()).count();
    let problems = problems(view, preview, leader, answers);
    json!({
        "cluster": operator.meta.cluster_id(), "node": operator.meta.node_id().0, "leader": leader, "term": status["raft"]["term"],
        "applied": view.applied, "ring": status["ring"], "nodes": nodes, "partitions": view.partitions.len(),
        "underReplicated": status["underReplicated"], "moving": moving,
        "pending": preview.map_or(0, |preview| preview.changes.len()),
        "quorum": preview.map(|preview| margin_json(&preview.now)),
        "backfill": backfill, "healthy": problems.is_empty(), "problems": problems,
    })
}

/// Why the cluster is not as it should be; nothing when it is.
fn problems(view: &ClusterView, preview: Option<&Preview>, leader: Option<u64>, answers: &Answers) -> Vec<String> {
    let mut all = Vec::new();
    if leader.is_none() {
        all.push("the metadata group has no leader".to_owned());
    }
    for member in view.members.iter().filter(|member| member.state != NodeState::Dead) {
        let id = member.id.0;
        match answers.get(&member.id) {
            Some(Ok(beating)) if beating.ready => {}
            Some(Ok(_)) => all.push(format!("node {id} is not ready")),
            Some(Err(why)) => all.push(format!("node {id} does not answer: {why}")),
            None => all.push(format!("node {id} was not asked")),
        }
        if matches!(member.state, NodeState::Joining | NodeState::Suspect) {
            all.push(format!("node {id} is {}", member.state));
        }
    }
    let moving = view.partitions.iter().filter(|placed| placed.next.is_some()).count();
    if moving > 0 {
        all.push(format!("{moving} partitions are being moved"));
    }
    if let Some(preview) = preview {
        if preview.now.without_quorum > 0 {
            all.push(format!("{} partitions have no majority", preview.now.without_quorum));
        }
        if !preview.changes.is_empty() {
            all.push(format!("{} partitions are to be moved", preview.changes.len()));
        } else if preview.now.short > 0 && preview.after.short < preview.now.short {
            all.push(format!("{} partitions are under-replicated", preview.now.short));
        }
    }
    all
}
