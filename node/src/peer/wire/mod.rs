//! Between the words of the port and the bytes between nodes. Drawn in `docs/formats/wire.md`.
//!
//! Why bodies of our own inside gRPC: a write is forwarded to every replica, so its encoding is paid for several times
//! a sample; a flat body is written in one pass, read in one pass and shared by all replicas it goes to. What comes
//! in is the world's: every length is checked before memory is taken for it, every checksum before a byte is believed.
//!
//! Map: [`batch`] slices of writes · [`series`] answers of a select · [`partial`] sums · [`frozen`] what is set aside ·
//! [`ask`] the other questions · here the stubs,
//! failures and selectors.

pub mod ask;
pub mod batch;
pub mod frozen;
pub mod partial;
pub mod series;

use std::sync::Arc;

use engram_model::error::Class;
use engram_model::matcher::MatchOp;
use engram_model::place::{Epoch, PartitionId};
use engram_model::series::Wanted;
use engram_model::tenant::TenantId;
use engram_model::{Matcher, TimeRange};
use engram_storage::codec::crc32c;

use super::Select;
use crate::error::{Error, Stage};

/// The stubs of `proto/ingest.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    clippy::missing_errors_doc,
    reason = "generated"
)]
pub(crate) mod proto {
    tonic::include_proto!("engram.ingest.v1");
}

/// Largest message between nodes.
pub const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// A frame of an answer is sent when it has grown to this.
pub const FRAME_BYTES: usize = 256 << 10;
/// Partitions asked for in one select.
const PARTS_MAX: usize = 65_536;
/// Matchers of one request.
const MATCHERS_MAX: usize = 4096;

/// A body as it travels: `length (u32) checksum (u32) lz4 block`, both little-endian and of the body itself.
#[must_use]
pub fn pack(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + lz4_flex::block::get_maximum_output_size(body.len()));
    out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&crc32c(body).to_le_bytes());
    let head = out.len();
    out.resize(out.capacity(), 0);
    let written = lz4_flex::block::compress_into(body, &mut out[head..]).unwrap_or(0);
    out.truncate(head + written);
    out
}

/// The body of what travelled.
///
/// # Errors
/// What is wrong with it.
pub fn unpack(bytes: &[u8], bytes_max: usize) -> Result<Vec<u8>, String> {
    let (head, rest) = bytes.split_at_checked(8).ok_or_else(|| format!("body of {} bytes has no head", bytes.len()))?;
    let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (length, checksum) = (number(0) as usize, number(4));
    // LZ4 makes at most 255 bytes of one.
    if length > bytes_max || length > rest.len().saturating_mul(255).saturating_add(16) {
        return Err(format!("body says it is {length} bytes, packed in {}", rest.len()));
    }
    let body = lz4_flex::block::decompress(rest, length).map_err(|e| format!("body does not unpack: {e}"))?;
    if body.len() != length || crc32c(&body) != checksum {
        return Err("body was damaged on its way".to_owned());
    }
    Ok(body)
}

/// A failure on its way.
#[must_use]
pub fn failure(error: &Error) -> proto::Failure {
    let class = match error.class {
        Class::Invalid => 1,
        Class::NoTenant => 2,
        Class::NotFound => 3,
        Class::Conflict => 4,
        Class::Limited => 5,
        Class::Unavailable => 6,
        Class::Timeout => 7,
        Class::Cancelled => 8,
        Class::Internal => 9,
    };
    let stage = match error.stage {
        Stage::Request | Stage::Execution => 0,
        Stage::Stale => 1,
        Stage::View => 2,
    };
    proto::Failure { class, stage, message: error.message.clone() }
}

/// A failure that has arrived.
#[must_use]
pub fn failed(failure: proto::Failure) -> Error {
    let class = match failure.class {
        1 => Class::Invalid,
        2 => Class::NoTenant,
        3 => Class::NotFound,
        4 => Class::Conflict,
        5 => Class::Limited,
        6 => Class::Unavailable,
        7 => Class::Timeout,
        8 => Class::Cancelled,
        _ => Class::Internal,
    };
    let stage = match failure.stage {
        1 => Stage::Stale,
        2 => Stage::View,
        _ => Stage::Request,
    };
    Error { stage, ..Error::new(class, failure.message) }
}

/// Matchers on their way.
#[must_use]
pub fn matchers(all: &[Matcher]) -> Vec<proto::Matcher> {
    let op = |op| match op {
        MatchOp::Equal => 0,
        MatchOp::NotEqual => 1,
        MatchOp::Regex => 2,
        MatchOp::NotRegex => 3,
    };
    all.iter().map(|m| proto::Matcher { name: m.name.to_string(), op: op(m.op), value: m.value.to_string() }).collect()
}

fn read_matchers(all: &[proto::Matcher]) -> Result<Vec<Matcher>, Error> {
    if all.len() > MATCHERS_MAX {
        return Err(Error::invalid(format!("{} matchers", all.len())));
    }
    let read = |m: &proto::Matcher| {
        let op = match m.op {
            0 => MatchOp::Equal,
            1 => MatchOp::NotEqual,
            2 => MatchOp::Regex,
            3 => MatchOp::NotRegex,
            other => return Err(Error::invalid(format!("matcher of kind {other}"))),
        };
        Matcher::new(&m.name, op, &m.value).map_err(|e| Error::invalid(e.to_string()))
    };
    all.iter().map(read).collect()
}

/// The part of a select that is its own among several of one query.
#[must_use]
pub fn part(select: &Select) -> proto::Part {
    proto::Part {
        partition: select.partition.0,
        epoch: select.epoch.0,
        start: select.range.start,
        end: select.range.end,
        as_of: select.as_of,
    }
}

/// Selects of one query, on their way: tenant, matchers and wants are those of the first.
#[must_use]
pub fn selects(all: &[Select]) -> proto::SelectRequest {
    let Some(first) = all.first() else { return proto::SelectRequest::default() };
    proto::SelectRequest {
        tenant: first.tenant.as_str().to_owned(),
        parts: all.iter().map(part).collect(),
        matchers: matchers(&first.matchers),
        series_max: first.series_max,
        last_only: first.wanted.last_only,
        some_labels: first.wanted.labels.is_some(),
        labels: first.wanted.labels.clone().unwrap_or_default(),
        digests: 0,
    }
}

/// Selects that have arrived.
///
/// # Errors
/// Invalid for what no node of this version sends.
pub fn read_selects(request: proto::SelectRequest) -> Result<Vec<Select>, Error> {
    if request.parts.len() > PARTS_MAX {
        return Err(Error::invalid(format!("{} partitions in one request", request.parts.len())));
    }
    let tenant = TenantId::new(&request.tenant).map_err(|e| Error::invalid(e.to_string()))?;
    let matchers = Arc::new(read_matchers(&request.matchers)?);
    let labels = request.some_labels.then_some(request.labels);
    let wanted = Arc::new(Wanted { last_only: request.last_only, labels });
    Ok(request
        .parts
        .iter()
        .map(|part| Select {
            tenant: tenant.clone(),
            partition: PartitionId(part.partition),
            epoch: Epoch(part.epoch),
            range: TimeRange { start: part.start, end: part.end },
            matchers: matchers.clone(),
            series_max: request.series_max,
            wanted: wanted.clone(),
            as_of: part.as_of,
        })
        .collect())
}

/// The one select of another question.
///
/// # Errors
/// As [`read_selects`].
pub fn read_select(request: &proto::AskRequest) -> Result<Select, Error> {
    let all = proto::SelectRequest {
        tenant: request.tenant.clone(),
        parts: request.part.into_iter().collect(),
        matchers: request.matchers.clone(),
        ..proto::SelectRequest::default()
    };
    read_selects(all)?.pop().ok_or_else(|| Error::invalid("the request names no partition"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_body_comes_back_or_is_refused(body in proptest::collection::vec(any::<u8>(), 0..500), at: usize, bit in 0..8_u32) {
            let packed = pack(&body);
            prop_assert_eq!(&unpack(&packed, 500).unwrap(), &body);
            let mut broken = packed.clone();
            let at = at % broken.len();
            broken[at] ^= 1 << bit;
            if let Ok(other) = unpack(&broken, 500) { prop_assert_eq!(other, body); }
        }

        #[test]
        fn any_bytes_are_a_body_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _any = unpack(&bytes, 1 << 20);
        }
    }

    #[test]
    fn failures_keep_who_must_act() {
        for class in [
            Class::Invalid,
            Class::NoTenant,
            Class::NotFound,
            Class::Conflict,
            Class::Limited,
            Class::Unavailable,
            Class::Timeout,
            Class::Cancelled,
            Class::Internal,
        ] {
            for stage in [Stage::Request, Stage::Stale, Stage::View] {
                let error = Error { stage, ..Error::new(class, "why") };
                assert_eq!(failed(failure(&error)), error);
            }
        }
    }

    #[test]
    fn a_select_comes_back() {
        let select = Select {
            tenant: TenantId::new("a").unwrap(),
            partition: PartitionId(3),
            epoch: Epoch(7),
            range: TimeRange { start: -5, end: i64::MAX },
            matchers: Arc::new(vec![Matcher::new("a", MatchOp::NotRegex, "b.*").unwrap()]),
            series_max: 9,
            wanted: Arc::new(Wanted { last_only: true, labels: Some(vec!["x".into()]) }),
            as_of: 77,
        };
        let back = read_selects(selects(std::slice::from_ref(&select))).unwrap().pop().unwrap();
        assert_eq!((back.partition, back.epoch, back.range), (select.partition, select.epoch, select.range));
        assert_eq!((back.series_max, back.as_of), (9, 77));
        assert_eq!((back.matchers[0].op, &*back.matchers[0].value), (MatchOp::NotRegex, "b.*"));
        assert_eq!((back.wanted.last_only, &back.wanted.labels), (true, &select.wanted.labels));
    }
}
