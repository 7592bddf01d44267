//! Parameters of a request: from the address, and from a form in the body.
//!
//! As in Go's `ParseForm`, which Prometheus uses, values of the form come before those of the address, and a parameter
//! that is given twice counts once, the first time (except `match[]`). Unlike there, a broken escape is refused and
//! not dropped: a query that was half understood would answer something else than was asked.

use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, FromRequestParts};
use bytes::Bytes;
use engram_model::tenant::{BadTenant, TenantId};
use engram_model::{Matcher, Millis, TimeRange};
use engram_query::parse::parse_selector;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, Method, Request};
use tokio::sync::Semaphore;

use super::answer::Failure;
use super::{App, body, time};
use crate::error::Error;

/// Largest form in a body: the longest query with every byte of it escaped, and room for the rest.
const FORM_BYTES_MAX: usize = 4 << 20;
/// Forms up to this size are read by anybody at any time.
const FORM_BYTES_SMALL: u64 = 64 << 10;
/// Larger ones only so many at once: all connections together must not fill the memory with forms.
static LARGE_FORMS: Semaphore = Semaphore::const_new(64);
/// Most parameters of one request.
const PARAMS_MAX: usize = 10_000;
/// Who is asking.
const TENANT_HEADER: &str = "x-scope-orgid";

/// The tenant of a request: the header's, or the anonymous one when there is no header.
#[derive(Debug)]
pub(crate) struct Tenant(pub(crate) TenantId);

impl FromRequestParts<Arc<App>> for Tenant {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self, Failure> {
        tenant_of(&parts.headers).map(Self)
    }
}

/// See [`Tenant`].
///
/// # Errors
/// No tenant for an empty name, bad data for a name that is none or for two of them.
pub(crate) fn tenant_of(headers: &HeaderMap) -> Result<TenantId, Failure> {
    let mut all = headers.get_all(TENANT_HEADER).iter();
    let Some(first) = all.next() else { return Ok(TenantId::anonymous()) };
    if all.next().is_some() {
        return Err(Failure::bad_data("more than one X-Scope-OrgID header"));
    }
    let name = first.to_str().map_err(|_| Failure::bad_data("X-Scope-OrgID holds characters that are not ASCII"))?;
    TenantId::new(name).map_err(|error| match error {
        BadTenant::Empty => Failure::no_tenant("no org id"),
        _ => Failure::bad_data(error.to_string()),
    })
}

/// The parameters of a request, in order: those of the body's form first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Params(Vec<(String, String)>);

impl FromRequest<Arc<App>> for Params {
    type Rejection = Failure;

    async fn from_request(request: Request<Body>, app: &Arc<App>) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let mut all = Self::default();
        if matches!(parts.method, Method::POST | Method::PUT) {
            let is_small = HttpBody::size_hint(&body).upper().is_some_and(|bytes| bytes <= FORM_BYTES_SMALL);
            let _place = if is_small { None } else { Some(LARGE_FORMS.try_acquire().map_err(|_| full())?) };
            let form = body::read(body, FORM_BYTES_MAX, app.body_within).await?;
            check_form(&parts.headers, &form)?;
            all.add(&form)?;
        }
        all.add(parts.uri.query().unwrap_or_default().as_bytes())?;
        Ok(all)
    }
}

fn full() -> Failure {
    Failure::query(&Error::unavailable("too many large forms at once, retry later"))
}

fn check_form(headers: &HeaderMap, form: &Bytes) -> Result<(), Failure> {
    if form.is_empty() {
        return Ok(());
    }
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(Failure::unsupported("a compressed form is not supported"));
    }
    let media_type = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Ok(());
    }
    Err(Failure::unsupported(format!(
        "content type {media_type:?} is not supported, send application/x-www-form-urlencoded"
    )))
}

impl Params {
    fn add(&mut self, encoded: &[u8]) -> Result<(), Failure> {
        for pair in encoded.split(|b| *b == b'&').filter(|pair| !pair.is_empty()) {
            if self.0.len() == PARAMS_MAX {
                return Err(Failure::bad_data(format!("more than {PARAMS_MAX} parameters")));
            }
            let at = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
            let (name, value) = (&pair[..at], pair.get(at + 1..).unwrap_or_default());
            self.0.push((unescape(name)?, unescape(value)?));
        }
        Ok(())
    }

    /// The first value of a parameter, empty when there is none.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> &str {
        self.all(name).next().unwrap_or_default()
    }

    /// All values of a parameter.
    pub(crate) fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.0.iter().filter(move |(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// A time that must be there.
    ///
    /// # Errors
    /// Bad data, naming the parameter.
    pub(crate) fn time(&self, name: &str) -> Result<Millis, Failure> {
        time::parse(self.get(name)).map_err(|why| Failure::parameter(name, why))
    }

    /// A time that need not be there.
    ///
    /// # Errors
    /// Bad data, naming the parameter.
    pub(crate) fn time_or(&self, name: &str, default: Millis) -> Result<Millis, Failure> {
        let text = self.get(name);
        if text.is_empty() {
            return Ok(default);
        }
        let invalid = |why| Failure::parameter(name, format!("invalid time value for '{name}': {why}"));
        time::parse(text).map_err(invalid)
    }

    /// `start` and `end`, both inside the range.
    ///
    /// # Errors
    /// Bad data.
    pub(crate) fn range(&self) -> Result<TimeRange, Failure> {
        let start = self.time_or("start", time::START_DEFAULT)?;
        let end = self.time_or("end", time::END_DEFAULT)?;
        Ok(TimeRange::closed(start, end))
    }

    /// A duration in nanoseconds, `None` when it is not there.
    ///
    /// # Errors
    /// The text for the caller.
    pub(crate) fn duration_ns(&self, name: &str) -> Result<Option<i64>, String> {
        match self.get(name) {
            "" => Ok(None),
            text => time::parse_duration_ns(text).map(Some),
        }
    }

    /// `limit`; 0 when it is not there, and for "no limit".
    ///
    /// # Errors
    /// Bad data.
    pub(crate) fn limit(&self) -> Result<usize, Failure> {
        let text = self.get("limit");
        if text.is_empty() {
            return Ok(0);
        }
        let limit = atoi(text).map_err(|why| Failure::parameter("limit", why))?;
        usize::try_from(limit).map_err(|_| Failure::parameter("limit", "limit must be non-negative"))
    }

    /// The selectors of all `match[]`.
    ///
    /// # Errors
    /// The text for the caller.
    pub(crate) fn selectors(&self) -> Result<Vec<Vec<Matcher>>, String> {
        let mut all = Vec::new();
        for text in self.all("match[]") {
            let selector = parse_selector(text).map_err(|why| why.to_string())?;
            if selector.iter().all(Matcher::matches_empty) {
                return Err("match[] must contain at least one non-empty matcher".to_owned());
            }
            all.push(selector);
        }
        Ok(all)
    }
}

/// Reads a whole number, with the error texts of Go's `strconv.Atoi`.
///
/// # Errors
/// The text for the caller.
pub(crate) fn atoi(text: &str) -> Result<i64, String> {
    text.parse::<i64>().map_err(|error| {
        use std::num::IntErrorKind::{NegOverflow, PosOverflow};
        let why =
            if matches!(error.kind(), NegOverflow | PosOverflow) { "value out of range" } else { "invalid syntax" };
        format!("strconv.Atoi: parsing {text:?}: {why}")
    })
}

/// Resolves `+` and `%xx`.
fn unescape(encoded: &[u8]) -> Result<String, Failure> {
    let mut out = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = tail.get(..2).and_then(|pair| Some((hex(pair[0])?, hex(pair[1])?)));
                let Some((high, low)) = digits else {
                    let shown = String::from_utf8_lossy(&tail[..tail.len().min(2)]);
                    return Err(Failure::bad_data(format!(
                        "error parsing form values: invalid URL escape \"%{shown}\""
                    )));
                };
                out.push(high << 4 | low);
                rest = &tail[2..];
            }
            b';' => return Err(Failure::bad_data("error parsing form values: invalid semicolon separator in query")),
            other => out.push(*other),
        }
    }
    String::from_utf8(out).map_err(|_| Failure::bad_data("error parsing form values: a parameter is not UTF-8"))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// A declared length of the body, when there is one.
#[must_use]
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Resolves the `U__` form in which names outside the classic alphabet travel in paths: `U__a_2e_b` is `a.b`. A name
/// that only looks like it stays as it is.
///
/// Source: `prometheus/common model/metric.go` (`UnescapeName`).
#[must_use]
pub(crate) fn unescape_name(name: &str) -> String {
    name.strip_prefix("U__").and_then(unescape_values).unwrap_or_else(|| name.to_owned())
}

fn unescape_values(escaped: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = escaped;
    while let Some(at) = rest.find('_') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(tail) = rest.strip_prefix('_') {
            out.push('_');
            rest = tail;
            continue;
        }
        let (code, tail) = rest.split_once('_')?;
        if code.len() > 6 || !code.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        out.push(char::from_u32(u32::from_str_radix(code, 16).ok()?)?);
        rest = tail;
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn params(body: &str, query: &str) -> Params {
        let mut all = Params::default();
        all.add(body.as_bytes()).unwrap();
        all.add(query.as_bytes()).unwrap();
        all
    }

    #[test]
    fn the_form_comes_before_the_address() {
        let all = params("query=a%2Bb+c&match[]=x", "query=z&match%5B%5D=y&empty&=v");
        assert_eq!(all.get("query"), "a+b c");
        assert_eq!(all.all("match[]").collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!((all.get("empty"), all.get("none"), all.get("")), ("", "", "v"));
    }

    #[test]
    fn broken_escapes_are_refused() {
        for text in ["a=%", "a=%4", "a=%zz", "%f=1", "a=%ff", "a=1;b=2"] {
            assert!(Params::default().add(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn escaped_names_are_resolved() {
        for (text, want) in [
            ("plain", "plain"),
            ("U__a_2e_b", "a.b"),
            ("U__a__b", "a_b"),
            ("U___1F600_", "😀"),
            ("U__a_2e", "U__a_2e"),
            ("U___zz_", "U___zz_"),
            ("U___110000_", "U___110000_"),
            ("U__a_", "U__a_"),
            ("U___d800_", "U___d800_"),
        ] {
            assert_eq!(unescape_name(text), want);
        }
    }

    #[test]
    fn tenants_are_checked() {
        let with = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(TENANT_HEADER, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            tenant_of(&headers)
        };
        assert_eq!(with(&[]).unwrap(), TenantId::anonymous());
        assert_eq!(with(&["team-1"]).unwrap().as_str(), "team-1");
        for bad in [&["a|b"][..], &[""], &["a", "a"], &["ü"], &["../x"]] {
            assert!(with(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn forms_read_back(pairs in proptest::collection::vec((".{0,8}", ".{0,8}"), 0..6)) {
            let escape = |text: &str| text.bytes().map(|b| format!("%{b:02X}")).collect::<String>();
            let encoded: Vec<String> = pairs.iter().map(|(n, v)| format!("{}={}", escape(n), escape(v))).collect();
            let all = params(&encoded.join("&"), "");
            prop_assert_eq!(all.0, pairs);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), name in "U_{0,3}[a-f0-9_é]{0,12}") {
            let _read = Params::default().add(&bytes);
            let _read = unescape_name(&name);
        }
    }
}
