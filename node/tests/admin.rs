//! What an operator of tenants does, on a running node: limits that take effect, versions that protect, deletion that
//! refuses writes and keeps what can be read, counts that are true.
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

use engram_node::cli::client::Target;
use engram_node::cli::tenants::{Act, Change};
use serde_json::{Value, json};
use support::{TestNode, client, start};

const NOW: i64 = 1_700_000_000_000;
const UP: &[(&str, &str)] = &[("__name__", "up"), ("job", "node")];

async fn put(node: &TestNode, tenant: &str, body: Value) -> (u16, Value) {
    let request = client().put(format!("{}/api/v1/admin/tenants/{tenant}", node.url));
    let answer = request.header("Content-Type", "application/json").body(body.to_string()).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn delete(node: &TestNode, tenant: &str, version: u64) -> (u16, Value) {
    let url = format!("{}/api/v1/admin/tenants/{tenant}?version={version}", node.url);
    let answer = client().delete(url).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_set_by_version_and_take_effect() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| config.limits.max_exemplars = 7).await;
    assert_eq!(node.get("anonymous", "admin/tenants").await.0, 200);
    let (status, answer) = put(&node, "acme", json!({"limits": {"max_label_value_length": 3}, "shardSize": 2})).await;
    assert_eq!((status, &answer["data"]["version"]), (200, &json!(1)), "{answer}");
    assert_eq!(answer["data"]["limits"]["max_exemplars"], 7, "a new tenant starts from the node's defaults");
    assert_eq!(answer["data"]["createdBy"], "admin API");
    let (status, text) = node.push("acme", &[(UP, &[(NOW, 1.0)])]).await;
    assert!(status == 400 && text.contains("max_label_value_length is 3"), "{status} {text}");

    let (status, answer) = put(&node, "acme", json!({"limits": {"max_label_value_length": 4}})).await;
    let text = answer["error"].as_str().unwrap();
    assert!(status == 409 && text.contains("exists already, at version 1"), "{status} {text}");
    assert_eq!(answer["errorType"], "conflict");
    let (status, answer) = put(&node, "acme", json!({"version": 1, "limits": {"max_label_value_length": 4}})).await;
    assert_eq!((status, &answer["data"]["version"]), (200, &json!(2)), "{answer}");
    assert_eq!(answer["data"]["shardSize"], 2, "what is not named stays");
    assert_eq!(node.push("acme", &[(UP, &[(NOW, 1.0)])]).await.0, 204);

    let (status, answer) = put(&node, "acme", json!({"version": 1, "shardSize": 3})).await;
    let text = answer["error"].as_str().unwrap();
    assert!(status == 409 && text.contains("is at version 2, not 1"), "{status} {text}");
    assert_eq!(put(&node, "nobody", json!({"version": 3})).await.0, 409);
    let (status, answer) = put(&node, "acme", json!({"version": 2, "limits": {"ingestion_rat": 5}})).await;
    let text = answer["error"].as_str().unwrap();
    assert!(status == 400 && text.contains("did you mean \"ingestion_rate\"?"), "{status} {text}");
    assert_eq!(put(&node, "acme", json!({"version": 2, "shardSize": 4_000_000})).await.0, 400);

    node.stop().await;
    let node = start(dir.path(), |_| {}).await;
    let (_, answer) = node.get("anonymous", "admin/tenants/acme").await;
    assert_eq!(answer["data"]["version"], 2, "{answer}");
    assert_eq!(answer["data"]["limits"]["max_label_value_length"], 4);
    let (_, answer) = node.get("anonymous", "admin/tenants").await;
    assert_eq!(answer["data"].as_array().unwrap().len(), 1, "{answer}");
    assert_eq!(node.get("anonymous", "admin/tenants/nobody").await.0, 404);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_operators_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    let (one, two) = tokio::join!(
        put(&node, "acme", json!({"limits": {"ingestion_rate": 1}})),
        put(&node, "acme", json!({"limits": {"ingestion_rate": 2}})),
    );
    let mut codes = [one.0, two.0];
    codes.sort_unstable();
    assert_eq!(codes, [200, 409], "{one:?} {two:?}");
    let winner = if one.0 == 200 { 1 } else { 2 };
    let (_, answer) = node.get("anonymous", "admin/tenants/acme").await;
    assert_eq!(answer["data"]["limits"]["ingestion_rate"], winner);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_marked_for_deletion_is_read_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    assert_eq!(node.push("acme", &[(UP, &[(NOW, 1.0)])]).await.0, 204);
    assert_eq!(delete(&node, "nobody", 1).await.0, 404);
    let (status, answer) = delete(&node, "acme", 9).await;
    assert!(status == 409 && answer["error"].as_str().unwrap().contains("at version 1, not 9"), "{answer}");
    let (status, answer) = delete(&node, "acme", 1).await;
    assert_eq!((status, &answer["data"]["deleted"]), (200, &json!(true)), "{answer}");
    let (status, text) = node.push("acme", &[(UP, &[(NOW + 1, 2.0)])]).await;
    assert!(status == 400 && text.contains("marked for deletion"), "{status} {text}");
    assert_eq!(put(&node, "acme", json!({"version": 2, "shardSize": 1})).await.0, 400);
    assert_eq!(node.samples("acme", "up", NOW + 1).await.len(), 1, "what was stored is still there");
    let (_, status) = node.get("anonymous", "cluster/status").await;
    assert_eq!((&status["data"]["tenants"], &status["data"]["tenantsDeleted"]), (&json!(1), &json!(1)));
    assert_eq!(status["data"]["underReplicated"], 0);
    assert!(status["data"]["leases"].is_array(), "{status}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_those_of_one_tenant_over_all_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    let ids: Vec<String> = (0..100).map(|i| format!("{i:03}")).collect();
    let labels: Vec<[(&str, &str); 2]> = ids.iter().map(|id| [("__name__", "requests"), ("id", id.as_str())]).collect();
    let samples = [(NOW, 1.0), (NOW + 15_000, 2.0)];
    let mut series: Vec<support::Series<'_>> = labels.iter().map(|l| (l.as_slice(), samples.as_slice())).collect();
    series.push((UP, &samples[..1]));
    assert_eq!(node.push("acme", &series).await.0, 204);
    assert_eq!(node.push("other", &[(UP, &samples)]).await.0, 204);

    let (_, answer) = node.get("acme", "user_stats").await;
    let want = json!({"tenant": "acme", "numSeries": 101, "numSamples": 201, "chunkCount": 101, "minTime": NOW, "maxTime": NOW + 15_000});
    assert_eq!(answer["data"], want);
    let (status, answer) = node.get("acme", "status/tsdb?limit=2").await;
    assert_eq!(status, 200, "{answer}");
    let want = json!({
        "headStats": {"numSeries": 101, "numLabelPairs": 103, "chunkCount": 101, "minTime": NOW, "maxTime": NOW + 15_000},
        "seriesCountByMetricName": [{"name": "requests", "value": 100}, {"name": "up", "value": 1}],
        "labelValueCountByLabelName": [{"name": "id", "value": 100}, {"name": "__name__", "value": 2}],
        "memoryInBytesByLabelName": [{"name": "id", "value": 300}, {"name": "__name__", "value": 10}],
        "seriesCountByLabelValuePair": [{"name": "__name__=requests", "value": 100}, {"name": "__name__=up", "value": 1}],
    });
    assert_eq!(answer["data"], want);
    let (_, answer) = node.get("nobody", "user_stats").await;
    assert_eq!(answer["data"]["numSeries"], 0, "{answer}");
    let (_, tenants) = node.get("anonymous", "admin/tenants").await;
    assert_eq!(tenants["data"].as_array().unwrap().len(), 2, "to ask for counts makes no tenant");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_reads_the_version_before_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    let target = Target { url: node.url.clone(), tenant: None, json: false };
    let limits = json!({"ingestion_rate": 5}).as_object().unwrap().clone();
    let set = Change { target, tenant: "acme".to_owned(), act: Act::Set { limits, shard_size: None }, version: None };
    let run = |change: Change| tokio::task::spawn_blocking(move || engram_node::cli::tenants::run(&change));
    let remove = Change { act: Act::Remove, ..set.clone() };
    let missing = run(remove.clone()).await.unwrap().unwrap_err();
    assert!(missing.contains("there is no tenant acme"), "{missing}");
    for version in 1..=2 {
        let said = run(set.clone()).await.unwrap().unwrap();
        assert!(said.text.contains(&format!("version     {version}\n")), "{}", said.text);
    }
    let stale = run(Change { version: Some(1), ..set }).await.unwrap().unwrap_err();
    assert!(stale.contains("conflict: tenant acme is at version 2, not 1"), "{stale}");
    let said = run(remove).await.unwrap().unwrap();
    assert!(said.text.contains("marked for deletion at "), "{}", said.text);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_of_too_many_series_is_refused_and_says_which_limit() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    let jobs = ["a", "b", "c", "d", "e", "f"];
    for job in jobs {
        assert_eq!(node.push("acme", &[(&[("__name__", "up"), ("job", job)], &[(NOW, 1.0)])]).await.0, 204);
    }
    let (_, tenant) = node.get("anonymous", "admin/tenants/acme").await;
    let version = tenant["data"]["version"].as_u64().unwrap();
    let limits = json!({"version": version, "limits": {"max_fetched_series_per_query": 3}});
    assert_eq!(put(&node, "acme", limits).await.0, 200);
    let at = NOW / 1000;
    let (status, answer) = node.get("acme", &format!("query?query=up&time={at}")).await;
    let text = answer["error"].as_str().unwrap();
    assert!(status == 422 && text.contains("max_fetched_series_per_query is 3: narrow"), "{status} {text}");
    // What has no samples in the range of the query is not counted.
    let (status, answer) = node.get("acme", &format!("query?query=up&time={}", at + 3600)).await;
    assert_eq!((status, answer["data"]["result"].as_array().unwrap().len()), (200, 0), "{answer}");
    let (status, answer) =
        node.get("acme", &format!("query?query=up%7Bjob%3D%22a%22%7D%2Bup&time={at}&explain=1&stats=all")).await;
    assert_eq!((status, answer["data"]["result"].as_array().unwrap().len()), (200, 1), "{answer}");
    let right = &answer["data"]["explain"]["children"][1];
    assert_eq!(right["marks"][0], "#0 of 2 places", "both sides became the same: {answer}");
    assert_eq!(answer["data"]["stats"]["samples"]["totalQueryableSamples"], 2);
    node.stop().await;
}
