//! What comes with samples and is not in blocks. Start timestamps from the wire to the engine: written by remote write 2.0,
//! asked for by `start_timestamp()`. Exemplars and metadata: what is answered of them after restarts and cuts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "test"
)]

#[allow(dead_code, unreachable_pub, reason = "each test crate uses its part of the support")]
mod support;

use support::{TestNode, at, field, open, run, snappy, start, varint};

const NOW: i64 = 1_700_000_000_000;
const V2: &str = "application/x-protobuf;proto=io.prometheus.write.v2.Request";

/// `io.prometheus.write.v2.Request` of one series: floats as time, value, start; and a histogram of one observation.
fn request_v2(labels: &[(&str, &str)], samples: &[(i64, f64, i64)], histogram: Option<(i64, i64)>) -> Vec<u8> {
    let (mut out, mut one, mut refs) = (Vec::new(), Vec::new(), Vec::new());
    field(&mut out, 4, b"");
    for (text, at) in labels.iter().flat_map(|(name, value)| [name, value]).zip(1..) {
        field(&mut out, 4, text.as_bytes());
        varint(&mut refs, at);
    }
    field(&mut one, 1, &refs);
    for (at, value, start) in samples {
        let mut sample = vec![0x09];
        sample.extend_from_slice(&value.to_le_bytes());
        numbers(&mut sample, &[(2, *at), (3, *start)]);
        field(&mut one, 2, &sample);
    }
    if let Some((at, start)) = histogram {
        let mut sample = vec![0x19];
        sample.extend_from_slice(&0.0_f64.to_le_bytes());
        // One observation, in the bucket of zero.
        numbers(&mut sample, &[(1, 1), (6, 1), (15, at), (17, start)]);
        field(&mut one, 3, &sample);
    }
    field(&mut out, 5, &one);
    out
}

fn numbers(out: &mut Vec<u8>, fields: &[(u64, i64)]) {
    for (number, value) in fields {
        varint(out, number << 3);
        varint(out, *value as u64);
    }
}

async fn push(node: &TestNode, name: &str, samples: &[(i64, f64, i64)], histogram: Option<(i64, i64)>) {
    let body = snappy(&request_v2(&[("__name__", name)], samples, histogram));
    let (status, text) = node.push_bytes("acme", body, V2).await;
    assert_eq!(status, 204, "{text}");
}

async fn ask(node: &TestNode, query: &str, at_ms: i64) -> String {
    let (status, json) = node.get("acme", &format!("query?query={query}&time={}", at_ms as f64 / 1000.0)).await;
    assert_eq!(status, 200, "{json}");
    json["data"]["result"][0]["value"][1].as_str().unwrap_or_default().to_owned()
}

async fn check(node: &TestNode) {
    // Of a counter that began 2 s before its first sample and again 1 s before its third.
    for (at, want) in [(0, "1699999998"), (20_000, "1699999998"), (30_000, "1700000029"), (45_000, "1700000029")] {
        assert_eq!(ask(node, "start_timestamp(m)", NOW + at).await, want, "at {at}");
    }
    // Unknown since the sample that came without.
    assert_eq!(ask(node, "start_timestamp(m)", NOW + 60_000).await, "0");
    assert_eq!(ask(node, "start_timestamp(none)", NOW + 60_000).await, "0");
    assert_eq!(ask(node, "start_timestamp(h)", NOW + 60_000).await, "1699999995");
    // 5, 9, then restarted and grown past it: the reset is told by the start alone.
    assert_eq!(ask(node, "resets(m[35s])", NOW + 30_000).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn start_timestamps_are_answered_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path(), |config| config.promql_experimental = true).await;
    let node = at(&opened.0);
    push(&node, "m", &[(NOW, 5.0, NOW - 2000), (NOW + 15_000, 9.0, NOW - 2000)], None).await;
    push(&node, "none", &[(NOW + 60_000, 1.0, 0)], None).await;
    // Half of it comes back from a checkpoint, half from the log behind.
    opened.0.checkpoint().await.unwrap();
    push(&node, "m", &[(NOW + 30_000, 10.0, NOW + 29_000), (NOW + 45_000, 11.0, NOW + 29_000)], None).await;
    push(&node, "m", &[(NOW + 60_000, 12.0, 0)], None).await;
    push(&node, "h", &[], Some((NOW + 50_000, NOW - 5000))).await;
    // The same sample again with another start: there already, and the first start stays.
    push(&node, "m", &[(NOW + 60_000, 12.0, NOW)], None).await;
    let node = run(opened);
    check(&node).await;
    node.stop().await;
    let node = start(dir.path(), |config| config.promql_experimental = true).await;
    check(&node).await;
    node.stop().await;
    // Without the experimental part, starts are kept and change no answer.
    let node = start(dir.path(), |_| {}).await;
    assert_eq!(ask(&node, "resets(m[35s])", NOW + 30_000).await, "0");
    assert_eq!(node.get("acme", "query?query=start_timestamp(m)").await.0, 400);
    node.stop().await;
}

/// `prometheus.WriteRequest` of one sample with an exemplar, and the metadata of its metric.
fn request_beside(name: &str, at_ms: i64) -> Vec<u8> {
    let pair = |name: &str, value: &str| {
        let mut pair = Vec::new();
        field(&mut pair, 1, name.as_bytes());
        field(&mut pair, 2, value.as_bytes());
        pair
    };
    let number = |out: &mut Vec<u8>, number: u8, value: f64| {
        out.push(number << 3 | 1);
        out.extend_from_slice(&value.to_le_bytes());
    };
    let (mut out, mut one, mut sample, mut exemplar, mut about) = (vec![], vec![], vec![], vec![], vec![]);
    number(&mut sample, 1, 1.0);
    numbers(&mut sample, &[(2, at_ms)]);
    field(&mut exemplar, 1, &pair("trace", "t1"));
    number(&mut exemplar, 2, 0.5);
    numbers(&mut exemplar, &[(3, at_ms)]);
    field(&mut one, 1, &pair("__name__", name));
    field(&mut one, 2, &sample);
    field(&mut one, 3, &exemplar);
    field(&mut out, 1, &one);
    numbers(&mut about, &[(1, 1)]);
    field(&mut about, 2, name.as_bytes());
    field(&mut about, 4, b"says what it is");
    field(&mut out, 3, &about);
    out
}

/// How many exemplars and how many metrics' metadata are answered.
async fn beside(node: &TestNode, name: &str) -> (usize, usize) {
    let range = format!("start={}&end={}", NOW / 1000 - 60, NOW / 1000 + 60);
    let (status, json) = node.get("acme", &format!("query_exemplars?query={name}&{range}")).await;
    assert_eq!(status, 200, "{json}");
    let exemplars = json["data"].as_array().unwrap().len();
    let (status, json) = node.get("acme", &format!("metadata?metric={name}")).await;
    assert_eq!(status, 200, "{json}");
    (exemplars, json["data"].as_object().unwrap().len())
}

#[tokio::test(flavor = "multi_thread")]
async fn exemplars_and_metadata_survive_restarts_and_exemplars_go_with_their_series() {
    let dir = tempfile::tempdir().unwrap();
    let change = |config: &mut engram_node::config::Config| config.limits.max_exemplars = 100;
    let opened = open(dir.path(), change).await;
    let body = |name: &str| snappy(&request_beside(name, NOW));
    assert_eq!(at(&opened.0).push_bytes("acme", body("m"), "application/x-protobuf").await.0, 204);
    // One from a checkpoint, the other from the log behind.
    opened.0.checkpoint().await.unwrap();
    assert_eq!(at(&opened.0).push_bytes("acme", body("n"), "application/x-protobuf").await.0, 204);
    run(opened).stop().await;
    let node = start(dir.path(), change).await;
    assert_eq!((beside(&node, "m").await, beside(&node, "n").await), ((1, 1), (1, 1)));
    // In blocks there is no room for either. Exemplars go with the series of the head; metadata is the tenant's.
    assert_eq!(node.post("acme", "admin/flush?wait=true").await.0, 200);
    assert_eq!((beside(&node, "m").await, beside(&node, "n").await), ((0, 1), (0, 1)));
    node.stop().await;
    let node = start(dir.path(), change).await;
    assert_eq!((beside(&node, "m").await, beside(&node, "n").await), ((0, 1), (0, 1)));
    assert_eq!(node.samples("acme", "m", NOW + 60_000).await.len(), 1);
    node.stop().await;
}
