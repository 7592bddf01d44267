//! What a series consists of: floats or native histograms, and whether it ends and begins anew under another name.
//!
//! ```text
//! series mod 8     samples                                              label `incarnation`
//!   0, 4, 6, 7     floats                                               –
//!   1              histograms of whole counts                           –
//!   2              floats                                               (n - 1) / 25: it ends, and a new one begins
//!   3              histograms of broken counts                          (n - 1) / 25
//!   5              histograms with boundaries of their own              –
//! ```
//!
//! The sum of a histogram is what a float in its place would be, so it names its writer, series and number; counts and
//! buckets follow from these, and now and then a histogram has a bucket more than the one before. An answer is taken for
//! that number only when all of it is as it was sent.

use super::Numbers;
use engram_model::Millis;
use engram_model::digest::Digest;
use engram_model::histogram::{BucketSpan, CUSTOM_BUCKETS_SCHEMA, Histogram};
use serde_json::Value;

/// Numbers of a series until it ends, where it does.
const LIFE: u32 = 25;
/// Upper boundaries of the buckets of those that have their own.
const OWN: [f64; 3] = [1.0, 2.5, 10.0];

/// A bucket as the query API tells it: from, to, count.
type Bucket = (f64, f64, f64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Float,
    Whole,
    Broken,
    Own,
}

impl Numbers {
    fn kind(&self, series: u32) -> Kind {
        match series % 8 {
            1 if self.shapes => Kind::Whole,
            3 if self.shapes => Kind::Broken,
            5 if self.shapes => Kind::Own,
            _ => Kind::Float,
        }
    }

    /// Which life of its series a number belongs to; none: the series does not end.
    pub(super) fn incarnation(&self, series: u32, number: u32) -> Option<u32> {
        (self.shapes && matches!(series % 8, 2 | 3)).then_some(number.saturating_sub(1) / LIFE)
    }

    /// A series of histograms of whole counts, if there is one.
    pub(crate) fn observed(&self) -> Option<u32> {
        (0..self.series).find(|series| self.kind(*series) == Kind::Whole)
    }

    /// The last series of floats.
    pub(crate) fn last_float(&self) -> u32 {
        (0..self.series).rfind(|series| self.kind(*series) == Kind::Float).unwrap_or(0)
    }

    /// The histogram that is sent; none: a float is.
    pub(crate) fn histogram(&self, writer: u32, series: u32, number: u32) -> Option<Histogram> {
        let kind = self.kind(series);
        let odd = if kind == Kind::Broken { 0.5 } else { 0.0 };
        let counts = [number % 5, number / 5 % 7, writer % 3, number % 4].map(|count| f64::from(count + 1) + odd);
        let [a, b, c, d] = counts;
        // One in sixteen has a bucket more: what keeps them together must not make all of them alike.
        let (wider, sum) = (number.is_multiple_of(16), Self::value(writer, series, number));
        let span = |offset, length| BucketSpan { offset, length };
        let made = match kind {
            Kind::Float => return None,
            Kind::Whole | Kind::Broken => Histogram {
                integer: kind == Kind::Whole,
                zero_threshold: 0.5,
                zero_count: d,
                positive_spans: vec![span(1, 1), span(2, if wider { 2 } else { 1 })],
                positive_buckets: if wider { vec![a, b, a] } else { vec![a, b] },
                negative_spans: vec![span(2, 1)],
                negative_buckets: vec![c],
                ..Histogram::default()
            },
            Kind::Own => Histogram {
                integer: true,
                schema: CUSTOM_BUCKETS_SCHEMA,
                custom_values: OWN.to_vec(),
                positive_spans: vec![span(1, if wider { 3 } else { 2 })],
                positive_buckets: if wider { vec![a, b, c] } else { vec![a, b] },
                ..Histogram::default()
            },
        };
        let buckets = made.positive_buckets.iter().chain(&made.negative_buckets).sum::<f64>();
        Some(Histogram { count: buckets + made.zero_count, sum, ..made })
    }

    /// The digest of one sample of a series whose labels have this hash.
    pub(crate) fn digest_of(&self, hash: u128, (writer, series, number): (u32, u32, u32)) -> Digest {
        let at = self.time(number);
        match self.histogram(writer, series, number) {
            Some(histogram) => Digest::of_histogram(hash, at, &histogram),
            None => Digest::of_float(hash, at, Self::value(writer, series, number)),
        }
    }

    /// What a float says of itself: itself where a float belongs.
    pub(crate) fn told_float(&self, value: f64) -> f64 {
        match self.writer_of(value) {
            Some((_, series, _)) if self.kind(series) != Kind::Float => f64::NAN,
            _ => value,
        }
    }

    /// What a histogram says of itself: its sum when all of it is what its sum says, else no number.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn told_histogram(&self, told: &Histogram) -> f64 {
        self.told(told.sum, |sent| sent == told)
    }

    /// The same of one as the query API writes it.
    fn told_json(&self, told: &Value) -> f64 {
        let number = |value: &Value| value.as_str().and_then(|text| text.parse::<f64>().ok());
        let bucket = |row: &Value| Some((number(&row[1])?, number(&row[2])?, number(&row[3])?));
        let rows = told["buckets"].as_array().map_or(&[][..], Vec::as_slice);
        let (Some(sum), Some(count)) = (number(&told["sum"]), number(&told["count"])) else { return f64::NAN };
        let Some(buckets) = rows.iter().map(bucket).collect::<Option<Vec<Bucket>>>() else { return f64::NAN };
        self.told(sum, |sent| sent.count.to_bits() == count.to_bits() && buckets_of(sent) == buckets)
    }

    fn told(&self, sum: f64, is: impl Fn(&Histogram) -> bool) -> f64 {
        let sent = self.writer_of(sum).and_then(|(writer, series, number)| self.histogram(writer, series, number));
        if sent.is_some_and(|sent| is(&sent)) { sum } else { f64::NAN }
    }

    /// The points of one row of an answer, floats and histograms, each as what it says of itself.
    pub(super) fn points(&self, row: &Value) -> Vec<(Millis, f64)> {
        let floats = crate::load::points(&row["values"]);
        let mut all: Vec<_> = floats.into_iter().map(|(at, value)| (at, self.told_float(value))).collect();
        let Some(histograms) = row["histograms"].as_array() else { return all };
        for pair in histograms {
            let time = crate::load::points(&serde_json::json!([[pair[0], "0"]]));
            all.extend(time.first().map(|(at, _)| (*at, self.told_json(&pair[1]))));
        }
        all.sort_by_key(|(at, _)| *at);
        all
    }
}

/// The buckets of a histogram of ours, upwards, by their boundaries.
fn buckets_of(histogram: &Histogram) -> Vec<Bucket> {
    let mut all = Vec::new();
    let indexed = |spans: &[BucketSpan]| {
        let mut index = 0;
        let mut of = Vec::new();
        for span in spans {
            index += span.offset;
            for _ in 0..span.length {
                of.push(index);
                index += 1;
            }
        }
        of
    };
    let own = |index: i32| usize::try_from(index).ok().and_then(|index| OWN.get(index).copied());
    let upper = |index: i32| {
        if histogram.is_custom() { own(index).unwrap_or(f64::INFINITY) } else { 2.0_f64.powi(index) }
    };
    let negative = indexed(&histogram.negative_spans).into_iter().zip(&histogram.negative_buckets);
    all.extend(negative.rev().map(|(index, count)| (-upper(index), -upper(index - 1), *count)));
    if histogram.zero_count > 0.0 {
        all.push((-histogram.zero_threshold, histogram.zero_threshold, histogram.zero_count));
    }
    let positive = indexed(&histogram.positive_spans).into_iter().zip(&histogram.positive_buckets);
    all.extend(positive.map(|(index, count)| (upper(index - 1), upper(index), *count)));
    all
}

#[cfg(test)]
mod tests {
    use super::super::numbered::tests::NUMBERS;
    use super::*;
    use serde_json::json;

    fn as_json(histogram: &Histogram) -> Value {
        let row = |(from, to, count): &Bucket| json!([0, from.to_string(), to.to_string(), count.to_string()]);
        let buckets: Vec<Value> = buckets_of(histogram).iter().map(row).collect();
        json!({ "count": histogram.count.to_string(), "sum": histogram.sum.to_string(), "buckets": buckets })
    }

    #[test]
    fn a_histogram_is_known_by_all_of_it() {
        for series in [1, 3, 5] {
            for number in [1, 16, 31] {
                let sent = NUMBERS.histogram(3, series, number).unwrap();
                let value = Numbers::value(3, series, number);
                assert_eq!(NUMBERS.told_json(&as_json(&sent)).to_bits(), value.to_bits());
                assert_eq!(NUMBERS.told_histogram(&sent).to_bits(), value.to_bits());
                let changes: [fn(&mut Histogram); 3] =
                    [|h| h.count += 1.0, |h| h.positive_buckets[0] += 1.0, |h| h.sum += 1.0];
                for change in changes {
                    let mut other = sent.clone();
                    change(&mut other);
                    assert!(NUMBERS.told_json(&as_json(&other)).is_nan(), "{series} {number}");
                    assert!(NUMBERS.told_histogram(&other).is_nan());
                }
            }
        }
        assert!(NUMBERS.told_json(&json!({})).is_nan() && NUMBERS.told_json(&json!("1")).is_nan());
        assert!(NUMBERS.told_float(Numbers::value(3, 1, 7)).is_nan(), "a float in the place of a histogram");
        assert_eq!(NUMBERS.told_float(Numbers::value(3, 0, 7)).to_bits(), Numbers::value(3, 0, 7).to_bits());
    }

    #[test]
    fn buckets_have_the_boundaries_of_the_schema() {
        let whole = NUMBERS.histogram(0, 1, 16).unwrap();
        let want = [(-4.0, -2.0, 1.0), (-0.5, 0.5, 1.0), (1.0, 2.0, 2.0), (8.0, 16.0, 4.0), (16.0, 32.0, 2.0)];
        assert_eq!((buckets_of(&whole), whole.count), (want.to_vec(), 10.0));
        let own = NUMBERS.histogram(0, 5, 16).unwrap();
        assert_eq!(buckets_of(&own), [(1.0, 2.5, 2.0), (2.5, 10.0, 4.0), (10.0, f64::INFINITY, 1.0)]);
    }

    #[test]
    fn without_shapes_all_are_floats_that_never_end() {
        let plain = Numbers { shapes: false, ..NUMBERS };
        assert!(
            (0..8).all(|series| plain.histogram(0, series, 1).is_none() && plain.incarnation(series, 99).is_none())
        );
        assert_eq!((plain.observed(), NUMBERS.observed(), NUMBERS.last_float()), (None, Some(1), 7));
        assert_eq!((NUMBERS.incarnation(2, 25), NUMBERS.incarnation(2, 26)), (Some(0), Some(1)));
    }
}
