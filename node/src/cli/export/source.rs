//! Series of a running node, one by one, over streamed remote read.
//!
//! Why this way in: it is what any other server could do. Of each selector one stream comes, sorted by labels; they are
//! merged here, and a series that several selectors select is taken from the first. In memory there is one series of
//! each stream, compressed, and what the network has brought.

use engram_model::{Labels, MatchOp, Matcher, Millis};
use engram_storage::chunk::Chunk;
use serde_json::Value;

use super::super::client::{causes, escape};
use super::super::show;
use crate::read::remote::frames::{FrameReader, Part};
use crate::read::remote::wire::{put_bytes, put_number};

/// A node and whose data is asked of it.
#[derive(Clone, Debug)]
pub(super) struct Source {
    client: reqwest::Client,
    url: String,
    tenant: Option<String>,
}

/// A series with all its chunks of the time asked for, in order.
pub(super) type Whole = (Labels, Vec<Chunk>);

/// The series that any selector selects, in order of labels, none twice.
pub(super) struct Union {
    streams: Vec<Stream>,
    heads: Vec<Option<Whole>>,
}

/// The answer to one read.
struct Stream {
    response: reqwest::Response,
    reader: FrameReader,
    /// The part that began the next series.
    next: Option<Part>,
    /// Bytes that came.
    bytes: u64,
}

impl Source {
    /// A node at `url`.
    pub(super) fn new(url: &str, tenant: Option<String>) -> Result<Self, String> {
        // A second installation fails and changes nothing: another part of the program was first.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().build().map_err(|error| format!("cannot make a client: {error}"))?;
        Ok(Self { client, url: url.trim_end_matches('/').to_owned(), tenant })
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, String> {
        let request = match &self.tenant {
            Some(tenant) => request.header("X-Scope-OrgID", tenant),
            None => request,
        };
        let response = request.send().await.map_err(|error| format!("cannot ask {}: {}", self.url, causes(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let body = response.text().await.unwrap_or_default();
        Err(show::failure(&body))
    }

    /// `data` of an answer of the API.
    async fn data(&self, path: &str) -> Result<Value, String> {
        let response = self.answer(self.client.get(format!("{}/api/v1/{path}", self.url))).await?;
        let body = response.text().await.map_err(|error| format!("{} broke off: {}", self.url, causes(&error)))?;
        let envelope: Option<Value> = serde_json::from_str(&body).ok();
        let data = envelope.and_then(|mut envelope| envelope.get_mut("data").map(Value::take));
        data.ok_or_else(|| format!("{} did not answer as a node does: {}", self.url, show::cut(&body)))
    }

    /// Names of the metrics that any selector selects (none given: all), sorted. Times are those of the API.
    pub(super) async fn names(&self, selectors: &[String], range: (Millis, Millis)) -> Result<Vec<String>, String> {
        let mut path = format!("label/__name__/values?start={}&end={}", seconds(range.0), seconds(range.1));
        selectors.iter().for_each(|selector| path.push_str(&format!("&match[]={}", escape(selector))));
        let names = self.data(&path).await?;
        let names = names.as_array().into_iter().flatten().filter_map(Value::as_str);
        Ok(names.map(str::to_owned).collect())
    }

    /// Times of the tenant's oldest and newest sample; none when it has none.
    pub(super) async fn bounds(&self) -> Result<Option<(Millis, Millis)>, String> {
        let data = self.data("user_stats").await?;
        let time = |name: &str| data.get(name).and_then(Value::as_i64);
        Ok(time("minTime").zip(time("maxTime")).filter(|(oldest, newest)| oldest <= newest))
    }

    /// The series that any of `selectors` selects, with their samples from `range.0` to `range.1`, both inside.
    pub(super) async fn union(&self, selectors: &[Vec<Matcher>], range: (Millis, Millis)) -> Result<Union, String> {
        let mut union = Union { streams: Vec::new(), heads: Vec::new() };
        for matchers in selectors {
            let body = snap::raw::Encoder::new().compress_vec(&request(matchers, range)).map_err(|e| e.to_string())?;
            let request = self
                .client
                .post(format!("{}/api/v1/read", self.url))
                .header(http::header::CONTENT_TYPE, "application/x-protobuf")
                .header(http::header::CONTENT_ENCODING, "snappy")
                .body(body);
            let response = self.answer(request).await?;
            let mut stream = Stream { response, reader: FrameReader::default(), next: None, bytes: 0 };
            union.heads.push(stream.next_series().await?);
            union.streams.push(stream);
        }
        Ok(union)
    }
}

/// Seconds with three decimals, for the API.
fn seconds(at: Millis) -> String {
    let (sign, at) = (if at < 0 { "-" } else { "" }, at.unsigned_abs());
    format!("{sign}{}.{:03}", at / 1000, at % 1000)
}

/// A request for streamed chunks of one query.
fn request(matchers: &[Matcher], (start, end): (Millis, Millis)) -> Vec<u8> {
    let mut query = Vec::new();
    put_number(&mut query, 1, start.cast_unsigned());
    put_number(&mut query, 2, end.cast_unsigned());
    for matcher in matchers {
        let kind = match matcher.op {
            MatchOp::Equal => 0,
            MatchOp::NotEqual => 1,
            MatchOp::Regex => 2,
            MatchOp::NotRegex => 3,
        };
        let mut one = Vec::new();
        put_number(&mut one, 1, kind);
        put_bytes(&mut one, 2, matcher.name.as_bytes());
        put_bytes(&mut one, 3, matcher.value.as_bytes());
        put_bytes(&mut query, 3, &one);
    }
    let mut request = Vec::new();
    put_bytes(&mut request, 1, &query);
    put_number(&mut request, 2, 1);
    request
}

impl Stream {
    /// The next part; none at the end.
    async fn part(&mut self) -> Result<Option<Part>, String> {
        loop {
            if let Some(part) = self.reader.next_part().map_err(|error| error.to_string())? {
                return Ok(Some(part));
            }
            let broke_off = |why: String| format!("the answer broke off, what was written is not whole: {why}");
            match self.response.chunk().await.map_err(|error| broke_off(causes(&error)))? {
                Some(bytes) => {
                    self.bytes += bytes.len() as u64;
                    self.reader.push(&bytes);
                }
                None if self.reader.is_empty() => return Ok(None),
                None => return Err(broke_off("it ends inside a frame".to_owned())),
            }
        }
    }

    /// The next series with all its parts.
    async fn next_series(&mut self) -> Result<Option<Whole>, String> {
        let first = match self.next.take() {
            Some(part) => part,
            None => match self.part().await? {
                Some(part) => part,
                None => return Ok(None),
            },
        };
        let (labels, mut chunks) = (first.labels, first.chunks);
        while let Some(part) = self.part().await? {
            if part.labels != labels {
                self.next = Some(part);
                break;
            }
            chunks.extend(part.chunks);
        }
        Ok(Some((labels, chunks)))
    }
}

impl Union {
    /// The next series; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Whole>, String> {
        let heads = self.heads.iter().enumerate().filter_map(|(i, head)| Some((&head.as_ref()?.0, i)));
        let Some((labels, _)) = heads.min() else { return Ok(None) };
        let labels = labels.clone();
        let mut found = None;
        for (head, stream) in self.heads.iter_mut().zip(&mut self.streams) {
            if head.as_ref().is_some_and(|head| head.0 == labels) {
                let taken = std::mem::replace(head, stream.next_series().await?);
                found = found.or(taken);
            }
        }
        Ok(found)
    }

    /// Bytes that came so far.
    pub(super) fn bytes(&self) -> u64 {
        self.streams.iter().map(|stream| stream.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::remote::request::{Form, decode_plain};
    use engram_model::TimeRange;

    #[test]
    fn a_request_is_understood_as_it_was_meant() {
        let matchers = [
            Matcher::equal("a", "b"),
            Matcher::new("c", MatchOp::NotEqual, "").unwrap(),
            Matcher::new("d", MatchOp::Regex, "x|y").unwrap(),
            Matcher::new("e", MatchOp::NotRegex, "z.*").unwrap(),
        ];
        let read = decode_plain(&request(&matchers, (-3, 9))).unwrap();
        assert_eq!((read.form, read.queries[0].range), (Form::Chunks, TimeRange::new(-3, 10)));
        let text = |all: &[Matcher]| all.iter().map(|m| format!("{m:?}")).collect::<Vec<_>>();
        assert_eq!(text(&read.queries[0].matchers), text(&matchers));
    }

    #[test]
    fn times_are_seconds() {
        assert_eq!([seconds(0), seconds(-1), seconds(1_700_000_000_123)], ["0.000", "-0.001", "1700000000.123"]);
    }
}
