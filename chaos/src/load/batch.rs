//! A request that is built once and patched for every scrape.
//!
//! Label bytes are the bulk of a request and never change, but for the generation at the end of `pod`; so a scrape
//! costs the client a pass over the values, the times and the compression, nothing else.

use super::fleet::Fleet;
use crate::client::Protocol;
use crate::wire::{patch, put_bytes, put_sample, put_series, put_varint};
use engram_model::time::Millis;
use std::collections::HashMap;
use std::ops::Range;

/// How the samples of one scrape of one batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Never sent.
    Unsent,
    /// The server promised to keep them.
    Acknowledged,
    /// Refused, or no answer: some may be there.
    Unknown,
}

/// Neighbouring series that travel together.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Whom they belong to.
    pub(crate) tenant: Option<String>,
    /// Which they are.
    pub(crate) series: Range<usize>,
    /// How each scrape ended.
    pub(crate) fates: Vec<Fate>,
    body: Vec<u8>,
    values_at: Vec<usize>,
    pods_at: Vec<(usize, usize)>,
}

impl Batch {
    /// Builds the request of `series` in `protocol`.
    pub(crate) fn new(
        fleet: &Fleet,
        series: Range<usize>,
        tenant: Option<String>,
        protocol: Protocol,
        scrapes: usize,
    ) -> Self {
        let mut batch = Self {
            tenant,
            series: series.clone(),
            fates: vec![Fate::Unsent; scrapes],
            body: Vec::new(),
            values_at: Vec::with_capacity(series.len()),
            pods_at: Vec::new(),
        };
        match protocol {
            Protocol::V1 => batch.build_v1(fleet),
            Protocol::V2 => batch.build_v2(fleet),
        }
        batch
    }

    fn build_v1(&mut self, fleet: &Fleet) {
        for series in self.series.clone() {
            let target = fleet.target(series);
            let start = self.body.len();
            self.values_at.push(put_series(&mut self.body, &fleet.labels(series, 0)));
            let pod = Fleet::pod(target, 0);
            let inside = self.body[start..].windows(pod.len()).position(|part| part == pod.as_bytes());
            let inside = inside.unwrap_or_else(|| unreachable!("the labels of series {series} hold its pod"));
            self.pods_at.push((start + inside + pod.len() - 8, target));
        }
    }

    fn build_v2(&mut self, fleet: &Fleet) {
        let mut symbols: Vec<String> = vec![String::new()];
        let mut known: HashMap<String, usize> = HashMap::from([(String::new(), 0)]);
        let mut pods: HashMap<usize, usize> = HashMap::new();
        let mut tail = Vec::new();
        for series in self.series.clone() {
            let mut refs = Vec::new();
            for (name, value) in fleet.labels(series, 0) {
                let is_pod = name == "pod";
                for text in [name, value] {
                    let symbol = *known.entry(text.clone()).or_insert(symbols.len());
                    if symbol == symbols.len() {
                        symbols.push(text);
                    }
                    put_varint(&mut refs, symbol as u64);
                    if is_pod {
                        pods.insert(symbol, fleet.target(series)); // the value comes last and wins
                    }
                }
                if is_pod {
                    pods.remove(&known["pod"]);
                }
            }
            let mut message = Vec::new();
            put_bytes(&mut message, 1, &refs);
            let inside = put_sample(&mut message);
            put_bytes(&mut message, 5, &[0x08, fleet.metadata_type(series)]);
            let behind = message.len() - inside;
            put_bytes(&mut tail, 5, &message);
            self.values_at.push(tail.len() - behind);
        }
        for (symbol, text) in symbols.iter().enumerate() {
            put_bytes(&mut self.body, 4, text.as_bytes());
            if let Some(target) = pods.get(&symbol) {
                self.pods_at.push((self.body.len() - 8, *target));
            }
        }
        let head = self.body.len();
        self.values_at.iter_mut().for_each(|at| *at += head);
        self.body.extend_from_slice(&tail);
    }

    /// The request of one scrape, uncompressed.
    pub(crate) fn fill(&mut self, fleet: &Fleet, scrape: usize, at: Millis) -> &[u8] {
        for (place, target) in &self.pods_at {
            let generation = fleet.life(*target, scrape).generation;
            for (digit, byte) in self.body[*place..*place + 8].iter_mut().enumerate() {
                let nibble = generation >> (28 - 4 * digit) & 15;
                *byte = b"0123456789abcdef"[nibble as usize];
            }
        }
        let mut last = None;
        for (series, value_at) in self.series.clone().zip(&self.values_at) {
            let target = fleet.target(series);
            let life = match last {
                Some((have, life)) if have == target => life,
                _ => fleet.life(target, scrape),
            };
            last = Some((target, life));
            patch(&mut self.body, *value_at, at, fleet.value(series, scrape, life));
        }
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    struct Request {
        #[prost(string, repeated, tag = "4")]
        symbols: Vec<String>,
        #[prost(message, repeated, tag = "5")]
        series: Vec<Series>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Series {
        #[prost(uint32, repeated, tag = "1")]
        refs: Vec<u32>,
        #[prost(message, repeated, tag = "2")]
        samples: Vec<Sample>,
        #[prost(message, optional, tag = "5")]
        metadata: Option<Metadata>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Sample {
        #[prost(double, tag = "1")]
        value: f64,
        #[prost(int64, tag = "2")]
        at: i64,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Metadata {
        #[prost(uint32, tag = "1")]
        kind: u32,
    }

    #[test]
    fn a_filled_version_2_request_says_what_the_fleet_says() {
        let fleet = Fleet::new("r", 10, 3.0, 60_000);
        let mut batch = Batch::new(&fleet, 150..650, None, Protocol::V2, 1);
        for scrape in [0, 7, 90] {
            let decoded = Request::decode(batch.fill(&fleet, scrape, 1_790_000_000_000)).unwrap();
            assert_eq!(decoded.series.len(), 500);
            for (series, have) in (150..650).zip(&decoded.series) {
                let life = fleet.life(fleet.target(series), scrape);
                let texts: Vec<&String> = have.refs.iter().map(|r| &decoded.symbols[*r as usize]).collect();
                let want = fleet.labels(series, life.generation);
                let want: Vec<&String> = want.iter().flat_map(|(n, v)| [n, v]).collect();
                assert_eq!(texts, want);
                let value = fleet.value(series, scrape, life);
                assert_eq!(have.samples, [Sample { value, at: 1_790_000_000_000 }]);
                assert!((1..=3).contains(&have.metadata.as_ref().unwrap().kind));
            }
        }
    }
}
