//! The small clients: ask a node over HTTP and show what it says.

use std::time::Duration;

use super::show;

/// Longest an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(150);
/// Longest a snapshot or a flush may take: it writes all a tenant has.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(6 * 3600);

/// Which node, whose data, how to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub url: String,
    /// The tenant, none for the anonymous one.
    pub tenant: Option<String>,
    /// Whether the answer is printed as it is.
    pub json: bool,
}

/// How a question is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `GET`.
    Get,
    /// `POST` with the parameters of a form.
    Form(Vec<(String, String)>),
    /// `PUT` with JSON.
    Put(String),
    /// `DELETE`.
    Delete,
}

/// What kind of answer is expected, for printing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A query's.
    Query,
    /// What the operators of a query did.
    Explain,
    /// The cluster's status.
    Cluster,
    /// The nodes of the cluster's status.
    Nodes,
    /// The partitions of the cluster's status.
    Ring,
    /// What would happen to replicas.
    Preview,
    /// A plan that happens.
    Applied,
    /// How the cluster is now.
    Overview,
    /// All tenants.
    Tenants,
    /// One tenant.
    Tenant,
    /// A snapshot.
    Snapshot,
    /// A flush.
    Flush,
    /// All blocks.
    Blocks,
    /// One block.
    Block,
    /// A block that was checked.
    Verified,
    /// What compaction would do.
    Plan,
    /// What no metadata names.
    Orphans,
    /// What became of it.
    Removed,
    /// Nothing: series are deleted.
    Deleted,
    /// Nothing: deleted samples are taken out.
    Cleaned,
}

impl Shape {
    /// What to print where a success says nothing.
    fn done(self) -> Option<&'static str> {
        match self {
            Self::Deleted => Some("deleted: no query sees them any more\n"),
            Self::Cleaned => Some("cleaned: no block holds deleted samples any more\n"),
            _ => None,
        }
    }

    /// Whether the node has all of a block or a tenant to read before it answers.
    fn takes_long(self) -> bool {
        matches!(self, Self::Snapshot | Self::Flush | Self::Verified | Self::Cleaned | Self::Orphans | Self::Removed)
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The whole address.
    pub url: String,
    /// How it is sent.
    pub verb: Verb,
    /// What will be answered.
    pub shape: Shape,
    /// The tenant.
    pub tenant: Option<String>,
    /// Whether the answer is printed as it is.
    pub json: bool,
}

impl Ask {
    /// For the cluster's status.
    #[must_use]
    pub fn cluster(target: &Target) -> Self {
        Self::of(target, "/api/v1/cluster/status", Verb::Get, Shape::Cluster)
    }

    /// For the nodes or the partitions of the cluster.
    #[must_use]
    pub fn part_of_cluster(target: &Target, shape: Shape) -> Self {
        Self::of(target, "/api/v1/cluster/status", Verb::Get, shape)
    }

    /// For a node to do something: `drain`, `undrain`, `remove`.
    #[must_use]
    pub fn steer(target: &Target, node: u64, act: &str) -> Self {
        Self::of(target, &format!("/api/v1/cluster/nodes/{node}/{act}"), Verb::Form(Vec::new()), Shape::Nodes)
    }

    /// For a query, to be told what its operators did.
    #[must_use]
    pub fn explain(target: &Target, expr: String, params: [(&'static str, Option<String>); 4]) -> Self {
        let mut ask = Self::query(target, expr, params);
        if let Verb::Form(form) = &mut ask.verb {
            form.push(("explain".to_owned(), "1".to_owned()));
        }
        Self { shape: Shape::Explain, ..ask }
    }

    /// For a snapshot.
    #[must_use]
    pub fn snapshot(target: &Target) -> Self {
        Self::of(target, "/api/v1/admin/tsdb/snapshot", Verb::Form(Vec::new()), Shape::Snapshot)
    }

    /// To bring what a tenant has in memory to blocks; with `wait`, until they are there.
    #[must_use]
    pub fn flush(target: &Target, wait: bool) -> Self {
        let form = if wait { vec![("wait".to_owned(), "true".to_owned())] } else { Vec::new() };
        Self::of(target, "/api/v1/admin/flush", Verb::Form(form), Shape::Flush)
    }

    /// For a query; `params` are those of the API that were given.
    #[must_use]
    pub fn query(target: &Target, expr: String, params: [(&'static str, Option<String>); 4]) -> Self {
        let is_range = params.iter().any(|(name, value)| *name == "start" && value.is_some());
        let mut form = vec![("query".to_owned(), expr)];
        form.extend(params.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        if is_range && !form.iter().any(|(name, _)| name == "step") {
            form.push(("step".to_owned(), default_step(&form)));
        }
        let path = if is_range { "/api/v1/query_range" } else { "/api/v1/query" };
        Self::of(target, path, Verb::Form(form), Shape::Query)
    }

    /// For what is at `path`.
    #[must_use]
    pub(super) fn of(target: &Target, path: &str, verb: Verb, shape: Shape) -> Self {
        let base = target.url.trim_end_matches('/');
        let scheme = if base.contains("://") { "" } else { "http://" };
        Self { url: format!("{scheme}{base}{path}"), verb, shape, tenant: target.tenant.clone(), json: target.json }
    }
}

/// A 60th of the range, at least a second. Times that do not read are for the node to refuse.
fn default_step(form: &[(String, String)]) -> String {
    let time = |wanted: &str| {
        let text = form.iter().find(|(name, _)| name == wanted).map_or("", |(_, value)| value.as_str());
        crate::http::parse_time(text).ok()
    };
    let length = time("end").zip(time("start")).map_or(0, |(end, start)| end.saturating_sub(start));
    (length / 60_000).max(1).to_string()
}

/// What to print, and whether it is what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The text.
    pub text: String,
    /// Whether the node answered with a success.
    pub is_good: bool,
}

/// Asks, and makes the text to print.
///
/// # Errors
/// A line for the person.
pub fn ask(ask: &Ask) -> Result<Said, String> {
    let (is_good, body) = fetch(ask)?;
    if ask.json {
        return Ok(Said { text: format!("{}\n", body.trim_end()), is_good });
    }
    if !is_good {
        return Err(show::failure(&body));
    }
    if let Some(done) = ask.shape.done() {
        return Ok(Said { text: done.to_owned(), is_good });
    }
    let table = show::answer(&body, ask.shape).map(|text| Said { text, is_good });
    table.ok_or_else(|| format!("{} did not answer as a node does: {}", ask.url, show::cut(&body)))
}

/// Asks; answers whether it went well, and the body.
///
/// # Errors
/// A line for the person.
pub(super) fn fetch(ask: &Ask) -> Result<(bool, String), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(exchange(ask))
}

async fn exchange(ask: &Ask) -> Result<(bool, String), String> {
    // A second installation fails and changes nothing: another part of the program was first.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .timeout(if ask.shape.takes_long() { SNAPSHOT_WITHIN } else { ANSWER_WITHIN })
        .build()
        .map_err(|error| format!("cannot make a client: {error}"))?;
    let of_type = |request: reqwest::RequestBuilder, kind: &str| request.header(http::header::CONTENT_TYPE, kind);
    let mut request = match &ask.verb {
        Verb::Get => client.get(&ask.url),
        Verb::Delete => client.delete(&ask.url),
        Verb::Put(json) => of_type(client.put(&ask.url), "application/json").body(json.clone()),
        Verb::Form(form) => {
            let form: Vec<String> = form.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
            of_type(client.post(&ask.url), "application/x-www-form-urlencoded").body(form.join("&"))
        }
    };
    if let Some(tenant) = &ask.tenant {
        request = request.header("X-Scope-OrgID", tenant);
    }
    let response = request.send().await.map_err(|error| format!("cannot ask {}: {}", ask.url, causes(&error)))?;
    let is_good = response.status().is_success();
    let body = response.text().await.map_err(|error| format!("{} broke off: {}", ask.url, causes(&error)))?;
    Ok((is_good, body))
}

/// The innermost reason: "connection refused" helps, "error sending request" does not.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Everything but plain characters as `%xx`.
pub(super) fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
