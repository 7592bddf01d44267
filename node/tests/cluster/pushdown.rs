//! Nodes sum up for each other what lies with them, and answer what a node answers that reads all series itself: when
//! replicas are alike, and when one was away.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::Cluster;
use crate::load::{BASE, push};
use crate::support::{self, client, request, snappy};

const SERIES: usize = 60;
const QUERIES: [&str; 8] = [
    "sum by (a) (rate(m_total[5m]))",
    "sum(m_total)",
    "avg without (i, pod) (m_total)",
    "max by (a) (increase(m_total[10m] offset 5m))",
    "count by (a) (m_total) / sum by (a) (m_total)",
    "stddev(last_over_time(m_total[5m]))",
    "topk(2, min by (a) (m_total))",
    "sum by (i) (m_total)",
];

/// Minutes `from..to` of all series.
async fn fill(url: &str, minutes: std::ops::Range<i64>) {
    let names: Vec<String> = (0..SERIES).map(|i| i.to_string()).collect();
    let groups: Vec<String> = (0..SERIES).map(|i| (i % 4).to_string()).collect();
    let labels: Vec<[(&str, &str); 3]> =
        (0..SERIES).map(|i| [("__name__", "m_total"), ("a", groups[i].as_str()), ("i", names[i].as_str())]).collect();
    let samples: Vec<Vec<(i64, f64)>> = (0..SERIES as i64)
        .map(|i| minutes.clone().map(|n| (BASE + n * 60_000 + i, (n * (i + 1)) as f64)).collect())
        .collect();
    let series: Vec<support::Series<'_>> =
        labels.iter().zip(&samples).map(|(l, s)| (l.as_slice(), s.as_slice())).collect();
    push(&client(), url, "acme", snappy(&request(&series))).await.unwrap();
}

/// Each series of an answer with its values.
async fn ask(url: &str, query: &str, minutes: std::ops::Range<i64>) -> BTreeMap<String, Vec<(i64, f64)>> {
    let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let (start, end) = (BASE / 1000 + minutes.start * 60, BASE / 1000 + minutes.end * 60);
    let url = format!("{url}/api/v1/query_range?query={encoded}&start={start}&end={end}&step=60");
    let answer = client().get(url).header("X-Scope-OrgID", "acme").send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "{query}: {text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    let point = |v: &Value| (v[0].as_i64().unwrap(), v[1].as_str().unwrap().parse().unwrap());
    let series = |one: &Value| {
        (one["metric"].to_string(), one["values"].as_array().unwrap().iter().map(point).collect::<Vec<_>>())
    };
    json["data"]["result"].as_array().unwrap().iter().map(series).collect()
}

/// All nodes answer alike; the last one sums up nothing.
async fn compare(cluster: &Cluster, minutes: std::ops::Range<i64>) {
    let reads_all = cluster.url(cluster.nodes.len() - 1);
    for query in QUERIES {
        let want = ask(&reads_all, query, minutes.clone()).await;
        assert!(!want.is_empty(), "{query}");
        for i in 0..cluster.nodes.len() - 1 {
            let have = ask(&cluster.url(i), query, minutes.clone()).await;
            assert_eq!(have.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{query} at {i}");
            for (labels, points) in &want {
                let near = |((a, x), (b, y)): (&(i64, f64), &(i64, f64))| {
                    a == b && (x == y || (x - y).abs() <= 1e-9 * x.abs())
                };
                let all = points.len() == have[labels].len() && points.iter().zip(&have[labels]).all(near);
                assert!(all, "{query} at {i}: {labels}\n{points:?}\n{:?}", have[labels]);
            }
        }
    }
}

/// The sum of a metric's values over nodes, of those with a label.
async fn count(cluster: &Cluster, metric: &str, label: &str) -> f64 {
    let mut sum = 0.0;
    for node in cluster.nodes.iter().flatten() {
        let text = client().get(format!("{}/metrics", node.url)).send().await.unwrap().text().await.unwrap();
        let lines = text.lines().filter(|line| line.starts_with(&format!("{metric}{{")) && line.contains(label));
        sum += lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>();
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_of_other_nodes_are_the_sums_of_their_series() {
    let mut cluster = Cluster::start(&["a", "b", "c"], &["--query-push-down=true"]);
    cluster.whole(0, 3).await;
    cluster.more = vec!["--query-push-down=false".to_owned()];
    // The fourth takes partitions over, so that each of the four lacks some.
    cluster.add("d");
    let ids = |view: &crate::harness::View| view.nodes.iter().filter_map(|n| n["id"].as_u64()).collect::<Vec<_>>();
    cluster
        .settled(0, "four nodes share", |view| {
            view.active() == 4 && ids(view).iter().all(|id| (1..8).contains(&view.held(*id)))
        })
        .await;
    let pushed = async |cluster: &Cluster| count(cluster, "engram_query_fragments_total", "result=\"pushed\"").await;
    fill(&cluster.url(0), 0..60).await;
    cluster.alike(0, (SERIES * 60) as u64).await;
    assert!((pushed(&cluster).await - 0.0).abs() < f64::EPSILON);
    compare(&cluster, 0..60).await;
    assert!(pushed(&cluster).await > 0.0, "nothing was summed up elsewhere");
    assert!(count(&cluster, "engram_peer_received_bytes_total", "call=\"sum\"").await > 0.0);
    let answered = count(&cluster, "engram_query_fragments_total", "result=\"answered\"").await;
    assert!(answered > 0.0);
    // One node misses what is written while it is away; until it has it, the others do without it.
    let grpc = cluster.nodes[2].as_ref().unwrap().grpc.clone();
    cluster.kill(2);
    fill(&cluster.url(0), 60..90).await;
    cluster.more.clear();
    cluster.run(2, &grpc);
    cluster.settled(2, "back", |view| view.active() == 4).await;
    compare(&cluster, 10..90).await;
    cluster.alike(0, (SERIES * 90) as u64).await;
    compare(&cluster, 10..90).await;
    assert!(count(&cluster, "engram_query_fragments_total", "result=\"answered\"").await > answered);
}
