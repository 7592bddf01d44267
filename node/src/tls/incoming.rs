//! The accepting side: a stream of connections whose handshake is done.
//!
//! Handshakes run beside each other, bounded in number and time, so that one who says nothing holds up nobody. Who is
//! refused is logged with the reason, a few times a minute at most.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Mutual, Tls, why};

/// Handshakes at once; above, the system keeps who calls.
const HANDSHAKES_MAX: usize = 256;
/// How long one may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// How long the same refusal is not logged again.
const TELL_AFTER: Duration = Duration::from_secs(10);
/// How long nobody is accepted when the system refuses (no more files).
const REST: Duration = Duration::from_millis(100);

impl Tls {
    /// Connections of others with TLS.
    ///
    /// # Errors
    /// The listener back: this node speaks plain text.
    pub fn incoming(
        &self,
        listener: TcpListener,
    ) -> Result<impl Stream<Item = io::Result<TlsStream<TcpStream>>> + Send + use<>, TcpListener> {
        let Some(mutual) = self.0.clone() else { return Err(listener) };
        let door = Door { mutual, listener, shaking: JoinSet::new(), told: None };
        Ok(futures::stream::unfold(door, |mut door| async move { Some((Ok(door.next().await), door)) }))
    }
}

type Shaken = Result<TlsStream<TcpStream>, (SocketAddr, String)>;

struct Door {
    mutual: Arc<Mutual>,
    listener: TcpListener,
    shaking: JoinSet<Shaken>,
    told: Option<(String, Instant)>,
}

impl Door {
    /// The next one whose handshake is done.
    async fn next(&mut self) -> TlsStream<TcpStream> {
        loop {
            tokio::select! {
                Some(shaken) = self.shaking.join_next() => match shaken {
                    Ok(Ok(stream)) => return stream,
                    Ok(Err((peer, why))) => self.tell(peer, why),
                    Err(error) => tracing::error!(%error, "a handshake ended"),
                },
                accepted = self.listener.accept(), if self.shaking.len() < HANDSHAKES_MAX => match accepted {
                    Ok((stream, peer)) => {
                        let acceptor = TlsAcceptor::from(self.mutual.now.load().server.clone());
                        self.shaking.spawn(shake(acceptor, stream, peer));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection is not accepted");
                        tokio::time::sleep(REST).await;
                    }
                },
            }
        }
    }

    fn tell(&mut self, peer: SocketAddr, why: String) {
        let now = Instant::now();
        let is_new = self.told.as_ref().is_none_or(|(told, at)| *told != why || now - *at >= TELL_AFTER);
        if is_new {
            tracing::warn!(%peer, why, "a node is refused by TLS");
            self.told = Some((why, now));
        }
    }
}

async fn shake(acceptor: TlsAcceptor, stream: TcpStream, peer: SocketAddr) -> Shaken {
    if let Err(error) = stream.set_nodelay(true) {
        return Err((peer, error.to_string()));
    }
    match tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err((peer, error.get_ref().map_or_else(|| error.to_string(), why))),
        Err(_) => Err((peer, format!("no handshake within {} s", HANDSHAKE_WITHIN.as_secs()))),
    }
}
