//! Connections: accepted up to a limit, each with deadlines, ended in order.
//!
//! Why not `axum::serve`: it waits for ever for a client that sends half a header, or that never reads its answer, and
//! it takes any number of them. Here
//!
//! - a connection has [`ServeOptions::header_within`] to send its first bytes and each header, idle time included;
//! - an answer that the client does not take for [`ServeOptions::write_stall_max`] ends the connection;
//! - a client that closes its half gets what is ready within [`ServeOptions::answer_within`], everything else is stopped;
//! - above [`ServeOptions::connections_max`] new ones wait in the system's own queue;
//! - on stop, requests in flight have [`ServeOptions::stop_within`] to finish, then the connections are cut.
//!
//! Bodies have their own deadline (`body.rs`), queries theirs (the read path).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::HttpMetrics;
use super::client::Client;

/// Bytes after which HTTP itself minds the deadlines: the length of HTTP/2's preface, by which the two are told apart.
const PREFACE_BYTES: usize = 24;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// How often an idle HTTP/2 connection is asked whether it is still there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Largest header list taken.
const HEADER_BYTES_MAX: u32 = 64 << 10;
/// How long accepting rests when the system is out of files or memory.
const ACCEPT_REST: Duration = Duration::from_millis(200);

/// Bounds of the server.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Connections open at once.
    pub connections_max: usize,
    /// Longest a client may take for its first bytes and for each header, and may stay idle between requests.
    pub header_within: Duration,
    /// Longest a client may leave an answer untaken.
    pub write_stall_max: Duration,
    /// How long answers may still take when a client closes its half, which is how leaving looks, too.
    pub answer_within: Duration,
    /// How long requests in flight may go on after the stop.
    pub stop_within: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            header_within: Duration::from_secs(60),
            write_stall_max: Duration::from_secs(60),
            answer_within: Duration::from_millis(500),
            stop_within: Duration::from_secs(30),
        }
    }
}

/// Serves until `stop`, then until the last request is done or its time is up.
///
/// # Errors
/// The listener's own failure: the address is not ours any more.
///
/// # Cancel safety
/// Dropping the future cuts all connections.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    options: ServeOptions,
    metrics: HttpMetrics,
    stop: CancellationToken,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(options.connections_max.clamp(1, Semaphore::MAX_PERMITS)));
    let mut open = JoinSet::new();
    while !stop.is_cancelled() {
        let next = async {
            let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((listener.accept().await?.0, place))
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = next => accepted,
            Some(ended) = open.join_next(), if !open.is_empty() => {
                report(ended);
                continue;
            }
        };
        match accepted {
            Ok((stream, place)) => {
                let (router, options, stop) = (router.clone(), options.clone(), stop.clone());
                let counted = metrics.connection();
                open.spawn(async move {
                    connection(stream, router, &options, stop).await;
                    drop((place, counted));
                });
            }
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections, trying again");
                sleep(ACCEPT_REST).await;
            }
        }
    }
    drop(listener);
    let drained = timeout(options.stop_within, async {
        while let Some(ended) = open.join_next().await {
            report(ended);
        }
    });
    if drained.await.is_err() {
        tracing::warn!(connections = open.len(), "requests took too long to finish, their connections are cut");
        open.shutdown().await;
    }
    Ok(())
}

/// Whether a failure to accept is about one client, who has left already.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection ended in a panic");
    }
}

async fn connection(stream: TcpStream, router: Router, options: &ServeOptions, stop: CancellationToken) {
    // An answer is often one small packet: it should not wait for a second one. Failing to set it costs time only.
    let _set = stream.set_nodelay(true);
    let client = Client::new(options.answer_within);
    let io = TokioIo::new(Guarded::new(stream, client.clone(), options));
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(options.header_within);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    let mut serving = std::pin::pin!(builder.serve_connection(io, client.served_by(router)));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        // Clients come and go as they like: nothing for a person to act on.
        tracing::debug!(error, "a connection ended early");
    }
}

/// A stream that fails when nothing moves for too long.
struct Guarded<S> {
    stream: S,
    client: Client,
    /// Whether the end of what the client sends was held back, because it awaits answers.
    ended: bool,
    read_bytes: usize,
    begins_by: Pin<Box<Sleep>>,
    write_stall_max: Duration,
    stalled_by: Option<Pin<Box<Sleep>>>,
}

impl<S> Guarded<S> {
    fn new(stream: S, client: Client, options: &ServeOptions) -> Self {
        Self {
            stream,
            client,
            ended: false,
            read_bytes: 0,
            begins_by: Box::pin(sleep(options.header_within)),
            write_stall_max: options.write_stall_max,
            stalled_by: None,
        }
    }

    /// Lets what moved through, and starts or checks the clock for what did not.
    fn guard<T>(&mut self, polled: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled_by = None;
            if self.ended {
                // This may have been the last of the answers: what was held back is due then.
                cx.waker().wake_by_ref();
            }
            return polled;
        }
        let max = self.write_stall_max;
        let by = self.stalled_by.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + max)));
        ready!(by.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not take its answer")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (before, wanted) = (buf.filled().len(), buf.remaining());
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        self.read_bytes = self.read_bytes.saturating_add(read);
        if matches!(polled, Poll::Ready(Ok(()))) && read == 0 && wanted > 0 {
            // HTTP would take this for a client that left, and drop answers that are ready or half written.
            self.ended = self.client.awaits_answers() || self.stalled_by.is_some();
            if self.ended {
                self.client.ends();
                return Poll::Pending;
            }
        }
        if polled.is_pending() && self.read_bytes < PREFACE_BYTES {
            ready!(self.begins_by.as_mut().poll(cx));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client sent no request")));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, data);
        self.guard(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.guard(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // Flushing a socket is a matter of nothing: it must not reset the clock of a write that waits.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
