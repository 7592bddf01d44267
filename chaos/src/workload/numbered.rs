//! Samples that prove who wrote them, and answers taken apart.
//!
//! ```text
//! chaos_numbered{writer="w", series="s"}   of tenant chaos-t     t = w mod tenants
//!   time  = base + n · step
//!   value = (w · 1000 + s) · 2^32 + n
//! ```
//!
//! So a point says by itself whether its writer could have written it, into this series, at this time; what it cannot
//! say is whether the number was ever attempted. That is for the checkers, who have the history.

use crate::client::Client;
use crate::error::Error;
use crate::history::{Found, Odd, Runs};
use crate::load::{points, seconds};
use crate::wire;
use engram_model::{Labels, Millis};
use serde_json::Value;
use std::collections::BTreeMap;

/// A series of an answer: its number, its labels, its points.
type Row = (Option<u32>, String, Vec<(Millis, f64)>);

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

    pub(crate) fn labels(writer: u32, series: u32) -> Labels {
        let (writer, series) = (writer.to_string(), series.to_string());
        Labels::from_pairs([("__name__", Self::METRIC), ("series", series.as_str()), ("writer", writer.as_str())])
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
        let mut body = Vec::with_capacity(self.series as usize * 80);
        for series in 0..self.series {
            let labels = [
                ("__name__".to_owned(), Self::METRIC.to_owned()),
                ("series".to_owned(), series.to_string()),
                ("writer".to_owned(), writer.to_string()),
            ];
            let value_at = wire::put_series(&mut body, &labels);
            wire::patch(&mut body, value_at, self.time(number), Self::value(writer, series, number));
        }
        snap::raw::Encoder::new().compress_vec(&body).unwrap_or_else(|e| unreachable!("a request is small: {e}"))
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
            let text = |name: &str| labels[name].as_str().unwrap_or_default();
            let mine = text("writer").parse() == Ok(writer) && text("__name__") == Self::METRIC;
            let series = text("series").parse::<u32>().ok().filter(|s| mine && *s < self.series);
            (series, labels.to_string(), points(&row["values"]))
        });
        self.found_in(writer, rows)
    }

    /// Takes the series of an answer apart: the number of each, if it is one of the writer's, its labels and its points.
    pub(crate) fn found_in(&self, writer: u32, rows: impl Iterator<Item = Row>) -> Found {
        let (mut by_runs, mut odd): (BTreeMap<Runs, Vec<u32>>, _) = (BTreeMap::new(), Vec::new());
        for (series, labels, points) in rows {
            let runs = self.runs(writer, series, &labels, &points, &mut odd);
            if let Some(series) = series {
                by_runs.entry(runs).or_default().push(series);
            }
        }
        let mut groups: Vec<(Vec<u32>, Runs)> = by_runs.into_iter().map(|(runs, series)| (series, runs)).collect();
        groups.iter_mut().for_each(|(series, _)| series.sort_unstable());
        groups.sort();
        Found { groups, odd }
    }

    fn runs(&self, writer: u32, series: Option<u32>, name: &str, points: &[(Millis, f64)], odd: &mut Vec<Odd>) -> Runs {
        let (mut runs, mut before) = (Runs::new(), None);
        for (at, value) in points {
            let doubled = before.is_some_and(|before| *at <= before);
            before = Some(*at);
            let number = u32::try_from((at - self.base) / self.step_ms).unwrap_or(0);
            let told = series.is_some_and(|s| {
                self.time(number) == *at && number > 0 && Self::value(writer, s, number).to_bits() == value.to_bits()
            });
            if doubled || !told {
                odd.push(Odd { series: name.to_owned(), at_ms: *at, bits: value.to_bits(), doubled });
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NUMBERS: Numbers =
        Numbers { base: 1_790_000_000_000, tenants: 2, writers: 8, series: 3, step_ms: 10, late: true };

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
        let value = |n| Numbers::value(3, 1, n);
        let points = [(1, value(1)), (2, value(2)), (4, value(4)), (5, value(6)), (6, value(6)), (6, value(6))];
        let found = NUMBERS.found(3, &json!([row(1, &points)]));
        assert_eq!(found.groups, [(vec![1], vec![(1, 2), (4, 4), (6, 6)])]);
        let odd: Vec<_> = found.odd.iter().map(|odd| (odd.at_ms, odd.doubled)).collect();
        assert_eq!(odd, [(NUMBERS.time(5), false), (NUMBERS.time(6), true)]);
    }

    #[test]
    fn a_value_says_who_wrote_it() {
        assert_eq!(NUMBERS.writer_of(Numbers::value(7, 2, 99)), Some((7, 2, 99)));
        for value in [f64::NAN, -1.0, 0.5, 1e300, Numbers::value(8, 0, 1), Numbers::value(1, 3, 1)] {
            assert_eq!(NUMBERS.writer_of(value), None, "{value}");
        }
        assert!(NUMBERS.is_late(3) && !NUMBERS.is_late(4));
    }
}
