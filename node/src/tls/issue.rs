//! A CA of one's own, for those who have none: two commands make the files of a cluster.
//!
//! Keys are ECDSA P-256. A file that is there is never written over: a lost CA key means new certificates everywhere.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engram_model::Millis;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::ServerName;

const DAY_SECONDS: u64 = 24 * 3600;
/// Longest life of a certificate.
pub const DAYS_MAX: u32 = 36_500;

/// What a certificate is to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Whose: the name of the files and of the subject.
    pub name: String,
    /// The name all nodes of the cluster share (`cluster.tls.name`).
    pub node: String,
    /// Other names and addresses it is for.
    pub hosts: Vec<String>,
    /// How many days it is good for.
    pub days: u32,
}

/// Makes a CA in `dir`: `ca.pem` for every node, `ca.key` for whoever issues certificates.
///
/// # Errors
/// It is there already, or what the disk said.
pub fn init_ca(dir: &Path, days: u32, now: Millis) -> Result<[PathBuf; 2], String> {
    let key = KeyPair::generate().map_err(|e| e.to_string())?;
    // Its own name, so that a certificate of another cluster is told apart by its issuer already.
    let mut params = params(&format!("Engram cluster {:08x}", uuid::Uuid::new_v4().as_u128() >> 96), days, now)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(|e| e.to_string())?;
    let paths = [dir.join("ca.pem"), dir.join("ca.key")];
    write_both(dir, &paths, (&certificate.pem(), &key.serialize_pem()))?;
    Ok(paths)
}

/// Issues a node's certificate by the CA in `dir`: `NAME.pem` and `NAME.key`.
///
/// # Errors
/// There is no CA, the files are there already, or what the disk said.
pub fn issue(dir: &Path, wanted: &Wanted, now: Millis) -> Result<[PathBuf; 2], String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if wanted.name.is_empty()
        || wanted.name == "ca"
        || wanted.name.starts_with('.')
        || !wanted.name.chars().all(is_name)
    {
        return Err(format!("{:?} is no name for a node: letters, digits, - _ and ., and not \"ca\"", wanted.name));
    }
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path)
            .map_err(|e| format!("{}: {e}: make a CA first, with `engram tls init-ca`", path.display()))
    };
    let ca_key = KeyPair::from_pem(&read("ca.key")?).map_err(|e| format!("{}: {e}", dir.join("ca.key").display()))?;
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem")?, ca_key)
        .map_err(|e| format!("{}: {e}", dir.join("ca.pem").display()))?;
    let key = KeyPair::generate().map_err(|e| e.to_string())?;
    let mut params = params(&wanted.name, wanted.days, now)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    for host in std::iter::once(&wanted.node).chain(&wanted.hosts) {
        let bad = || format!("{host:?} is neither an address nor a DNS name");
        params.subject_alt_names.push(match ServerName::try_from(host.as_str()).map_err(|_| bad())? {
            ServerName::IpAddress(ip) => SanType::IpAddress(ip.into()),
            _ => SanType::DnsName(host.as_str().try_into().map_err(|_| bad())?),
        });
    }
    let certificate = params.signed_by(&key, &issuer).map_err(|e| e.to_string())?;
    let paths = [dir.join(format!("{}.pem", wanted.name)), dir.join(format!("{}.key", wanted.name))];
    write_both(dir, &paths, (&certificate.pem(), &key.serialize_pem()))?;
    Ok(paths)
}

fn params(subject: &str, days: u32, now: Millis) -> Result<CertificateParams, String> {
    if !(1..=DAYS_MAX).contains(&days) {
        return Err(format!("{days} days: it must be 1 to {DAYS_MAX}"));
    }
    let mut params = CertificateParams::new(Vec::new()).map_err(|e| e.to_string())?;
    params.distinguished_name.push(DnType::CommonName, subject);
    let seconds = u64::try_from(now / 1000).unwrap_or(0);
    let start = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    // Clocks of nodes may differ.
    params.not_before = start - Duration::from_secs(DAY_SECONDS);
    params.not_after = start + Duration::from_secs(u64::from(days) * DAY_SECONDS);
    Ok(params)
}

/// Certificate and key; the key for its owner's eyes only.
fn write_both(dir: &Path, paths: &[PathBuf; 2], (certificate, key): (&str, &str)) -> Result<(), String> {
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    if let Some(there) = paths.iter().find(|path| path.exists()) {
        return Err(format!("{} is there already and is not written over", there.display()));
    }
    for (path, text, mode) in [(&paths[1], key, 0o600), (&paths[0], certificate, 0o644)] {
        let bad = |e: std::io::Error| format!("{}: {e}", path.display());
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(bad)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(bad)?;
    }
    Ok(())
}
