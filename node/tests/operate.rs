//! Goal: what an operator types does what it says: a local cluster starts, is previewed, changed only by a plan that is
//! of now, restarted node by node, and leaves nobody behind. Method: the program itself, as processes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "test")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const ENGRAM: &str = env!("CARGO_BIN_EXE_engram");

/// The process that keeps a local cluster.
struct Dev {
    dir: tempfile::TempDir,
    keeper: Child,
    urls: Vec<String>,
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _gone = self.keeper.kill();
        let _gone = self.keeper.wait();
    }
}

fn engram(words: &[&str]) -> Output {
    Command::new(ENGRAM).args(words).output().unwrap()
}

fn said(words: &[&str]) -> String {
    let output = engram(words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(words: &[&str]) -> String {
    let output = engram(words);
    assert!(!output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn json(words: &[&str]) -> Value {
    serde_json::from_str::<Value>(&said(words)).unwrap()["data"].take()
}

impl Dev {
    fn start(nodes: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), nodes)
    }

    fn start_in(dir: tempfile::TempDir, nodes: &str) -> Self {
        let mut keeper = Command::new(ENGRAM)
            .args([
                "dev",
                "cluster",
                "--nodes",
                nodes,
                "--zones",
                "3",
                "--any-ports",
                "--dir",
                dir.path().to_str().unwrap(),
            ])
            .args(["--", "--partitions", "4", "--cluster-repair-every", "1s", "--cluster-suspect-after", "2s"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(keeper.stdout.take().unwrap()).lines();
        let ready = lines.map(Result::unwrap).find(|line| line.starts_with("ready"));
        let places: Vec<Value> =
            serde_json::from_slice(&std::fs::read(dir.path().join("cluster.json")).unwrap()).unwrap();
        let urls = places.iter().map(|place| place["http"].as_str().unwrap().to_owned()).collect();
        let dev = Self { dir, keeper, urls };
        assert!(ready.is_some(), "{}", dev.logs());
        dev
    }

    fn dir(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    fn logs(&self) -> String {
        let entries = std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        entries
            .filter_map(|path| (path.extension()? == "log").then(|| std::fs::read_to_string(path).unwrap()))
            .collect()
    }

    fn healthy(&self, url: &str) {
        let watched =
            engram(&["cluster", "watch", "--url", url, "--until-healthy", "--every", "200ms", "--timeout", "90s"]);
        assert!(watched.status.success(), "{watched:?}\n{}", self.logs());
    }

    /// The processes of the nodes, as the keeper tells.
    fn processes(&self) -> Vec<u32> {
        let text = said(&["dev", "status", "--dir", self.dir()]);
        let words: Vec<&str> = text.split_whitespace().collect();
        words.windows(2).filter(|pair| pair[0] == "process").map(|pair| pair[1].parse().unwrap()).collect()
    }
}

fn lives(process: u32) -> bool {
    // A child whose keeper is gone is nobody's zombie for long.
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(began.elapsed().as_secs() < 60, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// The metadata, as they are now, become another cluster.
fn becomes_another(dev: &Dev, cluster: &Value) {
    let url = dev.urls[0].as_str();
    said(&["tenant", "set", "acme", "--limit", "ingestion_rate=77", "--url", url]);
    let (other, file) = (tempfile::tempdir().unwrap(), dev.dir.path().join("backup"));
    let (file, data) = (file.to_str().unwrap(), other.path().join("node-1"));
    let told = said(&["metadata", "backup", file, "--url", &dev.urls[2]]);
    assert!(told.contains("tenants     1") && told == said(&["metadata", "check", file]), "{told}");
    let restore =
        ["metadata", "restore", file, "--data-dir", data.to_str().unwrap(), "--zone", "zone-1", "--new-cluster-id"];
    said(&restore);
    assert!(refused(&restore).contains("is not empty"));
    let restored = Dev::start_in(other, "1");
    let status = json(&["cluster", "status", "--json", "--url", &restored.urls[0]]);
    assert_ne!(status["cluster"], *cluster);
    let alone = status["node"].as_u64().unwrap();
    assert!(status["partitions"].as_array().unwrap().iter().all(|one| one["replicas"] == serde_json::json!([alone])));
    let acme = said(&["tenant", "get", "acme", "--json", "--url", &restored.urls[0]]);
    assert!(acme.contains("\"ingestion_rate\":77"), "{acme}");
    drop(restored);
}

/// A tenant gets more partitions: nothing moves, and a plan of before is none any more.
fn uses_another_shard(dev: &Dev) {
    let url = dev.urls[0].as_str();
    let shard = json(&["cluster", "plan", "shard-size", "acme", "2", "--json", "--url", url]);
    let name = shard["plan"].as_str().unwrap();
    assert!(shard["copies"] == 0 && shard["tenant"]["after"] == 2 && shard["tenant"]["before"] == 1, "{shard}");
    assert!(said(&["cluster", "plan", "shard-size", "acme", "2", "--url", url]).contains("50.0 % of its series"));
    said(&["cluster", "apply", name, "--url", &dev.urls[2]]);
    let get = ["tenant", "get", "acme", "--json", "--url", &dev.urls[2]];
    wait_until("the change is seen", || said(&get).contains("\"shardSize\":2"));
    assert!(refused(&["cluster", "apply", name, "--url", &dev.urls[2]]).contains("has changed since"));
}

/// Who leads and is asked to end hands the lead over. On a busy machine it may have moved by itself in the middle of the
/// restarts, to a node that had had its turn: then that one is asked.
fn hands_over(dev: &Dev, nodes: &[Value]) {
    let url = dev.urls[0].as_str();
    wait_until("a leader that ends hands its lead over", || {
        let told = dev.logs();
        assert!(!told.contains("the lead of the metadata group is not taken over"), "{told}");
        if told.contains("the lead of the metadata group is handed over") {
            return true;
        }
        let watch = said(&["cluster", "watch", "--json", "--url", url, "--until-healthy"]);
        let overview: Value = serde_json::from_str(watch.lines().last().unwrap()).unwrap();
        let leader = nodes.iter().find(|node| node["id"] == overview["leader"]).unwrap();
        said(&["dev", "restart", leader["http"].as_str().unwrap(), "--dir", dev.dir()]);
        dev.healthy(url);
        false
    });
}

#[test]
fn a_cluster_is_previewed_changed_and_restarted_node_by_node() {
    let dev = Dev::start("4");
    let url = dev.urls[0].as_str();
    let watch = said(&["cluster", "watch", "--json", "--url", url, "--until-healthy"]);
    let overview: Value = serde_json::from_str(watch.lines().last().unwrap()).unwrap();
    let nodes = overview["nodes"].as_array().unwrap().clone();
    let id = |url: &str| nodes.iter().find(|node| node["http"] == url).and_then(|node| node["id"].as_u64()).unwrap();
    assert!(nodes.len() == 4 && nodes.iter().all(|node| node["answers"] == true && node["ready"] == true));

    // A preview names what would move, and changes nothing.
    let first = id(url).to_string();
    let before = json(&["cluster", "status", "--json", "--url", url])["partitions"].clone();
    let plan = json(&["cluster", "plan", "drain", &first, "--json", "--url", url]);
    let name = plan["plan"].as_str().unwrap();
    let held = |partitions: &Value| {
        let holds = |one: &&Value| one["replicas"].as_array().unwrap().contains(&id(url).into());
        partitions.as_array().unwrap().iter().filter(holds).count()
    };
    assert_eq!(plan["moves"].as_array().unwrap().len(), held(&before), "{plan}");
    assert!(plan["quorum"]["during"]["nodes"] == 1 && plan["quorum"]["after"]["zones"] == 1, "{plan}");
    let zone = said(&["cluster", "plan", "lose-zone", "zone-1", "--url", url]);
    assert!(zone.contains("NO NODE may fail") && zone.contains("Nothing has been changed."), "{zone}");
    assert_eq!(json(&["cluster", "status", "--json", "--url", url])["partitions"], before);

    // Of yesterday: refused. Of now: done, by any node, and what was planned is what came.
    assert!(refused(&["cluster", "apply", &format!("drain:{first}@1"), "--url", url]).contains("have changed since"));
    assert!(refused(&["cluster", "apply", "lose-zone:zone-1@1", "--url", url]).contains("is a question"));
    said(&["cluster", "apply", name, "--url", &dev.urls[1]]);
    dev.healthy(&dev.urls[1]);
    let after = json(&["cluster", "status", "--json", "--url", &dev.urls[1]])["partitions"].clone();
    assert_eq!(held(&after), 0, "{after}");
    let set = |partitions: &Value, id: &Value| {
        let find = |one: &&Value| one["id"] == *id;
        let one = partitions.as_array().unwrap().iter().find(find).unwrap();
        let mut nodes: Vec<u64> = one["replicas"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
        nodes.sort_unstable();
        nodes
    };
    for one in plan["moves"].as_array().unwrap() {
        let mut to: Vec<u64> = one["to"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
        to.sort_unstable();
        assert_eq!(set(&after, &one["partition"]), to);
    }
    assert!(refused(&["cluster", "apply", name, "--url", url]).contains("have changed since"));
    let back = json(&["cluster", "plan", "undrain", &first, "--json", "--url", url]);
    said(&["cluster", "apply", back["plan"].as_str().unwrap(), "--url", url]);
    dev.healthy(url);

    becomes_another(&dev, &overview["cluster"]);

    uses_another_shard(&dev);

    // One node after the other; not when one is missing.
    let exec = format!("{ENGRAM} dev restart {{http}} --dir {}", dev.dir());
    said(&["dev", "kill", "4", "--dir", dev.dir()]);
    wait_until("the kill is seen", || {
        !engram(&["cluster", "rolling-restart", "--exec", &exec, "--dry-run", "--url", url]).status.success()
    });
    assert!(refused(&["cluster", "rolling-restart", "--exec", &exec, "--url", url]).contains("not healthy"));
    said(&["dev", "start", "4", "--dir", dev.dir()]);
    dev.healthy(url);
    let lives = dev.processes();
    let told = said(&["cluster", "rolling-restart", "--exec", &exec, "--timeout", "90s", "--url", url]);
    assert!(told.ends_with("4 nodes restarted, the cluster is healthy\n"), "{told}");
    assert!(dev.processes().iter().all(|process| !lives.contains(process)));
    hands_over(&dev, &nodes);
    let failing = refused(&["cluster", "rolling-restart", "--exec", "false", "--only", &first, "--url", url]);
    assert!(failing.contains("nothing else is restarted"), "{failing}");
}

#[test]
fn nodes_do_not_outlive_who_keeps_them() {
    let mut dev = Dev::start("1");
    let processes = dev.processes();
    assert_eq!(processes.len(), 1);
    assert!(refused(&["dev", "cluster", "--dir", dev.dir()]).contains("runs in"));
    assert!(refused(&["dev", "start", "1", "--dir", dev.dir()]).contains("node 1 runs"));
    said(&["dev", "kill", "1", "--dir", dev.dir()]);
    assert!(refused(&["dev", "stop", "1", "--dir", dev.dir()]).contains("does not run"));
    said(&["dev", "start", "1", "--dir", dev.dir()]);
    dev.healthy(&dev.urls[0]);
    let processes = dev.processes();
    dev.keeper.kill().unwrap();
    dev.keeper.wait().unwrap();
    wait_until("a node outlived its keeper", || processes.iter().all(|process| !lives(*process)));
    // What is left of it is no obstacle.
    assert!(Path::new(dev.dir()).join("cluster.json").exists());
}
