//! Clients: they write numbered samples through any node and read them back through any other.

use super::books;
use super::host::{Host, Life};
use super::world::Shared;
use crate::check::seconds;
use crate::history::{Answer, Call, Cell, End, Found, Stage, Total};
use crate::workload::{NOT_REACHED, Numbers, STEPS, WIDTH};
use engram_model::Millis;
use engram_model::error::Class;
use engram_model::tenant::TenantId;
use engram_node::error::Error;
use engram_node::read::QueryRequest;
use engram_node::write::Written;
use engram_node::write::decode::Version;
use engram_query::value::Value;
use engram_raft::Consensus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

/// Most numbers of a writer.
const NUMBERS_MAX: u32 = 400;
/// How long a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(4);

/// What clients share.
#[derive(Debug, Default)]
pub(super) struct Load {
    over: AtomicBool,
    /// The highest number each writer has begun.
    reached: Vec<AtomicU32>,
}

impl Load {
    pub(super) fn new(writers: u32) -> Self {
        Self { over: AtomicBool::new(false), reached: (0..writers).map(|_| AtomicU32::new(0)).collect() }
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn reached(&self, writer: u32) -> u32 {
        self.reached.get(writer as usize).map_or(0, |reached| reached.load(Ordering::Relaxed))
    }
}

/// What a client got.
pub(super) enum Got<T> {
    Answer(Result<T, Error>),
    /// Nobody was there.
    Nobody,
    /// The node died, or took too long.
    Nothing,
}

impl<T> Got<T> {
    /// What a history holds of a question to `node`: its end, what was answered, and why it was not.
    fn told(self, node: usize, answer: impl FnOnce(T) -> Answer) -> (End, Option<Answer>, String) {
        match self {
            Self::Nobody => (End::Fail, None, format!("{NOT_REACHED}: node {node} is down")),
            Self::Nothing => (End::Unknown, None, "no answer".to_owned()),
            Self::Answer(Err(error)) => (End::Unknown, None, error.message),
            Self::Answer(Ok(value)) => (End::Ok, Some(answer(value)), String::new()),
        }
    }
}

/// Asks a node, from outside of the network between nodes.
pub(super) async fn ask<T: Send + 'static, F: Future<Output = Result<T, Error>> + Send + 'static>(
    host: &Host,
    act: impl FnOnce(Arc<Life>) -> F,
) -> Got<T> {
    let Some(life) = host.life() else { return Got::Nobody };
    let (reply, answer) = oneshot::channel();
    let acting = act(life.clone());
    life.spawn(async move {
        let _gone = reply.send(acting.await);
    });
    drop(life);
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => Got::Answer(answer),
        Ok(Err(_)) | Err(_) => Got::Nothing,
    }
}

fn tenant(numbers: Numbers, writer: u32) -> TenantId {
    TenantId::new(&numbers.tenant(writer)).unwrap_or_else(|e| unreachable!("a name of ours: {e}"))
}

/// Writes until the load is over. Some writers send some numbers late, when their tenant allows it.
pub(super) async fn write(world: Shared, load: Arc<Load>, writer: u32) {
    let late = world.numbers.is_late(writer);
    let mut next = 1;
    while !load.is_over() && next < NUMBERS_MAX {
        let mut turn = vec![next, next + 1, next + 2];
        if late && world.percent(50) {
            let at = world.pick(3);
            turn.swap(0, at);
        }
        next += 3;
        for number in turn {
            load.reached[writer as usize].fetch_max(number, Ordering::Relaxed);
            for _ in 0..1 + world.below(4) {
                if append(&world, writer, number).await == End::Ok || load.is_over() {
                    break;
                }
                tokio::time::sleep(world.millis(20, 300)).await;
            }
            tokio::time::sleep(world.millis(20, 400)).await;
        }
    }
}

fn home(world: &Shared, client: u32) -> usize {
    let count = world.hosts.len();
    if world.percent(80) { client as usize % count } else { world.pick(count) }
}

async fn append(world: &Shared, writer: u32, number: u32) -> End {
    let node = home(world, writer);
    let op = world.begin(node, Call::Append { writer, number });
    world.tell(|| format!("operation {op}: writer {writer} writes {number} at node {node}"));
    let (of, body) = (tenant(world.numbers, writer), world.numbers.request(writer, number).into());
    let got = ask(&world.hosts[node], |life| async move { life.writer.write(&of, Version::V1, body).await }).await;
    let (end, why) = match got {
        Got::Nobody => (End::Fail, format!("{NOT_REACHED}: node {node} is down")),
        Got::Nothing => (End::Unknown, "no answer".to_owned()),
        Got::Answer(Err(error)) => match error.class {
            Class::Unavailable | Class::Timeout => (End::Unknown, error.message),
            _ => (End::Fail, error.message),
        },
        Got::Answer(Ok(Written { refused: Some(refusal), .. })) => (End::Fail, refusal.message),
        Got::Answer(Ok(_)) => (End::Ok, String::new()),
    };
    let answer = (end == End::Ok).then_some(Answer::Done);
    world.end(op, end, answer, &why);
    end
}

/// Reads, and looks at what nodes say of themselves, until the load is over.
pub(super) async fn watch(world: Shared, load: Arc<Load>) {
    while !load.is_over() {
        tokio::time::sleep(world.millis(100, 900)).await;
        let node = world.pick(world.hosts.len());
        if world.percent(25) {
            look(&world, node);
            continue;
        }
        let writer = u32::try_from(world.below(u64::from(world.numbers.writers))).unwrap_or(0);
        if world.percent(25) {
            sum_up(&world, node, writer % world.numbers.tenants, &load).await;
            continue;
        }
        let last = load.reached(writer).max(1);
        let first = if world.percent(50) { 1 } else { last.saturating_sub(20).max(1) };
        read(&world, node, writer, (first, last), Stage::Load).await;
    }
}

/// Reads numbers of a writer at a node.
pub(super) async fn read(
    world: &Shared,
    node: usize,
    writer: u32,
    (first, last): (u32, u32),
    stage: Stage,
) -> Option<Answer> {
    let op = world.begin(node, Call::Read { writer, first, last, stage });
    let of = tenant(world.numbers, writer);
    let numbers = world.numbers;
    let end = numbers.time(last);
    let text = format!("{}{{writer=\"{writer}\"}}[{}ms]", Numbers::METRIC, end - numbers.time(first) + 1);
    let query = query(text, (end, end), 0);
    let got = ask(&world.hosts[node], |life| async move { life.reader.query(&of, query).await }).await;
    let (end, answer, why) = got.told(node, |outcome| Answer::Samples(found(world.numbers, writer, outcome.value)));
    world.tell(|| format!("operation {op}: writer {writer} at node {node}, {first} to {last}: {answer:?}"));
    world.end(op, end, answer.clone(), &why);
    answer
}

/// Asks a node for totals of a tenant.
async fn sum_up(world: &Shared, node: usize, tenant: u32, load: &Load) {
    let (numbers, total) = (world.numbers, [Total::Count, Total::Max, Total::Sum, Total::Observed][world.pick(4)]);
    let total = if numbers.observed().is_some() { total } else { total.of_floats() };
    // So that the last windows are those that are being written.
    let reached = (0..numbers.writers).map(|writer| load.reached(writer)).max().unwrap_or(0);
    let behind = u32::try_from(world.below(u64::from(STEPS * WIDTH))).unwrap_or(0);
    let first = reached.saturating_sub(behind).max(WIDTH);
    let op = world.begin(node, Call::Totals { tenant, total, first });
    let (start, end, step_ms) = numbers.totals_steps(first);
    let of = self::tenant(numbers, tenant);
    let query = query(numbers.totals_text(total), (start, end), step_ms);
    let got = ask(&world.hosts[node], |life| async move { life.reader.query(&of, query).await }).await;
    let (end, answer, why) = got.told(node, |outcome| Answer::Totals { cells: cells(numbers, first, outcome.value) });
    world.tell(|| format!("operation {op}: {total:?} of tenant {tenant} at node {node} from {first}: {answer:?}"));
    world.end(op, end, answer, &why);
}

fn cells(numbers: Numbers, first: u32, value: Value) -> Vec<Cell> {
    let Value::Matrix(rows) = value else { return Vec::new() };
    let mut cells = Vec::new();
    for row in rows {
        let writer = row.labels.get("writer").and_then(|text| text.parse().ok()).unwrap_or(u32::MAX);
        cells.extend(row.floats.into_iter().map(|point| numbers.totals_cell(writer, first, point)));
    }
    cells
}

fn query(text: String, (start, end): (Millis, Millis), step_ms: Millis) -> QueryRequest {
    QueryRequest {
        text,
        start,
        end,
        step_ms,
        timeout: Some(PATIENCE),
        lookback_ms: None,
        limit: 0,
        explain: false,
        count_steps: false,
    }
}

/// An answer in the words of the checkers.
fn found(numbers: Numbers, writer: u32, value: Value) -> Found {
    let Value::Matrix(rows) = value else { return Found::default() };
    let rows = rows.into_iter().map(|row| {
        let floats = row.floats.iter().map(|(at, value)| (*at, numbers.told_float(*value)));
        let histograms = row.histograms.iter().map(|(at, value)| (*at, numbers.told_histogram(value)));
        let mut points: Vec<_> = floats.chain(histograms).collect();
        points.sort_by_key(|(at, _)| *at);
        numbers.row(writer, |name| row.labels.get(name), row.labels.to_string(), points)
    });
    numbers.found_in(writer, rows)
}

/// What a node knows of the cluster.
fn look(world: &Shared, node: usize) {
    let Some(life) = world.hosts[node].life() else { return };
    let op = world.begin(node, Call::Status);
    books::look(world, &life.meta);
    let (ring, applied) = (life.meta.ring(), life.meta.applied());
    let epochs = (0..ring.partition_count()).map(engram_model::place::PartitionId);
    let epochs = epochs.map(|partition| ring.replicas(partition).map_or(0, |set| set.epoch.0)).collect();
    let status = life.member.status();
    let leader = status.leader.map(|hint| hint.id.0);
    let answer = Answer::Status { term: status.term, applied, leader, epochs, id: 0, fences: Vec::new() };
    world.end(op, End::Ok, Some(answer), "");
}

/// Whether all nodes answer alike about all writers.
pub(super) async fn answers_are_alike(world: &Shared, load: &Load) -> bool {
    for writer in 0..world.numbers.writers {
        let last = load.reached(writer).max(1);
        let mut first = None;
        for node in 0..world.hosts.len() {
            let Some(answer) = read(world, node, writer, (1, last), Stage::Load).await else { return false };
            if *first.get_or_insert_with(|| answer.clone()) != answer {
                return false;
            }
        }
    }
    true
}

/// Reads everything at every node.
pub(super) async fn read_all(world: &Shared, load: &Load, stage: Stage) {
    for writer in 0..world.numbers.writers {
        let last = load.reached(writer).max(1);
        for node in 0..world.hosts.len() {
            read(world, node, writer, (1, last), stage).await;
        }
    }
    world.tell(|| format!("{stage:?} reads at {:.3} s", seconds(world.now())));
}
