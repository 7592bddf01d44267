//! The node under test as a process: free ports, a data directory that outlives the kills, a log to read later.

use crate::args::Kill;
use crate::client::Client;
use crate::error::Error;
use engram_model::time::Stopwatch;
use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// An `engram` that can be started, killed and started again on the same data.
#[derive(Debug)]
pub(super) struct Node {
    binary: PathBuf,
    folder: Option<tempfile::TempDir>,
    path: PathBuf,
    http: String,
    grpc: String,
    patience: Duration,
    child: Option<Child>,
}

impl Node {
    /// Chooses ports and a directory; starts nothing.
    pub(super) fn new(args: &Kill) -> Result<Self, Error> {
        let folder = tempfile::Builder::new().prefix("engram-kill-").tempdir()?;
        // Both are held until both are known, so they differ.
        let (one, two) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        Ok(Self {
            binary: args.engram.clone(),
            path: folder.path().to_path_buf(),
            folder: Some(folder),
            http: one.local_addr()?.to_string(),
            grpc: two.local_addr()?.to_string(),
            patience: args.patience,
            child: None,
        })
    }

    /// Starts the process and waits until it is ready.
    ///
    /// # Errors
    /// It could not be started, ended by itself, or was not ready in time; the end of its log is told.
    pub(super) async fn start(&mut self) -> Result<Client, Error> {
        let log = File::options().create(true).append(true).open(self.path.join("log"))?;
        let child = Command::new(&self.binary)
            .arg("--data-dir")
            .arg(self.path.join("data"))
            .args(["--http-listen", &self.http, "--grpc-listen", &self.grpc])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|e| self.failed(&e.to_string()))?;
        let child = self.child.insert(child);
        let root = format!("http://{}", self.http);
        let client = Client::new(&format!("{root}/api/v1/push"), &root, self.patience)?;
        let watch = Stopwatch::start();
        loop {
            if let Some(status) = child.try_wait()? {
                return Err(self.failed(&format!("ended by itself: {status}")));
            }
            if client.is_ready().await {
                return Ok(client);
            }
            if watch.elapsed() > self.patience {
                return Err(self.failed(&format!("not ready after {} s", self.patience.as_secs())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGKILL, and waits until the process is gone.
    ///
    /// # Errors
    /// It had ended before: a node that dies by itself is a finding of its own.
    pub(super) async fn kill(&mut self) -> Result<(), Error> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if let Some(status) = child.try_wait()? {
            return Err(self.failed(&format!("died by itself: {status}")));
        }
        child.kill()?;
        tokio::task::spawn_blocking(move || child.wait()).await??;
        Ok(())
    }

    /// Deletes what it stored.
    pub(super) fn forget(self) {
        drop(self);
    }

    /// Leaves the directory there and says where it is.
    pub(super) fn keep(mut self) -> PathBuf {
        self.leave()
    }

    fn leave(&mut self) -> PathBuf {
        self.folder.take().map_or_else(|| self.path.clone(), tempfile::TempDir::keep)
    }

    fn failed(&mut self, reason: &str) -> Error {
        let folder = self.leave();
        let log = std::fs::read(folder.join("log")).unwrap_or_default();
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(2_000)..]).into_owned();
        Error::Process { path: self.binary.clone(), reason: format!("{reason}; log in {}:\n{tail}", folder.display()) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Already gone is as good as killed.
            let _gone = child.kill().and_then(|()| child.wait());
        }
    }
}
