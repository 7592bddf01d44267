//! The history of a run: every operation's beginning and end, every fault, on disk as it happens.
//!
//! Why on disk: a verdict that cannot be looked at again convinces nobody, and a run that is killed must leave what it
//! saw. Why bounded: a run must not fill the disk of whoever tries it; past the bound it says so and the verdict is
//! `unknown`, never `passed`.
//!
//! One JSON object a line, `at` in microseconds since the run began:
//!
//! ```text
//! {"at":81,"op":7,"node":2,"begins":{"f":"append","writer":3,"number":19}}
//! {"at":4120,"op":7,"ends":"ok","answer":{"a":"done"}}
//! {"at":5000,"fault":"kill node 1","state":"installed"}
//! {"at":5001,"node":1,"life":"killed"}
//! {"at":6000,"gauge":{"node":0,"pid":4711,"rss":83886080,"own":52428800,"files":61,"threads":14,"cpu_ms":640}}
//! ```
//!
//! An operation ends in one of three ways: `ok`; `fail`, known not to have happened; `unknown`, may have happened, may
//! happen yet. One without an end is unknown.

use crate::error::Error;
use engram_model::digest::Digest;
use engram_model::time::Stopwatch;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Microseconds since the run began.
pub(crate) type Micros = u64;

/// Runs of numbers, first and last of each, ascending.
pub(crate) type Runs = Vec<(u32, u32)>;

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "f", rename_all = "kebab-case")]
pub(crate) enum Call {
    /// One sample, of this number, to each series of a writer.
    Append { writer: u32, number: u32 },
    /// The numbers `first..=last` of all series of a writer.
    Read { writer: u32, first: u32, last: u32, stage: Stage },
    /// Register `key` to `value` if it is at version `expected`.
    Set { key: u32, expected: u64, value: u64 },
    /// A question about data that never changes.
    Constant { question: usize },
    /// The version of a register, as a majority knows it.
    Probe { key: u32 },
    /// The register as this node knows it.
    Get { key: u32 },
    /// What a node knows of the cluster.
    Status,
    /// A total of each writer of a tenant, over a few windows of numbers; `first` ends the first window.
    Totals { tenant: u32, total: Total, first: u32 },
    /// What a tenant has in memory goes to blocks.
    Flush { tenant: u32 },
    /// The digest of all that a tenant has stored, at rest.
    Digest { tenant: u32 },
    /// What the replicas on this node alone hold of a tenant, at rest.
    Held { tenant: String, stage: Stage },
    /// The blocks of a tenant, and the digest of all it has stored.
    Ledger { tenant: u32 },
}

/// One replica of a partition, as its node tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) partition: u32,
    pub(crate) epoch: u64,
    /// Ids of the nodes of its set.
    pub(crate) members: Vec<u64>,
    /// Whether there is a set that will replace it.
    pub(crate) moves: bool,
    /// The id of the node that tells.
    pub(crate) node: u64,
    /// Whether it says that it has all it should have, and why not.
    pub(crate) complete: bool,
    pub(crate) why: String,
    /// What is older it has forgotten by age.
    pub(crate) floor: Option<i64>,
    /// Seals that are open.
    pub(crate) seals: Vec<SealSeen>,
    /// The digest of each slot that holds samples.
    pub(crate) slots: Vec<(i64, Digest)>,
}

/// A window that is set aside for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealSeen {
    pub(crate) number: u64,
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// Whether the replica has forgotten it.
    pub(crate) forgotten: bool,
}

/// A block that is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockSeen {
    pub(crate) id: String,
    pub(crate) samples: u64,
    /// The blocks it replaced.
    pub(crate) sources: Vec<String>,
    /// What is wrong with its objects in the bucket.
    pub(crate) wrong: Option<String>,
}

/// Which total.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Total {
    /// Of samples, over all series.
    Count,
    /// The greatest value of all series.
    Max,
    /// Of the values of series 0.
    Sum,
    /// Of the observations of a series of histograms.
    Observed,
}

impl Total {
    /// Another where there are floats only.
    pub(crate) fn of_floats(self) -> Self {
        if self == Self::Observed { Self::Count } else { self }
    }
}

/// One number of an answer with totals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cell {
    /// `u32::MAX`: none.
    pub(crate) writer: u32,
    /// Which window, from 0.
    pub(crate) step: u32,
    pub(crate) value: f64,
}

/// When a read was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// While faults came and went.
    Load,
    /// After everything was healed and at rest: everything, at every node.
    Final,
    /// After that: the same again and again.
    Again,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "a", rename_all = "kebab-case")]
pub(crate) enum Answer {
    Done,
    Totals {
        cells: Vec<Cell>,
    },
    Constant {
        right: bool,
        /// What was said, where it is wrong.
        told: String,
    },
    Ledger {
        blocks: Vec<BlockSeen>,
        stored: Digest,
        /// Directories of the bucket that belong to no block that is read.
        strangers: Vec<String>,
    },
    Samples(Found),
    Digest(Digest),
    Held {
        replicas: Vec<Held>,
    },
    Register {
        version: u64,
        value: u64,
    },
    Version {
        version: u64,
    },
    Status {
        /// Raft's term, applied index and leader as the node knows them.
        term: u64,
        applied: u64,
        leader: Option<u64>,
        /// Epoch of each partition.
        epochs: Vec<u64>,
        /// The id the cluster gave the node that answers: one whose disk was replaced has another.
        #[serde(default)]
        id: u64,
        /// Leases that somebody has: what for, whose, its fence.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        fences: Vec<(String, u64, u64)>,
    },
}

/// The samples of one read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    /// Series that hold the same numbers, with just the value the writer gave each.
    pub(crate) groups: Vec<(Vec<u32>, Runs)>,
    /// Points that no attempt of this writer explains by their time and value alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) odd: Vec<Odd>,
}

/// A point that should not be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Odd {
    pub(crate) series: String,
    pub(crate) at_ms: i64,
    pub(crate) bits: u64,
    /// The time stands twice in the answer, or out of order.
    pub(crate) doubled: bool,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    Ok,
    Fail,
    Unknown,
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FaultState {
    /// It is being done: from now on everything may be its fault.
    Installed,
    /// It is done: what begins from now on meets the fault, and was not hit by it.
    Struck,
    /// It is gone again.
    Healed,
    /// This machine cannot do it.
    Skipped,
    /// It may be there or not: the run proves nothing about it.
    Unknown,
}

/// What becomes of a node's process by our hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Life {
    /// It is being killed.
    Killed,
    /// It is asked to end.
    Asked,
    /// It is gone.
    Gone,
}

/// What a node's process took at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Gauge {
    pub(crate) node: u32,
    pub(crate) pid: u32,
    /// Memory that it has, bytes; and what of it is its own, no copy of a file.
    pub(crate) rss: u64,
    pub(crate) own: u64,
    /// Open files, sockets among them.
    pub(crate) files: u64,
    pub(crate) threads: u64,
    /// Processor time since it was started.
    pub(crate) cpu_ms: u64,
    /// `None`: it did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) told: Option<Told>,
}

/// What a node tells of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// In its heads.
    pub(crate) series: f64,
    pub(crate) samples: f64,
    /// Of clients.
    pub(crate) connections: f64,
    /// Files of its log.
    pub(crate) segments: f64,
    /// Blocks that are open to be read.
    pub(crate) blocks: f64,
    /// Raft's.
    pub(crate) term: f64,
}

/// One line.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Line {
    at: Micros,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    op: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    begins: Option<Call>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ends: Option<End>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<Answer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<FaultState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mark: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    life: Option<Life>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gauge: Option<Gauge>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    why: String,
}

/// An operation, from its beginning to its end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Op {
    pub(crate) node: u32,
    pub(crate) call: Call,
    pub(crate) began: Micros,
    /// `None`: it never ended.
    pub(crate) ended: Option<Micros>,
    pub(crate) end: End,
    pub(crate) answer: Option<Answer>,
    pub(crate) why: String,
}

/// Something that happened to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) at: Micros,
    pub(crate) name: String,
    pub(crate) state: FaultState,
    pub(crate) why: String,
}

/// A node that was taken down: from the first blow until its process was gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Down {
    pub(crate) node: u32,
    pub(crate) from: Micros,
    /// `None`: nobody saw it gone.
    pub(crate) gone: Option<Micros>,
}

/// A whole run, read back.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// By their beginning.
    pub(crate) ops: Vec<Op>,
    pub(crate) faults: Vec<Fault>,
    /// By their beginning.
    pub(crate) downs: Vec<Down>,
    /// Stages of the run by name.
    pub(crate) marks: Vec<(Micros, String)>,
    /// What nodes took, by time.
    pub(crate) gauges: Vec<(Micros, Gauge)>,
}

impl History {
    /// Reads what a [`Recorder`] wrote.
    ///
    /// # Errors
    /// The disk, or a line that is none.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let (mut history, mut open) = (Self::default(), HashMap::new());
        for (number, line) in BufReader::new(File::open(path)?).lines().enumerate() {
            let line: Line = serde_json::from_str(&line?)
                .map_err(|e| Error::Usage(format!("{}, line {}: {e}", path.display(), number + 1)))?;
            history.take(line, &mut open);
        }
        Ok(history)
    }

    fn take(&mut self, line: Line, open: &mut HashMap<u64, usize>) {
        if let (Some(op), Some(call)) = (line.op, line.begins) {
            open.insert(op, self.ops.len());
            self.ops.push(Op {
                node: line.node.unwrap_or(0),
                call,
                began: line.at,
                ended: None,
                end: End::Unknown,
                answer: None,
                why: "it never ended".to_owned(),
            });
        } else if let (Some(op), Some(end)) = (line.op, line.ends) {
            if let Some(op) = open.remove(&op).and_then(|at| self.ops.get_mut(at)) {
                (op.ended, op.end, op.answer, op.why) = (Some(line.at), end, line.answer, line.why);
            }
        } else if let (Some(name), Some(state)) = (line.fault, line.state) {
            self.faults.push(Fault { at: line.at, name, state, why: line.why });
        } else if let (Some(node), Some(life)) = (line.node, line.life) {
            let open = self.downs.iter_mut().find(|down| down.node == node && down.gone.is_none());
            match (open, life) {
                (Some(down), Life::Gone) => down.gone = Some(line.at),
                (None, Life::Killed | Life::Asked) => {
                    self.downs.push(Down { node, from: line.at, gone: None });
                }
                _ => {}
            }
        } else if let Some(name) = line.mark {
            self.marks.push((line.at, name));
        } else if let Some(gauge) = line.gauge {
            self.gauges.push((line.at, gauge));
        }
    }

    /// When a stage began.
    pub(crate) fn mark(&self, name: &str) -> Option<Micros> {
        self.marks.iter().find(|(_, n)| n == name).map(|(at, _)| *at)
    }

    /// The last moment anything happened.
    pub(crate) fn end(&self) -> Micros {
        let ops = self.ops.iter().map(|op| op.ended.unwrap_or(op.began));
        ops.chain(self.marks.iter().map(|(at, _)| *at)).max().unwrap_or(0)
    }
}

#[derive(Debug)]
struct Sink {
    out: BufWriter<File>,
    bytes: u64,
    next_op: u64,
    /// Set once, when the bound is reached or the disk fails.
    broken: Option<String>,
}

/// Writes a history; shared by everybody who takes part in a run.
#[derive(Debug)]
pub(crate) struct Recorder {
    watch: Stopwatch,
    path: PathBuf,
    bytes_max: u64,
    sink: Mutex<Sink>,
}

impl Recorder {
    /// Begins an empty history at `path`.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn new(path: &Path, bytes_max: u64) -> Result<Self, Error> {
        let sink = Sink { out: BufWriter::new(File::create(path)?), bytes: 0, next_op: 0, broken: None };
        Ok(Self { watch: Stopwatch::start(), path: path.to_owned(), bytes_max, sink: Mutex::new(sink) })
    }

    /// Microseconds since the run began.
    pub(crate) fn now(&self) -> Micros {
        u64::try_from(self.watch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Writes down that an operation begins; call it before the first byte is sent.
    pub(crate) fn begin(&self, node: usize, call: Call) -> u64 {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        sink.next_op += 1;
        let op = sink.next_op;
        let node = u32::try_from(node).ok();
        self.put(&mut sink, &Line { at: self.now(), op: Some(op), node, begins: Some(call), ..Line::default() });
        op
    }

    /// Writes down how it ended; call it after the last byte has come.
    pub(crate) fn end(&self, op: u64, end: End, answer: Option<Answer>, why: &str) {
        let why = why.chars().take(300).collect();
        self.line(Line { op: Some(op), ends: Some(end), answer, why, ..Line::default() });
    }

    /// Writes down what became of a fault.
    pub(crate) fn fault(&self, name: &str, state: FaultState, why: &str) {
        let (fault, why) = (Some(name.to_owned()), why.to_owned());
        self.line(Line { fault, state: Some(state), why, ..Line::default() });
    }

    /// Writes down what becomes of a node's process.
    pub(crate) fn life(&self, node: usize, life: Life) {
        self.line(Line { node: u32::try_from(node).ok(), life: Some(life), ..Line::default() });
    }

    /// Writes down that a stage of the run begins.
    pub(crate) fn mark(&self, name: &str) {
        self.line(Line { mark: Some(name.to_owned()), ..Line::default() });
    }

    /// Writes down what a node's process takes now.
    pub(crate) fn gauge(&self, gauge: Gauge) {
        self.line(Line { gauge: Some(gauge), ..Line::default() });
    }

    fn line(&self, line: Line) {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        self.put(&mut sink, &Line { at: self.now(), ..line });
    }

    fn put(&self, sink: &mut Sink, line: &Line) {
        if sink.broken.is_some() {
            return;
        }
        let mut bytes = serde_json::to_vec(line).unwrap_or_default();
        bytes.push(b'\n');
        sink.bytes += bytes.len() as u64;
        if sink.bytes > self.bytes_max {
            sink.broken = Some(format!("the history reached its bound of {} bytes", self.bytes_max));
        } else if let Err(error) = sink.out.write_all(&bytes) {
            sink.broken = Some(format!("the history could not be written: {error}"));
        }
    }

    /// Whether anything was lost; the workload ends then.
    pub(crate) fn broken(&self) -> Option<String> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner).broken.clone()
    }

    /// Brings everything to the file and reads it back.
    ///
    /// # Errors
    /// As [`History::read`], and what broke while it was written.
    pub(crate) fn finish(&self) -> Result<History, Error> {
        if let Some(why) = self.broken() {
            return Err(Error::Usage(why));
        }
        self.sink.lock().unwrap_or_else(PoisonError::into_inner).out.flush()?;
        History::read(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = Recorder::new(&folder.path().join("history"), 10_000).unwrap();
        recorder.mark("load");
        let one = recorder.begin(2, Call::Append { writer: 3, number: 19 });
        let two = recorder.begin(0, Call::Read { writer: 3, first: 1, last: 19, stage: Stage::Load });
        recorder.begin(1, Call::Probe { key: 4 });
        let odd = Odd { series: "s".to_owned(), at_ms: 7, bits: 9, doubled: true };
        let found = Found { groups: vec![(vec![0, 1], vec![(1, 4), (6, 6)])], odd: vec![odd] };
        recorder.end(two, End::Ok, Some(Answer::Samples(found.clone())), "");
        recorder.end(one, End::Fail, None, "refused");
        recorder.fault("kill node 1", FaultState::Installed, "");
        for life in [Life::Killed, Life::Killed, Life::Gone, Life::Gone] {
            recorder.life(1, life);
        }
        let gauge = Gauge { node: 2, rss: 7, told: Some(Told { series: 5.0, ..Told::default() }), ..Gauge::default() };
        recorder.gauge(gauge.clone());
        let history = recorder.finish().unwrap();
        assert_eq!(history.ops.len(), 3);
        assert_eq!((history.ops[0].end, history.ops[0].why.as_str(), history.ops[0].node), (End::Fail, "refused", 2));
        assert_eq!(history.ops[1].answer, Some(Answer::Samples(found)));
        assert_eq!((history.ops[2].end, history.ops[2].ended), (End::Unknown, None));
        assert_eq!(history.faults[0].state, FaultState::Installed);
        assert_eq!(history.gauges[0].1, gauge);
        assert!(history.downs.len() == 1 && history.downs[0].node == 1 && history.downs[0].gone.is_some());
        assert!(history.mark("load").is_some() && history.mark("heal").is_none());
    }

    #[test]
    fn a_history_past_its_bound_proves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = Recorder::new(&folder.path().join("history"), 200).unwrap();
        for _ in 0..5 {
            recorder.begin(0, Call::Status);
        }
        assert!(recorder.broken().is_some() && recorder.finish().is_err());
    }
}
