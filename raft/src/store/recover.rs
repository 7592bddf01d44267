//! Recovery of a group whose majority is gone for good: a survivor's own store is rewritten so that it votes alone.
//!
//! Why: without a majority nothing can be agreed, not even that the lost nodes are lost. That is right as long as one of
//! them may come back, and only a person can know that none will. So this is done by hand, offline, on one survivor,
//! and names who is lost.
//!
//! The same where the voters are a majority still, and the replicas of a partition are not: neither reads nor writes of it
//! can be answered, and nobody is declared dead who may be needed. So it is with the second of two nodes, which has no vote.
//!
//! Two entries are put at the end of the survivor's log, in one write, under a term nobody has used: the membership, of
//! which it is the only voter, and [`Command::TakeOver`], which says that the lost ones are dead and takes them out of
//! every replica set. Both are entries like any other: whoever joins later gets them with the log or a snapshot.
//!
//! What was in the log without being known as committed becomes so: the lost majority may have answered it. What it
//! answered and this node never got is lost; of several survivors the one with the longest log is to be taken.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use engram_model::place::{NodeId, Sets, majority};
use openraft::entry::RaftEntry;
use openraft::type_config::alias::{EntryOf, LeaderIdOf, VoteOf};
use openraft::vote::RaftLeaderId;
use openraft::{BasicNode, EntryPayload, Membership};

use super::machine::Applied;
use super::{Db, LOG, LogId, Machine, RAFT, SnapshotDir, log};
use crate::codec;
use crate::command::{Command, Envelope};
use crate::error::Error;
use crate::group::{Identity, TypeConfig};
use crate::state::{NodeState, View};

type Members = Membership<u64, BasicNode>;

/// What a data directory holds of its group.
#[derive(Clone, Debug)]
pub struct Survivor {
    /// The node whose directory it is.
    pub id: NodeId,
    /// The cluster's name.
    pub cluster: String,
    /// Term of the last entry of its log, then its index: of several survivors the greatest has the most.
    pub last: (u64, u64),
    /// Last entry that is applied.
    pub applied: u64,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Everybody ever admitted: state and address.
    pub nodes: BTreeMap<NodeId, (NodeState, String)>,
    /// Partitions of which it holds no replica.
    pub foreign: usize,
}

/// An open store and what is in it.
struct Open {
    db: Arc<Db>,
    members: Members,
    last: LogId,
    view: Arc<View>,
    about: Survivor,
}

/// Looks into the metadata of a node that does not run.
///
/// # Errors
/// There is no metadata in `dir`, or it is damaged.
pub fn look(dir: &Path) -> Result<Survivor, Error> {
    Ok(open(dir)?.about)
}

/// Makes the node in `dir` the only voter and declares `lost` dead. What it was asked of is in the answer, as it was before.
///
/// # Errors
/// [`Error::Settings`], and nothing is changed: `cluster` is not the cluster's name, `lost` names this node, somebody unknown
/// or too few, so that the rest is still a majority. Else as [`look`].
pub fn take_over(dir: &Path, lost: &BTreeSet<NodeId>, cluster: &str) -> Result<Survivor, Error> {
    let Open { db, members, last, view, about } = open(dir)?;
    let stuck = view.partitions.iter().filter(|(_, row)| {
        let sets = Sets::new(&row.current.replicas, row.next.as_deref());
        let left: Vec<NodeId> = sets.nodes().filter(|node| !lost.contains(node)).collect();
        !sets.have_majority(&left)
    });
    check(&about, (&members, stuck.count()), lost, cluster)?;
    let term = db.raft_get::<VoteOf<TypeConfig>>("vote")?.map_or(0, |vote| vote.leader_id.term()).max(about.last.0);
    let leader = LeaderIdOf::<TypeConfig>::new(term.saturating_add(1), about.id.0);
    let at = |after: u64| LogId { leader_id: leader.to_committed(), index: last.index.saturating_add(after) };
    let stay = members.nodes().filter(|(id, _)| !lost.contains(&NodeId(**id)));
    let mut nodes: BTreeMap<u64, BasicNode> = stay.map(|(id, node)| (*id, node.clone())).collect();
    let address = about.nodes.get(&about.id).map(|(_, address)| address.clone()).unwrap_or_default();
    nodes.entry(about.id.0).or_insert_with(|| BasicNode::new(address));
    let alone = Members::new(vec![BTreeSet::from([about.id.0])], nodes);
    let alone = alone.map_err(|e| Error::Settings { why: format!("it cannot vote alone: {e}") })?;
    let command = Command::TakeOver { survivor: about.id, lost: lost.iter().copied().collect() };
    let envelope = Envelope { at: view.time, by: "metadata recover".to_owned(), command };
    let mut batch = db.batch();
    for (after, payload) in [(1, EntryPayload::Membership(alone)), (2, EntryPayload::Normal(envelope))] {
        let entry = EntryOf::<TypeConfig>::new(at(after), payload);
        batch.put(LOG, at(after).index.to_be_bytes(), codec::encode("log", &entry)?)?;
    }
    let vote = VoteOf::<TypeConfig>::new(leader.term(), about.id.0);
    batch.put(RAFT, "vote", codec::encode("vote", &vote)?)?;
    db.write(batch, true)?;
    Ok(about)
}

fn open(dir: &Path) -> Result<Open, Error> {
    if !dir.join("db").join("CURRENT").exists() {
        return Err(Error::Settings { why: format!("{} holds no metadata", dir.display()) });
    }
    let (db, _closed) = Db::open(dir)?;
    let db = Arc::new(db);
    let gone = || Error::corrupt("identity", "the store does not say whose it is");
    let identity: Identity = db.raft_get("identity")?.ok_or_else(gone)?;
    // Ends an installation that was interrupted, as a start does.
    let machine = Machine::open(db.clone(), Arc::new(SnapshotDir::open(dir)?))?;
    let view = machine.watch().borrow().clone();
    log::whole(&db, machine.applied())?;
    drop(machine);
    let applied = Applied::read(&*db)?;
    let (mut members, mut last) = (applied.membership.membership().clone(), applied.log_id);
    db.each(LOG, (&[], None), &mut |_, value| {
        let entry: EntryOf<TypeConfig> = codec::decode("log", value)?;
        last = last.max(Some(entry.log_id));
        if let EntryPayload::Membership(newer) = entry.payload {
            members = newer;
        }
        Ok(true)
    })?;
    let nothing = || Error::Settings { why: format!("the node in {} never was in a cluster", dir.display()) };
    let last = last.ok_or_else(nothing)?;
    let holds = |replicas: &[NodeId]| replicas.contains(&identity.id);
    let about = Survivor {
        id: identity.id,
        cluster: view.cluster.as_ref().ok_or_else(nothing)?.id.clone(),
        last: (last.leader_id.term, last.index),
        applied: applied.index().unwrap_or(0),
        voters: members.voter_ids().map(NodeId).collect(),
        nodes: view.nodes.iter().map(|(id, row)| (*id, (row.state, row.spec.grpc.clone()))).collect(),
        foreign: view.partitions.iter().filter(|(_, row)| !holds(&row.current.replicas)).count(),
    };
    Ok(Open { db, members, last, view, about })
}

/// Whether it may be done: only what a person meant, and only where nothing else helps: the voters that are left are no
/// majority, or the replicas of one of the partitions (`stuck` of them) are none.
fn check(
    about: &Survivor,
    (members, stuck): (&Members, usize),
    lost: &BTreeSet<NodeId>,
    cluster: &str,
) -> Result<(), Error> {
    let refuse = |why: String| Err(Error::Settings { why });
    if cluster != about.cluster {
        return refuse(format!("this is a node of cluster {}, not of {cluster}", about.cluster));
    }
    if lost.contains(&about.id) {
        return refuse(format!("node {} is the one that is to go on, it cannot be lost", about.id.0));
    }
    if let Some(unknown) = lost.iter().find(|id| !about.nodes.contains_key(id)) {
        return refuse(format!("there is no node {} in this cluster", unknown.0));
    }
    let left = |voters: &BTreeSet<u64>| voters.iter().filter(|id| !lost.contains(&NodeId(**id))).count();
    if !members.get_joint_config().iter().all(|voters| left(voters) >= majority(voters.len())) {
        return Ok(());
    }
    let rest: Vec<String> = about.voters.difference(lost).map(|id| id.0.to_string()).collect();
    let rest = rest.join(", ");
    if stuck == 0 {
        return refuse(format!(
            "without those that are lost a majority is left of the voters ({rest}) and of each partition's replicas: start \
             them, then take the lost ones out with `engram cluster remove`"
        ));
    }
    if !about.voters.contains(&about.id) {
        return refuse(format!("a majority of the voters is left: do it on one of them ({rest})"));
    }
    Ok(())
}
