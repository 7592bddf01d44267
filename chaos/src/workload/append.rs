//! Writers. Each number goes to all series of its writer in one request; how it ended is written down.
//!
//! Writers of tenants without a window for late samples send in order, one request at a time, so nothing of theirs may
//! ever be refused. The others hold one number in ten back and send it up to a hundred numbers later. Half of what has
//! no known end is sent again, usually at another node, as real senders do: it must then be there once. Every third writer
//! speaks the second version of remote write.

use super::{Shared, failure};
use crate::client::{Client, Ending, Patience, Protocol};
use crate::error::Error;
use crate::history::{Answer, Call, End};
use engram_model::time::Stopwatch;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How late a sample may be at tenants that take late ones.
const WINDOW_MS: u64 = 3_600_000;
/// Longest time until tenants are made.
const PREPARE_WITHIN: Duration = Duration::from_secs(60);
/// How often one number is sent again.
const AGAIN_MAX: u32 = 3;

/// Makes the tenants that take late samples.
pub(super) async fn prepare(shared: &Shared) -> Result<(), Error> {
    let late = (0..shared.numbers.tenants).filter(|tenant| shared.numbers.is_late(*tenant));
    for tenant in late {
        let path = format!("admin/tenants/{}", shared.numbers.tenant(tenant));
        let body = json!({ "version": 0, "limits": { "out_of_order_time_window_ms": WINDOW_MS } });
        let watch = Stopwatch::start();
        loop {
            let node = shared.roster.listed().into_iter().next().unwrap_or(0);
            let client = shared.roster.client(node).ok_or_else(|| Error::Usage("no node is listed".to_owned()))?;
            match client.put(&path, &body).await {
                // 409: an earlier try came through and its answer was lost.
                Ok((200 | 409, _)) => break,
                Ok((status, answer)) if watch.elapsed() > PREPARE_WITHIN => {
                    return Err(Error::Usage(format!("{path}: {status}: {answer}")));
                }
                Err(error) if watch.elapsed() > PREPARE_WITHIN => return Err(error),
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
    Ok(())
}

/// Writes until the run is over; what is held back is sent before the end.
pub(super) async fn write(shared: Shared, writer: u32, mut chance: StdRng) {
    let late = shared.numbers.is_late(writer);
    let mut held: BTreeMap<u32, u32> = BTreeMap::new();
    let mut next = 0;
    while !shared.is_over() {
        next += 1;
        shared.reached[writer as usize].store(next, Ordering::Relaxed);
        if late && chance.random_bool(0.1) {
            held.insert(next + chance.random_range(5..100), next);
            continue;
        }
        number(&shared, writer, next, &mut chance).await;
        while let Some(due) = held.first_entry().filter(|due| *due.key() <= next) {
            number(&shared, writer, due.remove(), &mut chance).await;
        }
        shared.rest(&mut chance).await;
    }
    for due in held.into_values() {
        number(&shared, writer, due, &mut chance).await;
    }
}

async fn number(shared: &Shared, writer: u32, number: u32, chance: &mut StdRng) {
    let (protocol, body) = if shared.numbers.speaks_second(writer) {
        (Protocol::V2, shared.numbers.second_request(writer, number))
    } else {
        (Protocol::V1, shared.numbers.request(writer, number))
    };
    let body = bytes::Bytes::from(body);
    let tenant = shared.numbers.tenant(writer);
    for again in 0..=AGAIN_MAX {
        let call = Call::Append { writer, number };
        let act = |client| push(client, protocol, &tenant, body.clone());
        // Again means elsewhere.
        let home = if again == 0 { shared.home(writer) } else { None };
        let (end, _) = shared.somewhere(chance, home, &call, act).await;
        if end == End::Ok || again == AGAIN_MAX || chance.random_bool(0.5) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(chance.random_range(10..=200))).await;
    }
}

async fn push(client: Client, protocol: Protocol, tenant: &str, body: bytes::Bytes) -> (End, Option<Answer>, String) {
    let once = Patience { retries_max: 0, wait_max: Duration::ZERO };
    let (ending, _) = client.push(protocol, Some(tenant), body, once).await;
    match ending {
        Ending::Acknowledged => (End::Ok, Some(Answer::Done), String::new()),
        Ending::Refused(why) => (End::Fail, None, why),
        Ending::Unknown(why) => {
            let (end, why) = failure(&why);
            (end, None, why)
        }
    }
}
