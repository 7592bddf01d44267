//! Samples that prove who wrote them, and answers taken apart.
//!
//! ```text
//! chaos_numbered{writer="w", series="s"}   of tenant chaos-t     t = w mod tenants
//!   time  = base + n · step
//!   value = (w · 1000 + s) · 2^32 + n
//! ```
//!
//! Some series are native histograms, and some end and begin anew: see [`super::shape`].
//!
//! So a point says by itself whether its writer could have written it, into this series, at this time; what it cannot
//! say is whether the number was ever attempted. That is for the checkers, who have the history.

use crate::client::Client;
use crate::error::Error;
use crate::history::{Found, Odd, Runs};
use crate::load::seconds;
use crate::wire;
use engram_model::digest::Digest;
use engram_model::{Labels, Millis};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A series of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Its number, if it is one of the writer's.
    series: Option<u32>,
    incarnation: Option<u32>,
    /// All its labels.
    name: String,
    /// Times, and what each sample says of itself.
    points: Vec<(Millis, f64)>,
}

/// Which numbers there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    /// The time of number 0, which is never written.
    pub(crate) base: Millis,
    pub(crate) tenants: u32,
    pub(crate) writers: u32,
    pub(crate) series: u32,
    /// Milliseconds between two numbers.
    pub(crate) step_ms: Millis,
    /// Whether half of the tenants get samples late.
    pub(crate) late: bool,
    /// Whether some series are native histograms, and some end.
    pub(crate) shapes: bool,
}

impl Numbers {
    /// The name of all series.
    pub(crate) const METRIC: &str = "chaos_numbered";

    pub(crate) fn tenant(&self, writer: u32) -> String {
        format!("chaos-{}", writer % self.tenants)
    }

    /// Whether this writer also sends late: its tenant has a window for that.
    pub(crate) fn is_late(&self, writer: u32) -> bool {
        self.late && (writer % self.tenants) % 2 == 1
    }

    /// The labels of a sample's series, sorted.
    fn pairs(&self, writer: u32, series: u32, number: u32) -> Vec<(String, String)> {
        let pair = |name: &str, value: String| (name.to_owned(), value);
        let incarnation = self.incarnation(series, number).map(|of| pair("incarnation", of.to_string()));
        let mut all = vec![pair("__name__", Self::METRIC.to_owned())];
        all.extend(incarnation);
        all.extend([pair("series", series.to_string()), pair("writer", writer.to_string())]);
        all
    }

    /// The digest of the samples of these runs of a series.
    pub(crate) fn digest(&self, writer: u32, series: u32, runs: &[(u32, u32)]) -> Digest {
        let (mut sum, mut of) = (Digest::EMPTY, None);
        for number in runs.iter().flat_map(|(first, last)| *first..=*last) {
            let incarnation = self.incarnation(series, number);
            let hash = match of {
                Some((same, hash)) if same == incarnation => hash,
                _ => Labels::from_pairs(self.pairs(writer, series, number)).hash128(),
            };
            of = Some((incarnation, hash));
            sum.add(self.digest_of(hash, (writer, series, number)));
        }
        sum
    }

    pub(crate) fn time(&self, number: u32) -> Millis {
        self.base + Millis::from(number) * self.step_ms
    }

    pub(crate) fn value(writer: u32, series: u32, number: u32) -> f64 {
        f64::from(writer * 1000 + series) * 4_294_967_296.0 + f64::from(number)
    }

    /// Who wrote a value, if anybody could have: writer, series, number.
    pub(crate) fn writer_of(&self, value: f64) -> Option<(u32, u32, u32)> {
        let whole = (0.0..9_007_199_254_740_992.0).contains(&value) && value.fract() == 0.0;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "looked at just before")]
        let all = if whole { value as u64 } else { return None };
        let who = u32::try_from(all >> 32).ok()?;
        let (writer, series) = (who / 1000, who % 1000);
        let number = u32::try_from(all & 0xffff_ffff).ok()?;
        (writer < self.writers && series < self.series).then_some((writer, series, number))
    }

    /// The request that appends one number to all series of a writer, compressed.
    pub(crate) fn request(&self, writer: u32, number: u32) -> Vec<u8> {
        packed(&wire::first(&self.content(writer, number), self.time(number)))
    }

    /// The same in the second version of the protocol.
    pub(super) fn second_request(&self, writer: u32, number: u32) -> Vec<u8> {
        packed(&wire::second(&self.content(writer, number), self.time(number)))
    }

    /// Whether a writer speaks the second version.
    pub(super) fn speaks_second(&self, writer: u32) -> bool {
        self.late && self.shapes && writer % 3 == 2
    }

    fn content(&self, writer: u32, number: u32) -> Vec<wire::Content> {
        let of = |series| wire::Content {
            pairs: self.pairs(writer, series, number),
            value: Self::value(writer, series, number),
            histogram: self.histogram(writer, series, number),
        };
        (0..self.series).map(of).collect()
    }

    /// Reads the numbers `first..=last` of a writer at one node.
    ///
    /// # Errors
    /// No answer, or not a successful one.
    pub(super) async fn read(&self, client: &Client, writer: u32, first: u32, last: u32) -> Result<Found, Error> {
        let range_ms = self.time(last) - self.time(first) + 1;
        let query = format!("{}{{writer=\"{writer}\"}}[{range_ms}ms]", Self::METRIC);
        let params = [("query", query), ("time", seconds(self.time(last)))];
        let answer = client.ask("query", &params, Some(&self.tenant(writer))).await?;
        Ok(self.found(writer, &answer["data"]["result"]))
    }

    /// Takes an answer apart.
    fn found(&self, writer: u32, result: &Value) -> Found {
        let rows = result.as_array().into_iter().flatten().map(|row| {
            let labels = &row["metric"];
            self.row(writer, |name| labels[name].as_str(), labels.to_string(), self.points(row))
        });
        self.found_in(writer, rows)
    }

    /// A series of an answer by its labels, with times and what each sample says of itself.
    pub(crate) fn row<'a>(
        &self,
        writer: u32,
        label: impl Fn(&str) -> Option<&'a str>,
        name: String,
        points: Vec<(Millis, f64)>,
    ) -> Row {
        let number = |name: &str| label(name).and_then(|text| text.parse::<u32>().ok());
        let mine = number("writer") == Some(writer) && label("__name__") == Some(Self::METRIC);
        let series = number("series").filter(|series| mine && *series < self.series);
        Row { series, incarnation: number("incarnation"), name, points }
    }

    /// Takes the series of an answer apart.
    pub(crate) fn found_in(&self, writer: u32, rows: impl Iterator<Item = Row>) -> Found {
        let (mut by_series, mut odd): (BTreeMap<u32, Runs>, _) = (BTreeMap::new(), Vec::new());
        let mut told = BTreeSet::new();
        for row in rows {
            let again = !told.insert((row.series, row.incarnation));
            let runs = self.runs(writer, &row, again && row.series.is_some(), &mut odd);
            if let Some(series) = row.series {
                by_series.entry(series).or_default().extend(runs);
            }
        }
        let mut by_runs: BTreeMap<Runs, Vec<u32>> = BTreeMap::new();
        for (series, runs) in by_series {
            by_runs.entry(joined(runs)).or_default().push(series);
        }
        let mut groups: Vec<(Vec<u32>, Runs)> = by_runs.into_iter().map(|(runs, series)| (series, runs)).collect();
        groups.sort();
        Found { groups, odd }
    }

    /// The numbers of one series of an answer; `again`: it was in there before.
    fn runs(&self, writer: u32, row: &Row, again: bool, odd: &mut Vec<Odd>) -> Runs {
        let (mut runs, mut before) = (Runs::new(), None);
        for (at, value) in &row.points {
            let doubled = again || before.is_some_and(|before| *at <= before);
            before = Some(*at);
            let number = u32::try_from((at - self.base) / self.step_ms).unwrap_or(0);
            let told = row.series.is_some_and(|s| {
                self.time(number) == *at
                    && number > 0
                    && self.incarnation(s, number) == row.incarnation
                    && Self::value(writer, s, number).to_bits() == value.to_bits()
            });
            if doubled || !told {
                odd.push(Odd { series: row.name.clone(), at_ms: *at, bits: value.to_bits(), doubled });
                continue;
            }
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => runs.push((number, number)),
            }
        }
        runs
    }
}

/// Runs of several lives of a series as those of one.
fn joined(mut runs: Runs) -> Runs {
    runs.sort_unstable();
    let mut all = Runs::new();
    for (first, last) in runs {
        match all.last_mut() {
            Some((_, end)) if *end + 1 == first => *end = last,
            _ => all.push((first, last)),
        }
    }
    all
}

fn packed(body: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(body).unwrap_or_else(|e| unreachable!("a request is small: {e}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    pub(in crate::workload) const NUMBERS: Numbers =
        Numbers { base: 1_790_000_000_000, tenants: 2, writers: 8, series: 8, step_ms: 10, late: true, shapes: true };

    fn row(series: u32, points: &[(u32, f64)]) -> Value {
        let point = |(n, value): &(u32, f64)| {
            let at = seconds(NUMBERS.time(*n)).parse::<f64>().unwrap();
            json!([at, value.to_string()])
        };
        let values: Vec<Value> = points.iter().map(point).collect();
        json!({"metric": {"__name__": Numbers::METRIC, "writer": "3", "series": series.to_string()}, "values": values})
    }

    #[test]
    fn an_answer_becomes_runs_and_what_is_odd_is_kept() {
        let value = |n| Numbers::value(3, 0, n);
        let points = [(1, value(1)), (2, value(2)), (4, value(4)), (5, value(6)), (6, value(6)), (6, value(6))];
        let found = NUMBERS.found(3, &json!([row(0, &points)]));
        assert_eq!(found.groups, [(vec![0], vec![(1, 2), (4, 4), (6, 6)])]);
        let odd: Vec<_> = found.odd.iter().map(|odd| (odd.at_ms, odd.doubled)).collect();
        assert_eq!(odd, [(NUMBERS.time(5), false), (NUMBERS.time(6), true)]);
    }

    #[test]
    fn a_value_says_who_wrote_it() {
        assert_eq!(NUMBERS.writer_of(Numbers::value(7, 2, 99)), Some((7, 2, 99)));
        for value in [f64::NAN, -1.0, 0.5, 1e300, Numbers::value(8, 0, 1), Numbers::value(1, 8, 1)] {
            assert_eq!(NUMBERS.writer_of(value), None, "{value}");
        }
        assert!(NUMBERS.is_late(3) && !NUMBERS.is_late(4));
    }

    #[test]
    fn lives_of_a_series_become_one_and_a_number_in_the_wrong_life_is_odd() {
        let value = |n| Numbers::value(3, 2, n);
        let life = |of: u32, numbers: &[u32]| {
            let points: Vec<_> = numbers.iter().map(|n| (*n, value(*n))).collect();
            let mut row = row(2, &points);
            row["metric"]["incarnation"] = json!(of.to_string());
            row
        };
        let found = NUMBERS.found(3, &json!([life(1, &[26, 27, 50]), life(0, &[24, 25])]));
        assert_eq!(found, Found { groups: vec![(vec![2], vec![(24, 27), (50, 50)])], odd: Vec::new() });
        let found = NUMBERS.found(3, &json!([life(0, &[25, 26]), life(0, &[25]), row(2, &[(1, value(1))])]));
        assert_eq!(found.groups, [(vec![2], vec![(25, 25)])]);
        let odd: Vec<_> = found.odd.iter().map(|odd| (odd.at_ms, odd.doubled)).collect();
        assert_eq!(odd, [(NUMBERS.time(26), false), (NUMBERS.time(25), true), (NUMBERS.time(1), false)]);
    }

    #[test]
    fn digests_follow_the_lives_of_a_series() {
        let both = NUMBERS.digest(3, 2, &[(20, 30)]);
        let mut sum = NUMBERS.digest(3, 2, &[(20, 25)]);
        sum.add(NUMBERS.digest(3, 2, &[(26, 30)]));
        assert_eq!((both, both.count), (sum, 11));
        let hash =
            Labels::from_pairs([("__name__", Numbers::METRIC), ("incarnation", "1"), ("series", "2"), ("writer", "3")]);
        let one = Digest::of_float(hash.hash128(), NUMBERS.time(26), Numbers::value(3, 2, 26));
        assert_eq!(NUMBERS.digest(3, 2, &[(26, 26)]), one);
    }
}
