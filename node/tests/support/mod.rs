//! A node in this process and a client that speaks remote write, for whole-crate tests.

use engram_model::time::Clock;
use engram_node::Node;
use engram_node::config::Config;
use tokio_util::sync::CancellationToken;

/// A node on free ports with a directory of its own.
pub struct TestNode {
    /// `http://127.0.0.1:port`.
    pub url: String,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<Result<(), engram_node::StartError>>,
}

/// Starts a node on `dir`.
pub async fn start(dir: &std::path::Path, change: impl FnOnce(&mut Config)) -> TestNode {
    run(open(dir, change).await)
}

/// Opens a node on `dir` that is not run yet.
pub async fn open(dir: &std::path::Path, change: impl FnOnce(&mut Config)) -> (Node, CancellationToken) {
    let mut config = Config { data_dir: dir.to_owned(), ..Config::default() };
    config.http_listen = "127.0.0.1:0".into();
    config.grpc_listen = "127.0.0.1:0".into();
    change(&mut config);
    let stop = CancellationToken::new();
    let node = Node::start(config, Clock::real(), stop.clone()).await.unwrap();
    (node, stop)
}

/// Runs a node that was opened.
pub fn run((node, stop): (Node, CancellationToken)) -> TestNode {
    let url = format!("http://{}", node.http_address);
    #[allow(clippy::disallowed_methods, reason = "test: the node outlives this function")]
    let running = tokio::spawn(node.run());
    TestNode { url, stop, running }
}

/// The writer's side of a node that is not run yet.
pub fn at(node: &Node) -> TestNode {
    #[allow(clippy::disallowed_methods, reason = "test: nothing runs yet")]
    let running = tokio::spawn(async { Ok(()) });
    TestNode { url: format!("http://{}", node.http_address), stop: CancellationToken::new(), running }
}

impl TestNode {
    /// Stops the node and waits until it has.
    pub async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }

    /// Sends series by remote write 1.0; answers status and text.
    pub async fn push(&self, tenant: &str, series: &[Series<'_>]) -> (u16, String) {
        self.push_bytes(tenant, snappy(&request(series)), "application/x-protobuf").await
    }

    /// Sends any body.
    pub async fn push_bytes(&self, tenant: &str, body: Vec<u8>, content_type: &str) -> (u16, String) {
        let answer = client()
            .post(format!("{}/api/v1/push", self.url))
            .header("X-Scope-OrgID", tenant)
            .header("Content-Type", content_type)
            .header("Content-Encoding", "snappy")
            .body(body)
            .send()
            .await
            .unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// Asks a path below `/api/v1/`; answers status and JSON.
    pub async fn get(&self, tenant: &str, path: &str) -> (u16, serde_json::Value) {
        let answer =
            client().get(format!("{}/api/v1/{path}", self.url)).header("X-Scope-OrgID", tenant).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Posts nothing to a path below `/api/v1/`; answers status and JSON.
    #[allow(dead_code, reason = "not every test that uses this file posts")]
    pub async fn post(&self, tenant: &str, path: &str) -> (u16, serde_json::Value) {
        let url = format!("{}/api/v1/{path}", self.url);
        let answer = client().post(url).header("X-Scope-OrgID", tenant).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// The samples of one series over all time, by a range selector.
    pub async fn samples(&self, tenant: &str, selector: &str, at_ms: i64) -> Vec<(f64, String)> {
        let query = format!("query?query={selector}[10000d]&time={}", at_ms as f64 / 1000.0);
        let (status, json) = self.get(tenant, &query).await;
        assert_eq!(status, 200, "{json}");
        let result = json["data"]["result"].as_array().unwrap();
        let Some(series) = result.first() else { return Vec::new() };
        let values = series["values"].as_array().unwrap();
        values.iter().map(|v| (v[0].as_f64().unwrap(), v[1].as_str().unwrap().to_owned())).collect()
    }
}

/// A client of its own for each call: no connection outlives a node.
pub fn client() -> reqwest::Client {
    let _again = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// Labels and samples.
pub type Series<'a> = (&'a [(&'a str, &'a str)], &'a [(i64, f64)]);

/// Snappy's block format.
pub fn snappy(bytes: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(bytes).unwrap()
}

/// `prometheus.WriteRequest`.
pub fn request(series: &[Series<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (labels, samples) in series {
        let mut one = Vec::new();
        for (name, value) in *labels {
            let mut pair = Vec::new();
            field(&mut pair, 1, name.as_bytes());
            field(&mut pair, 2, value.as_bytes());
            field(&mut one, 1, &pair);
        }
        for (at, value) in *samples {
            let mut sample = vec![0x09];
            sample.extend_from_slice(&value.to_le_bytes());
            sample.push(0x10);
            varint(&mut sample, *at as u64);
            field(&mut one, 2, &sample);
        }
        field(&mut out, 1, &one);
    }
    out
}

/// A field of bytes.
pub fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A number as protobuf writes it.
pub fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}
