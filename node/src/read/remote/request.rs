//! What a remote-read request asks for.
//!
//! ```text
//! ReadRequest   1 repeated Query · 2 repeated enum accepted response types (0 SAMPLES, 1 STREAMED_XOR_CHUNKS)
//! Query         1 start ms · 2 end ms, both inside · 3 repeated LabelMatcher · 4 hints
//! LabelMatcher  1 enum type (0 =, 1 !=, 2 =~, 3 !~) · 2 name · 3 value
//! ```
//!
//! Hints say what the client will do with the samples. They are not used: a server may give less for them, and a
//! wrong guess would be a wrong answer.
//!
//! Why bounds beside that of the body: a matcher of four bytes may be a pattern to compile, and every query looks at
//! all partitions.
//!
//! Source: `prometheus prompb/remote.proto`, `prompb/types.proto`.

use engram_model::matcher::MatchOp;
use engram_model::{Matcher, TimeRange};

use super::wire::{Field, Fields, Malformed};

/// Largest body after decompression.
pub const PLAIN_BYTES_MAX: usize = 4 << 20;
/// Most queries of one request.
pub const QUERIES_MAX: usize = 64;
/// Most matchers of all queries of one request.
pub const MATCHERS_MAX: usize = 1024;
/// Snappy makes at most 64 bytes of 3: a body that declares more than this many times its size lies.
const EXPANSION_MAX: usize = 22;

/// A request that was understood.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is asked for, answered in this order.
    pub queries: Vec<Query>,
    /// How it is answered.
    pub form: Form,
}

/// One question.
#[derive(Clone, Debug)]
pub struct Query {
    /// Samples of this time.
    pub range: TimeRange,
    /// Series that pass all of these; empty: all.
    pub matchers: Vec<Matcher>,
}

/// The two ways to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One message with all samples.
    Samples,
    /// A stream of frames with encoded chunks.
    Chunks,
}

/// A request that makes no sense, or too much of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// More bytes than a request may have.
    #[error("remote read: a request of {len} bytes after decompression exceeds the limit of {PLAIN_BYTES_MAX}")]
    TooLarge {
        /// What it declares.
        len: usize,
    },
    /// It declares more than its bytes can hold.
    #[error("remote read: a snappy block of {compressed} bytes declares {len} bytes, more than it can hold")]
    Expansion {
        /// What it declares.
        len: usize,
        /// What was sent.
        compressed: usize,
    },
    /// Not snappy's block format.
    #[error("remote read: snappy: {0}")]
    Snappy(#[from] snap::Error),
    /// Not the message it should be.
    #[error("remote read: {0}")]
    Malformed(#[from] Malformed),
    /// More of something than one request may hold.
    #[error("remote read: more than {max} {what} in one request")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// A matcher that is none.
    #[error("remote read: matcher of label {name:?}: {why}")]
    Matcher {
        /// The label's name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// No way to answer that both sides know.
    #[error(
        "remote read: none of the accepted response types is known here, which are SAMPLES (0) and \
         STREAMED_XOR_CHUNKS (1)"
    )]
    NoForm,
}

/// Reads a body, compressed with snappy's block format.
///
/// # Errors
/// [`BadRequest`]: the client must change the request.
pub fn decode(compressed: &[u8]) -> Result<Request, BadRequest> {
    let len = snap::raw::decompress_len(compressed)?;
    if len > PLAIN_BYTES_MAX {
        return Err(BadRequest::TooLarge { len });
    }
    if len > compressed.len().saturating_mul(EXPANSION_MAX) {
        return Err(BadRequest::Expansion { len, compressed: compressed.len() });
    }
    decode_plain(&snap::raw::Decoder::new().decompress_vec(compressed)?)
}

/// As [`decode`], of a body that is not compressed.
///
/// # Errors
/// As [`decode`].
pub fn decode_plain(body: &[u8]) -> Result<Request, BadRequest> {
    let (mut queries, mut matchers) = (Vec::new(), 0);
    // What was accepted, in the client's order of preference; nothing said means samples.
    let (mut said, mut form) = (false, None);
    let mut accept = |number: u64| {
        said = true;
        form = form.or(match number {
            0 => Some(Form::Samples),
            1 => Some(Form::Chunks),
            _ => None,
        });
    };
    let mut fields = Fields::new(body);
    while let Some((number, field)) = fields.next_field()? {
        match (number, field) {
            (1, field) => {
                if queries.len() == QUERIES_MAX {
                    return Err(BadRequest::TooMany { what: "queries", max: QUERIES_MAX });
                }
                queries.push(query(field.as_bytes()?, &mut matchers)?);
            }
            (2, Field::Number(kind)) => accept(kind),
            (2, field) => {
                let mut packed = Fields::new(field.as_bytes()?);
                while !packed.rest().is_empty() {
                    accept(packed.number()?);
                }
            }
            _ => {}
        }
    }
    let form = if said { form.ok_or(BadRequest::NoForm)? } else { Form::Samples };
    Ok(Request { queries, form })
}

fn query(message: &[u8], matchers_count: &mut usize) -> Result<Query, BadRequest> {
    let (mut start, mut end, mut matchers) = (0_i64, 0_i64, Vec::new());
    let mut fields = Fields::new(message);
    while let Some((number, field)) = fields.next_field()? {
        match number {
            1 => start = field.as_number()?.cast_signed(),
            2 => end = field.as_number()?.cast_signed(),
            3 => {
                *matchers_count += 1;
                if *matchers_count > MATCHERS_MAX {
                    return Err(BadRequest::TooMany { what: "matchers", max: MATCHERS_MAX });
                }
                matchers.push(matcher(field.as_bytes()?)?);
            }
            _ => {}
        }
    }
    // The end is inside on the wire and outside here.
    Ok(Query { range: TimeRange::new(start, end.saturating_add(1).max(start)), matchers })
}

fn matcher(message: &[u8]) -> Result<Matcher, BadRequest> {
    let (mut kind, mut name, mut value) = (0, "", "");
    let mut fields = Fields::new(message);
    while let Some((number, field)) = fields.next_field()? {
        match number {
            1 => kind = field.as_number()?,
            2 => name = field.as_text()?,
            3 => value = field.as_text()?,
            _ => {}
        }
    }
    let bad = |why: String| BadRequest::Matcher { name: name.chars().take(200).collect(), why };
    let op = match kind {
        0 => MatchOp::Equal,
        1 => MatchOp::NotEqual,
        2 => MatchOp::Regex,
        3 => MatchOp::NotRegex,
        other => return Err(bad(format!("type {other} is not known"))),
    };
    Matcher::new(name, op, value).map_err(|error| bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::super::wire::{put_bytes, put_number, put_varint};
    use super::*;

    fn matcher_bytes(kind: u64, name: &str, value: &str) -> Vec<u8> {
        let mut out = Vec::new();
        put_number(&mut out, 1, kind);
        put_bytes(&mut out, 2, name.as_bytes());
        put_bytes(&mut out, 3, value.as_bytes());
        out
    }

    fn query_bytes(start: i64, end: i64, matchers: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        put_number(&mut out, 1, start.cast_unsigned());
        put_number(&mut out, 2, end.cast_unsigned());
        matchers.iter().for_each(|one| put_bytes(&mut out, 3, one));
        put_bytes(&mut out, 4, &[0x08, 0x05, 0x12, 0x01, b'x']);
        out
    }

    #[test]
    fn queries_matchers_and_preference_are_read() {
        let kinds: Vec<_> = (0..4).map(|kind| matcher_bytes(kind, "a", "b|c")).collect();
        let mut body = Vec::new();
        put_bytes(&mut body, 1, &query_bytes(-5, 10, &kinds));
        put_bytes(&mut body, 1, &query_bytes(7, 6, &[]));
        put_bytes(&mut body, 2, &[9, 1, 0]);
        let request = decode(&snap::raw::Encoder::new().compress_vec(&body).unwrap()).unwrap();
        assert_eq!((request.queries.len(), request.form), (2, Form::Chunks), "9 is not known, 1 comes before 0");
        assert_eq!(request.queries[0].range, TimeRange::new(-5, 11));
        assert!(request.queries[1].range.is_empty());
        let passes = |value: &str| request.queries[0].matchers.iter().map(|m| m.matches(value)).collect::<Vec<_>>();
        assert_eq!(passes("b|c"), [true, false, false, true]);
        assert_eq!(passes("b"), [false, true, true, false]);
        assert_eq!(decode_plain(&[]).unwrap().form, Form::Samples);
    }

    #[test]
    fn a_range_up_to_the_end_of_time_stays_one() {
        let request = decode_plain(&{
            let mut body = Vec::new();
            put_bytes(&mut body, 1, &query_bytes(i64::MIN, i64::MAX, &[]));
            body
        });
        assert_eq!(request.unwrap().queries[0].range, TimeRange::new(i64::MIN, i64::MAX));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_reason() {
        let one = |matcher: Vec<u8>| {
            let mut body = Vec::new();
            put_bytes(&mut body, 1, &query_bytes(0, 1, &[matcher]));
            decode_plain(&body).unwrap_err().to_string()
        };
        assert!(one(matcher_bytes(2, "job", "(")).contains("matcher of label \"job\""));
        assert_eq!(one(matcher_bytes(7, "job", "x")), "remote read: matcher of label \"job\": type 7 is not known");
        let mut not_text = Vec::new();
        put_bytes(&mut not_text, 2, &[0xff]);
        assert!(one(not_text).contains("not UTF-8"));
        let mut body = Vec::new();
        put_number(&mut body, 2, 5);
        assert_eq!(decode_plain(&body).unwrap_err(), BadRequest::NoForm);
        let mut body = Vec::new();
        (0..=QUERIES_MAX).for_each(|_| put_bytes(&mut body, 1, &[]));
        assert_eq!(decode_plain(&body).unwrap_err(), BadRequest::TooMany { what: "queries", max: QUERIES_MAX });
        let many = vec![matcher_bytes(0, "a", "b"); MATCHERS_MAX + 1];
        let mut body = Vec::new();
        put_bytes(&mut body, 1, &query_bytes(0, 1, &many));
        assert_eq!(decode_plain(&body).unwrap_err(), BadRequest::TooMany { what: "matchers", max: MATCHERS_MAX });
        let mut lies = Vec::new();
        put_varint(&mut lies, 1 << 30);
        assert!(matches!(decode(&lies).unwrap_err(), BadRequest::TooLarge { .. }));
        let mut lies = Vec::new();
        put_varint(&mut lies, 1 << 20);
        assert!(matches!(decode(&lies).unwrap_err(), BadRequest::Expansion { .. }));
        assert!(matches!(decode(b"\x05hello").unwrap_err(), BadRequest::Snappy(_)));
        assert!(matches!(decode_plain(b"\xff\xff").unwrap_err(), BadRequest::Malformed(_)));
    }
}
