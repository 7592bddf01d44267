//! Counts for people: what makes this head large.

use engram_model::TimeRange;
use engram_model::labels::METRIC_NAME;

use super::Head;
use super::series::window_of;
use super::symbols::Symbol;

/// Something with its count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// A metric, a label's name, or `name=value`.
    pub name: String,
    /// How many.
    pub count: u64,
}

/// A window that has live samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowStat {
    /// The window.
    pub window: TimeRange,
    /// How many of its samples no seal has set aside.
    pub samples: u64,
}

/// What Prometheus shows under `/api/v1/status/tsdb`, of one head. Each list has its greatest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cardinality {
    /// Series in the head.
    pub series: u64,
    /// Different label pairs.
    pub label_pairs: u64,
    /// Series of each metric.
    pub series_by_metric: Vec<Counted>,
    /// Values of each label.
    pub values_by_label: Vec<Counted>,
    /// Bytes of the values of each label.
    pub bytes_by_label: Vec<Counted>,
    /// Series of each pair.
    pub series_by_pair: Vec<Counted>,
}

impl Head {
    /// Counts pairs and values; each list has at most `max` entries. Walks the index, not the series.
    #[must_use]
    pub fn cardinality(&self, max: usize) -> Cardinality {
        let view = self.symbols.view();
        let metric = view.find(METRIC_NAME);
        let (mut metrics, mut values, mut bytes, mut pairs) =
            (Top::new(max), Top::new(max), Top::new(max), Top::new(max));
        let mut label_pairs = 0;
        for name in self.index.names() {
            let (mut value_count, mut value_bytes) = (0, 0);
            for (value, list) in self.index.values(name) {
                value_count += 1;
                value_bytes += view.text(value).len() as u64;
                pairs.offer(list.len(), (name, value));
                if Some(name) == metric {
                    metrics.offer(list.len(), (name, value));
                }
            }
            label_pairs += value_count;
            values.offer(value_count, (name, name));
            bytes.offer(value_bytes, (name, name));
        }
        let second = |(_, value): (Symbol, Symbol)| view.text(value).to_owned();
        Cardinality {
            series: self.series_count() as u64,
            label_pairs,
            series_by_metric: metrics.finish(second),
            values_by_label: values.finish(second),
            bytes_by_label: bytes.finish(second),
            series_by_pair: pairs.finish(|(name, value)| format!("{}={}", view.text(name), view.text(value))),
        }
    }

    /// Live samples by window, in order of time.
    #[must_use]
    pub fn windows(&self) -> Vec<WindowStat> {
        let mut all: Vec<WindowStat> = Vec::new();
        for (slot, total) in &self.digests {
            let samples = total.count - self.frozen.digest_of_slot(*slot).count;
            let start = window_of(*slot, self.options.window_ms);
            match all.last_mut() {
                _ if samples == 0 => {}
                Some(last) if last.window.start == start => last.samples += samples,
                _ => {
                    let window = TimeRange::new(start, start.saturating_add(self.options.window_ms));
                    all.push(WindowStat { window, samples });
                }
            }
        }
        all
    }

    /// How many chunks, open ones too. Walks all series.
    #[must_use]
    pub fn chunk_count(&self) -> u64 {
        let live: u64 = self.series().map(|(_, one)| one.full.len() as u64 + u64::from(one.open.count() > 0)).sum();
        live + self.frozen_parts().map(|part| part.chunk_count() as u64).sum::<u64>()
    }

    /// Memory of series, chunks and index, about; texts are the node's, see [`super::Symbols::text_bytes`].
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let series: usize = self.series().map(|(_, series)| series.heap_bytes()).sum();
        let frozen: usize = self.frozen_parts().map(|part| part.heap_bytes()).sum();
        series
            + frozen
            + self.starts.heap_bytes()
            + self.slots.capacity() * 8
            + self.by_hash.capacity() * 5
            + self.index.heap_bytes()
    }
}

/// The greatest few of many.
struct Top {
    max: usize,
    all: Vec<(u64, (Symbol, Symbol))>,
}

impl Top {
    fn new(max: usize) -> Self {
        Self { max, all: Vec::new() }
    }

    /// Keeps up to twice as many as wanted, and halves them then: constant time an offer.
    fn offer(&mut self, count: u64, what: (Symbol, Symbol)) {
        self.all.push((count, what));
        if self.all.len() >= self.max.saturating_mul(2).max(64) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.all.sort_unstable_by(|a, b| b.cmp(a));
        self.all.truncate(self.max);
    }

    fn finish(mut self, name: impl Fn((Symbol, Symbol)) -> String) -> Vec<Counted> {
        self.cut();
        let mut named: Vec<_> =
            self.all.iter().map(|(count, what)| Counted { name: name(*what), count: *count }).collect();
        named.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.name.cmp(&b.name)));
        named
    }
}
