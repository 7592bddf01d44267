//! A plain encoder of both versions, written from the protocol's message definitions and nothing of the decoder.

use std::collections::HashMap;

use engram_model::histogram::{BucketSpan, Histogram, ResetHint};

/// A request as a person would write it down.
#[derive(Clone, Debug, Default)]
pub(super) struct Plain {
    pub(super) series: Vec<Series>,
}

type Exemplar = (Vec<(String, String)>, f64, i64);

#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    pub(super) labels: Vec<(Vec<u8>, Vec<u8>)>,
    /// Time, bits, start time (version 2 only).
    pub(super) samples: Vec<(i64, u64, i64)>,
    pub(super) histograms: Vec<Hist>,
    pub(super) exemplars: Vec<Exemplar>,
    /// Kind, help, unit.
    pub(super) metadata: Option<(u64, String, String)>,
}

/// A histogram with absolute integer counts; `integer` says in which form it is sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Hist {
    pub(super) at: i64,
    pub(super) start_at: i64,
    pub(super) integer: bool,
    pub(super) count: u64,
    pub(super) zero: u64,
    pub(super) zero_threshold: f64,
    pub(super) sum: f64,
    pub(super) schema: i32,
    pub(super) hint: u64,
    pub(super) positive_spans: Vec<BucketSpan>,
    pub(super) positive: Vec<i64>,
    pub(super) negative_spans: Vec<BucketSpan>,
    pub(super) negative: Vec<i64>,
    pub(super) custom: Vec<f64>,
}

type Buckets = [(i32, Vec<u64>)];

impl Hist {
    pub(super) fn made(positive: &Buckets, negative: &Buckets, at: i64, integer: bool, zero: u16, schema: i32) -> Self {
        let spans = |of: &Buckets| {
            let span = |(i, (offset, counts)): (usize, &(i32, Vec<u64>))| BucketSpan {
                offset: if i == 0 { *offset } else { offset.abs() },
                length: u32::try_from(counts.len()).unwrap(),
            };
            of.iter().enumerate().map(span).collect::<Vec<_>>()
        };
        let counts = |of: &Buckets| of.iter().flat_map(|(_, c)| c).map(|&c| c.cast_signed()).collect::<Vec<_>>();
        let sum = positive.iter().chain(negative).flat_map(|(_, c)| c).sum::<u64>();
        Self {
            at,
            integer,
            count: sum + u64::from(zero),
            zero: zero.into(),
            zero_threshold: 0.001,
            sum: 17.25,
            schema,
            positive_spans: spans(positive),
            positive: counts(positive),
            negative_spans: spans(negative),
            negative: counts(negative),
            ..Self::default()
        }
    }

    /// What the decoder is to make of it.
    #[allow(clippy::cast_precision_loss, reason = "test: small numbers")]
    pub(super) fn want(&self) -> Histogram {
        Histogram {
            integer: self.integer,
            reset_hint: ResetHint::Unknown,
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count: self.zero as f64,
            count: self.count as f64,
            sum: self.sum,
            positive_spans: self.positive_spans.clone(),
            negative_spans: self.negative_spans.clone(),
            positive_buckets: self.positive.iter().map(|&c| c as f64).collect(),
            negative_buckets: self.negative.iter().map(|&c| c as f64).collect(),
            custom_values: self.custom.clone(),
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "test: small numbers")]
    fn encode(&self) -> Message {
        let mut m = Message::default();
        if self.integer {
            m.number(1, self.count).number(6, self.zero);
        } else {
            m.double(2, self.count as f64).double(7, self.zero as f64);
        }
        m.double(3, self.sum).number(4, zigzag(self.schema.into())).double(5, self.zero_threshold);
        for (first, spans, counts) in
            [(8, &self.negative_spans, &self.negative), (11, &self.positive_spans, &self.positive)]
        {
            for span in spans {
                let mut s = Message::default();
                s.number(1, zigzag(span.offset.into())).number(2, span.length.into());
                m.bytes(first, &s.0);
            }
            let mut packed = Message::default();
            if self.integer {
                let mut before = 0;
                for &count in counts {
                    packed.varint(zigzag(count - before));
                    before = count;
                }
                m.bytes(first + 1, &packed.0);
            } else {
                counts.iter().for_each(|&count| packed.0.extend((count as f64).to_le_bytes()));
                m.bytes(first + 2, &packed.0);
            }
        }
        m.number(14, self.hint).number(15, self.at.cast_unsigned());
        for bound in &self.custom {
            m.double(16, *bound);
        }
        m.number(17, self.start_at.cast_unsigned());
        m
    }
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)).cast_unsigned()
}

#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut n: u64) -> &mut Self {
        while n >= 0x80 {
            self.0.push(u8::try_from(n & 0x7f).unwrap() | 0x80);
            n >>= 7;
        }
        self.0.push(u8::try_from(n).unwrap());
        self
    }

    fn number(&mut self, field: u64, n: u64) -> &mut Self {
        self.varint(field << 3).varint(n)
    }

    fn double(&mut self, field: u64, n: f64) -> &mut Self {
        self.varint(field << 3 | 1).0.extend(n.to_le_bytes());
        self
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) -> &mut Self {
        self.varint(field << 3 | 2).varint(bytes.len() as u64).0.extend(bytes);
        self
    }
}

fn sample((at, bits, start_at): (i64, u64, i64), v2: bool) -> Message {
    let mut m = Message::default();
    m.double(1, f64::from_bits(bits)).number(2, at.cast_unsigned());
    if v2 && start_at != 0 {
        m.number(3, start_at.cast_unsigned());
    }
    m
}

fn label(name: &[u8], value: &[u8]) -> Message {
    let mut m = Message::default();
    m.bytes(1, name).bytes(2, value);
    m
}

#[derive(Default)]
struct Symbols(Vec<Vec<u8>>, HashMap<Vec<u8>, u64>);

impl Symbols {
    fn get(&mut self, text: &[u8]) -> u64 {
        *self.1.entry(text.to_vec()).or_insert_with(|| {
            self.0.push(text.to_vec());
            self.0.len() as u64 - 1
        })
    }
}

impl Plain {
    pub(super) fn v1(&self) -> Vec<u8> {
        let mut out = Message::default();
        for series in &self.series {
            let mut m = Message::default();
            for (n, v) in &series.labels {
                m.bytes(1, &label(n, v).0);
            }
            for s in &series.samples {
                m.bytes(2, &sample(*s, false).0);
            }
            for (labels, value, at) in &series.exemplars {
                let mut e = Message::default();
                for (n, v) in labels {
                    e.bytes(1, &label(n.as_bytes(), v.as_bytes()).0);
                }
                e.double(2, *value).number(3, at.cast_unsigned());
                m.bytes(3, &e.0);
            }
            for h in &series.histograms {
                m.bytes(4, &h.encode().0);
            }
            out.bytes(1, &m.0);
            if let Some((kind, help, unit)) = &series.metadata {
                let mut m = Message::default();
                let name = series.labels.iter().find(|(n, _)| n == b"__name__").map(|(_, v)| v.clone());
                m.number(1, *kind).bytes(2, &name.unwrap_or_default());
                m.bytes(4, help.as_bytes()).bytes(5, unit.as_bytes());
                out.bytes(3, &m.0);
            }
        }
        out.0
    }

    pub(super) fn v2(&self) -> Vec<u8> {
        let mut symbols = Symbols::default();
        symbols.get(b"");
        let mut all = Message::default();
        for series in &self.series {
            let mut m = Message::default();
            let mut refs = Message::default();
            for (name, value) in &series.labels {
                refs.varint(symbols.get(name)).varint(symbols.get(value));
            }
            m.bytes(1, &refs.0);
            for s in &series.samples {
                m.bytes(2, &sample(*s, true).0);
            }
            for h in &series.histograms {
                m.bytes(3, &h.encode().0);
            }
            for (labels, value, at) in &series.exemplars {
                let (mut e, mut refs) = (Message::default(), Message::default());
                for (name, value) in labels {
                    refs.varint(symbols.get(name.as_bytes())).varint(symbols.get(value.as_bytes()));
                }
                e.bytes(1, &refs.0).double(2, *value).number(3, at.cast_unsigned());
                m.bytes(4, &e.0);
            }
            if let Some((kind, help, unit)) = &series.metadata {
                let mut meta = Message::default();
                meta.number(1, *kind).number(3, symbols.get(help.as_bytes())).number(4, symbols.get(unit.as_bytes()));
                m.bytes(5, &meta.0);
            }
            all.bytes(5, &m.0);
        }
        let mut out = Message::default();
        for text in &symbols.0 {
            out.bytes(4, text);
        }
        out.0.extend(all.0);
        out.0
    }
}
