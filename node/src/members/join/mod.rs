//! A node without data finds its cluster, or makes it with others.
//!
//! Why no two clusters can come of one set of seeds: a founder needs the durable promises of `expect` nodes that are
//! listed among the seeds (its own is one of them), each node promises once, and `expect` is more than half of the
//! seeds; so of two founders one misses a promise. Who asks for them is the listed node with the lowest address among
//! those that see each other: not needed for safety, it only spares quarrels. A founder that does not get them takes
//! its promise to itself back (it has not made anything) and looks again.
//!
//! A promise outlives a crash of either side. If the founder's disk is lost before anybody joined, the others wait for
//! it: then remove `member.json` of nodes that have no cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engram_model::place::NodeId;
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use super::call::Calls;
use super::proto::Hello;
use super::service::Door;
use crate::actor::{ChildError, ChildSpec, Condition, RestartLimit};
use crate::meta::Meta;
use crate::meta::nodes::NodeState;

/// How long one question may take.
const ASK_WITHIN: Duration = Duration::from_secs(3);
/// How long a registration may take.
const JOIN_WITHIN: Duration = Duration::from_secs(12);
/// Between two looks around.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks after which a person is told what is missing; then each time again.
const TELL_EVERY: u32 = 20;
/// Between two looks whether the others know where this node is.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// No leader heard for this long: the others are asked whether this node still belongs to them.
const ASK_AFTER: Duration = Duration::from_secs(5);
/// No leader heard for this long: this node is not ready, what it knows of the cluster may be old.
const NOT_READY_AFTER: Duration = Duration::from_secs(15);
/// The part of the node's health that says whether there is a leader.
const LEADER_PART: &str = "node/leader";

/// How a node comes to be in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// It makes it.
    Found {
        /// Its name.
        cluster: String,
    },
    /// It was let in.
    Member {
        /// Its name.
        cluster: String,
        /// The node's id.
        id: NodeId,
    },
}

/// What the options say.
#[derive(Clone, Debug)]
pub struct Seeds {
    /// Where to ask.
    pub addresses: Vec<String>,
    /// How many must see each other before a cluster is made; 0: none is made.
    pub expect: usize,
}

/// Decides how this node starts; asks the seeds until that is known. `has_metadata`: there is data already.
///
/// # Errors
/// What a person must mend: a refusal, or the disk.
pub async fn start(door: &Door, calls: &Calls, seeds: &Seeds, has_metadata: bool) -> Result<Start, String> {
    let identity = door.identity.get();
    if identity.opened && !has_metadata {
        let (node, cluster) = (identity.node.unwrap_or(0), identity.cluster.unwrap_or_default());
        return Err(format!(
            "the metadata of this node (node {node} of cluster {cluster}) is gone from its data directory: blank it must not vote again under its old id, the cluster could lose what it has agreed; put the directory meta back, or remove the node (engram cluster remove {node}) and its whole data directory, then it joins as a new node"
        ));
    }
    if has_metadata || identity.cluster.is_some() {
        let cluster = identity.cluster.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        return Ok(match identity.node {
            Some(id) => Start::Member { cluster, id: NodeId(id) },
            None => Start::Found { cluster },
        });
    }
    if seeds.addresses.is_empty() {
        return found(door);
    }
    let mut looks = 0_u32;
    loop {
        let seen = look(door, calls, seeds).await?;
        if let Some(address) = &seen.member {
            match join(door, calls, address).await {
                Ok(start) => return Ok(start),
                Err(why) => tracing::warn!(address, why, "joining is tried again"),
            }
        } else if seeds.expect > 0
            && seen.candidates.len() >= seeds.expect
            && seen.candidates.first_key_value().is_some_and(|(_, (token, _))| *token == identity.token)
        {
            let others = seen.candidates.values().filter(|(token, _)| *token != identity.token);
            let others: Vec<String> = others.map(|(_, address)| address.clone()).collect();
            if promised(door, calls, &others, seeds.expect).await? {
                return found(door);
            }
        }
        looks += 1;
        if looks.is_multiple_of(TELL_EVERY) {
            let (found, expect) = (seen.candidates.len(), seeds.expect);
            tracing::info!(found, expect, why = seen.silent.join("; "), "no cluster yet, still looking");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What one look around has found.
struct Seen {
    /// A seed that belongs to a cluster.
    member: Option<String>,
    /// Seeds without a cluster by the address they tell: token, and the address they were asked at.
    candidates: BTreeMap<String, (String, String)>,
    /// Seeds that did not answer, with why.
    silent: Vec<String>,
}

async fn look(door: &Door, calls: &Calls, seeds: &Seeds) -> Result<Seen, String> {
    let hello = || door.about.hello(&door.identity.get(), door.clock.now());
    let asked = seeds.addresses.iter().map(|a| async { (a.clone(), calls.meet(a, hello(), ASK_WITHIN).await) });
    let mut seen = Seen { member: None, candidates: BTreeMap::new(), silent: Vec::new() };
    for (address, answer) in futures::future::join_all(asked).await {
        match answer {
            Ok(welcome) if !welcome.refusal.is_empty() => return Err(welcome.refusal),
            Ok(welcome) if !welcome.cluster.is_empty() => seen.member = seen.member.or(Some(address)),
            Ok(welcome) => {
                seen.candidates.insert(welcome.grpc, (welcome.token, address));
            }
            Err(why) => seen.silent.push(why),
        }
    }
    Ok(seen)
}

/// Asks for promises, this node's own first.
async fn promised(door: &Door, calls: &Calls, others: &[String], expect: usize) -> Result<bool, String> {
    let hello: Hello = door.about.hello(&door.identity.get(), door.clock.now());
    let own = door.promise(&hello);
    if !own.given {
        tracing::info!(why = own.why, "this node makes no cluster");
        return Ok(false);
    }
    let mut given = 1;
    for address in others {
        match calls.promise(address, hello.clone(), ASK_WITHIN).await {
            Ok(promise) if promise.given => given += 1,
            Ok(promise) => tracing::info!(address, why = promise.why, "no promise"),
            Err(why) => tracing::info!(why, "no promise"),
        }
    }
    if given >= expect {
        return Ok(true);
    }
    door.identity.change(|identity| identity.promised = None)?;
    Ok(false)
}

fn found(door: &Door) -> Result<Start, String> {
    let cluster = uuid::Uuid::new_v4().to_string();
    door.identity.change(|identity| identity.cluster = Some(cluster.clone()))?;
    tracing::info!(cluster, "a new cluster is made");
    Ok(Start::Found { cluster })
}

async fn join(door: &Door, calls: &Calls, address: &str) -> Result<Start, String> {
    let hello = door.about.hello(&door.identity.get(), door.clock.now());
    let admission = calls.join(address, hello, JOIN_WITHIN).await?;
    if !admission.refusal.is_empty() {
        return Err(admission.refusal);
    }
    let (cluster, id) = (admission.cluster, NodeId(admission.node));
    door.identity.change(|identity| {
        identity.cluster = Some(cluster.clone());
        identity.node = Some(id.0);
    })?;
    tracing::info!(cluster, node = id.0, "joined the cluster");
    Ok(Start::Member { cluster, id })
}

/// What [`child`] works with.
#[derive(Clone)]
pub struct Telling {
    /// What this node tells of itself.
    pub door: Arc<Door>,
    /// Who may be asked besides those that the metadata knows.
    pub seeds: Seeds,
    /// Whom the metadata knows.
    pub meta: Meta,
    /// Ends the actor.
    pub stop: CancellationToken,
}

/// The child that tells others where this node is now until its own metadata shows it: a leader that has only the old
/// address cannot bring it anything. Also the one that ends a node that was declared dead: nobody brings that news to
/// it, its own metadata stays as it was, so it asks when it starts and whenever no leader is heard.
#[must_use]
pub fn child(config: Telling) -> ChildSpec {
    ChildSpec {
        name: "member".to_owned(),
        limit: RestartLimit { failures_max: 0, ..RestartLimit::default() },
        essential: true,
        start: Box::new(move || tell(config.clone()).boxed()),
    }
}

async fn tell(config: Telling) -> Result<(), ChildError> {
    let (me, spec, calls) = (config.meta.node_id(), config.door.about.spec(), Calls::new(&config.door.tls));
    config.door.heard.now();
    let mut turn = 0;
    loop {
        let row = config.meta.member(me);
        if row.as_ref().is_some_and(|row| row.state == NodeState::Dead) {
            return Err(format!(
                "node {} was declared dead, what it held is held elsewhere: remove its data directory, then it joins as a new node",
                me.0
            )
            .into());
        }
        let silent = config.door.heard.since();
        config.door.health.set(LEADER_PART, leader(silent));
        if turn == 0 || silent >= ASK_AFTER || row.is_none_or(|row| row.spec != spec) {
            tokio::select! {
                told = tell_once(&config, &calls, turn) => told?,
                () = config.stop.cancelled() => return Ok(()),
            }
            turn += 1;
        }
        tokio::select! {
            () = config.meta.next_change(TELL_AGAIN_AFTER) => {}
            () = config.stop.cancelled() => return Ok(()),
        }
    }
}

/// What a silence of the leader means for this node.
fn leader(silent: Duration) -> Condition {
    if silent < NOT_READY_AFTER {
        return Condition::Running;
    }
    Condition::Starting("no leader of the cluster is heard: it has none, or this node is cut off".to_owned())
}

/// Tells one of the others, beginning with another one each turn: who answers may be cut off as well.
async fn tell_once(config: &Telling, calls: &Calls, turn: usize) -> Result<(), ChildError> {
    let me = config.meta.node_id();
    let known = config.meta.members().into_iter().filter(|row| row.id != me && row.state != NodeState::Dead);
    let mut others: Vec<String> =
        known.map(|row| row.spec.grpc).chain(config.seeds.addresses.iter().cloned()).collect();
    others.retain(|address| *address != config.door.about.grpc);
    others.dedup();
    let first = turn % others.len().max(1);
    others.rotate_left(first);
    Ok(tell_first(&config.door, calls, &others).await?)
}

/// Tells the seeds again and again where this node is, until it is told that it was declared dead, which is answered.
/// For a node whose metadata is not there yet: the leader may know an old address only.
pub async fn tell_seeds(door: &Door, calls: &Calls, seeds: &Seeds) -> String {
    let mut others = seeds.addresses.clone();
    others.retain(|address| *address != door.about.grpc);
    loop {
        tokio::time::sleep(TELL_AGAIN_AFTER).await;
        if let Err(dead) = tell_first(door, calls, &others).await {
            return dead;
        }
        let first = 1 % others.len().max(1);
        others.rotate_left(first);
    }
}

/// Tells the first of the others that takes it where this node is.
///
/// # Errors
/// This node was declared dead.
async fn tell_first(door: &Door, calls: &Calls, others: &[String]) -> Result<(), String> {
    for address in others {
        let hello = door.about.hello(&door.identity.get(), door.clock.now());
        match calls.join(address, hello, JOIN_WITHIN).await {
            Ok(admission) if admission.refusal.is_empty() => return Ok(()),
            Ok(admission) if admission.refusal.contains("was declared dead") => return Err(admission.refusal),
            Ok(admission) => tracing::warn!(address, why = admission.refusal, "this node's address is not taken"),
            Err(why) => tracing::debug!(why, "this node's address is not told"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
