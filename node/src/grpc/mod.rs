//! The door for other nodes: one port with the metadata group's service, the members' and the data plane's.
//!
//! The port is open before the node knows which cluster it belongs to, because nodes that make one together must hear
//! each other first. Services that need more say "starting" until they have it ([`Late`]).

pub mod ingest;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;

use crate::peer::remote::{CLUSTER_KEY, TO_KEY};
use crate::tls::Tls;

/// A ping on an idle connection, and how long its answer may take: a caller that is gone must not hold its streams.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_WITHIN: Duration = Duration::from_secs(10);
/// Bytes on their way in one stream, and in one connection.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Calls at once on one connection.
const STREAMS_MAX: u32 = 1024;

/// A service that comes later; until then its callers are told to try again.
pub struct Late<S>(Arc<OnceLock<S>>);

impl<S> Clone for Late<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Default for Late<S> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<S> Late<S> {
    /// From now on the service answers. Only the first call counts.
    pub fn open(&self, service: S) {
        // A second service is not meant to be.
        let _first = self.0.set(service);
    }
}

impl<S: NamedService> NamedService for Late<S> {
    const NAME: &'static str = S::NAME;
}

type Answering = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<S> tower::Service<http::Request<Body>> for Late<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answering {
        let service = self.0.get().cloned();
        Box::pin(async move {
            match service {
                Some(service) => tower::ServiceExt::oneshot(service, request).await,
                None => Ok(Status::unavailable("the node is starting").into_http()),
            }
        })
    }
}

/// Checks that a call is meant for this node of this cluster: an address may have been given away.
#[derive(Clone, Debug)]
pub struct Guard {
    cluster: String,
    node: String,
}

impl Guard {
    /// For calls to this node.
    #[must_use]
    pub fn new(cluster: &str, node: u64) -> Self {
        Self { cluster: cluster.to_owned(), node: node.to_string() }
    }

    /// Checks what a call carries.
    ///
    /// # Errors
    /// It is meant for another node or another cluster.
    pub fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let said = |key: &str| metadata.get(key).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (cluster, to) = (said(CLUSTER_KEY), said(TO_KEY));
        if cluster == self.cluster && to == self.node {
            return Ok(());
        }
        let why = format!(
            "the call is for node {to} of cluster {cluster:?}, this is node {} of cluster {}",
            self.node, self.cluster
        );
        tracing::warn!(why, "a call is refused");
        Err(Status::failed_precondition(why))
    }
}

/// Serves until `stop`, and lets calls in flight end for as long as `stop_within`.
///
/// # Errors
/// The port failed.
pub async fn serve(
    listener: TcpListener,
    routes: tonic::service::Routes,
    tls: &Tls,
    (stop, stop_within): (CancellationToken, Duration),
) -> Result<(), tonic::transport::Error> {
    let too_late = {
        let stop = stop.clone();
        async move {
            stop.cancelled().await;
            tokio::time::sleep(stop_within).await;
        }
    };
    let router = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_WITHIN))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .add_routes(routes);
    let serving = match tls.incoming(listener) {
        Ok(incoming) => router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).boxed(),
        Err(listener) => {
            let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).boxed()
        }
    };
    tokio::select! {
        ended = serving => ended,
        // A peer that does not let go must not hold the node: it sees the connection break and asks another.
        () = too_late => Ok(()),
    }
}
