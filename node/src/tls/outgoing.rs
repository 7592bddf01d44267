//! The dialing side: TCP, then TLS with the files that are in force at that moment.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Uri;

use super::{Mutual, why};

/// What tonic connects with. The deadline is the endpoint's.
#[derive(Clone)]
pub struct Connector(pub(super) Arc<Mutual>);

type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<TlsStream<TcpStream>>>> + Send>>;

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Connecting {
        let now = self.0.now.load_full();
        Box::pin(async move {
            let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("{uri} has no host and port"));
            let host = uri.host().ok_or_else(bad)?.trim_matches(['[', ']']);
            let stream = TcpStream::connect((host, uri.port_u16().ok_or_else(bad)?)).await?;
            stream.set_nodelay(true)?;
            let connecting = TlsConnector::from(now.client.clone()).connect(now.name.clone(), stream);
            let stream = connecting.await.map_err(|error| match error.get_ref() {
                Some(inner) => io::Error::new(error.kind(), format!("TLS: {}", why(inner))),
                None => error,
            })?;
            Ok(TokioIo::new(stream))
        })
    }
}
