//! Goal: the metadata group and the planner carry 300 nodes, 10,000 tenants and a million blocks, and no step grows
//! faster than n log n. Method: a group of one is filled by commands; each step is done at a size and at a multiple of
//! it. The large run is ignored, it prints the figures of `docs/performance.md`:
//!
//! `cargo test --release -p engram-raft --test scale -- --ignored --nocapture`
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "test"
)]

use std::io::Seek;
use std::path::Path;
use std::time::Duration;

use engram_model::TimeRange;
use engram_model::block::{BlockFile, BlockId, BlockMeta, Origin};
use engram_model::digest::Digest;
use engram_model::place::{NodeId, Zone};
use engram_model::tenant::{TenantId, TenantLimits};
use engram_model::time::{Clock, Stopwatch};
use engram_raft::group::FirstStart;
use engram_raft::placement::preview::{What, preview};
use engram_raft::placement::{Ring, plan};
use engram_raft::state::{NodeSpec, NodeState};
use engram_raft::{Command, Group, GroupOptions, Outcome, Proposal};

const LONG: Duration = Duration::from_secs(120);
const BLOCKS_PER_COMMAND: u64 = 200;

/// How large.
#[derive(Clone, Copy)]
struct Size {
    nodes: u64,
    tenants: u64,
    blocks: u64,
    partitions: u32,
}

async fn done(group: &Group, command: Command) -> Outcome {
    group.propose(Proposal { by: "test".to_owned(), command }, LONG).await.unwrap().outcome
}

fn options(dir: &Path, partition_count: u32) -> GroupOptions {
    let first = FirstStart::Bootstrap { cluster_id: "c".to_owned(), partition_count };
    // A snapshot on the way would be measured as a part of whatever step it falls into; it is a step of its own.
    GroupOptions { snapshot_every: 1 << 32, ..GroupOptions::new(dir.to_owned(), spec(0), first, Clock::test(1_000)) }
}

fn spec(i: u64) -> NodeSpec {
    let zone = format!("zone-{}", i % 3);
    NodeSpec { zone, grpc: format!("node-{i}:9095"), http: format!("node-{i}:9009"), version: "0.1.0".to_owned() }
}

fn tenant(i: u64) -> TenantId {
    TenantId::new(&format!("tenant-{i:05}")).unwrap()
}

fn block(of: &TenantId, i: u64) -> BlockMeta {
    let file = |name: &str| BlockFile { name: name.to_owned(), bytes: 1 << 20, crc32c: 7 };
    let start = i64::try_from(i).unwrap() * 100;
    BlockMeta {
        id: BlockId(u128::from(i) + 1),
        tenant: of.clone(),
        range: TimeRange { start, end: start + 100 },
        level: 1,
        origin: Origin::Imported,
        shard: None,
        sources: Vec::new(),
        series: 1000,
        chunks: 4000,
        digest: Digest { count: 480_000, low: i, high: i },
        files: ["chunks/000001", "index", "meta.json"].map(file).to_vec(),
        as_of: 1,
        made_at: 5,
    }
}

fn memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:").map(str::to_owned));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// What a step cost, and how many things it was about.
type Costs = Vec<(&'static str, u64, Duration)>;

async fn fill(group: &Group, size: Size) -> Costs {
    let mut costs = Vec::new();
    let watch = Stopwatch::start();
    let mut ids = Vec::new();
    for i in 1..size.nodes {
        let Outcome::Node { id } = done(group, Command::RegisterNode { token: format!("t{i}"), node: spec(i) }).await
        else {
            panic!("not registered")
        };
        done(group, Command::SetNodeState { id, to: NodeState::Active, expected: None }).await;
        ids.push(id);
    }
    costs.push(("nodes admitted", size.nodes, watch.elapsed()));
    let watch = Stopwatch::start();
    let first = plan(&Ring::of(&group.watch().borrow().clone(), 3));
    costs.push(("first placement planned, replicas", u64::from(size.partitions) * 3, watch.elapsed()));
    let watch = Stopwatch::start();
    for change in &first {
        let (partition, expected) = (change.partition, engram_model::place::Epoch(1));
        done(group, Command::SetReplicas { partition, expected, replicas: change.to.clone(), next: None }).await;
    }
    costs.push(("replica sets changed", first.len() as u64, watch.elapsed()));
    let watch = Stopwatch::start();
    for i in 0..size.tenants {
        let limits = TenantLimits::default();
        done(group, Command::CreateTenant { tenant: tenant(i), limits, shard_size: 4 }).await;
    }
    costs.push(("tenants made", size.tenants, watch.elapsed()));
    let watch = Stopwatch::start();
    let (mut made, mut round) = (0, 0);
    while made < size.blocks {
        let of = tenant(round % size.tenants);
        let some = BLOCKS_PER_COMMAND.min(size.blocks - made);
        let blocks = (made..made + some).map(|i| block(&of, i)).collect();
        done(group, Command::AddBlocks { tenant: of, blocks, fence: None }).await;
        (made, round) = (made + some, round + 1);
    }
    costs.push(("blocks added", size.blocks, watch.elapsed()));
    let (mut each, changes) = (Vec::new(), (size.blocks / 100).clamp(20, 1000));
    for i in 0..changes {
        let of = tenant(i % size.tenants);
        let command =
            Command::UpdateTenant { tenant: of, expected: 1 + i / size.tenants, limits: None, shard_size: Some(5) };
        let watch = Stopwatch::start();
        done(group, command).await;
        each.push(watch.elapsed());
    }
    // The middle one: the store still compacts what was just written, and some wait for that.
    each.sort_unstable();
    let middle = each[each.len() / 2] * u32::try_from(changes).unwrap();
    costs.push(("small changes at this size, by the middle one", changes, middle));
    costs
}

/// Previews, a backup, a snapshot and a start.
async fn look(group: Group, dir: &Path, size: Size) -> (Costs, u64) {
    let mut costs = Vec::new();
    let view = group.watch().borrow().clone();
    let drained = view.nodes.iter().last().map(|(id, _)| *id).unwrap();
    for (name, what) in [
        ("drain previewed", What::Drain(drained)),
        ("loss of a zone previewed", What::LoseZone(Zone("zone-1".to_owned()))),
        ("a tenth more nodes previewed", What::AddNodes(size.nodes.div_ceil(10), Zone("zone-2".to_owned()))),
    ] {
        let watch = Stopwatch::start();
        let seen = preview(&view, &what, 3).unwrap();
        assert!(!seen.changes.is_empty() && seen.during.without_quorum == 0, "{what}");
        costs.push((name, u64::from(size.partitions) * 3, watch.elapsed()));
    }
    let watch = Stopwatch::start();
    let bytes = group.backup(LONG).await.unwrap().seek(std::io::SeekFrom::End(0)).unwrap();
    costs.push(("snapshot written", size.blocks, watch.elapsed()));
    group.shutdown().await.unwrap();
    drop(view);
    let watch = Stopwatch::start();
    let group = Group::open(options(dir, size.partitions)).await.unwrap();
    costs.push(("opened again", size.blocks, watch.elapsed()));
    let view = group.linearizable(LONG).await.unwrap();
    let blocks: usize = view.blocks.iter().map(|(_, blocks)| blocks.len()).sum();
    assert_eq!(
        (view.nodes.len() as u64, view.tenants.len() as u64, blocks as u64),
        (size.nodes, size.tenants, size.blocks)
    );
    assert!(view.partitions.iter().all(|(_, row)| row.current.replicas.len() == 3));
    assert!(view.nodes.get(&NodeId(1)).is_some());
    group.shutdown().await.unwrap();
    (costs, bytes)
}

async fn run(size: Size) -> (Costs, u64) {
    let dir = tempfile::tempdir().unwrap();
    let group = Group::open(options(dir.path(), size.partitions)).await.unwrap();
    let before = memory_bytes();
    let mut costs = fill(&group, size).await;
    let held = memory_bytes().saturating_sub(before);
    println!(
        "{} nodes, {} partitions, {} tenants, {} blocks: {:.1} MB of memory more",
        size.nodes,
        size.partitions,
        size.tenants,
        size.blocks,
        held as f64 / 1e6
    );
    let (more, bytes) = look(group, dir.path(), size).await;
    costs.extend(more);
    for (name, count, took) in &costs {
        let each = took.as_secs_f64() * 1e6 / *count as f64;
        println!("  {name}: {count} in {:.3} s, {each:.2} µs each", took.as_secs_f64());
    }
    println!("  snapshot: {:.1} MB, {} bytes a block", bytes as f64 / 1e6, bytes / size.blocks);
    (costs, bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_cluster_is_carried_and_its_snapshot_grows_with_it() {
    let size = Size { nodes: 12, tenants: 20, blocks: 600, partitions: 16 };
    let (_, small) = run(size).await;
    let (_, large) = run(Size { blocks: 2400, ..size }).await;
    let each = (large - small) / 1800;
    assert!((100..1000).contains(&each), "{each} bytes a block");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; prints the figures of docs/performance.md"]
async fn a_large_cluster_is_carried_and_no_step_grows_faster_than_n_log_n() {
    let (small, _) = run(Size { nodes: 30, tenants: 1000, blocks: 100_000, partitions: 512 }).await;
    let (large, _) = run(Size { nodes: 300, tenants: 10_000, blocks: 1_000_000, partitions: 4096 }).await;
    for ((name, n, few), (_, m, many)) in small.into_iter().zip(large) {
        // Less than that is of what fits the caches of a processor, which the larger size does not.
        let (few, many, grown) = (few.as_secs_f64().max(0.003), many.as_secs_f64(), m as f64 / n as f64);
        // Three times n log n: the rest is the noise of a busy machine and of its caches.
        let allowed = 3.0 * grown * (m as f64).ln() / (n as f64).ln();
        assert!(many / few <= allowed, "{name}: {grown} times as many took {:.1} times as long", many / few);
    }
}
