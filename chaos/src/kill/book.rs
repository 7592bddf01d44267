//! The book of one writer: which numbers it wrote and how each ended. The truth that reads are held against.

use super::offset;
use crate::client::{Client, Ending};
use crate::error::Error;
use crate::load::{points, seconds};
use engram_model::Labels;
use engram_model::digest::Digest;
use engram_model::time::Millis;
use serde_json::Value;
use std::collections::BTreeSet;

/// The metric all writers share.
const METRIC: &str = "chaos_numbered";

/// What one writer knows.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) writer: usize,
    pub(super) series: usize,
    /// Requests that were refused: this writer never sends what may be refused.
    pub(super) refused: Vec<String>,
    base: Millis,
    next: u32,
    acknowledged: BTreeSet<u32>,
    unknown: BTreeSet<u32>,
}

impl Book {
    /// An empty book; its first sample stands at `base` + 1 ms.
    pub(super) fn new(writer: usize, series: usize, base: Millis) -> Self {
        let none = BTreeSet::new;
        Self { writer, series, refused: Vec::new(), base, next: 0, acknowledged: none(), unknown: none() }
    }

    /// A number nobody has used.
    pub(super) fn next(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// The time of the samples of a number.
    pub(super) fn time(&self, number: u32) -> Millis {
        self.base + offset(number)
    }

    /// The value that only this writer writes, only into this series, only at this number.
    pub(super) fn value(&self, series: usize, number: u32) -> f64 {
        let who = u32::try_from(self.writer * 1000 + series).unwrap_or(u32::MAX);
        f64::from(who) * 4_294_967_296.0 + f64::from(number)
    }

    /// The labels of one of its series, sorted by name.
    pub(super) fn labels(&self, series: usize) -> Vec<(String, String)> {
        vec![
            ("__name__".into(), METRIC.into()),
            ("series".into(), series.to_string()),
            ("writer".into(), self.writer.to_string()),
        ]
    }

    /// Writes down how a request ended. One that was sent again and acknowledged is no longer unknown.
    pub(super) fn note(&mut self, number: u32, ending: Ending) {
        match ending {
            Ending::Acknowledged => {
                self.unknown.remove(&number);
                self.acknowledged.insert(number);
            }
            Ending::Unknown(_) => {
                self.unknown.insert(number);
            }
            Ending::Refused(reason) => {
                self.unknown.insert(number);
                self.refused.push(reason);
            }
        }
    }

    /// The first number without a known end after everything acknowledged: what a client would send again. An older
    /// one would rightly be refused, as out of order.
    pub(super) fn in_flight(&self) -> Option<u32> {
        let after = self.acknowledged.last().copied().unwrap_or(0);
        self.unknown.iter().copied().find(|number| *number > after)
    }

    /// Samples acknowledged and unknown.
    pub(super) fn totals(&self) -> (usize, usize) {
        (self.acknowledged.len() * self.series, self.unknown.len() * self.series)
    }

    /// Reads all series of this writer and says what differs.
    ///
    /// # Errors
    /// The server did not answer.
    pub(super) async fn compare(&self, client: &Client, digest: &mut Digest) -> Result<Vec<String>, Error> {
        if self.next == 0 {
            return Ok(Vec::new());
        }
        // Beyond both ends of what was written, so that an invented sample shows too.
        let query = format!("{METRIC}{{writer=\"{}\"}}[{}ms]", self.writer, offset(self.next) + 2_000);
        let time = seconds(self.time(self.next) + 1_000);
        let answer = client.ask("query", &[("query", query), ("time", time)], None).await?;
        let result = &answer["data"]["result"];
        digest.add(digest_of(result));
        Ok(self.differences(result))
    }

    fn differences(&self, result: &Value) -> Vec<String> {
        let mut findings = Vec::new();
        let mut seen = BTreeSet::new();
        for found in result.as_array().into_iter().flatten() {
            let labels = &found["metric"];
            let series = labels["series"].as_str().and_then(|text| text.parse::<usize>().ok());
            let Some(series) = series.filter(|s| *s < self.series && labels.as_object().is_some_and(|l| l.len() == 3))
            else {
                findings.push(format!("a series that nobody wrote: {labels}"));
                continue;
            };
            if !seen.insert(series) {
                findings.push(format!("series {labels} is answered twice"));
            }
            self.compare_series(series, &points(&found["values"]), &mut findings);
        }
        if !self.acknowledged.is_empty() {
            let missing = (0..self.series).filter(|series| !seen.contains(series));
            findings.extend(missing.map(|series| format!("writer {}: all of series {series} is missing", self.writer)));
        }
        findings
    }

    fn compare_series(&self, series: usize, stored: &[(Millis, f64)], findings: &mut Vec<String>) {
        let who = format!("writer {} series {series}", self.writer);
        if let Some(pair) = stored.windows(2).find(|pair| pair[1].0 <= pair[0].0) {
            findings.push(format!("{who}: time {} follows {}", pair[1].0, pair[0].0));
        }
        let mut numbers = BTreeSet::new();
        for (at, value) in stored {
            let number = u32::try_from(at - self.base).unwrap_or(0);
            let known = self.acknowledged.contains(&number) || self.unknown.contains(&number);
            if !known {
                findings.push(format!("{who}: a sample at {at} ({value}) that nobody wrote"));
            } else if value.to_bits() != self.value(series, number).to_bits() {
                findings.push(format!("{who}: number {number} has value {value}"));
            }
            numbers.insert(number);
        }
        let lost: Vec<u32> = self.acknowledged.difference(&numbers).copied().collect();
        if let (Some(first), Some(last)) = (lost.first(), lost.last()) {
            findings.push(format!("{who}: {} acknowledged samples lost, numbers {first} to {last}", lost.len()));
        }
    }
}

/// The digest of all samples of an answer, as the node must have kept it.
fn digest_of(result: &Value) -> Digest {
    let mut sum = Digest::EMPTY;
    for found in result.as_array().into_iter().flatten() {
        let pairs = found["metric"].as_object().into_iter().flatten();
        let labels = Labels::from_pairs(pairs.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))));
        let hash = labels.hash128();
        for (at, value) in points(&found["values"]) {
            sum.add(Digest::of_float(hash, at, value));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(book: &Book, numbers: &[u32]) -> Value {
        #[allow(clippy::cast_precision_loss, reason = "test")]
        let values: Vec<Value> =
            numbers.iter().map(|n| json!([book.time(*n) as f64 / 1000.0, book.value(0, *n).to_string()])).collect();
        json!([{"metric": {"__name__": METRIC, "writer": "3", "series": "0"}, "values": values}])
    }

    fn book() -> Book {
        let mut book = Book::new(3, 1, 1_790_000_000_000);
        for ending in [Ending::Acknowledged, Ending::Acknowledged, Ending::Unknown(String::new())] {
            let number = book.next();
            book.note(number, ending);
        }
        book
    }

    #[test]
    fn an_unknown_end_may_be_there_or_not() {
        let book = book();
        assert_eq!(book.differences(&answer(&book, &[1, 2])), Vec::<String>::new());
        assert_eq!(book.differences(&answer(&book, &[1, 2, 3])), Vec::<String>::new());
    }

    #[test]
    fn a_lost_a_doubled_and_an_invented_sample_are_found() {
        let book = book();
        for (numbers, word) in [(&[1, 3][..], "lost"), (&[1, 1, 2], "follows"), (&[1, 2, 4], "nobody wrote")] {
            let findings = book.differences(&answer(&book, numbers));
            assert!(findings.len() == 1 && findings[0].contains(word), "{findings:?}");
        }
        assert_eq!(book.differences(&json!([])).len(), 1);
    }

    #[test]
    fn sending_again_settles_an_unknown_end() {
        let mut book = book();
        assert_eq!(book.in_flight(), Some(3));
        book.note(3, Ending::Acknowledged);
        assert_eq!(book.in_flight(), None);
        assert_eq!(book.totals(), (3, 0));
        assert_eq!(book.differences(&answer(&book, &[1, 2])).len(), 1);
    }
}
