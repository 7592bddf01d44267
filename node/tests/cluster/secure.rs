//! Nodes that show each other certificates: all of the cluster's traffic goes by TLS, certificates and CA are replaced
//! under load, strangers stay outside and are told why.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use engram_model::time::Clock;
use engram_node::tls::{Files, NAME_DEFAULT, Tls};

use crate::harness::{Cluster, free_address};
use crate::load::{Load, counts};
use crate::support::client;

fn engram(args: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_engram")).args(args).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.success(), text)
}

/// A CA and the certificates of nodes 0 to 4, by the tool an operator uses.
fn certificates(dir: &Path) {
    let at = dir.to_str().unwrap();
    let (done, said) = engram(&["tls", "init-ca", "--dir", at]);
    assert!(done && said.contains("engram tls issue NAME"), "{said}");
    for i in 0..5 {
        let (done, said) = engram(&["tls", "issue", &i.to_string(), "--dir", at]);
        assert!(done && said.contains(&format!("cert: {at}/{i}.pem")), "{said}");
    }
}

fn options(dir: &Path) -> Vec<String> {
    let at = dir.to_str().unwrap();
    ["cert", "{i}.pem", "key", "{i}.key", "ca", "ca.pem"]
        .chunks(2)
        .map(|pair| format!("--cluster-tls-{}={at}/{}", pair[0], pair[1]))
        .collect()
}

fn opened(dir: &Path) -> Tls {
    let [cert, key, ca] = ["0.pem", "0.key", "ca.pem"].map(|name| dir.join(name));
    Tls::open(Files { cert, key, ca, name: NAME_DEFAULT.to_owned() }, &Clock::real()).unwrap()
}

/// Puts a file in another's place at once, as tools do that renew certificates.
fn put(dir: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(dir.join("new"), bytes).unwrap();
    std::fs::rename(dir.join("new"), dir.join(name)).unwrap();
}

async fn is_said(cluster: &Cluster, i: usize, what: &str) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !cluster.output(i).contains(what) {
        assert!(tokio::time::Instant::now() < deadline, "node {i} does not say {what:?}:\n{}", cluster.output(i));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_over_tls_replaces_its_ca_under_load_and_lets_no_stranger_in() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(dir.path());
    certificates(other.path());
    let options = options(dir.path());
    let mut cluster = Cluster::start(&["a", "b", "c"], &options.iter().map(String::as_str).collect::<Vec<_>>());
    cluster.whole(1, 3).await;
    let load = Load::at(&cluster, &[1, 2]);
    load.rounds(10).await;

    // A node with another CA's certificate, and one that speaks plain text: both sides say what is wrong.
    let ours = std::mem::replace(&mut cluster.more, self::options(other.path()));
    let stranger = cluster.add("d");
    is_said(&cluster, stranger, "is not signed by the CA").await;
    cluster.kill(stranger);
    cluster.more.clear();
    let plain = cluster.add("d");
    for i in 0..3 {
        is_said(&cluster, i, "it does not speak TLS").await;
    }
    cluster.kill(plain);
    cluster.more = ours;

    // Another CA, in three steps: all believe both, all show certificates of the new one, nobody believes the old one.
    let [old, new] = [dir.path(), other.path()].map(|dir| std::fs::read(dir.join("ca.pem")).unwrap());
    put(dir.path(), "ca.pem", &[old, new.clone()].concat());
    for i in 0..3 {
        is_said(&cluster, i, "new certificates are in force").await;
    }
    for i in 0..5 {
        // Key and certificate are two files: between the two they do not fit, and what was there stays in force.
        for end in ["key", "pem"] {
            let name = format!("{i}.{end}");
            put(dir.path(), &name, &std::fs::read(other.path().join(&name)).unwrap());
        }
    }
    let taken = |cluster: &Cluster, i: usize| cluster.output(i).matches("new certificates are in force").count();
    let all_have = async |cluster: &Cluster, times: usize| {
        while (0..3).any(|i| taken(cluster, i) < times) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all_have(&cluster, 2)).await.unwrap();
    put(dir.path(), "ca.pem", &new);
    tokio::time::timeout(Duration::from_secs(60), all_have(&cluster, 3)).await.unwrap();
    // New connections: a node that starts again, elsewhere, hears and is heard.
    cluster.kill(0);
    cluster.run(0, &free_address());
    cluster.whole(0, 3).await;
    load.rounds(10).await;
    let seen = load.stop().await;
    seen.assert_no_failures();
    cluster.tls = opened(dir.path());
    cluster.alike(1, seen.acknowledged()).await;
    for i in 0..3 {
        let have = counts(&client(), &cluster.url(i)).await.unwrap();
        assert_eq!(have.iter().sum::<u64>(), seen.acknowledged());
    }
}

#[test]
fn a_port_that_others_reach_wants_tls_or_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let base = ["--data-dir", data.to_str().unwrap(), "--http-listen", "127.0.0.1:0", "--grpc-listen", "0.0.0.0:0"];
    let (done, said) = engram(&base);
    assert!(!done && said.contains("engram tls init-ca") && said.contains("cluster.plain-text"), "{said}");
    let half = [base.as_slice(), &["--cluster-tls-cert", "/nowhere/a.pem"]].concat();
    let (done, said) = engram(&half);
    assert!(!done && said.contains("missing: key, ca"), "{said}");
    let absent = ["cert", "key", "ca"].map(|name| format!("--cluster-tls-{name}=/nowhere/{name}.pem"));
    let (done, said) = engram(&[base.as_slice(), &absent.each_ref().map(String::as_str)].concat());
    assert!(!done && said.contains("cluster.tls.cert: /nowhere/cert.pem: No such file"), "{said}");
}
