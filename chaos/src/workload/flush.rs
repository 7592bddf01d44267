//! Flushing: what tenants have in memory is sealed and cut to blocks while they write, so that windows end in the middle
//! of requests, late samples make late blocks, and compaction has something to do.

use super::{Shared, failure};
use crate::client::Client;
use crate::history::{Answer, Call, End};
use rand::RngExt;
use rand::rngs::StdRng;
use std::time::Duration;

/// Flushes one tenant after the other, with a pause of about `every` between two, until the run is over.
pub(super) async fn run(shared: Shared, every: Duration, mut chance: StdRng) {
    let ms = u64::try_from(every.as_millis()).unwrap_or(u64::MAX).max(2);
    while !shared.is_over() {
        let tenant = chance.random_range(0..shared.numbers.tenants);
        let name = shared.numbers.tenant(tenant);
        let act = |client| flush(client, &name);
        shared.somewhere(&mut chance, None, &Call::Flush { tenant }, act).await;
        tokio::time::sleep(Duration::from_millis(chance.random_range(ms / 2..=ms + ms / 2))).await;
    }
}

async fn flush(client: Client, tenant: &str) -> (End, Option<Answer>, String) {
    match client.post_as("admin/flush", Some(tenant)).await {
        Ok(()) => (End::Ok, Some(Answer::Done), String::new()),
        Err(error) => {
            let (end, why) = failure(&error.to_string());
            (end, None, why)
        }
    }
}
