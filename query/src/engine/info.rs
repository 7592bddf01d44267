//! `info`: labels of info series (`target_info` and others) added to the series they are about.
//!
//! Info series belong to a series with the same `instance` and `job`. Where several of one name fit, the one with the
//! newest sample counts; two equally new ones are an error.
//!
//! Source: `prometheus promql/info.go`, Prometheus 3.14.

use std::collections::{BTreeMap, BTreeSet};

use engram_model::labels::METRIC_NAME;
use engram_model::{Labels, Matcher};
use hashbrown::HashMap;

use crate::error::Error;
use crate::functions::Point;
use crate::plan::{Call, Node, info_names};

use super::eval::{Evaluator, weight};
use super::pace::Pace;
use super::row::{Collector, Row, Steps};
use super::select::Take;

/// Labels that say whom an info series is about. Upstream has them fixed, too.
const IDENTIFYING: [&str; 2] = ["instance", "job"];

/// Values of [`IDENTIFYING`].
type Identity = [Option<String>; 2];

fn identity(labels: &Labels) -> Identity {
    IDENTIFYING.map(|name| labels.get(name).map(str::to_owned))
}

/// Info series by name and identity.
type Known = BTreeMap<String, HashMap<Identity, Vec<usize>>>;

impl Evaluator<'_> {
    /// The whole function.
    pub(super) fn info(&self, call: &Call, steps: Steps) -> Result<Vec<Row>, Error> {
        let Some(vector) = call.args.first() else {
            return Err(Error::Execution("info lacks an argument".to_owned()));
        };
        let base = self.rows(vector, steps)?;
        let held = weight(&base);
        let (names, wanted) = matchers(call);
        let names = info_names(&names);
        let is_info = |row: &Row| names.iter().all(|m| m.matches(row.labels.metric_name()));
        let ignored = base.iter().map(is_info).collect::<Vec<_>>();
        let infos = self.info_rows(call, &base, &ignored, steps)?;
        let mut enriched = Enriched {
            base: &base,
            infos: &infos,
            wanted: &wanted,
            out: Collector::new(steps, false),
            made: HashMap::new(),
        };
        let known = known(&infos);
        // A series whose info series change is a row for each set of them: each is asked for when it is made.
        let row_weight = steps.count as u64 / 2 + 16;
        for step in 0..steps.count {
            for (i, row) in base.iter().enumerate() {
                self.tick(1)?;
                let Some(point) = row.column.get(step) else { continue };
                let found = if ignored[i] { None } else { Some(newest(&known, &infos, row, step, &self.pace)?) };
                let made = enriched.out.rows.len();
                enriched.put(i, found, step, point)?;
                self.hold((enriched.out.rows.len() - made) as u64 * row_weight)?;
            }
        }
        self.release(enriched.out.rows.len() as u64 * row_weight);
        self.release(held);
        self.release(weight(&infos));
        Ok(enriched.out.finish())
    }

    /// The info series that can be about any of `base`, with the times of their samples in milliseconds as values.
    fn info_rows(&self, call: &Call, base: &[Row], ignored: &[bool], steps: Steps) -> Result<Vec<Row>, Error> {
        let mut values: [BTreeSet<&str>; 2] = Default::default();
        for row in base.iter().zip(ignored).filter(|(_, ignored)| !**ignored).map(|(row, _)| row) {
            for (name, values) in IDENTIFYING.iter().zip(&mut values) {
                values.extend(row.labels.get(name));
            }
        }
        let Some(selector) = call.info.as_ref().filter(|_| values.iter().any(|v| !v.is_empty())) else {
            return Ok(Vec::new());
        };
        let mut infos = Vec::new();
        self.stream_taken(selector, Take::Millis, steps, &mut |labels, row| {
            let fits = |name: &str, values: &BTreeSet<&str>| {
                values.is_empty() || values.contains(labels.get(name).unwrap_or_default())
            };
            if IDENTIFYING.iter().zip(&values).all(|(name, values)| fits(name, values)) {
                self.look_at_column(&row.column, row.column.present.count() as u64);
                self.hold(row.column.weight())?;
                infos.push(std::mem::take(row));
            }
            Ok(())
        })?;
        Ok(infos)
    }
}

/// The matchers of the second argument: of the name, and of other labels by name.
fn matchers(call: &Call) -> (Vec<Matcher>, BTreeMap<String, Vec<Matcher>>) {
    let mut names = Vec::new();
    let mut wanted: BTreeMap<String, Vec<Matcher>> = BTreeMap::new();
    if let Some(Node::Instant(selector)) = call.args.get(1) {
        for matcher in &selector.matchers {
            match &*matcher.name == METRIC_NAME {
                true => names.push(matcher.clone()),
                false => wanted.entry(matcher.name.to_string()).or_default().push(matcher.clone()),
            }
        }
    }
    (names, wanted)
}

fn known(infos: &[Row]) -> Known {
    let mut known = Known::new();
    for (i, row) in infos.iter().enumerate() {
        let by_identity = known.entry(row.labels.metric_name().to_owned()).or_default();
        by_identity.entry(identity(&row.labels)).or_default().push(i);
    }
    known
}

/// The info series about a series at a step: of each name the newest.
fn newest(known: &Known, infos: &[Row], row: &Row, step: usize, pace: &Pace<'_>) -> Result<Vec<usize>, Error> {
    let identity = identity(&row.labels);
    let mut found = Vec::new();
    for by_identity in known.values() {
        let Some(candidates) = by_identity.get(&identity) else { continue };
        pace.tick(candidates.len() as u64 / 4)?;
        let mut best: Option<usize> = None;
        for i in candidates.iter().copied().filter(|i| infos[*i].column.present.has(step)) {
            let at = |i: usize| infos[i].column.values[step];
            match best {
                Some(have) if at(have) > at(i) => {}
                Some(have) if at(have) == at(i) => {
                    return Err(Error::Execution(format!(
                        "found duplicate series for info metric: existing {} @ {}, new {} @ {}",
                        infos[have].labels,
                        at(have),
                        infos[i].labels,
                        at(i)
                    )));
                }
                _ => best = Some(i),
            }
        }
        found.extend(best);
    }
    Ok(found)
}

/// The answer in the making.
struct Enriched<'a> {
    base: &'a [Row],
    infos: &'a [Row],
    wanted: &'a BTreeMap<String, Vec<Matcher>>,
    out: Collector,
    /// Output row of a series and its info series; `None`: it is dropped.
    made: HashMap<(usize, Option<Vec<usize>>), Option<usize>>,
}

impl Enriched<'_> {
    fn put(&mut self, base: usize, found: Option<Vec<usize>>, step: usize, point: Point) -> Result<(), Error> {
        let key = (base, found);
        let row = match self.made.get(&key) {
            Some(row) => *row,
            None => {
                let row = &self.base[base];
                let labels = match &key.1 {
                    None => Some(row.labels.clone()),
                    Some(found) => self.labels(row, found)?,
                };
                let made = labels.map(|labels| self.out.row(labels, row.drop_name));
                self.made.insert(key, made);
                made
            }
        };
        match row {
            Some(row) => self.out.put(row, step, point),
            None => Ok(()),
        }
    }

    /// Labels of a series with those of its info series; `None` when it has none and the query insists.
    fn labels(&self, row: &Row, found: &[usize]) -> Result<Option<Labels>, Error> {
        if found.is_empty() && !self.wanted.values().flatten().all(|m| m.matches("")) {
            return Ok(None);
        }
        let mut added = Labels::empty().to_builder();
        for i in found {
            for (name, value) in self.infos[*i].labels.iter() {
                if name == METRIC_NAME || (!self.wanted.is_empty() && !self.wanted.contains_key(name)) {
                    continue;
                }
                if added.get(name).is_some_and(|have| have != value) {
                    return Err(Error::Execution(format!("conflicting label: {name}")));
                }
                if row.labels.get(name).is_none() {
                    added.set(name, value);
                }
            }
        }
        let mut builder = row.labels.to_builder();
        for (name, value) in added.build().iter() {
            builder.set(name, value);
        }
        Ok(Some(builder.build()))
    }
}
