//! A flood: writers that send as much as they can, new series in every request, and queries that touch all of it.
//!
//! Whether they are served is not what matters, only how they are refused and what becomes of the others: the samples of
//! the run's own clients are checked as always.

use crate::client::{Client, Ending, Patience, Protocol};
use crate::cluster::Roster;
use crate::wire;
use engram_model::time::Clock;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;

/// Writers of it.
const WRITERS: usize = 24;
/// Series in each request, every one of them new.
const SERIES: usize = 400;
/// Readers of it.
const READERS: usize = 4;

/// What the flood heard, counted by the opening of the answer.
type Heard = Arc<Mutex<BTreeMap<String, u64>>>;

/// A flood; it ends with this.
#[derive(Debug)]
pub(super) struct Flood {
    tasks: JoinSet<()>,
    heard: Heard,
}

impl Flood {
    pub(super) fn begin(roster: &Arc<Roster>) -> Self {
        let (mut tasks, heard) = (JoinSet::new(), Heard::default());
        for writer in 0..WRITERS {
            tasks.spawn(write(roster.clone(), writer, heard.clone()));
        }
        for reader in 0..READERS {
            tasks.spawn(read(roster.clone(), reader));
        }
        Self { tasks, heard }
    }

    /// Ends it; says what was answered how often.
    pub(super) async fn end(mut self) -> String {
        self.tasks.shutdown().await;
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().map(|(what, count)| format!("{what}: {count}")).collect::<Vec<_>>().join(", ")
    }
}

fn at(roster: &Roster, one: usize) -> Option<Client> {
    let nodes = roster.listed();
    nodes.get(one % nodes.len().max(1)).and_then(|node| roster.client(*node))
}

async fn write(roster: Arc<Roster>, writer: usize, heard: Heard) {
    let tenant = format!("flood-{}", writer % 4);
    let once = Patience { retries_max: 0, wait_max: Duration::ZERO };
    for round in 0_u64.. {
        let Some(client) = at(&roster, writer) else { return };
        let (ending, _) = client.push(Protocol::V1, Some(&tenant), body(writer, round).into(), once).await;
        let what = match ending {
            Ending::Acknowledged => "2xx".to_owned(),
            Ending::Refused(why) | Ending::Unknown(why) => why.split(':').next().unwrap_or_default().to_owned(),
        };
        *heard.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_insert(0) += 1;
        // Others must get a turn on this machine, which also carries the clients.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn body(writer: usize, round: u64) -> Vec<u8> {
    let (mut body, now) = (Vec::new(), Clock::real().now());
    for series in 0..SERIES {
        let name = |name: &str, value: String| (name.to_owned(), value);
        let labels = [
            name("__name__", "flood".to_owned()),
            name("round", round.to_string()),
            name("series", format!("a long label so that memory is felt {series:040}")),
            name("writer", writer.to_string()),
        ];
        let value_at = wire::put_series(&mut body, &labels);
        wire::patch(&mut body, value_at, now, 1.0);
    }
    snap::raw::Encoder::new().compress_vec(&body).unwrap_or_default()
}

async fn read(roster: Arc<Roster>, reader: usize) {
    let tenant = format!("flood-{reader}");
    while let Some(client) = at(&roster, reader) {
        let query = "sum by (writer) (count_over_time(flood[1h]))".to_owned();
        // Served or not, it has cost something.
        let _answer = client.ask("query", &[("query", query)], Some(&tenant)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
