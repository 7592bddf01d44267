//! Checkpoints: payloads that stand for all payloads before them, so that old log segments can go.
//!
//! How to use one: with every staged batch applied, log all payloads of [`Head::snapshot`], make them durable, note
//! the log position of the first; from then on replay may begin there, and what lies before may be deleted. A crash
//! in the middle leaves a piece of a checkpoint behind the whole log, which replay takes without harm.

use super::{Head, Unapplied, payload, starts};
use crate::codec::{put_prefixed, put_u64, put_uvarint, put_varint};
use engram_model::digest::Digest;
use engram_model::{Millis, TimeRange};
use std::collections::BTreeMap;

use super::append::Rules;
use super::frozen::Frozen;
use crate::chunk::Chunk;

/// A payload of series is handed out when it is this long: small enough to share the log with writes.
const PAYLOAD_BYTES: usize = 256 << 10;
/// Exemplars or metadata of one payload.
const BESIDE_MAX: usize = 1000;

impl Head {
    /// Hands out the payloads of a checkpoint, in order.
    ///
    /// # Errors
    /// [`Unapplied`]: nothing was handed out; apply first.
    pub fn snapshot(&self, out: &mut dyn FnMut(&[u8])) -> Result<(), Unapplied> {
        self.check_applied()?;
        // A head that knows of no seal writes the bytes of before there were any.
        let sealed = self.frozen.sealed > 0;
        let mut payload = vec![if sealed { payload::MARKS_SEALED } else { payload::MARKS }];
        put_varint(&mut payload, self.floor);
        payload.push(u8::from(self.newest.is_some()));
        if let Some(newest) = self.newest {
            put_varint(&mut payload, newest);
        }
        if sealed {
            self.frozen.put_marks(&mut payload);
        }
        out(&payload);
        self.snapshot_series(&mut payload, out);
        for part in self.frozen.parts.values() {
            snapshot_frozen(part, &mut payload, out);
        }
        if self.files.is_some() {
            // What lies in files is not read to find its digests: they go on from the first append.
            payload.clear();
            payload.push(payload::DIGESTS);
            put_digests(&mut payload, 0, &self.digests);
            self.frozen.parts.values().for_each(|part| put_digests(&mut payload, part.number(), part.digests()));
            out(&payload);
        }
        self.snapshot_beside(&mut payload, out);
        Ok(())
    }

    fn snapshot_series(&self, payload: &mut Vec<u8>, out: &mut dyn FnMut(&[u8])) {
        payload.clear();
        let with_starts = !self.starts.is_empty();
        for (series_ref, series) in self.series() {
            if payload.is_empty() {
                payload.push(if with_starts { payload::SERIES_STARTS } else { payload::SERIES });
            }
            put_uvarint(payload, u64::from(series_ref));
            payload::put_symbols(payload, &series.pairs, &self.symbols.view());
            let open = series.open.view();
            put_uvarint(payload, (series.full.len() + usize::from(open.is_some())) as u64);
            series.full.iter().for_each(|chunk| put_chunk(payload, chunk));
            if let Some(chunk) = open {
                payload.push(chunk.kind as u8 | payload::IS_OPEN);
                put_prefixed(payload, &chunk.bytes);
            }
            if with_starts {
                starts::put_runs(payload, self.starts.of(series_ref));
            }
            if payload.len() >= PAYLOAD_BYTES {
                out(payload);
                payload.clear();
            }
        }
        if !payload.is_empty() {
            out(payload);
        }
    }

    /// Exemplars and metadata go as batches without samples.
    fn snapshot_beside(&self, payload: &mut Vec<u8>, out: &mut dyn FnMut(&[u8])) {
        let rules = Rules {
            out_of_order_window_ms: 0,
            in_order_age_max_ms: 0,
            exemplars_max: self.exemplars.max(),
            metadata_max: self.metadata.max(),
            repair: false,
        };
        let begin = |payload: &mut Vec<u8>| {
            payload.clear();
            payload.push(payload::APPEND);
            payload::put_rules(payload, &rules);
            payload.extend_from_slice(&[0; 4]);
        };
        let exemplars: Vec<_> = self.exemplars.iter().collect();
        for some in exemplars.chunks(BESIDE_MAX) {
            begin(payload);
            put_uvarint(payload, some.len() as u64);
            some.iter().for_each(|(series_ref, exemplar)| payload::put_exemplar(payload, *series_ref, exemplar));
            put_uvarint(payload, 0);
            out(payload);
        }
        let metadata: Vec<_> =
            self.metadata.iter().flat_map(|(name, all)| all.iter().map(move |one| (name, one))).collect();
        for some in metadata.chunks(BESIDE_MAX) {
            begin(payload);
            put_uvarint(payload, 0);
            put_uvarint(payload, some.len() as u64);
            some.iter().for_each(|(name, one)| payload::put_metadata(payload, name, one));
            out(payload);
        }
    }

    /// Everything there is, for reading whole series.
    #[must_use]
    pub fn everything(&self) -> Vec<super::HeadSeries> {
        self.select(&[], TimeRange::ALL)
    }
}

fn put_chunk(payload: &mut Vec<u8>, chunk: &Chunk) {
    let Some(place) = chunk.bytes.in_file() else {
        payload.push(chunk.kind as u8);
        put_prefixed(payload, &chunk.bytes);
        return;
    };
    payload.push(chunk.kind as u8 | payload::IN_FILE);
    put_uvarint(payload, place.number);
    put_uvarint(payload, u64::from(place.at));
    put_uvarint(payload, u64::from(place.len));
    put_varint(payload, chunk.first);
    put_varint(payload, chunk.last.wrapping_sub(chunk.first));
    put_uvarint(payload, u64::from(chunk.count));
}

/// The digests of the head, or of a frozen part, by number.
fn put_digests(payload: &mut Vec<u8>, number: u64, digests: &BTreeMap<Millis, Digest>) {
    put_uvarint(payload, number);
    put_uvarint(payload, digests.len() as u64);
    for (slot, digest) in digests {
        put_varint(payload, *slot);
        put_u64(payload, digest.count);
        put_u64(payload, digest.low);
        put_u64(payload, digest.high);
    }
}

/// A frozen part, in pieces that each name it; one at least, for an empty one is known too.
fn snapshot_frozen(part: &Frozen, payload: &mut Vec<u8>, out: &mut dyn FnMut(&[u8])) {
    let begin = |payload: &mut Vec<u8>| {
        payload.clear();
        payload.push(payload::FROZEN);
        put_uvarint(payload, part.number());
        put_varint(payload, part.window().start);
        put_varint(payload, part.window().end);
    };
    begin(payload);
    for (series_ref, chunks) in part.iter() {
        if payload.len() >= PAYLOAD_BYTES {
            out(payload);
            begin(payload);
        }
        put_uvarint(payload, u64::from(series_ref));
        put_uvarint(payload, chunks.len() as u64);
        chunks.iter().for_each(|chunk| put_chunk(payload, chunk));
    }
    out(payload);
}
