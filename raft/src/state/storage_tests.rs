//! Goal: blocks, seals, deletions and leases keep their promises under any order of commands. Method: random steps,
//! resolved against what is there so that most of them may be done and some just may not, against a naive ledger.

use std::collections::BTreeMap;

use engram_model::TimeRange;
use engram_model::block::{BlockFile, BlockId, BlockMeta, Origin, Shard};
use engram_model::digest::Digest;
use engram_model::place::{NodeId, PartitionId};
use engram_model::tenant::{TenantId, TenantLimits};
use proptest::prelude::*;

use super::tests::Fed;
use super::*;
use crate::command::Holder;

fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

fn window(number: u64) -> TimeRange {
    TimeRange { start: number.cast_signed() * 100, end: number.cast_signed() * 100 + 100 }
}

fn digest(n: u64) -> Digest {
    Digest { count: n, low: n.wrapping_mul(7), high: n.wrapping_mul(13) }
}

fn meta(tenant: &TenantId, id: u64, n: u64, origin: Origin) -> BlockMeta {
    let file = |name: &str| BlockFile { name: name.to_owned(), bytes: n, crc32c: 7 };
    BlockMeta {
        id: BlockId(id.into()),
        tenant: tenant.clone(),
        range: TimeRange { start: 100, end: 200 },
        level: 1,
        origin,
        shard: None,
        sources: Vec::new(),
        series: 1,
        chunks: 1,
        digest: digest(n),
        files: ["chunks/000001", "index", "meta.json"].map(file).to_vec(),
        as_of: 1,
        made_at: 5,
    }
}

fn cut_meta(id: u64, n: u64, seal: u64) -> BlockMeta {
    let origin = Origin::Cut { partition: PartitionId(1), seal };
    BlockMeta { range: window(seal), ..meta(&acme(), id, n, origin) }
}

fn holder(node: u64, life: u64) -> Holder {
    Holder { node: NodeId(node), life }
}

/// A store with tenant `acme` in a cluster of two nodes that both hold partition 1.
fn fed() -> Fed {
    let mut fed = Fed::bootstrapped();
    let register = Command::RegisterNode { token: "b".to_owned(), node: NodeSpec::default() };
    assert_eq!(fed.one(register), Outcome::Node { id: NodeId(3) });
    let replicas = vec![NodeId(1), NodeId(3)];
    let expected = engram_model::place::Epoch(1);
    fed.one(Command::SetReplicas { partition: PartitionId(1), expected, replicas, next: None });
    fed.one(Command::CreateTenant { tenant: acme(), limits: TenantLimits::default(), shard_size: 0 });
    fed
}

fn seal(number: u64) -> Command {
    Command::Seal { tenant: acme(), partition: PartitionId(1), number, window: window(number) }
}

fn cut(number: u64, block: Option<BlockMeta>, n: u64, fence: Option<Fence>) -> Command {
    let block = block.map(Box::new);
    Command::CommitCut { tenant: acme(), partition: PartitionId(1), number, block, digest: digest(n), fence }
}

fn forgot(number: u64, node: u64) -> Command {
    Command::Forgot { tenant: acme(), partition: PartitionId(1), number, node: NodeId(node) }
}

fn refused(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_seal_lives_until_every_replica_has_forgotten_it() {
    let mut fed = fed();
    assert_eq!(fed.one(seal(1)), Outcome::Seal { number: 1 });
    assert!(matches!(refused(fed.one(seal(1))), Refusal::SealNumber { expected: 1, found: 2, .. }));
    assert_eq!(fed.one(seal(2)), Outcome::Seal { number: 2 });
    assert!(matches!(refused(fed.one(forgot(1, 1))), Refusal::NotCut { number: 1, .. }));
    let block = cut_meta(9, 4, 1);
    assert_eq!(fed.one(cut(1, Some(block.clone()), 5, None)), Outcome::Done);
    let index = fed.next - 1;
    assert_eq!(fed.one(cut(1, Some(block.clone()), 5, None)), Outcome::Done, "a repetition changes nothing");
    assert!(matches!(refused(fed.one(cut(1, None, 5, None))), Refusal::CutAlready { .. }));
    let seals = fed.view.seals.get(&acme()).unwrap().all.get(&PartitionId(1)).unwrap().clone();
    let have = seals.get(1).unwrap().cut.unwrap();
    assert_eq!((have.block, have.digest, have.index), (Some(block.id), digest(5), index));
    // Late blocks come while the seal is open, and only for a seal that is cut.
    let late = |id, seal, as_of| {
        let blocks = vec![BlockMeta { as_of, ..cut_meta(id, 1, seal) }];
        Command::AddBlocks { tenant: acme(), blocks, fence: None }
    };
    assert!(matches!(refused(fed.one(late(10, 2, index))), Refusal::NotCut { number: 2, .. }));
    assert_eq!(fed.one(late(10, 1, index)), Outcome::Done);
    let completed = fed.next - 1;
    // Whoever asks again because no answer came has the same block, or has compared with less than there is.
    assert_eq!(fed.one(late(10, 1, index)), Outcome::Done);
    let unseen = refused(fed.one(late(11, 1, completed - 1)));
    assert!(matches!(unseen, Refusal::SealCompleted { found, .. } if found == completed), "{unseen:?}");
    assert_eq!(fed.one(late(12, 1, completed)), Outcome::Done, "other replicas may have still more");
    assert!(matches!(refused(fed.one(forgot(1, 9))), Refusal::Replicas { .. }));
    assert_eq!(fed.one(forgot(1, 3)), Outcome::Done);
    assert_eq!(fed.one(forgot(1, 3)), Outcome::Done);
    assert_eq!(fed.view.seals.get(&acme()).unwrap().all.get(&PartitionId(1)).unwrap().open.len(), 2);
    assert_eq!(fed.one(forgot(1, 1)), Outcome::Done);
    assert_eq!(fed.view.seals.get(&acme()).unwrap().all.get(&PartitionId(1)).unwrap().open.len(), 1);
    assert_eq!(fed.one(forgot(1, 1)), Outcome::Done, "the answer to the first may have been lost");
    assert_eq!(fed.one(late(10, 1, index)), Outcome::Done, "a repetition that comes very late");
    assert!(matches!(refused(fed.one(late(13, 1, fed.next - 1))), Refusal::UnknownSeal { .. }));
    assert!(matches!(refused(fed.one(forgot(3, 1))), Refusal::UnknownSeal { .. }));
    // Nothing was set aside for the second.
    assert_eq!(fed.one(cut(2, None, 0, None)), Outcome::Done);
    fed.batch(&[(1_000, forgot(2, 1)), (1_000, forgot(2, 3))]);
    let seals = fed.view.seals.get(&acme()).unwrap();
    assert!(seals.open.is_empty());
    assert_eq!(seals.all.get(&PartitionId(1)).unwrap().next, 3);
}

#[test]
fn open_seals_are_bounded() {
    let mut fed = fed();
    for number in 1..=OPEN_SEALS_MAX as u64 {
        assert_eq!(fed.one(seal(number)), Outcome::Seal { number });
    }
    assert!(matches!(refused(fed.one(seal(OPEN_SEALS_MAX as u64 + 1))), Refusal::TooMany { .. }));
    let window = TimeRange { start: 5, end: 5 };
    let empty = Command::Seal { tenant: acme(), partition: PartitionId(0), number: 1, window };
    assert!(matches!(refused(fed.one(empty)), Refusal::Bounds { .. }));
    let nowhere = Command::Seal { tenant: acme(), partition: PartitionId(99), number: 1, window: self::window(1) };
    assert!(matches!(refused(fed.one(nowhere)), Refusal::UnknownPartition { .. }));
}

#[test]
fn a_lease_is_one_nodes_and_an_old_holder_decides_nothing() {
    let mut fed = fed();
    let acquire = |holder, ttl_ms, expired: &[&str]| {
        let expired = expired.iter().map(|key| (*key).to_owned()).collect();
        Command::AcquireLease { key: "cut".to_owned(), holder, ttl_ms, expired }
    };
    fed.one(seal(1));
    let Outcome::Lease { fence: first, expires_at: 2_000 } = fed.one(acquire(holder(1, 7), 1_000, &[])) else {
        panic!("no lease")
    };
    let renewed = fed.batch(&[(1_500, acquire(holder(1, 7), 1_000, &[]))]).remove(0);
    assert_eq!(renewed, Outcome::Lease { fence: first, expires_at: 2_500 });
    let other = fed.batch(&[(2_499, acquire(holder(3, 1), 1_000, &[]))]).remove(0);
    assert!(matches!(refused(other), Refusal::LeaseHeld { node: NodeId(1), expires_at: 2_500, .. }));
    // The same node, started anew, takes over at once: its former life can decide nothing more.
    let Outcome::Lease { fence: second, .. } = fed.one(acquire(holder(1, 8), 1_000, &[])) else { panic!("no lease") };
    let Outcome::Lease { fence: third, .. } = fed.batch(&[(3_499, acquire(holder(3, 1), 1_000, &[]))]).remove(0) else {
        panic!("no lease")
    };
    assert!(first < second && second < third);
    let fence = |number| Some(Fence { key: "cut".to_owned(), number });
    let old = fed.one(cut(1, Some(cut_meta(9, 4, 1)), 4, fence(second)));
    assert_eq!(refused(old), Refusal::Fenced { key: "cut".to_owned(), expected: second, found: Some(third) });
    assert_eq!(fed.one(cut(1, Some(cut_meta(9, 4, 1)), 4, fence(third))), Outcome::Done);
    let release = |number| Command::ReleaseLease { fence: Fence { key: "cut".to_owned(), number } };
    assert!(matches!(refused(fed.one(release(first))), Refusal::Fenced { .. }));
    assert_eq!(fed.one(release(third)), Outcome::Done);
    assert!(matches!(refused(fed.one(release(third))), Refusal::Fenced { found: None, .. }));
    assert!(fed.view.leases.is_empty());
    assert!(matches!(refused(fed.one(acquire(holder(1, 1), 0, &[]))), Refusal::Bounds { .. }));
    assert!(matches!(refused(fed.one(acquire(holder(9, 1), 1, &[]))), Refusal::UnknownNode { .. }));
    // Leases nobody came back for are cleared away with the next one that is taken, not earlier.
    let other =
        |key: &str| Command::AcquireLease { key: key.to_owned(), holder: holder(1, 1), ttl_ms: 1, expired: Vec::new() };
    fed.batch(&[(4_000, other("a")), (4_000, other("b"))]);
    fed.batch(&[(5_000, acquire(holder(1, 1), 1, &["a", "b", "b", "c"]))]);
    assert_eq!(fed.view.leases.len(), 3);
    fed.batch(&[(4_000_000, acquire(holder(1, 1), 1, &["a", "b", "b", "c"]))]);
    assert_eq!(fed.view.leases.len(), 1);
}

#[test]
fn a_tenant_is_forgotten_when_nothing_of_it_is_left() {
    let mut fed = fed();
    let remove = || Command::RemoveTenant { tenant: acme() };
    assert!(matches!(refused(fed.one(remove())), Refusal::TenantInUse { .. }), "it is not marked");
    fed.one(seal(1));
    let range = TimeRange { start: 0, end: 1 };
    let order = Command::AddDeletion { tenant: acme(), selectors: vec!["up".to_owned()], range };
    let Outcome::Deletion { index } = fed.one(order) else { panic!("no deletion") };
    let version = fed.view.tenants.get(&acme()).unwrap().version;
    fed.one(Command::DeleteTenant { tenant: acme(), expected: version });
    assert!(matches!(refused(fed.one(remove())), Refusal::TenantInUse { .. }), "a deletion is left");
    fed.one(Command::RemoveDeletion { tenant: acme(), index, fence: None });
    assert!(matches!(refused(fed.one(remove())), Refusal::TenantInUse { .. }), "a seal is open");
    fed.one(cut(1, None, 0, None));
    for node in [1, 3] {
        assert_eq!(fed.one(forgot(1, node)), Outcome::Done);
    }
    assert_eq!(fed.one(remove()), Outcome::Done);
    assert!(fed.view.tenants.get(&acme()).is_none());
    assert_eq!(fed.view.cluster.as_ref().unwrap().tenant_count, 0);
    assert!(matches!(refused(fed.one(remove())), Refusal::UnknownTenant { .. }));
    // It may come again, and its seals go on counting: a head may remember the number.
    fed.one(Command::CreateTenant { tenant: acme(), limits: TenantLimits::default(), shard_size: 0 });
    assert!(matches!(refused(fed.one(seal(1))), Refusal::SealNumber { found: 2, .. }));
    assert_eq!(fed.one(seal(2)), Outcome::Seal { number: 2 });
}

#[test]
fn deletions_are_bounded_and_named_by_their_index() {
    let mut fed = fed();
    let add = |selectors: Vec<String>, range| Command::AddDeletion { tenant: acme(), selectors, range };
    let index = fed.next;
    assert_eq!(fed.one(add(vec!["{a=\"b\"}".to_owned()], window(1))), Outcome::Deletion { index });
    let row = fed.view.deletions.get(&acme()).unwrap().get(&index).unwrap().clone();
    assert_eq!((row.index, row.at, row.by.as_str(), row.range), (index, 1_000, "test", window(1)));
    let long = "x".repeat(SELECTOR_BYTES_MAX + 1);
    let bad = [vec![], vec![String::new()], vec![long], vec!["x".to_owned(); SELECTORS_MAX + 1]];
    for selectors in bad {
        assert!(matches!(refused(fed.one(add(selectors, window(1)))), Refusal::Bounds { .. }));
    }
    for _ in 1..DELETIONS_MAX {
        fed.one(add(vec!["x".to_owned()], window(1)));
    }
    assert!(matches!(refused(fed.one(add(vec!["x".to_owned()], window(1)))), Refusal::TooMany { .. }));
    let remove = Command::RemoveDeletion { tenant: acme(), index, fence: None };
    assert_eq!(fed.one(remove.clone()), Outcome::Done);
    assert!(matches!(refused(fed.one(remove)), Refusal::UnknownDeletion { .. }));
    assert!(matches!(fed.one(add(vec!["x".to_owned()], window(1))), Outcome::Deletion { .. }));
}

#[test]
fn what_contradicts_itself_is_no_block() {
    let mut fed = fed();
    let good = meta(&acme(), 9, 4, Origin::Imported);
    let file = |name: &str| BlockFile { name: name.to_owned(), bytes: 1, crc32c: 1 };
    let bad = |change: &dyn Fn(&mut BlockMeta)| {
        let mut block = good.clone();
        change(&mut block);
        block
    };
    let blocks = [
        bad(&|b| b.tenant = TenantId::anonymous()),
        bad(&|b| b.range.end = b.range.start),
        bad(&|b| b.level = 0),
        bad(&|b| b.level = 65),
        bad(&|b| b.shard = Some(Shard { index: 2, count: 2 })),
        bad(&|b| b.series = 0),
        bad(&|b| b.chunks = 5),
        bad(&|b| b.as_of = u64::MAX),
        bad(&|b| b.sources = vec![BlockId(2), BlockId(1)]),
        bad(&|b| b.files.clear()),
        bad(&|b| b.files.reverse()),
        bad(&|b| b.files = vec![file("../../etc/passwd")]),
        bad(&|b| b.files = vec![file("/index")]),
        bad(&|b| b.files = vec![file(&"x".repeat(256))]),
        bad(&|b| b.files = vec![file("a\\b")]),
        bad(&|b| b.origin = Origin::Compacted),
    ];
    let add = |blocks: Vec<BlockMeta>| Command::AddBlocks { tenant: acme(), blocks, fence: None };
    let before = fed.rows.timeless();
    for block in blocks {
        let why = refused(fed.one(add(vec![meta(&acme(), 1, 4, Origin::Imported), block])));
        assert!(matches!(why, Refusal::BadBlock { .. }), "{why}");
    }
    assert_eq!(fed.rows.timeless(), before);
    assert_eq!(fed.one(add(vec![good.clone()])), Outcome::Done);
    assert_eq!(fed.one(add(vec![good.clone()])), Outcome::Done);
    let other = BlockMeta { series: 2, chunks: 2, ..good };
    assert!(matches!(refused(fed.one(add(vec![other]))), Refusal::BlockExists { .. }));
    let over = BlockMeta { range: TimeRange { start: 50, end: 150 }, ..cut_meta(3, 1, 1) };
    fed.one(seal(1));
    assert!(matches!(refused(fed.one(cut(1, Some(over), 1, None))), Refusal::BadBlock { .. }));
    assert!(matches!(refused(fed.one(cut(1, Some(cut_meta(3, 2, 1)), 1, None))), Refusal::BadBlock { .. }));
}

#[test]
fn a_damaged_block_is_repaired_by_its_equal_only() {
    let mut fed = fed();
    let add = Command::AddBlocks { tenant: acme(), blocks: vec![meta(&acme(), 1, 4, Origin::Imported)], fence: None };
    fed.one(add);
    let made = |id, n| BlockMeta { sources: vec![BlockId(1)], ..meta(&acme(), id, n, Origin::Compacted) };
    let repair = |results| Command::RepairBlock { tenant: acme(), damaged: BlockId(1), results, fence: None };
    let replace = |n| Command::ReplaceBlocks {
        tenant: acme(),
        sources: vec![BlockId(1)],
        results: vec![BlockMeta { level: 2, ..made(2, n) }],
        duplicates: digest(0),
        deleted: digest(0),
        fence: None,
    };
    assert!(matches!(refused(fed.one(repair(vec![made(2, 4)]))), Refusal::NotQuarantined { .. }));
    let quarantine =
        |why: Option<&str>| Command::QuarantineBlock { tenant: acme(), block: BlockId(1), why: why.map(str::to_owned) };
    assert_eq!(fed.one(quarantine(Some("crc"))), Outcome::Done);
    assert!(matches!(refused(fed.one(replace(4))), Refusal::BlockQuarantined { .. }));
    assert!(matches!(refused(fed.one(repair(vec![made(2, 3)]))), Refusal::Digest { .. }));
    assert_eq!(fed.one(repair(vec![made(2, 1), made(3, 3)])), Outcome::Done);
    assert_eq!(fed.one(repair(vec![made(2, 1), made(3, 3)])), Outcome::Done, "a repetition");
    let blocks = fed.view.blocks.get(&acme()).unwrap();
    assert!(blocks.get(&BlockId(1)).unwrap().marked.is_some());
    assert_eq!(blocks.len(), 3);
    assert_eq!(fed.one(quarantine(None)), Outcome::Done);
    let unknown = Command::QuarantineBlock { tenant: acme(), block: BlockId(77), why: None };
    assert!(matches!(refused(fed.one(unknown)), Refusal::UnknownBlock { .. }));
}

/// One step; numbers are taken modulo what is there.
#[derive(Debug, Clone)]
enum Step {
    Seal { late: bool },
    Cut { seal: usize, n: u64, none: bool },
    Forgot { seal: usize, node: u64 },
    Import { n: u64 },
    Replace { pick: Vec<usize>, results: Vec<u64>, duplicates: u64, off: u64 },
    Mark { pick: Vec<usize> },
    Drop { pick: Vec<usize> },
    Quarantine { pick: usize, why: bool },
    Lease { node: u64, life: u64, ttl_ms: i64 },
    Release { old: bool },
}

fn steps() -> impl Strategy<Value = Vec<(i64, Step)>> {
    let pick = || prop::collection::vec(0_usize..20, 1..4);
    let step = prop_oneof![
        3 => prop::bool::weighted(0.2).prop_map(|late| Step::Seal { late }),
        4 => (0_usize..6, 1_u64..9, prop::bool::weighted(0.2)).prop_map(|(seal, n, none)| Step::Cut { seal, n, none }),
        4 => (0_usize..6, prop::sample::select(vec![1_u64, 3, 9]))
            .prop_map(|(seal, node)| Step::Forgot { seal, node }),
        2 => (1_u64..9).prop_map(|n| Step::Import { n }),
        4 => (pick(), prop::collection::vec(1_u64..5, 0..3), 0_u64..3, prop::sample::select(vec![0_u64, 0, 0, 1]))
            .prop_map(|(pick, results, duplicates, off)| Step::Replace { pick, results, duplicates, off }),
        1 => pick().prop_map(|pick| Step::Mark { pick }),
        2 => pick().prop_map(|pick| Step::Drop { pick }),
        1 => (0_usize..20, any::<bool>()).prop_map(|(pick, why)| Step::Quarantine { pick, why }),
        3 => (prop::sample::select(vec![1_u64, 3]), 0_u64..2, 1_i64..500)
            .prop_map(|(node, life, ttl_ms)| Step::Lease { node, life, ttl_ms }),
        1 => any::<bool>().prop_map(|old| Step::Release { old }),
    ];
    prop::collection::vec((0_i64..200, step), 0..80)
}

/// What must come out, kept by hand.
#[derive(Default)]
struct Ledger {
    seals: u64,
    /// Digest of everything that came in less everything that was let go.
    live: Digest,
    fence: u64,
    next_id: u64,
}

fn ids(fed: &Fed, pick: &[usize], marked: bool) -> Vec<BlockId> {
    let Some(rows) = fed.view.blocks.get(&acme()) else { return vec![BlockId(1)] };
    // Mostly what fits, else whatever there is.
    let fits: Vec<BlockId> = rows.iter().filter(|(_, r)| r.marked.is_some() == marked).map(|(id, _)| *id).collect();
    let all: Vec<BlockId> = if fits.is_empty() { rows.iter().map(|(id, _)| *id).collect() } else { fits };
    let mut ids: Vec<BlockId> = pick.iter().map(|at| all[at % all.len()]).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn resolve(fed: &Fed, ledger: &mut Ledger, step: &Step) -> Command {
    let fence = fed.view.leases.get(&"cut".to_owned()).map(|row| Fence { key: "cut".to_owned(), number: row.fence });
    let seals = fed.view.seals.get(&acme()).and_then(|seals| seals.all.get(&PartitionId(1)).cloned());
    let number = |at: &usize| {
        let open = seals.as_ref().map(|row| row.open.as_slice()).unwrap_or_default();
        open.get(at % open.len().max(1)).map_or(1, |seal| seal.number)
    };
    ledger.next_id += 10;
    let id = ledger.next_id;
    match step {
        Step::Seal { late } => seal(seals.as_ref().map_or(1, |row| row.next) - u64::from(*late)),
        Step::Cut { seal, n, none } => {
            let number = number(seal);
            cut(number, (!none).then(|| cut_meta(id, *n, number)), *n, fence)
        }
        Step::Forgot { seal, node } => forgot(number(seal), *node),
        Step::Import { n } => {
            let blocks = vec![meta(&acme(), id, *n, Origin::Imported)];
            Command::AddBlocks { tenant: acme(), blocks, fence: None }
        }
        Step::Replace { pick, results, duplicates, off } => {
            let sources = ids(fed, pick, false);
            let rows = fed.view.blocks.get(&acme());
            let rows: Vec<_> = sources.iter().filter_map(|id| rows?.get(id)).collect();
            let sum = rows.iter().map(|row| row.meta.digest).sum::<Digest>().count;
            let level = rows.iter().map(|row| row.meta.level).max().unwrap_or(0) + 1;
            let start = rows.iter().map(|row| row.meta.range.start).min().unwrap_or(0);
            let end = rows.iter().map(|row| row.meta.range.end).max().unwrap_or(1);
            let made = |(n, id): (&u64, u64)| BlockMeta {
                sources: sources.clone(),
                level,
                range: TimeRange { start, end },
                ..meta(&acme(), id, *n, Origin::Compacted)
            };
            let results: Vec<BlockMeta> = results.iter().zip(id..).map(made).collect();
            let kept = results.iter().map(|block| block.digest.count).sum::<u64>() + duplicates;
            let deleted = digest(sum.wrapping_sub(kept).wrapping_add(*off));
            let duplicates = digest(*duplicates);
            Command::ReplaceBlocks { tenant: acme(), sources, results, duplicates, deleted, fence }
        }
        Step::Mark { pick } => {
            let blocks = ids(fed, pick, false);
            Command::MarkBlocks { tenant: acme(), blocks, why: "old".to_owned(), fence: None }
        }
        Step::Drop { pick } => Command::DropBlocks { tenant: acme(), blocks: ids(fed, pick, true), fence: None },
        Step::Quarantine { pick, why } => {
            let block = ids(fed, &[*pick], false)[0];
            Command::QuarantineBlock { tenant: acme(), block, why: why.then(|| "crc".to_owned()) }
        }
        Step::Lease { node, life, ttl_ms } => Command::AcquireLease {
            key: "cut".to_owned(),
            holder: holder(*node, *life),
            ttl_ms: *ttl_ms,
            expired: Vec::new(),
        },
        Step::Release { old } => {
            let number = fence.map_or(1, |fence| fence.number) - u64::from(*old);
            Command::ReleaseLease { fence: Fence { key: "cut".to_owned(), number } }
        }
    }
}

/// Digest of what readers see.
fn live(fed: &Fed) -> Digest {
    let rows = fed.view.blocks.get(&acme()).into_iter().flat_map(|rows| rows.iter());
    rows.filter(|(_, row)| row.marked.is_none()).map(|(_, row)| row.meta.digest).sum()
}

/// What an accepted command must have done, and what a refused one must have left alone.
fn account(ledger: &mut Ledger, before: &Fed, after: &Fed, (command, outcome): (&Command, &Outcome)) {
    if matches!(outcome, Outcome::Refused(_)) {
        assert_eq!(before.rows.timeless(), after.rows.timeless(), "{command:?}");
        return;
    }
    let unmarked = |fed: &Fed, id: &BlockId| {
        let row = fed.view.blocks.get(&acme()).and_then(|rows| rows.get(id));
        row.filter(|row| row.marked.is_none()).map(|row| row.meta.digest)
    };
    match command {
        Command::Seal { .. } => {
            ledger.seals += 1;
            assert_eq!(*outcome, Outcome::Seal { number: ledger.seals }, "without gaps");
        }
        Command::CommitCut { block: Some(block), .. } => {
            ledger.live.add(block.digest);
            assert_eq!(unmarked(after, &block.id), Some(block.digest));
        }
        Command::AddBlocks { blocks, .. } => blocks.iter().for_each(|block| ledger.live.add(block.digest)),
        Command::ReplaceBlocks { sources, results, duplicates, deleted, .. } => {
            ledger.live.remove(*duplicates);
            ledger.live.remove(*deleted);
            assert!(sources.iter().all(|id| unmarked(before, id).is_some() && unmarked(after, id).is_none()));
            assert!(results.iter().all(|block| unmarked(after, &block.id) == Some(block.digest)));
        }
        Command::MarkBlocks { blocks, .. } => {
            blocks.iter().filter_map(|id| unmarked(before, id)).for_each(|digest| ledger.live.remove(digest));
        }
        Command::DropBlocks { blocks, .. } => {
            assert!(blocks.iter().all(|id| unmarked(before, id).is_none()), "what is read is never dropped");
        }
        Command::AcquireLease { holder, .. } => {
            let Outcome::Lease { fence, expires_at } = outcome else { panic!("{outcome:?}") };
            assert!(*fence >= ledger.fence, "fences only grow");
            let old = before.view.leases.get(&"cut".to_owned());
            if let Some(old) = old.filter(|old| old.holder != *holder) {
                let mine = old.holder.node == holder.node;
                assert!(*fence > old.fence && (mine || old.expires_at <= after.view.time), "one holder at a time");
            }
            assert!(*expires_at > after.view.time);
            ledger.fence = *fence;
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// Against the ledger; and the same commands in batches give the same rows, outcomes and views.
    #[test]
    fn steps_keep_the_ledger(steps in steps(), size in 1_usize..9) {
        let (mut fed, mut ledger, mut at) = (fed(), Ledger::default(), 1_000);
        let mut log = Vec::new();
        for (later, step) in &steps {
            at += later;
            let command = resolve(&fed, &mut ledger, step);
            let before = Fed { rows: fed.rows.clone(), view: fed.view.clone(), next: fed.next };
            let outcome = fed.batch(&[(at, command.clone())]).remove(0);
            account(&mut ledger, &before, &fed, (&command, &outcome));
            prop_assert_eq!(live(&fed), ledger.live);
            log.push((at, command, outcome));
        }
        let seals = fed.view.seals.get(&acme()).and_then(|seals| seals.all.get(&PartitionId(1)).cloned());
        prop_assert_eq!(seals.map_or(1, |row| row.next), ledger.seals + 1);
        let mut many = self::fed();
        for batch in log.chunks(size) {
            let commands: Vec<_> = batch.iter().map(|(at, command, _)| (*at, command.clone())).collect();
            let outcomes: Vec<_> = batch.iter().map(|(_, _, outcome)| outcome.clone()).collect();
            prop_assert_eq!(many.batch(&commands), outcomes);
        }
        prop_assert_eq!(&many.rows, &fed.rows);
        prop_assert_eq!(&many.view, &fed.view);
        prop_assert_eq!(&View::load(&fed.rows, fed.view.applied).unwrap(), &fed.view);
    }
}

/// Commands that know nothing of what is there; few are accepted, all are bytes in a log.
pub(super) fn raw_commands() -> impl Strategy<Value = Command> {
    let tenant = || prop::sample::select(vec!["a", "b"]).prop_map(|n| TenantId::new(n).unwrap());
    let fence = || prop::option::weighted(0.2, (0_u64..40).prop_map(|number| Fence { key: "k".to_owned(), number }));
    let block = || (tenant(), 1_u64..6, 1_u64..4).prop_map(|(t, id, n)| meta(&t, id, n, Origin::Imported));
    let ids = || prop::collection::btree_set((1_u128..6).prop_map(BlockId), 1..3).prop_map(Vec::from_iter);
    let partition = || (0_u32..2).prop_map(PartitionId);
    prop_oneof![
        (tenant(), partition(), 1_u64..4).prop_map(|(tenant, partition, number)| {
            Command::Seal { tenant, partition, number, window: window(number) }
        }),
        (tenant(), partition(), 1_u64..4, 1_u64..9, fence()).prop_map(|(tenant, partition, number, id, fence)| {
            let block = meta(&tenant, id, 2, Origin::Cut { partition, seal: number });
            let block = (id < 6).then(|| Box::new(BlockMeta { range: window(number), ..block }));
            Command::CommitCut { tenant, partition, number, block, digest: digest(2), fence }
        }),
        (tenant(), partition(), 1_u64..4, 1_u64..3).prop_map(|(tenant, partition, number, node)| Command::Forgot {
            tenant,
            partition,
            number,
            node: NodeId(node)
        }),
        (tenant(), block(), fence()).prop_map(|(tenant, block, fence)| Command::AddBlocks {
            tenant,
            blocks: vec![block],
            fence
        }),
        (tenant(), ids(), block(), fence()).prop_map(|(tenant, sources, block, fence)| {
            let result = BlockMeta { origin: Origin::Compacted, level: 2, sources: sources.clone(), ..block };
            let (results, duplicates, deleted) = (vec![result], digest(0), digest(1));
            Command::ReplaceBlocks { tenant, sources, results, duplicates, deleted, fence }
        }),
        (tenant(), block()).prop_map(|(tenant, block)| {
            let result = BlockMeta { origin: Origin::Compacted, sources: vec![BlockId(1)], ..block };
            Command::RepairBlock { tenant, damaged: BlockId(1), results: vec![result], fence: None }
        }),
        (tenant(), ids(), fence()).prop_map(|(tenant, blocks, fence)| Command::MarkBlocks {
            tenant,
            blocks,
            why: "é".to_owned(),
            fence
        }),
        (tenant(), ids(), fence()).prop_map(|(tenant, blocks, fence)| Command::DropBlocks { tenant, blocks, fence }),
        (tenant(), 1_u128..6, prop::option::of("[a-z]{0,3}")).prop_map(|(tenant, id, why)| Command::QuarantineBlock {
            tenant,
            block: BlockId(id),
            why
        }),
        (tenant(), 0_u64..3).prop_map(|(tenant, n)| {
            Command::AddDeletion { tenant, selectors: vec!["x".to_owned()], range: window(n) }
        }),
        (tenant(), 2_u64..60, fence()).prop_map(|(tenant, index, fence)| Command::RemoveDeletion {
            tenant,
            index,
            fence
        }),
        (prop::sample::select(vec!["k", "l"]), 1_u64..3, 1_i64..4_000).prop_map(|(key, life, ttl_ms)| {
            let expired = vec!["l".to_owned()];
            Command::AcquireLease { key: key.to_owned(), holder: holder(1, life), ttl_ms, expired }
        }),
        (0_u64..60).prop_map(|number| Command::ReleaseLease { fence: Fence { key: "k".to_owned(), number } }),
    ]
}

/// Goal: a view does not grow slow with its rows. Method: a tenant of 20,000 blocks among others; after one more, the
/// next view shares all chunks but those on the way to it. The naive sum over all of them is what a query pays.
#[test]
fn a_view_shares_what_did_not_change() {
    let mut fed = fed();
    let chunk: Vec<u64> = (0..500).collect();
    for round in 0..40_u64 {
        let blocks = chunk.iter().map(|i| meta(&acme(), round * 500 + i + 1, 3, Origin::Imported)).collect();
        assert_eq!(fed.one(Command::AddBlocks { tenant: acme(), blocks, fence: None }), Outcome::Done);
    }
    let before = fed.view.clone();
    let blocks = vec![meta(&acme(), 1 << 40, 3, Origin::Imported)];
    fed.one(Command::AddBlocks { tenant: acme(), blocks, fence: None });
    let rows: BTreeMap<_, _> = before.blocks.get(&acme()).unwrap().iter().map(|(id, row)| (*id, row.clone())).collect();
    assert_eq!(rows.len(), 20_000);
    let after = fed.view.blocks.get(&acme()).unwrap();
    assert!(after.iter().take(20_000).all(|(id, row)| std::sync::Arc::ptr_eq(row, &rows[id])));
    assert_eq!(after.len(), 20_001);
}
