//! One node from outside: written over HTTP, asked over HTTP, stopped, started again.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "test"
)]

mod support;

use support::{at, open, request, run, snappy, start};

const NOW: i64 = 1_700_000_000_000;
const UP: &[(&str, &str)] = &[("__name__", "up"), ("job", "node")];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_read_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    assert_eq!(node.push("acme", &[(UP, &[(NOW, 1.0), (NOW + 1000, 2.5)])]).await, (204, String::new()));
    let want = vec![(1_700_000_000.0, "1".to_owned()), (1_700_000_001.0, "2.5".to_owned())];
    assert_eq!(node.samples("acme", "up", NOW + 1000).await, want);
    node.stop().await;
    let node = start(dir.path(), |_| {}).await;
    assert_eq!(node.samples("acme", "up", NOW + 1000).await, want);
    let labels = engram_model::Labels::from_pairs(UP.iter().copied());
    let sum: engram_model::digest::Digest = [(NOW, 1.0), (NOW + 1000, 2.5)]
        .iter()
        .map(|(at, value)| engram_model::digest::Digest::of_float(labels.hash128(), *at, *value))
        .sum();
    let (_, digests) = node.get("acme", "admin/digests").await;
    let total = &digests["data"]["total"];
    assert_eq!(total["count"], 2, "{digests}");
    assert_eq!(total["low"], format!("{:016x}", sum.low), "{digests}");
    assert_eq!(total["high"], format!("{:016x}", sum.high), "{digests}");
    let (_, own) = node.get("acme", "admin/replicas?tenant=acme&slots=true").await;
    let rows = own["data"]["partitions"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["role"] == "replica" && row["complete"] == true), "{own}");
    let held: Vec<_> = rows.iter().filter_map(|row| row["tenants"].get(0)).collect();
    assert_eq!((held.len(), &held[0]["tenant"], &held[0]["digest"]), (1, &"acme".into(), total), "{own}");
    assert_eq!(held[0]["slots"], digests["data"]["slots"], "{own}");
    let (_, nobody) = node.get("acme", "admin/replicas?tenant=nobody").await;
    assert!(nobody["data"]["partitions"].as_array().unwrap().iter().all(|row| row["tenants"].get(0).is_none()));
    let (_, status) = node.get("acme", "cluster/status").await;
    assert_eq!(status["data"]["tenants"], 1, "{status}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_do_not_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    for (tenant, value) in [("a", 1.0), ("b", 2.0)] {
        assert_eq!(node.push(tenant, &[(UP, &[(NOW, value)])]).await.0, 204);
    }
    assert_eq!(node.samples("a", "up", NOW).await[0].1, "1");
    assert_eq!(node.samples("b", "up", NOW).await[0].1, "2");
    assert!(node.samples("c", "up", NOW).await.is_empty());
    let (status, _) = node.push("no/slash", &[(UP, &[(NOW, 1.0)])]).await;
    assert_eq!(status, 400);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_good_part_of_a_bad_request_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| config.limits.max_label_value_length = 20).await;
    let long = "x".repeat(21);
    let (status, text) = node
        .push(
            "acme",
            &[
                (UP, &[(NOW, 1.0)]),
                (&[("__name__", "long"), ("v", &long)], &[(NOW, 1.0)]),
                (&[("job", "nameless")], &[(NOW, 1.0), (NOW + 1, 2.0)]),
            ],
        )
        .await;
    assert_eq!(status, 400, "{text}");
    for part in ["3 of 4 samples", "label_value_too_long: 1", "missing_metric_name: 2", "max_label_value_length"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(node.samples("acme", "up", NOW).await.len(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_write_is_no_error_and_a_late_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    for _ in 0..3 {
        assert_eq!(node.push("acme", &[(UP, &[(NOW, 1.0), (NOW + 1000, 2.0)])]).await.0, 204);
    }
    let (status, text) = node.push("acme", &[(UP, &[(NOW, 5.0)])]).await;
    assert!(status == 400 && text.contains("new-value-for-timestamp"), "{status} {text}");
    let (status, text) = node.push("acme", &[(UP, &[(NOW - 1, 5.0)])]).await;
    assert!(status == 400 && text.contains("sample-out-of-order"), "{status} {text}");
    assert_eq!(node.samples("acme", "up", NOW + 1000).await.len(), 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_are_4xx_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    let good = request(&[(UP, &[(NOW, 1.0)])]);
    let bomb = [0xff, 0xff, 0xff, 0xff, 0x0f, 0x00].to_vec();
    let protobuf = "application/x-protobuf";
    for (body, kind, want) in [
        (good.clone(), protobuf, 400),
        (snappy(&good)[..4].to_vec(), protobuf, 400),
        (bomb, protobuf, 400),
        (snappy(&good[..good.len() - 1]), protobuf, 400),
        (snappy(&good), "text/plain", 415),
        (snappy(&good), "application/x-protobuf;proto=io.prometheus.write.v2.Request", 400),
    ] {
        let (status, text) = node.push_bytes("acme", body, kind).await;
        assert_eq!(status, want, "{text}");
        assert!(text.contains("\"status\":\"error\""), "{text}");
    }
    assert!(node.samples("acme", "up", NOW).await.is_empty());
    let (status, _) = node.push("acme", &[(UP, &[(NOW, 1.0)])]).await;
    assert_eq!(status, 204);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_of_1970_are_taken_and_those_of_2100_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    assert_eq!(node.push("old", &[(UP, &[(0, 1.0), (60_000, 2.0)])]).await.0, 204);
    assert_eq!(node.samples("old", "up", 60_000).await.len(), 2);
    let (status, text) = node.push("old", &[(UP, &[(4_102_444_800_000, 1.0)])]).await;
    assert!(status == 400 && text.contains("too_far_in_future"), "{status} {text}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_on_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    let config = engram_node::config::Config {
        data_dir: dir.path().to_owned(),
        http_listen: "127.0.0.1:0".into(),
        grpc_listen: "127.0.0.1:0".into(),
        ..Default::default()
    };
    let second = engram_node::Node::start(config, engram_model::time::Clock::real(), Default::default()).await;
    assert!(second.is_err_and(|e| e.to_string().contains("another process uses this data directory")));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_which_nothing_is_stored_does_not_harm_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let limited = |config: &mut engram_node::config::Config| {
        config.shard_size = 1;
        config.limits.max_global_series_per_user = 1;
    };
    let node = start(dir.path(), limited).await;
    assert_eq!(node.push("acme", &[(UP, &[(NOW, 1.0)])]).await.0, 204);
    let (status, text) = node.push("acme", &[(&[("__name__", "down")], &[(NOW, 1.0)])]).await;
    assert!(status == 429 && text.contains("per_user_series_limit"), "{status} {text}");
    node.stop().await;
    let node = start(dir.path(), limited).await;
    assert_eq!(node.samples("acme", "up", NOW).await.len(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_let_go_does_not_hold_the_node() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path(), |config| config.shutdown_timeout = std::time::Duration::from_millis(100)).await;
    let mut peer = tokio::net::TcpStream::connect(opened.0.grpc_address).await.unwrap();
    // HTTP/2: the preface, empty settings, and a request (POST /x) whose body never ends.
    let headers = b"\x83\x86\x44\x02/x\x41\x01h\x40\x02te\x08trailers\x5f\x10application/grpc";
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    bytes.extend_from_slice(&[0, 0, headers.len() as u8, 1, 4, 0, 0, 0, 1]);
    bytes.extend_from_slice(headers);
    peer.write_all(&bytes).await.unwrap();
    assert!(peer.read(&mut [0; 64]).await.unwrap() > 0);
    tokio::time::timeout(std::time::Duration::from_secs(30), run(opened).stop()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_cut_at_a_checkpoint_brings_everything_back() {
    // Small segments, so that the cut drops some; writes before, between and after two rounds, in several partitions.
    let small = |config: &mut engram_node::config::Config| {
        config.log.segment_bytes_max = 1 << 20;
        config.shard_size = 8;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut want = 0_usize;
    let mut opened = open(dir.path(), small).await;
    for round in 0..6_i64 {
        let node = at(&opened.0);
        for batch in 0..10_i64 {
            let at_ms = NOW + (round * 10 + batch) * 1000;
            let names: Vec<String> = (0..500).map(|i| format!("series_{i}_with_a_name_that_takes_some_room")).collect();
            let labels: Vec<[(&str, &str); 2]> = names.iter().map(|n| [("__name__", "m"), ("i", n.as_str())]).collect();
            let sample = [(at_ms, (round * 1000 + batch) as f64)];
            let series: Vec<support::Series<'_>> = labels.iter().map(|l| (l.as_slice(), sample.as_slice())).collect();
            assert_eq!(node.push("acme", &series).await.0, 204);
            want += 500;
        }
        if round % 2 == 0 {
            opened.0.checkpoint().await.unwrap();
        }
        if round == 3 {
            run(opened).stop().await;
            opened = open(dir.path(), small).await;
        }
    }
    run(opened).stop().await;
    let node = start(dir.path(), small).await;
    let (_, json) =
        node.get("acme", &format!("query?query=sum(count_over_time(m[1h]))&time={}", NOW / 1000 + 60)).await;
    assert_eq!(json["data"]["result"][0]["value"][1], want.to_string(), "{json}");
    let (_, json) = node.get("acme", &format!("query?query=count(m)&time={}", NOW / 1000 + 60)).await;
    assert_eq!(json["data"]["result"][0]["value"][1], "500", "{json}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_series_limit_is_of_the_tenant_not_of_each_partition() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |config| {
        config.shard_size = 8;
        config.limits.max_global_series_per_user = 100;
    })
    .await;
    for i in 0..300 {
        let name = format!("series_{i}");
        let (status, text) = node.push("acme", &[(&[("__name__", "m"), ("i", &name)], &[(NOW, 1.0)])]).await;
        assert!(status == 204 || (status == 429 && text.contains("max_global_series_per_user")), "{status} {text}");
    }
    let (_, json) = node.get("acme", &format!("query?query=count(m)&time={}", NOW / 1000)).await;
    let count: u32 = json["data"]["result"][0]["value"][1].as_str().unwrap().parse().unwrap();
    // A partition whose share is used up by the others still takes one.
    assert!((100..=107).contains(&count), "{count} series of 100 allowed");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_deleted_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), |_| {}).await;
    assert_eq!(node.push("acme", &[(UP, &[(NOW, 1.0)])]).await.0, 204);
    node.stop().await;
    std::fs::remove_dir_all(dir.path().join("log")).unwrap();
    let config = || engram_node::config::Config {
        data_dir: dir.path().to_owned(),
        http_listen: "127.0.0.1:0".into(),
        grpc_listen: "127.0.0.1:0".into(),
        ..Default::default()
    };
    let begin = || engram_node::Node::start(config(), engram_model::time::Clock::real(), Default::default());
    let text = begin().await.err().unwrap().to_string();
    assert!(text.contains("was deleted") && text.contains("log.reached"), "{text}");
    std::fs::remove_file(dir.path().join("log.reached")).unwrap();
    let node = start(dir.path(), |_| {}).await;
    assert!(node.samples("acme", "up", NOW).await.is_empty());
    node.stop().await;
}
