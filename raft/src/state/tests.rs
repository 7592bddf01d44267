//! Goal: applying is a function of the log alone, and each command keeps its promise. Method: lists of commands over
//! a map instead of RocksDB; random ones by proptest.

use std::collections::BTreeMap;

use engram_model::place::{Epoch, NodeId, PartitionId};
use engram_model::tenant::{TenantId, TenantLimits};
use proptest::prelude::*;

use super::*;

/// Rows in a map: the naive store.
#[derive(Default, Clone, PartialEq, Debug)]
pub(super) struct Rows(BTreeMap<(Table, Vec<u8>), Vec<u8>>);

impl Rows {
    /// Without log time, which a refused command moves too.
    pub(super) fn timeless(&self) -> Self {
        let mut rows = self.clone();
        rows.0.remove(&(Table::Meta, b"time".to_vec()));
        rows
    }
}

impl Base for Rows {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn scan(&self, table: Table, each: Each<'_>) -> Result<(), Error> {
        self.0.iter().filter(|((t, _), _)| *t == table).try_for_each(|((_, key), value)| each(key, value))
    }
}

/// A store and its view, fed one batch at a time.
#[derive(Default)]
pub(super) struct Fed {
    pub(super) rows: Rows,
    pub(super) view: View,
    pub(super) next: u64,
}

impl Fed {
    pub(super) fn bootstrapped() -> Self {
        let mut fed = Self { next: 2, ..Self::default() };
        assert_eq!(fed.one(bootstrap("c", 4)), Outcome::Done);
        fed
    }

    pub(super) fn batch(&mut self, commands: &[(i64, Command)]) -> Vec<Outcome> {
        let mut draft = Draft::new(&self.rows);
        let mut outcomes = Vec::new();
        for (at, command) in commands {
            let envelope = Envelope { at: *at, by: "test".to_owned(), command: command.clone() };
            outcomes.push(apply(&mut draft, &envelope, self.next).unwrap());
            self.next += 1;
        }
        let (writes, changes) = draft.finish();
        for (at, row) in writes {
            match row {
                Some(row) => drop(self.rows.0.insert(at, row)),
                None => drop(self.rows.0.remove(&at)),
            }
        }
        self.view = self.view.after(Some(self.next - 1), changes);
        outcomes
    }

    pub(super) fn one(&mut self, command: Command) -> Outcome {
        self.batch(&[(1_000, command)]).remove(0)
    }
}

fn spec() -> NodeSpec {
    NodeSpec { zone: "z".to_owned(), grpc: "h:1".to_owned(), ..NodeSpec::default() }
}

fn bootstrap(id: &str, partition_count: u32) -> Command {
    Command::Bootstrap { cluster_id: id.to_owned(), partition_count, founder: NodeId(1), node: spec() }
}

fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

fn create() -> Command {
    Command::CreateTenant { tenant: acme(), limits: TenantLimits::default(), shard_size: 2 }
}

#[test]
fn bootstrap_gives_the_founder_every_partition_once() {
    let mut fed = Fed::bootstrapped();
    assert_eq!(fed.view.partitions.len(), 4);
    for (_, row) in fed.view.partitions.iter() {
        assert_eq!((row.current.epoch, row.current.replicas.as_slice()), (Epoch(1), &[NodeId(1)][..]));
    }
    let before = fed.rows.clone();
    assert_eq!(fed.one(bootstrap("c", 9)), Outcome::Done);
    assert!(matches!(fed.one(bootstrap("d", 4)), Outcome::Refused(Refusal::AlreadyBootstrapped { .. })));
    assert_eq!(fed.rows, before);
}

#[test]
fn nothing_comes_before_bootstrap() {
    let mut fed = Fed::default();
    assert_eq!(fed.one(create()), Outcome::Refused(Refusal::NotBootstrapped));
}

#[test]
fn a_node_is_its_log_index_and_a_token_registers_once() {
    let mut fed = Fed::bootstrapped();
    let register = |token: &str| Command::RegisterNode { token: token.to_owned(), node: spec() };
    assert_eq!(fed.one(register("a")), Outcome::Node { id: NodeId(3) });
    assert_eq!(fed.one(register("a")), Outcome::Node { id: NodeId(3) });
    assert_eq!(fed.one(register("b")), Outcome::Node { id: NodeId(5) });
    assert_eq!(fed.view.nodes.len(), 3);
    let set = |to| Command::SetNodeState { id: NodeId(5), to, expected: None };
    assert_eq!(fed.one(set(NodeState::Dead)), Outcome::Done);
    assert!(matches!(fed.one(set(NodeState::Active)), Outcome::Refused(Refusal::NodeState { .. })));
    let long = Command::UpdateNode { id: NodeId(3), node: NodeSpec { zone: "z".repeat(256), ..spec() } };
    assert!(matches!(fed.one(long), Outcome::Refused(Refusal::Bounds { .. })));
}

#[test]
fn a_state_changes_only_from_what_was_read_and_old_entries_name_none() {
    let mut fed = Fed::bootstrapped();
    let set = |expected, to| Command::SetNodeState { id: NodeId(1), to, expected };
    assert_eq!(fed.one(set(Some(NodeState::Active), NodeState::Suspect)), Outcome::Done);
    assert_eq!(fed.one(set(Some(NodeState::Suspect), NodeState::Draining)), Outcome::Done);
    // The leader saw a suspect that answers; meanwhile somebody had it drained.
    let late = fed.one(set(Some(NodeState::Suspect), NodeState::Active));
    assert!(matches!(late, Outcome::Refused(Refusal::NodeState { from: NodeState::Draining, .. })), "{late:?}");
    assert_eq!(fed.view.nodes.get(&NodeId(1)).unwrap().state, NodeState::Draining);

    #[derive(serde::Serialize)]
    enum Old {
        SetNodeState { id: NodeId, to: NodeState },
    }
    let bytes = crate::codec::encode("command", &Old::SetNodeState { id: NodeId(1), to: NodeState::Active }).unwrap();
    let read = crate::codec::decode::<Command>("command", &bytes).unwrap();
    assert_eq!(read, set(None, NodeState::Active));
    assert_eq!(fed.one(read), Outcome::Done);
}

#[test]
fn an_epoch_grows_by_one_and_only_from_what_was_read() {
    let mut fed = Fed::bootstrapped();
    let set = |expected, replicas: &[u64]| Command::SetReplicas {
        partition: PartitionId(2),
        expected: Epoch(expected),
        replicas: replicas.iter().map(|id| NodeId(*id)).collect(),
        next: None,
    };
    assert_eq!(fed.one(set(1, &[1])), Outcome::Partition { epoch: Epoch(2) });
    assert!(matches!(fed.one(set(1, &[1])), Outcome::Refused(Refusal::Epoch { found: Epoch(2), .. })));
    assert!(matches!(fed.one(set(2, &[1, 1])), Outcome::Refused(Refusal::Replicas { .. })));
    assert!(matches!(fed.one(set(2, &[])), Outcome::Refused(Refusal::Replicas { .. })));
    assert!(matches!(fed.one(set(2, &[7])), Outcome::Refused(Refusal::UnknownNode { .. })));
}

#[test]
fn a_tenant_is_made_once_and_changed_only_at_the_version_read() {
    let mut fed = Fed::bootstrapped();
    assert_eq!(fed.one(create()), Outcome::Tenant { version: 1, created: true });
    assert_eq!(fed.one(create()), Outcome::Tenant { version: 1, created: false });
    let update = |expected, shard_size| Command::UpdateTenant {
        tenant: acme(),
        expected,
        limits: Some(TenantLimits { ingestion_rate: 7, ..TenantLimits::default() }),
        shard_size,
    };
    assert_eq!(fed.one(update(1, Some(3))), Outcome::Tenant { version: 2, created: false });
    let late = Refusal::Version { tenant: acme(), expected: 1, found: 2 };
    assert_eq!(fed.one(update(1, Some(4))), Outcome::Refused(late));
    assert_eq!(fed.one(update(2, Some(1))), Outcome::Tenant { version: 3, created: false });
    let row = fed.view.tenants.get(&acme()).unwrap();
    assert_eq!(row.shards.iter().map(|s| (s.size, s.index)).collect::<Vec<_>>(), [(2, 3), (3, 5), (1, 7)]);
    assert_eq!((row.shard_size(), row.shard_size_ever(), row.limits.ingestion_rate), (1, 3, 7));
    assert_eq!(
        fed.one(Command::DeleteTenant { tenant: acme(), expected: 3 }),
        Outcome::Tenant { version: 4, created: false }
    );
    assert_eq!(fed.one(create()), Outcome::Refused(Refusal::TenantDeleted { tenant: acme() }));
    assert_eq!(fed.one(update(4, None)), Outcome::Refused(Refusal::TenantDeleted { tenant: acme() }));
}

#[test]
fn what_was_thought_of_another_ring_is_refused() {
    let mut fed = Fed::bootstrapped();
    fed.one(Command::RegisterNode { token: "a".to_owned(), node: spec() });
    let ring = fed.view.ring();
    let drain = |ring| Command::SteerNode { id: NodeId(1), to: NodeState::Draining, ring };
    assert!(matches!(fed.one(drain(ring - 1)), Outcome::Refused(Refusal::Ring { found, .. }) if found == ring));
    // What is no affair of the ring does not move it, a change of a replica set does.
    fed.one(create());
    assert_eq!(fed.view.ring(), ring);
    let partition = PartitionId(0);
    let replicas = vec![NodeId(1), NodeId(3)];
    fed.one(Command::SetReplicas { partition, expected: Epoch(1), replicas, next: None });
    assert!(matches!(fed.one(drain(ring)), Outcome::Refused(Refusal::Ring { .. })));
    assert_eq!(fed.one(drain(fed.view.ring())), Outcome::Done);
    let factor = |factor, ring| Command::SetReplicationFactor { factor, ring };
    assert!(matches!(fed.one(factor(99, fed.view.ring())), Outcome::Refused(Refusal::Bounds { .. })));
    assert!(matches!(fed.one(factor(5, ring)), Outcome::Refused(Refusal::Ring { .. })));
    assert_eq!(fed.view.replication_factor(3), 3);
    assert_eq!(fed.one(factor(5, fed.view.ring())), Outcome::Done);
    assert_eq!(fed.view.replication_factor(3), 5);
}

#[test]
fn log_time_never_runs_back() {
    let mut fed = Fed::bootstrapped();
    let tenant = |name: &str| Command::CreateTenant {
        tenant: TenantId::new(name).unwrap(),
        limits: TenantLimits::default(),
        shard_size: 0,
    };
    fed.batch(&[(5_000, tenant("a")), (4_000, tenant("b")), (6_000, tenant("c"))]);
    let times: Vec<i64> = fed.view.tenants.iter().map(|(_, row)| row.created.at).collect();
    assert_eq!(times, [5_000, 5_000, 6_000]);
}

/// Commands that collide often.
pub(crate) fn commands() -> impl Strategy<Value = Vec<(i64, Command)>> {
    let tenant = prop::sample::select(vec!["a", "b", "c"]).prop_map(|n| TenantId::new(n).unwrap());
    let node = prop::sample::select(vec![1_u64, 3, 4, 5, 99]).prop_map(NodeId);
    let limits = (0_u64..3).prop_map(|rate| TenantLimits { ingestion_rate: rate, ..TenantLimits::default() });
    let state = prop::sample::select(vec![NodeState::Active, NodeState::Suspect, NodeState::Dead]);
    let command =
        prop_oneof![
            Just(bootstrap("c", 4)),
            prop::sample::select(vec!["x", "y", "z"])
                .prop_map(|t| Command::RegisterNode { token: t.to_owned(), node: spec() }),
            (node.clone(), "[a-z]{0,3}")
                .prop_map(|(id, zone)| Command::UpdateNode { id, node: NodeSpec { zone, ..spec() } }),
            (node.clone(), state.clone(), prop::option::of(state))
                .prop_map(|(id, to, expected)| Command::SetNodeState { id, to, expected }),
            (node.clone(), 1_u64..30).prop_map(|(id, ring)| Command::SteerNode { id, to: NodeState::Draining, ring }),
            (0_u32..20, 1_u64..30).prop_map(|(factor, ring)| Command::SetReplicationFactor { factor, ring }),
            (0_u32..5, 1_u64..4, prop::collection::vec(node, 0..4)).prop_map(|(p, e, replicas)| Command::SetReplicas {
                partition: PartitionId(p),
                expected: Epoch(e),
                replicas,
                next: None,
            }),
            (tenant.clone(), limits.clone(), 0_u32..4).prop_map(|(tenant, limits, shard_size)| Command::CreateTenant {
                tenant,
                limits,
                shard_size
            }),
            (tenant.clone(), 1_u64..5, prop::option::of(limits), prop::option::of(0_u32..4)).prop_map(
                |(tenant, expected, limits, shard_size)| Command::UpdateTenant { tenant, expected, limits, shard_size }
            ),
            (tenant, 1_u64..5).prop_map(|(tenant, expected)| Command::DeleteTenant { tenant, expected }),
        ];
    let command = prop_oneof![command, super::storage_tests::raw_commands()];
    prop::collection::vec((0_i64..10_000, command), 0..100)
}

proptest! {
    /// Batching is invisible, the same log gives the same bytes, and the view is what the rows say.
    #[test]
    fn apply_is_deterministic(commands in commands(), cut in 1_usize..7) {
        let (mut one, mut many) = (Fed { next: 2, ..Fed::default() }, Fed { next: 2, ..Fed::default() });
        let singly: Vec<Outcome> = commands.iter().flat_map(|c| one.batch(std::slice::from_ref(c))).collect();
        let batched: Vec<Outcome> = commands.chunks(cut).flat_map(|c| many.batch(c)).collect();
        prop_assert_eq!(singly, batched);
        prop_assert_eq!(&one.rows, &many.rows);
        prop_assert_eq!(&one.view, &View::load(&one.rows, one.view.applied).unwrap());
        prop_assert_eq!(&many.view, &one.view);
    }

    /// Whatever a log holds, it reads back as it was written.
    #[test]
    fn commands_survive_their_bytes(commands in commands()) {
        for (at, command) in commands {
            let envelope = Envelope { at, by: "é".to_owned(), command };
            let bytes = crate::codec::encode("command", &envelope).unwrap();
            prop_assert_eq!(crate::codec::decode::<Envelope>("command", &bytes).unwrap(), envelope);
        }
    }

    /// Bytes from outside may be anything.
    #[test]
    fn foreign_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut with_format = vec![crate::codec::FORMAT];
        with_format.extend(&bytes);
        for bytes in [bytes, with_format] {
            drop(crate::codec::decode::<Envelope>("command", &bytes));
            drop(crate::codec::decode::<TenantRow>("tenants", &bytes));
            drop(crate::codec::decode::<engram_model::block::BlockRow>("blocks", &bytes));
        }
    }
}
