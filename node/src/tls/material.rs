//! Certificate, key and CA: from files to what rustls works with, checked as another node will check them.
//!
//! Why checked here: a node with a certificate that nobody accepts would start, and be silent for everybody.

use std::path::Path;
use std::sync::Arc;

use engram_model::Millis;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
};

use super::Files;

/// Largest file taken.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// HTTP/2, see RFC 9113 §3.3.
const H2: &[u8] = b"h2";

/// The files' bytes: certificate, key, CA.
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes([Vec<u8>; 3]);

/// What is in force.
pub struct Material {
    /// What it was made of.
    pub bytes: Bytes,
    /// For connections that come.
    pub server: Arc<ServerConfig>,
    /// For connections that go.
    pub client: Arc<ClientConfig>,
    /// The name the other side's certificate must bear.
    pub name: ServerName<'static>,
    /// When this node's certificate ends.
    pub ends_at: Millis,
}

/// Reads the files.
///
/// # Errors
/// Which could not be read, and why.
pub fn read(files: &Files) -> Result<Bytes, String> {
    let one = |key: &str, path: &Path| -> Result<Vec<u8>, String> {
        let bad = |e: &dyn std::fmt::Display| format!("{key}: {}: {e}", path.display());
        let length = std::fs::metadata(path).map_err(|e| bad(&e))?.len();
        if length > FILE_BYTES_MAX {
            return Err(bad(&format_args!("{length} bytes are no PEM file")));
        }
        std::fs::read(path).map_err(|e| bad(&e))
    };
    Ok(Bytes([
        one("cluster.tls.cert", &files.cert)?,
        one("cluster.tls.key", &files.key)?,
        one("cluster.tls.ca", &files.ca)?,
    ]))
}

impl Material {
    /// From the files.
    ///
    /// # Errors
    /// As [`read`] and [`Material::of`].
    pub fn load(files: &Files, now: Millis) -> Result<Self, String> {
        Self::of(read(files)?, files, now)
    }

    /// From bytes.
    ///
    /// # Errors
    /// What another node would refuse, or rustls.
    pub fn of(bytes: Bytes, files: &Files, now: Millis) -> Result<Self, String> {
        let Bytes([cert, key, ca]) = &bytes;
        let (cert_at, ca_at) = (files.cert.display(), files.ca.display());
        let chain = certificates(cert).map_err(|e| format!("cluster.tls.cert: {cert_at}: {e}"))?;
        let private = PrivateKeyDer::from_pem_slice(key)
            .map_err(|e| format!("cluster.tls.key: {}: no private key: {e}", files.key.display()))?;
        let mut roots = RootCertStore::empty();
        for one in certificates(ca).map_err(|e| format!("cluster.tls.ca: {ca_at}: {e}"))? {
            roots.add(one).map_err(|e| format!("cluster.tls.ca: {ca_at}: {e}"))?;
        }
        let name = ServerName::try_from(files.name.clone())
            .map_err(|_| format!("cluster.tls.name: {:?} is no DNS name", files.name))?;
        let (provider, roots) = (Arc::new(rustls::crypto::ring::default_provider()), Arc::new(roots));
        let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let servers = servers.map_err(|e| format!("cluster.tls.ca: {ca_at}: {e}"))?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let clients =
            Named { inner: clients.map_err(|e| format!("cluster.tls.ca: {ca_at}: {e}"))?, name: name.clone() };
        let ends_at = end_of(&chain[0]).map_err(|e| format!("cluster.tls.cert: {cert_at}: {e}"))?;
        check(&chain, (&servers, &clients), &name, now).map_err(|e| {
            format!(
                "cluster.tls.cert: other nodes would refuse {cert_at} by the CA in {ca_at} and the name {:?}: {e}",
                files.name
            )
        })?;
        let key_at = files.key.display();
        let bad = |e: rustls::Error| format!("cluster.tls.key: {key_at} does not belong to {cert_at}: {e}");
        let client = client(&provider, &roots, (&chain, private.clone_key())).map_err(bad)?;
        let server = server(&provider, clients, (&chain, private)).map_err(bad)?;
        Ok(Self { bytes, server: Arc::new(server), client: Arc::new(client), name, ends_at })
    }
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    (chain, key): (&[CertificateDer<'static>], PrivateKeyDer<'static>),
) -> Result<ClientConfig, rustls::Error> {
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain.to_vec(), key)?;
    client.alpn_protocols = vec![H2.to_vec()];
    client.resumption = Resumption::disabled();
    Ok(client)
}

fn server(
    provider: &Arc<CryptoProvider>,
    clients: Named,
    (chain, key): (&[CertificateDer<'static>], PrivateKeyDer<'static>),
) -> Result<ServerConfig, rustls::Error> {
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(clients))
        .with_single_cert(chain.to_vec(), key)?;
    server.alpn_protocols = vec![H2.to_vec()];
    server.send_tls13_tickets = 0;
    Ok(server)
}

/// At least one certificate.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| e.to_string())?;
    if all.is_empty() {
        return Err("no certificate (PEM) in it".to_owned());
    }
    Ok(all)
}

fn end_of(certificate: &CertificateDer<'_>) -> Result<Millis, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|e| e.to_string())?;
    Ok(parsed.validity().not_after.timestamp().saturating_mul(1000))
}

/// Looks at the own certificate as the others will, in both roles.
fn check(
    chain: &[CertificateDer<'static>],
    (servers, clients): (&Arc<WebPkiServerVerifier>, &Named),
    name: &ServerName<'_>,
    now: Millis,
) -> Result<(), String> {
    let seconds = u64::try_from(now / 1000).unwrap_or(0);
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let say = |e: rustls::Error| super::why(&e);
    servers.verify_server_cert(&chain[0], &chain[1..], name, &[], now).map_err(say)?;
    clients.verify_client_cert(&chain[0], &chain[1..], now).map_err(say)?;
    Ok(())
}

/// As rustls verifies who calls, and the name too.
#[derive(Debug)]
struct Named {
    inner: Arc<dyn ClientCertVerifier>,
    name: ServerName<'static>,
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, &self.name)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
