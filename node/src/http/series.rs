//! What there is: `series`, `labels`, `label/<name>/values`, `metadata`.
//!
//! Source: `prometheus web/api/v1/api.go` (`series`, `labelNames`, `labelValues`, `metricMetadata`).

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;

use super::App;
use super::answer::{Failure, Remarks, stream_success};
use super::json::{self, List};
use super::params::{Params, Tenant, atoi, unescape_name};
use super::port::Wanted;

fn list<T>(limit: usize, (mut all, mut warnings): (Vec<T>, Vec<String>)) -> (Vec<T>, Remarks) {
    if limit > 0 && all.len() > limit {
        all.truncate(limit);
        warnings.push("results truncated due to limit".to_owned());
    }
    (all, Remarks::warnings(warnings))
}

fn wanted(params: &Params) -> Result<Wanted, Failure> {
    let limit = params.limit()?;
    let range = params.range()?;
    let selectors = params.selectors().map_err(Failure::bad_data)?;
    Ok(Wanted { selectors, range, limit })
}

/// `series`: label sets.
pub(crate) async fn series(tenant: Tenant, State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    if params.all("match[]").next().is_none() {
        return Err(Failure::bad_data("no match[] parameter provided"));
    }
    let limit = params.limit()?;
    let range = params.range()?;
    let selectors = params.selectors().map_err(|why| Failure::parameter("match[]", why))?;
    let found = if range.is_empty() {
        Default::default()
    } else {
        let wanted = Wanted { selectors, range, limit };
        app.read.series(&tenant.0, wanted).await.map_err(|e| Failure::query(&e))?
    };
    let (all, remarks) = list(limit, found);
    Ok(stream_success("[", List::new(all, json::put_labels), b"]", &remarks))
}

/// `labels`: names.
pub(crate) async fn names(tenant: Tenant, State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    let wanted = wanted(&params)?;
    let limit = wanted.limit;
    let found = if wanted.range.is_empty() {
        Default::default()
    } else {
        app.read.label_names(&tenant.0, wanted).await.map_err(|e| Failure::query(&e))?
    };
    Ok(strings(limit, found))
}

/// `label/<name>/values`: values of one label.
pub(crate) async fn values(
    tenant: Tenant,
    name: Result<Path<String>, PathRejection>,
    State(app): State<Arc<App>>,
    params: Params,
) -> Result<Response, Failure> {
    let Ok(Path(name)) = name else { return Err(Failure::bad_data("invalid label name: it is not UTF-8")) };
    let name = unescape_name(&name);
    if name.is_empty() {
        return Err(Failure::bad_data(format!("invalid label name: {name:?}")));
    }
    let wanted = wanted(&params)?;
    let limit = wanted.limit;
    let found = if wanted.range.is_empty() {
        Default::default()
    } else {
        app.read.label_values(&tenant.0, &name, wanted).await.map_err(|e| Failure::query(&e))?
    };
    Ok(strings(limit, found))
}

fn strings(limit: usize, found: (Vec<String>, Vec<String>)) -> Response {
    let (all, remarks) = list(limit, found);
    stream_success("[", List::new(all, |out, text: &String| json::put_string(out, text)), b"]", &remarks)
}

/// `metadata`: type, help and unit of metrics.
pub(crate) async fn metadata(tenant: Tenant, State(app): State<Arc<App>>, params: Params) -> Result<Response, Failure> {
    let limit = count(&params, "limit")?;
    let limit_per_metric = count(&params, "limit_per_metric")?;
    let metric = Some(params.get("metric")).filter(|name| !name.is_empty());
    let found = if limit == Some(0) {
        Default::default()
    } else {
        let per_metric = limit_per_metric.unwrap_or(0);
        app.read.metadata(&tenant.0, metric, limit.unwrap_or(0), per_metric).await.map_err(|e| Failure::query(&e))?
    };
    let items = List::new(found.into_iter().collect(), |out, (name, all)| {
        json::put_string(out, name);
        out.extend_from_slice(b":[");
        for (i, one) in all.iter().enumerate() {
            out.extend_from_slice(if i == 0 { b"{\"type\":" } else { b",{\"type\":" });
            json::put_string(out, one.kind.as_str());
            out.extend_from_slice(b",\"help\":");
            json::put_string(out, &one.help);
            out.extend_from_slice(b",\"unit\":");
            json::put_string(out, &one.unit);
            out.push(b'}');
        }
        out.push(b']');
    });
    Ok(stream_success("{", items, b"}", &Remarks::default()))
}

/// `None` for no limit: absent or negative.
fn count(params: &Params, name: &str) -> Result<Option<usize>, Failure> {
    let text = params.get(name);
    if text.is_empty() {
        return Ok(None);
    }
    let number = atoi(text).map_err(|_| Failure::bad_data(format!("{name} must be a number")))?;
    Ok(usize::try_from(number).ok())
}
