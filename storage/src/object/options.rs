//! Where the store is and how it is spoken to; checked before anything is sent.
//!
//! Secrets are in here: the type prints them as dots.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

/// What everybody is told instead of a secret.
const DOTS: &str = "…";

/// A text nobody is shown. Empty: there is none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { DOTS })
    }
}

/// What the store does with bytes at rest (S3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// What the bucket says.
    #[default]
    Bucket,
    /// With a key of the store's own (SSE-S3).
    Store,
    /// With a key of the key service (SSE-KMS), [`Options::sse_kms_key`].
    Kms,
    /// Twice, with a key of the key service (DSSE-KMS).
    KmsTwice,
    /// With a key that we send along with each request (SSE-C), [`Options::sse_customer_key`].
    Customer,
}

/// What is sent along with bytes that are uploaded, for the store to hold against them and to keep (S3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing besides the signature, which covers the SHA-256 of the body already.
    #[default]
    Signature,
    /// SHA-256: known to everybody who knows any.
    Sha256,
    /// CRC-64/NVME: cheaper, known to newer stores only.
    Crc64,
}

/// How a store is reached. Anything left empty is looked for in the environment, as the provider's own tools do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A directory, or `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`. Empty: none was chosen.
    pub url: String,
    /// Instead of the provider's own address.
    pub endpoint: String,
    /// Region of the bucket (S3).
    pub region: String,
    /// Whether the bucket is named in the path and not in the host's name (S3).
    pub path_style: bool,
    /// Name of the key (S3), of the account (Azure).
    pub access_key: String,
    /// The key (S3, Azure).
    pub secret_key: Secret,
    /// File with a service account (GCS).
    pub service_account: String,
    /// Whether requests go without a signature.
    pub anonymous: bool,
    /// What is done with bytes at rest (S3).
    pub encryption: Encryption,
    /// The key service's key.
    pub sse_kms_key: String,
    /// Our own key, 32 bytes in base64.
    pub sse_customer_key: Secret,
    /// What uploads are held against by the store (S3).
    pub checksum: Checksum,
    /// Longest one request may take, its body included.
    pub timeout: Duration,
    /// Longest until a connection is there.
    pub connect_timeout: Duration,
    /// How often a request is sent again.
    pub retries_max: usize,
    /// After this no request is sent again.
    pub retry_timeout: Duration,
    /// First wait before a request is sent again; each further one is up to twice as long.
    pub backoff_min: Duration,
    /// Longest such wait.
    pub backoff_max: Duration,
    /// Requests in flight; others wait.
    pub requests_max: usize,
    /// Files larger than this are sent in parts of this size; at least 5 MiB.
    pub part_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: String::new(),
            endpoint: String::new(),
            region: String::new(),
            path_style: true,
            access_key: String::new(),
            secret_key: Secret::default(),
            service_account: String::new(),
            anonymous: false,
            encryption: Encryption::default(),
            sse_kms_key: String::new(),
            sse_customer_key: Secret::default(),
            checksum: Checksum::default(),
            timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            retries_max: 10,
            retry_timeout: Duration::from_secs(120),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            requests_max: 64,
            part_bytes: 16 << 20,
        }
    }
}

/// Whose store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// Amazon's, or one that speaks as it does.
    S3,
    /// Google's.
    Gcs,
    /// Microsoft's.
    Azure,
}

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory of this machine.
    Local(PathBuf),
    /// A part of a bucket.
    Bucket {
        /// Whose.
        provider: Provider,
        /// Its name; the container's for Azure.
        bucket: String,
        /// What all keys begin with, without `/` at either end; may be empty.
        prefix: String,
    },
}

impl Place {
    /// Reads a URL or the path of a directory.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains(char::is_control) {
            return Err("it names no place".to_owned());
        }
        let Some((scheme, _)) = text.split_once("://") else { return Ok(Self::Local(text.into())) };
        let provider = match scheme {
            "file" => {
                let url = Url::parse(text).map_err(|e| e.to_string())?;
                let path = url.to_file_path().map_err(|()| "file:// takes an absolute path of this machine");
                return Ok(Self::Local(path?));
            }
            "s3" | "s3a" => Provider::S3,
            "gs" => Provider::Gcs,
            "az" | "azure" => Provider::Azure,
            _ => return Err(format!("{scheme}:// is not known")),
        };
        let url = Url::parse(text).map_err(|e| e.to_string())?;
        let bucket = url.host_str().unwrap_or_default().to_owned();
        if bucket.is_empty() {
            return Err("there is no bucket".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.port().is_some() {
            return Err("only a bucket and a prefix go into the URL; all else has options of its own".to_owned());
        }
        let prefix = url.path().trim_matches('/').to_owned();
        if prefix.contains('%') || prefix.split('/').any(|part| part == "." || part == "..") || prefix.contains("//") {
            return Err(format!("{prefix:?} cannot be the start of a key"));
        }
        Ok(Self::Bucket { provider, bucket, prefix })
    }
}

impl Options {
    /// Where the store is; `otherwise` when no place was chosen.
    ///
    /// # Errors
    /// Options that contradict each other, in words.
    pub fn check(&self, otherwise: PathBuf) -> Result<Place, String> {
        let place = if self.url.is_empty() { Place::Local(otherwise) } else { Place::parse(&self.url)? };
        if !self.endpoint.is_empty() {
            let url = Url::parse(&self.endpoint).map_err(|e| format!("the endpoint {:?}: {e}", self.endpoint))?;
            if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none() {
                return Err(format!("the endpoint {:?} is no http:// or https:// address", self.endpoint));
            }
            if matches!(place, Place::Local(_)) {
                return Err("an endpoint is given, but the store is a directory".to_owned());
            }
        }
        let is_s3 = matches!(place, Place::Bucket { provider: Provider::S3, .. });
        if self.encryption != Encryption::Bucket && !is_s3 {
            return Err("server-side encryption can be chosen for s3:// only".to_owned());
        }
        if self.checksum != Checksum::Signature && !is_s3 {
            return Err("a checksum of uploads can be chosen for s3:// only".to_owned());
        }
        if matches!(self.encryption, Encryption::Kms | Encryption::KmsTwice) && self.sse_kms_key.is_empty() {
            return Err("this server-side encryption needs the name of a key of the key service".to_owned());
        }
        if (self.encryption == Encryption::Customer) == self.sse_customer_key.0.is_empty() {
            return Err("encryption by a key of ours and such a key go together".to_owned());
        }
        if is_s3 && self.access_key.is_empty() != self.secret_key.0.is_empty() {
            return Err("an access key and its secret go together".to_owned());
        }
        if self.anonymous && !self.secret_key.0.is_empty() {
            return Err("requests cannot go both without a signature and with a key".to_owned());
        }
        if self.part_bytes < 5 << 20 {
            return Err("parts of less than 5MiB are refused by object stores".to_owned());
        }
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_or_refused_in_words() {
        let bucket = |provider, bucket: &str, prefix: &str| Place::Bucket {
            provider,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        };
        for (text, want) in [
            ("./data", Place::Local("./data".into())),
            ("file:///srv/x", Place::Local("/srv/x".into())),
            ("s3://b", bucket(Provider::S3, "b", "")),
            ("s3://my_b/a/b/", bucket(Provider::S3, "my_b", "a/b")),
            ("gs://b/p", bucket(Provider::Gcs, "b", "p")),
            ("az://c/p", bucket(Provider::Azure, "c", "p")),
        ] {
            assert_eq!(Place::parse(text), Ok(want), "{text}");
        }
        for text in ["", "s3://", "ftp://x/y", "s3://k:s@b/p", "s3://b/p?x=1", "s3://b/a%20b", "s3://b//x//y", "a\nb"] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        let good = Options { url: "s3://b".to_owned(), ..Options::default() };
        assert!(good.check("x".into()).is_ok());
        assert_eq!(Options::default().check("x".into()), Ok(Place::Local("x".into())));
        let bad: [fn(&mut Options); 10] = [
            |o| o.endpoint = "minio:9000".to_owned(),
            |o| o.encryption = Encryption::Kms,
            |o| o.encryption = Encryption::Customer,
            |o| o.sse_customer_key = Secret("k".to_owned()),
            |o| o.access_key = "a".to_owned(),
            |o| o.part_bytes = 1 << 20,
            |o| (o.url, o.endpoint) = ("x".to_owned(), "http://h".to_owned()),
            |o| (o.url, o.encryption) = ("gs://b".to_owned(), Encryption::Store),
            |o| (o.url, o.checksum) = ("gs://b".to_owned(), Checksum::Sha256),
            |o| (o.anonymous, o.access_key, o.secret_key) = (true, "a".to_owned(), Secret("s".to_owned())),
        ];
        for (i, spoil) in bad.iter().enumerate() {
            let mut options = good.clone();
            spoil(&mut options);
            assert!(options.check("x".into()).is_err(), "{i}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let options = Options { secret_key: Secret("hunter2".to_owned()), ..Options::default() };
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
