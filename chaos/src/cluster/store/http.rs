//! HTTP as an object store's clients speak it: requests with a length, answers with a length, one after the other.
//!
//! By hand, because a connection that ends at a chosen byte is what this store is for, and servers that can be had take
//! care that it does not.

use super::{BUCKET, Verb};
use std::collections::BTreeMap;
use std::io;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The longest head of a request.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// The longest body.
const BODY_BYTES_MAX: usize = 64 << 20;

/// A request.
#[derive(Clone, Debug, Default)]
pub(super) struct Request {
    pub(super) method: String,
    /// The object's name, decoded; empty: the bucket itself.
    pub(super) key: String,
    pub(super) query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// A header by its name in small letters.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// What it does; the parts of a large upload put nothing until the last request.
    pub(super) fn verb(&self) -> Verb {
        match self.method.as_str() {
            "PUT" => Verb::Put,
            "POST" if self.query.contains_key("delete") => Verb::Delete,
            "POST" => Verb::Put,
            "DELETE" => Verb::Delete,
            _ if self.query.contains_key("list-type") => Verb::List,
            _ => Verb::Get,
        }
    }

    /// Whether it is about an object whose name ends so.
    pub(super) fn names(&self, end: &str) -> bool {
        let told = || String::from_utf8_lossy(&self.body).contains(&format!("{end}</Key>"));
        self.key.ends_with(end) || self.query.contains_key("delete") && told()
    }

    fn parse(head: &str) -> Option<Self> {
        let mut lines = head.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.trim_start_matches('/');
        let key = path.strip_prefix(BUCKET)?.trim_start_matches('/');
        let pair = |text: &str| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            (decoded(name), decoded(value))
        };
        let query = query.split('&').filter(|text| !text.is_empty()).map(pair).collect();
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        };
        Some(Self { method, key: decoded(key), query, headers: lines.filter_map(header).collect(), body: Vec::new() })
    }
}

/// What `%` and `+` stand for.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        (rest, bytes) = match (first, hex) {
            (b'%', Some(byte)) => (&after[2..], [bytes, vec![byte]].concat()),
            (b'+', _) => (after, [bytes, vec![b' ']].concat()),
            (other, _) => (after, [bytes, vec![*other]].concat()),
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    pub(super) fn error(status: u16, code: &str) -> Self {
        Self::new(status, format!("<Error><Code>{code}</Code><Message>chaos</Message></Error>"))
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// As it goes over the wire, to a request of this method.
    pub(super) fn bytes(&self, method: &str) -> Vec<u8> {
        let mut out = format!("HTTP/1.1 {} chaos\r\n", self.status);
        for (name, value) in &self.headers {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.status != 204 {
            out.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        out.push_str("\r\n");
        let mut out = out.into_bytes();
        if method != "HEAD" && self.status != 204 {
            out.extend_from_slice(&self.body);
        }
        out
    }
}

/// A connection.
pub(super) struct Stream {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Stream {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub(super) fn out(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// The next request as a whole; `None` when the other side is done.
    pub(super) async fn request(&mut self) -> io::Result<Option<Request>> {
        let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            if self.buffer.len() > HEAD_BYTES_MAX {
                return Err(bad("a head too long"));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 4);
        let mut request = Request::parse(&head).ok_or_else(|| bad("no request"))?;
        let length = request.header("content-length").map_or(Some(0), |text| text.parse::<usize>().ok());
        let length = length.filter(|length| *length <= BODY_BYTES_MAX).ok_or_else(|| bad("a body too long"))?;
        while self.buffer.len() < length {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
        request.body = self.buffer.drain(..length).collect();
        Ok(Some(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_taken_apart() {
        let head = "GET /chaos/t%20a/index?prefix=a%2Fb&uploads HTTP/1.1\r\nRange: bytes=1-2\r\nX: y";
        let request = Request::parse(head).unwrap();
        assert_eq!((request.key.as_str(), request.query["prefix"].as_str()), ("t a/index", "a/b"));
        assert!(request.query.contains_key("uploads") && request.header("range") == Some("bytes=1-2"));
        assert!(request.names("/index") && request.verb() == Verb::Get);
        assert!(Request::parse("GET /other/key HTTP/1.1").is_none());
    }
}
