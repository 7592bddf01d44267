//! Constants: a small set of data that is written before anything is broken, and questions whose answers never change.
//!
//! Why: a store can keep every sample and still compute with a part of them. Each question is asked at any node at any
//! time, in the midst of every fault; it may be refused, but an answer must be *the* answer, worked out here by hand
//! from what was written and not by any engine.
//!
//! ```text
//! chaos_constant{series="s"}    s = 0..5, n = 1..=40:  value s·100 + n, every 15 s
//! chaos_shape{series="s"}       a native histogram at the same times: n observations in each of two buckets,
//!                               (1, 2] and (2, 4]; sum 5·n
//! ```

use super::{Shared, failure};
use crate::client::{Client, Ending, Patience, Protocol};
use crate::error::Error;
use crate::history::{Answer, Call, End};
use crate::load::seconds;
use crate::wire;
use engram_model::time::{Millis, Stopwatch};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::Value;
use std::time::Duration;

/// Whose they are.
pub(super) const TENANT: &str = "chaos-constant";
const SERIES: u32 = 5;
const SAMPLES: u32 = 40;
const STEP_MS: Millis = 15_000;
/// Longest time until they are written.
const WITHIN: Duration = Duration::from_secs(60);

/// What is asked at the time of the last sample, and what that is.
pub(crate) const QUESTIONS: [(&str, f64); 14] = [
    ("sum(chaos_constant)", 1_200.0),
    ("count(chaos_constant)", 5.0),
    ("max(chaos_constant) - min(chaos_constant)", 400.0),
    ("sum(count_over_time(chaos_constant[1h]))", 200.0),
    ("sum(sum_over_time(chaos_constant[1h]))", 44_100.0),
    ("sum(min_over_time(chaos_constant[1h]))", 1_005.0),
    ("avg(chaos_constant{series=~\"[0-2]\"})", 140.0),
    ("sum(chaos_constant offset 5m)", 1_100.0),
    ("sum(chaos_constant * on (series) chaos_constant)", 388_000.0),
    ("sum(increase(chaos_constant{series=\"3\"}[5m]))", 20.0),
    ("max_over_time(sum(chaos_constant)[5m:15s])", 1_200.0),
    ("histogram_count(sum(chaos_shape))", 400.0),
    ("histogram_sum(sum(chaos_shape))", 1_000.0),
    ("histogram_quantile(0.5, sum(chaos_shape))", 2.0),
];

/// Writes them all, and goes on until all of it is acknowledged.
///
/// # Errors
/// The cluster does not take them.
pub(super) async fn prepare(shared: &Shared) -> Result<(), Error> {
    let first = last(shared) - Millis::from(SAMPLES) * STEP_MS;
    let watch = Stopwatch::start();
    for number in 1..=SAMPLES {
        let body = bytes::Bytes::from(request(number, first + Millis::from(number) * STEP_MS));
        let patience = Patience { retries_max: 10, wait_max: Duration::from_millis(500) };
        loop {
            let node = shared.roster.listed().into_iter().next().unwrap_or(0);
            let client = shared.roster.client(node).ok_or_else(|| Error::Usage("no node is listed".to_owned()))?;
            match client.push(Protocol::V1, Some(TENANT), body.clone(), patience).await.0 {
                Ending::Acknowledged => break,
                Ending::Refused(why) => return Err(Error::Usage(format!("{TENANT} is refused: {why}"))),
                Ending::Unknown(why) if watch.elapsed() > WITHIN => return Err(Error::Usage(why)),
                Ending::Unknown(_) => {}
            }
        }
    }
    Ok(())
}

/// The time of the last sample: a whole minute, as the steps of subqueries are whole.
fn last(shared: &Shared) -> Millis {
    shared.numbers.base - shared.numbers.base.rem_euclid(60_000)
}

fn request(number: u32, at: Millis) -> Vec<u8> {
    let mut body = Vec::new();
    for series in 0..SERIES {
        let labels = |name: &str| [("__name__".to_owned(), name.to_owned()), ("series".to_owned(), series.to_string())];
        let value_at = wire::put_series(&mut body, &labels("chaos_constant"));
        wire::patch(&mut body, value_at, at, f64::from(series * 100 + number));
        let mut shape = Vec::new();
        labels("chaos_shape").iter().for_each(|(name, value)| wire::put_label(&mut shape, name, value));
        wire::put_bytes(&mut shape, 4, &histogram(number, at));
        wire::put_bytes(&mut body, 1, &shape);
    }
    snap::raw::Encoder::new().compress_vec(&body).unwrap_or_default()
}

/// Source: prometheus `prompb/types.proto`, `Histogram`. Schema 0: its second bucket is (1, 2], its third (2, 4].
fn histogram(number: u32, at: Millis) -> Vec<u8> {
    let mut out = Vec::new();
    let mut varint = |field: u8, value: u64| {
        out.push(field << 3);
        wire::put_varint(&mut out, value);
    };
    varint(1, u64::from(2 * number));
    out.push(3 << 3 | 1);
    out.extend_from_slice(&f64::from(5 * number).to_le_bytes());
    // One span: from bucket 1 on, two of them. Signed numbers are zigzag: 1 is 2.
    wire::put_bytes(&mut out, 11, &[1 << 3, 2, 2 << 3, 2]);
    let mut deltas = Vec::new();
    wire::put_varint(&mut deltas, u64::from(2 * number));
    deltas.push(0);
    wire::put_bytes(&mut out, 12, &deltas);
    out.push(15 << 3);
    wire::put_varint(&mut out, at.unsigned_abs());
    out
}

/// Asks until the run is over.
pub(super) async fn run(shared: Shared, mut chance: StdRng) {
    while !shared.is_over() {
        let question = chance.random_range(0..QUESTIONS.len());
        let call = Call::Constant { question };
        let act = |client| ask(&shared, client, question);
        shared.somewhere(&mut chance, None, &call, act).await;
        shared.rest(&mut chance).await;
    }
}

async fn ask(shared: &Shared, client: Client, question: usize) -> (End, Option<Answer>, String) {
    let (query, wanted) = QUESTIONS[question];
    let params = [("query", query.to_owned()), ("time", seconds(last(shared)))];
    match client.ask("query", &params, Some(TENANT)).await {
        Ok(answer) => {
            let told = answer["data"]["result"].to_string();
            let right = is_right(&answer["data"]["result"], wanted);
            (End::Ok, Some(Answer::Constant { right, told: if right { String::new() } else { told } }), String::new())
        }
        Err(error) => {
            let (_, why) = failure(&error.to_string());
            (End::Fail, None, why)
        }
    }
}

/// One series, one value, and that is it, up to the last few bits of a division.
fn is_right(result: &Value, wanted: f64) -> bool {
    let value = match result.as_array().map(Vec::as_slice) {
        Some([one]) => one["value"][1].as_str().and_then(|text| text.parse::<f64>().ok()),
        _ => None,
    };
    value.is_some_and(|value| (value - wanted).abs() <= wanted.abs() * 1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn another_answer_is_wrong() {
        let one = |text: &str| json!([{"metric": {}, "value": [1, text]}]);
        assert!(is_right(&one("1200"), 1_200.0));
        assert!(!is_right(&one("1199"), 1_200.0) && !is_right(&json!([]), 1_200.0) && !is_right(&one("NaN"), 1_200.0));
    }

    #[test]
    fn a_histogram_is_as_remote_write_says() {
        let bytes = histogram(3, 1_790_000_000_000);
        assert_eq!(bytes[..2], [8, 6]);
        assert_eq!(bytes[2..11], [&[25][..], &15.0_f64.to_le_bytes()].concat());
        assert_eq!(bytes[11..17], [90, 4, 8, 2, 16, 2]);
        assert_eq!(bytes[17..21], [98, 2, 6, 0]);
    }
}
