//! A block on its way: from a store, as a tar archive, to a node.
//!
//! One task reads the source piece by piece, the request takes what it has read: a few pieces are in memory.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use engram_model::block::BlockId;
use engram_storage::object::Store;
use futures::StreamExt;
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::super::client::causes;
use super::super::show;
use crate::blocks::tar;

/// Bytes of one piece.
const PIECE_BYTES: u64 = 4 << 20;
/// Pieces in memory.
const PIECES_MAX: usize = 2;
/// A node that is busy is asked again so many times.
const ATTEMPTS: u32 = 30;
/// After this.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// What a node said to a block.
pub(super) enum Answer {
    /// It is in.
    Imported {
        /// How many series.
        series: u64,
        /// How many samples.
        samples: u64,
        /// Whether it took the place of a damaged one.
        repaired: bool,
    },
    /// Nothing is left of it.
    Empty,
    /// It is not taken.
    Refused(String),
}

/// A node and whose data blocks become there.
pub(super) struct Node {
    client: reqwest::Client,
    url: String,
    tenant: Option<String>,
}

/// Names below the block's directory, with lengths; `meta.json` last, as where blocks are written.
pub(super) type Names = Vec<(String, u64)>;

/// The files of a block.
///
/// # Errors
/// The source cannot be read.
pub(super) async fn files_of(store: &Store, id: BlockId) -> Result<Names, String> {
    let mut names = store.list_files(&id.to_string()).await.map_err(|e| e.to_string())?;
    names.retain(|(name, _)| {
        matches!(name.as_str(), "index" | "meta.json" | "tombstones") || name.starts_with("chunks/")
    });
    names.sort_by_key(|(name, _)| name == "meta.json");
    Ok(names)
}

/// Copies a block to a directory.
///
/// # Errors
/// The source cannot be read, or the disk refuses.
pub(super) async fn copy(store: &Store, id: BlockId, to: &Path) -> Result<(), String> {
    for (name, len) in files_of(store, id).await? {
        let path = to.join(&name);
        let failed = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        let mut file = std::fs::File::create(&path).map_err(failed)?;
        let mut at = 0;
        while at < len {
            let piece = piece(store, id, &name, at, len).await?;
            at += piece.len() as u64;
            std::io::Write::write_all(&mut file, &piece).map_err(failed)?;
        }
    }
    Ok(())
}

async fn piece(store: &Store, id: BlockId, name: &str, at: u64, len: u64) -> Result<Bytes, String> {
    store.get_range(&format!("{id}/{name}"), at, PIECE_BYTES.min(len - at)).await.map_err(|e| e.to_string())
}

/// Sends the archive into a channel; ends early when nobody takes it.
async fn archive(store: Store, id: BlockId, names: Names, to: mpsc::Sender<Result<Bytes, String>>) {
    let zeros = |count: u64| Bytes::from(vec![0; usize::try_from(count).unwrap_or(0)]);
    for (name, len) in names {
        if to.send(Ok(Bytes::from(tar::header(&name, len)))).await.is_err() {
            return;
        }
        let mut at = 0;
        while at < len {
            let next = piece(&store, id, &name, at, len).await;
            at += next.as_ref().map_or(len, |bytes| bytes.len() as u64);
            let is_end = next.is_err();
            if to.send(next).await.is_err() || is_end {
                return;
            }
        }
        if to.send(Ok(zeros(tar::padding(len)))).await.is_err() {
            return;
        }
    }
    // The last records; with nobody there to take them there is nobody to tell.
    let _ended = to.send(Ok(zeros(2 * tar::RECORD_BYTES as u64))).await;
}

impl Node {
    /// A node at `url`.
    pub(super) fn new(url: &str, tenant: Option<String>) -> Result<Self, String> {
        // A second installation fails and changes nothing: another part of the program was first.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().build().map_err(|error| format!("cannot make a client: {error}"))?;
        Ok(Self { client, url: url.trim_end_matches('/').to_owned(), tenant })
    }

    fn to(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.tenant {
            Some(tenant) => request.header("X-Scope-OrgID", tenant),
            None => request,
        }
    }

    /// Why a block need not be sent; none when it is to be.
    ///
    /// # Errors
    /// The node does not answer.
    pub(super) async fn known(&self, id: BlockId) -> Result<Option<String>, String> {
        let request = self.client.get(format!("{}/api/v1/admin/import/{id}", self.url));
        let (status, body) = self.ask(self.to(request)).await?;
        if status >= 300 {
            return Err(show::failure(&body));
        }
        let answer: Option<Value> = serde_json::from_str(&body).ok();
        let data = answer.as_ref().and_then(|answer| answer.get("data"));
        let word = data.and_then(|data| data.get("known")).and_then(Value::as_str);
        match word {
            Some("here") => Ok(Some("there already".to_owned())),
            Some("within") => {
                let other = data.and_then(|data| data.get("within")).and_then(Value::as_str).unwrap_or_default();
                Ok(Some(format!("there already, compacted into {other}")))
            }
            Some("no" | "damaged") => Ok(None),
            _ => Err(format!("{} did not answer as a node does: {}", self.url, show::cut(&body))),
        }
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> Result<(u16, String), String> {
        let response = request.send().await.map_err(|error| format!("cannot ask {}: {}", self.url, causes(&error)))?;
        let status = response.status().as_u16();
        match response.text().await {
            Ok(body) => Ok((status, body)),
            // Who refuses early does not take the rest of what is sent: the text may be lost, that it refused is known.
            Err(_) if status >= 400 => Ok((status, format!("the node answered {status}"))),
            Err(error) => Err(format!("{} broke off: {}", self.url, causes(&error))),
        }
    }

    /// Sends a block whose files are in `store`; waits while the node is busy.
    ///
    /// # Errors
    /// The source cannot be read, or the node does not answer. A block that the node does not take is no error.
    pub(super) async fn send(&self, id: BlockId, names: Names, store: Store) -> Result<Answer, String> {
        for attempt in 1.. {
            let (to, from) = mpsc::channel(PIECES_MAX);
            let body = ReceiverStream::new(from).map(|piece: Result<Bytes, String>| piece.map(Frame::data));
            let request = self.client.post(format!("{}/api/v1/admin/import/{id}", self.url));
            let request = self.to(request).body(reqwest::Body::wrap(StreamBody::new(body)));
            // When the request has ended, nobody takes the rest of the archive.
            let (answer, ()) = tokio::join!(self.ask(request), archive(store.clone(), id, names.clone(), to));
            let (status, body) = answer?;
            let is_busy = matches!(status, 429 | 503) && attempt < ATTEMPTS;
            if !is_busy {
                return answer_of(status, &body);
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        Err("the node stays busy".to_owned())
    }
}

fn answer_of(status: u16, body: &str) -> Result<Answer, String> {
    match status {
        200..300 => {
            let answer: Value = serde_json::from_str(body).map_err(|e| e.to_string())?;
            let number = |name: &str| answer["data"][name].as_u64().unwrap_or(0);
            let repaired = answer["data"]["repaired"].as_bool().unwrap_or(false);
            Ok(Answer::Imported { series: number("series"), samples: number("samples"), repaired })
        }
        400..500 => Ok(Answer::Refused(show::failure(body))),
        _ => Err(show::failure(body)),
    }
}
