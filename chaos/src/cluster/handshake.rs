//! A TLS handshake of ours with a node, as another node would make it: what it is told about a certificate that has ended.
//!
//! Why by hand: a fault of certificates is proved by nothing less than somebody who is turned away for it. With TLS 1.3 a
//! server says what it thinks of its caller's certificate after the caller holds the handshake for done, so something is
//! sent, and the answer is read.
//!
//! Source: RFC 8446, 4.4.2.4 and 6.2; RFC 9113, 3.4 (the opening of HTTP/2).

use crate::error::Error;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The name on all certificates, as `engram tls` makes them.
const NAME: &str = "engram-node";
/// How HTTP/2 begins, with settings that say nothing.
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Longest wait for each step.
const WITHIN: Duration = Duration::from_secs(3);

/// Whose hand is given.
#[derive(Clone, Debug)]
pub(super) struct Hand {
    pub(super) ca: PathBuf,
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

/// Shakes hands with who listens at an address; why not, when one of both did not want to.
///
/// # Errors
/// The files are none, or nobody listens.
pub(super) async fn shake(at: SocketAddr, hand: Hand) -> Result<Result<(), String>, Error> {
    tokio::task::spawn_blocking(move || shake_now(at, &hand)).await?
}

fn shake_now(at: SocketAddr, hand: &Hand) -> Result<Result<(), String>, Error> {
    let config = config(hand)?;
    let name = ServerName::try_from(NAME).map_err(|error| Error::Usage(error.to_string()))?;
    let stream = TcpStream::connect_timeout(&at, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    let connection = ClientConnection::new(Arc::new(config), name).map_err(|error| Error::Usage(error.to_string()))?;
    let mut stream = StreamOwned::new(connection, stream);
    let sent = stream.write_all(OPENING).and_then(|()| stream.flush());
    let answer = match sent {
        Err(error) if error.kind() == ErrorKind::InvalidData => Err(error),
        // Who is turned away while it still sends hears of it when it reads.
        _ => stream.read(&mut [0; 64]),
    };
    Ok(match answer {
        Ok(1..) => Ok(()),
        Ok(0) => Err("it hung up".to_owned()),
        // What a rustls error says: which certificate, and what is wrong with it.
        Err(error) if error.kind() == ErrorKind::InvalidData => Err(error.to_string()),
        Err(error) => Err(format!("no answer: {error}")),
    })
}

fn config(hand: &Hand) -> Result<ClientConfig, Error> {
    let wrong = |path: &Path, why: String| Error::Usage(format!("{}: {why}", path.display()));
    let certs = |path: &Path| -> Result<Vec<CertificateDer<'static>>, Error> {
        let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        all.map_err(|error| wrong(path, error.to_string()))
    };
    let mut roots = RootCertStore::empty();
    for ca in certs(&hand.ca)? {
        roots.add(ca).map_err(|error| wrong(&hand.ca, error.to_string()))?;
    }
    let key = PrivateKeyDer::from_pem_file(&hand.key).map_err(|error| wrong(&hand.key, error.to_string()))?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(certs(&hand.cert)?, key);
    let mut config = config.map_err(|error| wrong(&hand.cert, error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
