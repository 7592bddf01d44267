//! moto, a server of S3's protocol in Python, as `scripts/e2e-s3` installs it: started on a free port, ended with the
//! value.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use engram_storage::object::options::{Options, Secret};

const BUCKET: &str = "blocks";

/// A running server; ends with the value.
pub struct Moto {
    child: Child,
    /// Where it answers.
    pub endpoint: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl Moto {
    /// Starts one and makes the bucket.
    pub async fn start() -> Self {
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let python = std::env::var("ENGRAM_MOTO_PYTHON").expect("ENGRAM_MOTO_PYTHON: run scripts/e2e-s3");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(python)
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let moto = Self { child, endpoint: format!("http://127.0.0.1:{port}") };
        let client = reqwest::Client::new();
        for _ in 0..600 {
            if let Ok(made) = client.put(format!("{}/{BUCKET}", moto.endpoint)).send().await {
                assert!(made.status().is_success(), "{made:?}");
                return moto;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the server does not answer at {}", moto.endpoint);
    }

    /// A prefix of its bucket.
    pub fn options(&self) -> Options {
        Options {
            url: format!("s3://{BUCKET}/pre/fix"),
            endpoint: self.endpoint.clone(),
            access_key: "key".to_owned(),
            secret_key: Secret("secret".to_owned()),
            retries_max: 2,
            part_bytes: 5 << 20,
            ..Options::default()
        }
    }
}
