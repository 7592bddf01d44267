//! One of two nodes is gone for good, then two of three: whoever is left goes on when a person says so, and others join it.

use std::process::{Command, Output};

use tokio::time::Instant;

use crate::harness::{Cluster, LONG};
use crate::load::{Load, body, counts, push};
use crate::support::client;

fn recover(cluster: &Cluster, i: usize, more: &[&str]) -> Output {
    let dir = cluster.dirs[i].path().join("data");
    let words = ["metadata", "recover", "--data-dir", dir.to_str().unwrap()];
    Command::new(env!("CARGO_BIN_EXE_engram")).args(words).args(more).output().unwrap()
}

fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Kills all but the last, has that go on, and holds it to what was acknowledged; then two others join it.
async fn goes_on(zones: &[&str]) {
    let mut cluster = Cluster::start(zones, &[]);
    let last = zones.len() - 1;
    // A replica on each, however few they are.
    let wanted = |text: &str| {
        let view = serde_json::from_str::<serde_json::Value>(text).unwrap_or_default()["data"].take();
        let rows = |name: &str| view[name].as_array().cloned().unwrap_or_default();
        let full = |row: &serde_json::Value| row["replicas"].as_array().is_some_and(|all| all.len() == zones.len());
        let active = rows("nodes").iter().filter(|node| node["state"] == "active").count() == zones.len();
        let full = rows("partitions").iter().all(full) && !rows("partitions").is_empty();
        active && full && view["moving"] == 0 && view["underReplicated"] == 0
    };
    cluster.until(last, "/api/v1/cluster/status", "each holds everything", wanted).await;
    let load = Load::at(&cluster, &(0..zones.len()).collect::<Vec<_>>());
    load.rounds(30).await;
    let seen = load.stop().await;
    seen.assert_no_failures();
    cluster.alike(last, seen.acknowledged()).await;
    let view = cluster.view(last).await;
    let lost: Vec<String> = (0..last).map(|i| view.id_at(&cluster.seeds[i]).unwrap().to_string()).collect();
    let (lost, name) = (lost.join(","), view.json["cluster"].as_str().unwrap().to_owned());
    let force = ["--lost", lost.as_str(), "--force-single", name.as_str()];
    // While it runs it is not touched, and without it nothing is written.
    assert!(refused(&recover(&cluster, last, &force)).contains("another process uses this data directory"));
    (0..last).for_each(|i| cluster.kill(i));
    let why = push(&client(), &cluster.url(last), "acme", body(7, 0)).await.unwrap_err();
    assert!(why.starts_with("503"), "{why}");
    cluster.kill(last);

    let told = recover(&cluster, last, &["--lost", &lost]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("Nothing has been changed") && told.contains(", LOST"), "{told}");
    let another = ["--lost", lost.as_str(), "--force-single", "another"];
    assert!(refused(&recover(&cluster, last, &another)).contains("not of another"));
    let began = Instant::now();
    let done = recover(&cluster, last, &force);
    assert!(done.status.success(), "{done:?}");
    let address = cluster.seeds[last].clone();
    cluster.run(last, &address);
    let http = client();
    while let Err(why) = push(&http, &cluster.url(last), "acme", body(8, 0)).await {
        assert!(began.elapsed() < LONG, "writes do not return: {why}\n{}", cluster.output(last));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    println!("of {} nodes one went on {:?} after it was told to", zones.len(), began.elapsed());
    let have = counts(&http, &cluster.url(last)).await.unwrap();
    assert_eq!(have[..last + 1].iter().sum::<u64>(), seen.acknowledged(), "what was on its disk is there: {have:?}");

    // Two others come, and everything is held three times.
    for zone in ["x", "y"] {
        cluster.add(zone);
    }
    cluster.whole(last, 3).await;
    let extra = counts(&http, &cluster.url(last)).await.unwrap().iter().sum::<u64>();
    cluster.alike(last, extra).await;
    for i in zones.len()..zones.len() + 2 {
        let have = counts(&http, &cluster.url(i)).await.unwrap();
        assert_eq!(have[..last + 1].iter().sum::<u64>(), seen.acknowledged());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_is_gone_for_good_and_the_other_goes_on() {
    goes_on(&["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_are_gone_for_good_and_the_third_goes_on() {
    goes_on(&["a", "b", "c"]).await;
}
