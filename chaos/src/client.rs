//! The one way to a server: remote write with bounded retries, queries whose answer is checked to be one.
//!
//! A write ends in one of three ways, and the difference is the whole point of checking a store: *acknowledged*
//! (2xx: the samples must be read back), *refused* (4xx: some may have been stored all the same), *unknown* (no
//! answer, or 5xx and 429 to the end: they may or may not be there). Codes are read here, never given, so this
//! file names a few of them.

use crate::error::Error;
use bytes::Bytes;
use engram_model::digest::Digest;
use reqwest::header::RETRY_AFTER;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

/// What is done about answers that ask for patience.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// How often one request is sent again.
    pub(crate) retries_max: u32,
    /// The longest wait between two tries.
    pub(crate) wait_max: Duration,
}

/// How a write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Acknowledged,
    Refused(String),
    Unknown(String),
}

/// Which generation of the protocol a body is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Protocol {
    /// Remote write 1.0: each series carries its label strings.
    #[value(name = "1.0")]
    V1,
    /// Remote write 2.0: strings once in a symbol table.
    #[value(name = "2.0")]
    V2,
}

/// A server, as its clients see it. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    push_url: String,
    query_url: String,
    ready_url: String,
    /// The header that names the tenant; none: nobody is named.
    tenant_header: Option<Arc<str>>,
}

impl Client {
    /// `push_url` is the full address of remote write, `query_url` the address before `/api/v1/…`.
    ///
    /// # Errors
    /// The HTTP client could not be built.
    pub(crate) fn new(push_url: &str, query_url: &str, timeout: Duration) -> Result<Self, Error> {
        Self::from(None, push_url, query_url, timeout)
    }

    /// As [`Self::new`], from an address of this machine, if it is not to be any.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn from(
        address: Option<Ipv4Addr>,
        push_url: &str,
        query_url: &str,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let http = reqwest::Client::builder()
            .timeout(timeout)
            .local_address(address.map(IpAddr::from))
            .tcp_nodelay(true)
            .user_agent(concat!("engram-chaos/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Error::Server { url: push_url.to_string(), reason: root_cause(&e) })?;
        let query_url = query_url.trim_end_matches('/').to_string();
        let (ready_url, tenant_header) = (format!("{query_url}/-/ready"), Some(Arc::from("x-scope-orgid")));
        Ok(Self { http, push_url: push_url.to_string(), query_url, ready_url, tenant_header })
    }

    /// Another store: where it says that it is ready, and how it is told the tenant, if at all.
    pub(crate) fn of_peer(self, ready_url: String, tenant_header: Option<&str>) -> Self {
        Self { ready_url, tenant_header: tenant_header.map(Arc::from), ..self }
    }

    fn as_tenant(&self, request: reqwest::RequestBuilder, tenant: Option<&str>) -> reqwest::RequestBuilder {
        match (&self.tenant_header, tenant) {
            (Some(header), Some(tenant)) => request.header(&**header, tenant),
            _ => request,
        }
    }

    /// Sends one compressed body until it is acknowledged, refused, or patience ends. Returns the ending and how
    /// often it was sent again.
    pub(crate) async fn push(
        &self,
        protocol: Protocol,
        tenant: Option<&str>,
        body: Bytes,
        patience: Patience,
    ) -> (Ending, u32) {
        let mut wait = Duration::from_millis(50);
        for tries in 0.. {
            let (ending, asked) = self.push_once(protocol, tenant, body.clone()).await;
            let Ending::Unknown(reason) = ending else { return (ending, tries) };
            if tries >= patience.retries_max {
                return (Ending::Unknown(reason), tries);
            }
            tokio::time::sleep(asked.unwrap_or(wait).min(patience.wait_max)).await;
            wait = (wait * 2).min(patience.wait_max);
        }
        unreachable!("the tries end by returning");
    }

    async fn push_once(&self, protocol: Protocol, tenant: Option<&str>, body: Bytes) -> (Ending, Option<Duration>) {
        let (content, version) = match protocol {
            Protocol::V1 => ("application/x-protobuf", "0.1.0"),
            Protocol::V2 => ("application/x-protobuf;proto=io.prometheus.write.v2.Request", "2.0.0"),
        };
        let request = self
            .http
            .post(&self.push_url)
            .header("content-encoding", "snappy")
            .header("content-type", content)
            .header("x-prometheus-remote-write-version", version)
            .body(body);
        let answer = match self.as_tenant(request, tenant).send().await {
            Ok(answer) => answer,
            Err(error) => return (Ending::Unknown(root_cause(&error)), None),
        };
        let status = answer.status();
        if status.is_success() {
            return (Ending::Acknowledged, None);
        }
        let asked = answer.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let text = answer.text().await.unwrap_or_default();
        let reason = format!("{}: {}", status.as_u16(), text.chars().take(200).collect::<String>().trim());
        if status.is_server_error() || status.as_u16() == 429 {
            (Ending::Unknown(reason), asked.map(Duration::from_secs))
        } else {
            (Ending::Refused(reason), None)
        }
    }

    /// Asks the query API. `path` begins behind `/api/v1/`; the body of a successful answer comes back unread.
    ///
    /// # Errors
    /// No answer, another status than success, or a body that does not call itself a success.
    pub(crate) async fn get(
        &self,
        path: &str,
        params: &[(&str, String)],
        tenant: Option<&str>,
    ) -> Result<Vec<u8>, Error> {
        let url = format!("{}/api/v1/{path}", self.query_url);
        let failed = |reason: String| Error::Server { url: url.clone(), reason };
        let form: Vec<String> = params.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let request = self.http.get(format!("{url}?{}", form.join("&")));
        let answer = self.as_tenant(request, tenant).send().await.map_err(|e| failed(root_cause(&e)))?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|e| failed(root_cause(&e)))?.to_vec();
        let opening = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
        if !status.is_success() || !opening.contains("\"success\"") {
            return Err(failed(format!("{}: {opening}", status.as_u16())));
        }
        Ok(body)
    }

    /// Asks and parses.
    ///
    /// # Errors
    /// As [`Client::get`], and for a body that is not JSON.
    pub(crate) async fn ask(
        &self,
        path: &str,
        params: &[(&str, String)],
        tenant: Option<&str>,
    ) -> Result<serde_json::Value, Error> {
        let body = self.get(path, params, tenant).await?;
        serde_json::from_slice(&body)
            .map_err(|e| Error::Server { url: format!("{}/api/v1/{path}", self.query_url), reason: e.to_string() })
    }

    /// Has something done; `path` begins behind `/api/v1/`.
    ///
    /// # Errors
    /// It was refused or not answered; with the code and the text.
    pub(crate) async fn post(&self, path: &str) -> Result<(), Error> {
        self.post_as(path, None).await
    }

    /// As [`Client::post`], as a tenant.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn post_as(&self, path: &str, tenant: Option<&str>) -> Result<(), Error> {
        let url = format!("{}/api/v1/{path}", self.query_url);
        let failed = |reason: String| Error::Server { url: url.clone(), reason };
        let request = self.http.post(&url);
        let answer = self.as_tenant(request, tenant).send().await.map_err(|e| failed(root_cause(&e)))?;
        if answer.status().is_success() {
            return Ok(());
        }
        let status = answer.status().as_u16();
        Err(failed(format!("{status}: {}", answer.text().await.unwrap_or_default())))
    }

    /// Has something done as a tenant; the answer's JSON.
    ///
    /// # Errors
    /// As [`Client::post`], and for a body that is not JSON.
    pub(crate) async fn ask_post(&self, path: &str, tenant: Option<&str>) -> Result<serde_json::Value, Error> {
        let url = format!("{}/api/v1/{path}", self.query_url);
        let failed = |reason: String| Error::Server { url: url.clone(), reason };
        let answer = self.as_tenant(self.http.post(&url), tenant).send().await.map_err(|e| failed(root_cause(&e)))?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|e| failed(root_cause(&e)))?;
        if !status.is_success() {
            return Err(failed(format!("{}: {}", status.as_u16(), String::from_utf8_lossy(&body))));
        }
        serde_json::from_slice(&body).map_err(|e| failed(e.to_string()))
    }

    /// Puts a JSON object; answers the code and the body.
    ///
    /// # Errors
    /// There was no whole answer.
    pub(crate) async fn put(&self, path: &str, body: &serde_json::Value) -> Result<(u16, serde_json::Value), Error> {
        let url = format!("{}/api/v1/{path}", self.query_url);
        let failed = |e: &reqwest::Error| Error::Server { url: url.clone(), reason: root_cause(e) };
        let request = self.http.put(&url).header("content-type", "application/json").body(body.to_string());
        let answer = request.send().await.map_err(|e| failed(&e))?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(|e| failed(&e))?;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// The digest of everything the server holds for a tenant; none: the anonymous one.
    ///
    /// # Errors
    /// It did not answer, or not with a digest.
    pub(crate) async fn digest(&self, tenant: Option<&str>) -> Result<Digest, Error> {
        let answer = self.ask("admin/digests", &[], tenant).await?;
        Self::digest_in(&answer["data"]["total"])
            .ok_or_else(|| Error::Server { url: "admin/digests".to_owned(), reason: format!("no digest: {answer}") })
    }

    /// A digest as the server writes it.
    pub(crate) fn digest_in(told: &serde_json::Value) -> Option<Digest> {
        let sum = |name: &str| u64::from_str_radix(told[name].as_str().unwrap_or_default(), 16).ok();
        Some(Digest { count: told["count"].as_u64()?, low: sum("low")?, high: sum("high")? })
    }

    /// Whether it says that it is ready.
    pub(crate) async fn is_ready(&self) -> bool {
        let answer = self.http.get(&self.ready_url).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }
}

/// The innermost reason of an error: "connection refused" rather than "error sending request".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    inner.to_string()
}

/// Percent-encoding of a query parameter.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_encoded_so_that_it_arrives() {
        assert_eq!(encoded(r#"up{a="b c"}+é"#), "up%7Ba%3D%22b%20c%22%7D%2B%C3%A9");
    }
}
