//! Readers: the newest numbers of a writer, or now and then all of them, at any node.

use super::{Shared, failure};
use crate::client::Client;
use crate::history::{Answer, Call, End, Stage};
use rand::RngExt;
use rand::rngs::StdRng;
use std::sync::atomic::Ordering;

/// Numbers a reader looks back over.
const BACK: u32 = 150;
/// Numbers it looks ahead: what is not written yet must not be there.
const AHEAD: u32 = 20;

/// Reads until the run is over.
pub(super) async fn run(shared: Shared, mut chance: StdRng) {
    while !shared.is_over() {
        let writer = chance.random_range(0..shared.numbers.writers);
        let reached = shared.reached[writer as usize].load(Ordering::Relaxed);
        let first = if chance.random_bool(0.05) { 1 } else { reached.saturating_sub(BACK).max(1) };
        let (last, stage) = (reached + AHEAD, Stage::Load);
        let call = Call::Read { writer, first, last, stage };
        let act = |client| look(&shared, client, writer, (first, last));
        shared.somewhere(&mut chance, None, &call, act).await;
        shared.rest(&mut chance).await;
    }
}

async fn look(shared: &Shared, client: Client, writer: u32, window: (u32, u32)) -> (End, Option<Answer>, String) {
    match shared.numbers.read(&client, writer, window.0, window.1).await {
        Ok(found) => (End::Ok, Some(Answer::Samples(found)), String::new()),
        Err(error) => {
            let (end, why) = failure(&error.to_string());
            (end, None, why)
        }
    }
}

/// Reads everything of a writer at one node; whether it was answered.
pub(crate) async fn read(shared: &Shared, node: usize, writer: u32, stage: Stage) -> Option<Answer> {
    let client = shared.roster.client(node)?;
    let last = shared.reached[writer as usize].load(Ordering::Relaxed) + AHEAD;
    let op = shared.recorder.begin(node, Call::Read { writer, first: 1, last, stage });
    let (end, answer, why) = look(shared, client, writer, (1, last)).await;
    shared.recorder.end(op, end, answer.clone(), &why);
    answer
}
