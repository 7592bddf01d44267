//! TLS between nodes: each shows the other a certificate of the cluster's CA.
//!
//! Why both ways: whoever reaches the gRPC port of a node may write, read and vote. A certificate says "a member of
//! this cluster", by the CA that signed it and one name all of them bear (`cluster.tls.name`); *which* member, cluster
//! id and node id say, that every call carries. So a node may move to another address with the certificate it has.
//!
//! Files are looked at every few seconds. New ones are taken when they are good, for connections made from then on;
//! else what was there stays in force and the log says why. TLS 1.3 only, and no sessions taken up again: each
//! connection looks at certificates, and connections between nodes last.
//!
//! Map: here what the others use · [`material`] files → what rustls works with · [`incoming`] the accepting side ·
//! [`outgoing`] the dialing side · [`issue`] a CA of one's own.

pub mod incoming;
pub mod issue;
pub mod material;
pub mod outgoing;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use engram_model::Millis;
use engram_model::time::Clock;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use material::Material;

/// The name that certificates of nodes bear when nothing else is said.
pub const NAME_DEFAULT: &str = "engram-node";
/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A certificate that ends sooner is worth a line in the log, once in so many looks.
const ENDS_SOON_MS: Millis = 14 * 24 * 3600 * 1000;
const TELL_EVERY: u32 = 1800;

/// Where certificate, key and CA lie, all PEM, and the name of the other nodes' certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// This node's certificate, and those between it and the CA.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The CA, or several: while one is replaced by another.
    pub ca: PathBuf,
    /// What every node's certificate is for.
    pub name: String,
}

/// How nodes speak to each other. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tls(Option<Arc<Mutual>>);

struct Mutual {
    files: Files,
    now: ArcSwap<Material>,
}

impl Tls {
    /// Plain text: on one machine, or where the network is trusted.
    #[must_use]
    pub fn plain() -> Self {
        Self(None)
    }

    /// With certificates.
    ///
    /// # Errors
    /// What is wrong with the files, in words for the person who wrote them.
    pub fn open(files: Files, clock: &Clock) -> Result<Self, String> {
        let material = Material::load(&files, clock.now())?;
        Ok(Self(Some(Arc::new(Mutual { files, now: ArcSwap::from_pointee(material) }))))
    }

    /// Whether certificates are looked at.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// When this node's certificate ends; none with plain text.
    #[must_use]
    pub fn ends_at(&self) -> Option<Millis> {
        self.0.as_ref().map(|mutual| mutual.now.load().ends_at)
    }

    /// A connection to another node, made when it is first used.
    #[must_use]
    pub fn channel(&self, endpoint: &Endpoint) -> Channel {
        match &self.0 {
            None => endpoint.connect_lazy(),
            Some(mutual) => endpoint.connect_with_connector_lazy(outgoing::Connector(mutual.clone())),
        }
    }

    /// Takes new files as they come, until `stop`.
    pub async fn watch(self, clock: Clock, stop: CancellationToken) {
        let Some(mutual) = self.0 else { return stop.cancelled().await };
        let (mut refused, mut looks) = (None, 0_u32);
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return,
            }
            let (of, now) = (mutual.clone(), clock.now());
            let looked = tokio::task::spawn_blocking(move || of.look(now)).await;
            match looked {
                Ok(Ok(true)) => {
                    refused = None;
                    tracing::info!(cert = %mutual.files.cert.display(), "new certificates are in force for new connections");
                }
                Ok(Ok(false)) => refused = None,
                Ok(Err(why)) if refused.as_ref() != Some(&why) => {
                    tracing::error!(why, "new certificates are not taken, the old ones stay in force");
                    refused = Some(why);
                }
                Ok(Err(_)) | Err(_) => {}
            }
            if looks.is_multiple_of(TELL_EVERY) {
                mutual.tell_end(now);
            }
            looks = looks.wrapping_add(1);
        }
    }
}

impl Mutual {
    /// Looks at the files; whether others are in force now.
    fn look(&self, now: Millis) -> Result<bool, String> {
        let bytes = material::read(&self.files)?;
        if bytes == self.now.load().bytes {
            return Ok(false);
        }
        self.now.store(Arc::new(Material::of(bytes, &self.files, now)?));
        Ok(true)
    }

    fn tell_end(&self, now: Millis) {
        let left_ms = self.now.load().ends_at.saturating_sub(now);
        if left_ms < ENDS_SOON_MS {
            let (cert, hours) = (self.files.cert.display(), left_ms / 3_600_000);
            tracing::warn!(%cert, hours, "this node's certificate ends soon: put a new one in its place");
        }
    }
}

/// What went wrong, from the outside to the inside, without saying the same twice.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut inner = error.source();
    while let Some(error) = inner {
        let more = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(io) => why(io),
            None => error.to_string(),
        };
        if !text.contains(&more) {
            text = if text.is_empty() || text == "transport error" { more } else { format!("{text}: {more}") };
        }
        inner = error.source();
    }
    text
}

/// What a failed call says, with what lies behind it.
#[must_use]
pub fn told(status: &tonic::Status) -> String {
    use std::error::Error;
    let message = status.message().to_owned();
    match status.source() {
        None => message,
        Some(source) => {
            let more = chain(source);
            if more.contains(&message) { more } else { format!("{message}: {more}") }
        }
    }
}

/// Why a handshake failed, in words for the person who has to mend it.
fn why(error: &(dyn std::error::Error + Send + Sync + 'static)) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};
    let Some(error) = error.downcast_ref::<Error>() else { return error.to_string() };
    match error {
        Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            "its certificate is not signed by the CA of this node's cluster.tls.ca".to_owned()
        }
        Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "its certificate has expired".to_owned()
        }
        Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            "its certificate is not valid yet: look at the clocks".to_owned()
        }
        Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "its certificate does not bear the name of cluster.tls.name".to_owned()
        }
        Error::NoCertificatesPresented => "it shows no certificate".to_owned(),
        Error::InvalidMessage(_) => "it does not speak TLS: is cluster.tls set on it?".to_owned(),
        Error::AlertReceived(Alert::UnknownCA | Alert::DecryptError) => {
            "it says that the CA of its cluster.tls.ca has not signed this node's certificate".to_owned()
        }
        Error::AlertReceived(Alert::CertificateExpired) => {
            "it says that this node's certificate has expired".to_owned()
        }
        Error::AlertReceived(Alert::BadCertificate | Alert::CertificateUnknown) => {
            "it refuses this node's certificate, its log says why".to_owned()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
