//! `label_replace` and `label_join`: the rows stay, their labels change.

use engram_model::labels::METRIC_NAME;

use crate::error::Error;
use crate::functions::labels::{Replacer, check_join, join};
use crate::plan::Call;

use super::call::text_of;
use super::eval::{Evaluator, weight};
use super::pace::Pace;
use super::row::{Row, Steps};

/// What a call does to one row.
type Change<'a> = Box<dyn Fn(&Row) -> Result<Option<String>, Error> + 'a>;

/// Bytes that weigh as much as one sample.
const SAMPLE_BYTES: usize = 16;
/// Work of a match that counts as one unit.
const WORK_OF_TICK: usize = 1 << 14;

impl Evaluator<'_> {
    /// Either function.
    pub(super) fn relabelled(&self, call: &Call, steps: Steps) -> Result<Vec<Row>, Error> {
        let [vector, rest @ ..] = call.args.as_slice() else {
            return Err(Error::Execution(format!("{} lacks an argument", call.func)));
        };
        let texts = rest.iter().map(text_of).collect::<Result<Vec<_>, _>>()?;
        // Not earlier: calls nest, and a compiled expression is large.
        let mut rows = self.rows(vector, steps)?;
        let (target, change) = change(call.func, &texts, &self.pace)?;
        self.release(weight(&rows));
        for row in &mut rows {
            self.tick(1)?;
            let Some(value) = change(row)? else { continue };
            // Labels stay as long as the query, so what is made here is never given back to its budget.
            let labels_bytes = row.labels.as_bytes().len() + value.len();
            let held = (labels_bytes / SAMPLE_BYTES) as u64;
            self.tick(held)?;
            self.hold(held)?;
            row.labels = row.labels.to_builder().set(target, &value).build();
            row.drop_name &= target != METRIC_NAME;
        }
        self.merged_kinds(rows, vector)
    }
}

fn change<'a>(func: &str, texts: &'a [String], pace: &'a Pace<'_>) -> Result<(&'a str, Change<'a>), Error> {
    match (func, texts) {
        ("label_replace", [target, template, source, pattern]) => {
            let replacer = Replacer::new(target, template, pattern).map_err(Error::Execution)?;
            let value = move |row: &Row| {
                let value = row.labels.get(source).unwrap_or_default();
                pace.tick((replacer.work(value) / WORK_OF_TICK) as u64)?;
                replacer.apply(value).map_err(Error::Execution)
            };
            Ok((target, Box::new(value)))
        }
        ("label_join", [target, separator, sources @ ..]) => {
            check_join(target, sources.iter().map(String::as_str)).map_err(Error::Execution)?;
            let value = move |row: &Row| {
                let values = sources.iter().map(|name| row.labels.get(name).unwrap_or_default());
                join(values, separator).map(Some).map_err(Error::Execution)
            };
            Ok((target, Box::new(value)))
        }
        _ => Err(Error::Execution(format!("{func} has too few arguments"))),
    }
}
