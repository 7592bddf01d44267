//! Blocks in a bucket, over the wire.
//!
//! The crate signs, sends, retries and resumes; here it is told how. Keys are ours to the letter: nothing in them is
//! escaped, so every tool finds a tenant's blocks where the layout says.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::aws::{self, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutPayload, RetryConfig,
};

use super::metrics::Op;
use super::options::{Checksum, Encryption, Options, Provider};
use crate::Error;
use crate::error::RemoteKind;

/// A part of a bucket as a store.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub(super) inner: Arc<dyn ObjectStore>,
    /// What all keys begin with; empty, or with `/` at its end.
    pub(super) prefix: String,
}

fn retry(options: &Options) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { init_backoff: options.backoff_min, max_backoff: options.backoff_max, base: 2.0 },
        max_retries: options.retries_max,
        retry_timeout: options.retry_timeout,
    }
}

fn client(options: &Options) -> ClientOptions {
    ClientOptions::new()
        .with_timeout(options.timeout)
        .with_connect_timeout(options.connect_timeout)
        .with_pool_max_idle_per_host(options.requests_max)
        .with_allow_http(options.endpoint.starts_with("http://"))
}

/// The endpoint with the bucket in its host's name.
fn hosted(endpoint: &str, bucket: &str) -> String {
    match endpoint.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{bucket}.{rest}"),
        None => endpoint.to_owned(),
    }
}

fn s3(bucket: &str, options: &Options) -> Result<AmazonS3Builder, object_store::Error> {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_virtual_hosted_style_request(!options.path_style)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_skip_signature(options.anonymous)
        .with_retry(retry(options))
        .with_client_options(client(options));
    if !options.region.is_empty() {
        builder = builder.with_region(&options.region);
    }
    if !options.endpoint.is_empty() {
        let endpoint = options.endpoint.trim_end_matches('/');
        builder = builder.with_endpoint(if options.path_style { endpoint.into() } else { hosted(endpoint, bucket) });
    }
    if !options.access_key.is_empty() {
        builder = builder.with_access_key_id(&options.access_key).with_secret_access_key(&options.secret_key.0);
    }
    builder = match options.checksum {
        Checksum::Signature => builder,
        Checksum::Sha256 => builder.with_checksum_algorithm(aws::Checksum::SHA256),
        Checksum::Crc64 => builder.with_checksum_algorithm(aws::Checksum::CRC64NVME),
    };
    Ok(match options.encryption {
        Encryption::Bucket => builder,
        Encryption::Store => builder.with_config("aws_server_side_encryption".parse::<AmazonS3ConfigKey>()?, "AES256"),
        Encryption::Kms => builder.with_sse_kms_encryption(&options.sse_kms_key),
        Encryption::KmsTwice => builder.with_dsse_kms_encryption(&options.sse_kms_key),
        Encryption::Customer => builder.with_ssec_encryption(&options.sse_customer_key.0),
    })
}

fn gcs(bucket: &str, options: &Options) -> GoogleCloudStorageBuilder {
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_skip_signature(options.anonymous)
        .with_retry(retry(options))
        .with_client_options(client(options));
    if !options.endpoint.is_empty() {
        builder = builder.with_base_url(options.endpoint.trim_end_matches('/'));
    }
    if !options.service_account.is_empty() {
        builder = builder.with_service_account_path(&options.service_account);
    }
    builder
}

fn azure(container: &str, options: &Options) -> MicrosoftAzureBuilder {
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(container)
        .with_skip_signature(options.anonymous)
        .with_retry(retry(options))
        .with_client_options(client(options));
    if !options.endpoint.is_empty() {
        builder = builder.with_endpoint(options.endpoint.trim_end_matches('/').to_owned());
    }
    if !options.access_key.is_empty() {
        builder = builder.with_account(&options.access_key);
    }
    if !options.secret_key.0.is_empty() {
        builder = builder.with_access_key(&options.secret_key.0);
    }
    builder
}

fn build(provider: Provider, bucket: &str, options: &Options) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    Ok(match provider {
        Provider::S3 => Arc::new(s3(bucket, options)?.build()?),
        Provider::Gcs => Arc::new(gcs(bucket, options).build()?),
        Provider::Azure => Arc::new(azure(bucket, options).build()?),
    })
}

/// An object that is read, and how many bytes of it were asked for.
pub(super) struct Body {
    pub(super) len: u64,
    stream: BoxStream<'static, object_store::Result<Bytes>>,
}

impl Remote {
    pub(super) fn open(provider: Provider, bucket: &str, prefix: &str, options: &Options) -> Result<Self, Error> {
        let inner =
            build(provider, bucket, options).map_err(|e| Error::Misuse { what: format!("the object store: {e}") })?;
        Ok(Self::over(inner, prefix))
    }

    pub(super) fn over(inner: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Self { inner, prefix }
    }

    fn key(&self, key: &str) -> Result<Key, Error> {
        let whole = format!("{}{key}", self.prefix);
        Key::parse(whole.trim_end_matches('/')).map_err(|e| Error::Misuse { what: format!("{key:?} is no key: {e}") })
    }

    /// False: it was there already, and `over` was not set.
    pub(super) async fn put(&self, key: &str, bytes: Bytes, over: bool) -> Result<bool, Error> {
        let mode = if over { PutMode::Overwrite } else { PutMode::Create };
        match self.inner.put_opts(&self.key(key)?, PutPayload::from_bytes(bytes), mode.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) if !over => {
                Ok(false)
            }
            Err(error) => Err(failed(Op::Put, key, &error)),
        }
    }

    pub(super) async fn multipart(&self, key: &str) -> Result<Box<dyn MultipartUpload>, Error> {
        self.inner.put_multipart(&self.key(key)?).await.map_err(|e| failed(Op::Put, key, &e))
    }

    /// A range of an object, or all of it.
    pub(super) async fn get(&self, key: &str, range: Option<(u64, u64)>) -> Result<Body, Error> {
        let range = range.map(|(at, len)| GetRange::Bounded(at..at.saturating_add(len)));
        let options = GetOptions { range, ..GetOptions::default() };
        let found = self.inner.get_opts(&self.key(key)?, options).await.map_err(|e| failed(Op::Get, key, &e))?;
        Ok(Body { len: found.range.end.saturating_sub(found.range.start), stream: found.into_stream() })
    }

    pub(super) async fn size(&self, key: &str) -> Result<u64, Error> {
        let found = self.inner.head(&self.key(key)?).await;
        found.map(|meta| meta.size).map_err(|e| failed(Op::Head, key, &e))
    }

    pub(super) async fn dirs(&self, key: &str) -> Result<Vec<String>, Error> {
        let below = self.key(key)?;
        let listed = self.inner.list_with_delimiter(Some(&below)).await.map_err(|e| failed(Op::List, key, &e))?;
        let last = |path: &Key| path.as_ref().rsplit('/').next().map(str::to_owned);
        let mut names: Vec<_> = listed.common_prefixes.iter().filter_map(last).collect();
        names.sort();
        Ok(names)
    }

    pub(super) async fn files(&self, key: &str) -> Result<Vec<(String, u64)>, Error> {
        let below = self.key(key)?;
        let strip = format!("{below}/");
        let mut listed = self.inner.list(Some(&below));
        let mut all = Vec::new();
        while let Some(next) = listed.next().await {
            let ObjectMeta { location, size, .. } = next.map_err(|e| failed(Op::List, key, &e))?;
            if let Some(name) = location.as_ref().strip_prefix(&strip) {
                all.push((name.to_owned(), size));
            }
        }
        all.sort();
        Ok(all)
    }

    /// One that is not there is no error.
    pub(super) async fn remove(&self, key: &str) -> Result<(), Error> {
        match self.inner.delete(&self.key(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(Op::Delete, key, &error)),
        }
    }
}

impl Body {
    /// All of it; more than `max` bytes are refused before they are read.
    pub(super) async fn bytes(mut self, key: &str, max: u64) -> Result<Bytes, Error> {
        if self.len > max {
            return Err(Error::TooLarge { what: "an object", len: self.len, max });
        }
        let mut all = Vec::with_capacity(usize::try_from(self.len).unwrap_or(0));
        while let Some(piece) = self.stream.next().await {
            let piece = piece.map_err(|e| failed(Op::Get, key, &e))?;
            if all.is_empty() && piece.len() as u64 >= self.len {
                return Ok(piece);
            }
            all.extend_from_slice(&piece);
            // A store that sends more than was asked for must not fill the memory.
            if all.len() as u64 > self.len {
                break;
            }
        }
        Ok(all.into())
    }
}

/// Longest text of a store's error that is kept: some answer with a page.
const WHY_MAX: usize = 600;

pub(super) fn failed(op: Op, key: &str, error: &object_store::Error) -> Error {
    use object_store::Error as E;
    let kind = match error {
        E::NotFound { .. } => RemoteKind::NotFound,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => RemoteKind::Denied,
        _ => RemoteKind::Other,
    };
    let why: String = error.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(WHY_MAX).collect();
    Error::Remote { act: op.word(), key: key.to_owned(), kind, why: why.into() }
}

#[cfg(test)]
mod tests {
    use object_store::aws::AmazonS3ConfigKey as S3;
    use object_store::azure::AzureConfigKey as Azure;
    use object_store::gcp::GoogleConfigKey as Gcs;

    use super::super::options::Secret;
    use super::*;

    fn options() -> Options {
        Options {
            endpoint: "http://store.local:9000/".to_owned(),
            region: "eu-central-9".to_owned(),
            access_key: "name".to_owned(),
            secret_key: Secret("key".to_owned()),
            service_account: "/etc/account.json".to_owned(),
            anonymous: true,
            ..Options::default()
        }
    }

    /// What the crate is told of S3.
    fn told(options: &Options, key: &str) -> Option<String> {
        s3("b", options).unwrap().get_config_value(&key.parse::<S3>().unwrap())
    }

    #[test]
    fn s3_is_told_where_and_who_and_how_to_encrypt() {
        let mut options = options();
        for (key, want) in [("region", "eu-central-9"), ("access_key_id", "name"), ("secret_access_key", "key")] {
            assert_eq!(told(&options, key).as_deref(), Some(want), "{key}");
        }
        options.path_style = true;
        assert_eq!(told(&options, "endpoint").unwrap(), "http://store.local:9000");
        assert_eq!(told(&options, "virtual_hosted_style_request").unwrap(), "false");
        options.path_style = false;
        assert_eq!(told(&options, "endpoint").unwrap(), "http://b.store.local:9000");
        assert_eq!(told(&options, "virtual_hosted_style_request").unwrap(), "true");
        (options.sse_kms_key, options.sse_customer_key) = ("alias/k".to_owned(), Secret("c2VjcmV0".to_owned()));
        let encryption = "server_side_encryption";
        let key = "sse_kms_key_id";
        for (how, want, with) in [
            (Encryption::Bucket, None, None),
            (Encryption::Store, Some("AES256"), None),
            (Encryption::Kms, Some("aws:kms"), Some("alias/k")),
            (Encryption::KmsTwice, Some("aws:kms:dsse"), Some("alias/k")),
        ] {
            options.encryption = how;
            assert_eq!(
                (told(&options, encryption).as_deref(), told(&options, key).as_deref()),
                (want, with),
                "{how:?}"
            );
        }
        options.encryption = Encryption::Customer;
        assert_eq!(told(&options, "sse_customer_key_base64").as_deref(), Some("c2VjcmV0"));
    }

    #[test]
    fn gcs_and_azure_are_told_where_and_who() {
        let options = options();
        let told = gcs("b", &options);
        for (key, want) in [
            (Gcs::Bucket, "b"),
            (Gcs::BaseUrl, "http://store.local:9000"),
            (Gcs::ServiceAccount, "/etc/account.json"),
            (Gcs::SkipSignature, "true"),
        ] {
            assert_eq!(told.get_config_value(&key).as_deref(), Some(want), "{key:?}");
        }
        let told = azure("c", &options);
        for (key, want) in [
            (Azure::ContainerName, "c"),
            (Azure::Endpoint, "http://store.local:9000"),
            (Azure::AccountName, "name"),
            (Azure::AccessKey, "key"),
            (Azure::SkipSignature, "true"),
        ] {
            assert_eq!(told.get_config_value(&key).as_deref(), Some(want), "{key:?}");
        }
    }
}
