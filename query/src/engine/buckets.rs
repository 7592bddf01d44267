//! `histogram_quantile`, `histogram_quantiles`, `histogram_fraction`: of native histograms row by row, of classic ones
//! from all series that differ in `le` only.

use std::collections::BTreeMap;

use engram_model::Labels;
use hashbrown::hash_map::Entry;
use hashbrown::{HashMap, HashSet};

use crate::error::Error;
use crate::functions::Note;
use crate::functions::notes::ForcedMonotonicity;
use crate::functions::quantile::{
    ClassicBucket, fraction_of_classic, fraction_of_histogram, of_classic, of_histogram, parse_bound,
};
use crate::histogram::text::go_float;
use crate::parse::ast::Span;
use crate::plan::{Call, Node};

use super::call::text_of;
use super::eval::{Evaluator, weight};
use super::row::{Column, Row, Steps};

/// The label of a classic bucket's boundary.
const BOUND: &str = "le";

/// What is asked of each histogram.
enum Asked {
    /// The quantile, over all steps.
    Quantile(Column),
    /// The share between two values, over all steps.
    Fraction(Column, Column),
}

/// Series that make up one histogram.
#[derive(Default)]
struct Family {
    labels: Labels,
    /// Rows of floats, with their boundaries.
    classic: Vec<(usize, f64)>,
    /// Rows of native histograms.
    native: Vec<usize>,
}

/// Buckets that had to be made to grow, by the name they are shown with, for one remark each.
struct Forced {
    steps: Steps,
    /// Families and steps that are done: with several quantiles, the first to ask mends them for the others.
    done: HashSet<(usize, usize)>,
    /// What was done, and how often at each step.
    by_name: HashMap<String, (ForcedMonotonicity, BTreeMap<usize, u64>)>,
}

impl Forced {
    fn new(steps: Steps) -> Self {
        Self { steps, done: HashSet::new(), by_name: HashMap::new() }
    }

    fn put(&mut self, place: (usize, usize), name: &str, found: ForcedMonotonicity) {
        if !self.done.insert(place) {
            return;
        }
        let (all, steps) = self.by_name.entry_ref(name).or_insert_with(|| (found, BTreeMap::new()));
        all.join(found);
        *steps.entry(place.1).or_insert(0) += 1;
    }

    /// Makes the remarks. Upstream adds what it has counted so far to itself at every step after the first, and a
    /// number that is compared with upstream's has to be made the same way.
    fn make(self, evaluator: &Evaluator<'_>, span: Span) {
        for (name, (mut all, by_step)) in self.by_name {
            let mut samples: u64 = 0;
            for step in by_step.keys().next().copied().unwrap_or(0)..self.steps.count {
                let new = by_step.get(&step).copied().unwrap_or(0);
                samples = if samples == 0 { new } else { samples.wrapping_add(new).wrapping_mul(2) };
            }
            all.samples = samples;
            evaluator.note(&Note::ForcedMonotonicity(all), &name, span);
        }
    }
}

/// What belongs to one call.
struct Context<'a> {
    rows: &'a [Row],
    /// Where the vector stands.
    span: Span,
    steps: Steps,
}

impl Evaluator<'_> {
    /// Any of the three.
    pub(super) fn of_histograms(&self, call: &Call, steps: Steps) -> Result<Vec<Row>, Error> {
        let few = || Error::Execution(format!("{} has too few arguments", call.func));
        let args = call.args.as_slice();
        let mut asked = Vec::new();
        let mut quantiles: &[Node] = &[];
        let vector = match (call.func, args) {
            ("histogram_quantile", [q, vector]) => {
                asked.push((None, self.quantile_asked(q, steps)?));
                quantiles = std::slice::from_ref(q);
                vector
            }
            ("histogram_fraction", [lower, upper, vector]) => {
                asked.push((None, Asked::Fraction(self.scalar(lower, steps)?, self.scalar(upper, steps)?)));
                vector
            }
            ("histogram_quantiles", [vector, label, several @ ..]) => {
                let label = text_of(label)?;
                quantiles = several;
                for q in several {
                    asked.push((Some(label.clone()), self.quantile_asked(q, steps)?));
                }
                vector
            }
            _ => return Err(few()),
        };
        let rows = self.rows(vector, steps)?;
        self.release(weight(&rows));
        for ((_, asked), node) in asked.iter().zip(quantiles) {
            self.check_quantiles(asked, node.span());
        }
        let context = Context { rows: &rows, span: vector.span(), steps };
        let mut forced = Forced::new(steps);
        let families = self.families(&context)?;
        let mut out = Vec::new();
        for (label, asked) in &asked {
            for (i, family) in families.iter().enumerate() {
                let column = self.answer((i, family), asked, &context, &mut forced)?;
                if !column.is_empty() {
                    self.label_answers(family, label.as_deref(), asked, column, &mut out)?;
                }
            }
        }
        self.release(weight(&out));
        forced.make(self, context.span);
        self.merged(out, steps)
    }

    fn quantile_asked(&self, node: &Node, steps: Steps) -> Result<Asked, Error> {
        Ok(Asked::Quantile(self.scalar(node, steps)?))
    }

    /// Remarks upon quantiles out of bounds. After what the vector has to say, because of equal remarks the last stays.
    fn check_quantiles(&self, asked: &Asked, span: Span) {
        let Asked::Quantile(column) = asked else { return };
        for q in column.values.iter().filter(|q| !(0.0..=1.0).contains(*q)) {
            self.note(&Note::InvalidQuantile(*q), "", span);
        }
    }

    /// Puts rows together that differ in `le` only, in order of first appearance.
    fn families(&self, context: &Context<'_>) -> Result<Vec<Family>, Error> {
        let mut families: Vec<Family> = Vec::new();
        let mut index: HashMap<Labels, usize> = HashMap::new();
        let mut place = |labels: Labels, families: &mut Vec<Family>| {
            *index.entry(labels).or_insert_with_key(|labels| {
                families.push(Family { labels: labels.clone(), ..Family::default() });
                families.len() - 1
            })
        };
        for (i, row) in context.rows.iter().enumerate() {
            self.tick(1)?;
            if !row.column.histograms.is_empty() {
                let at = place(row.labels.clone(), &mut families);
                families[at].native.push(i);
            }
            if row.column.present.is_empty() {
                continue;
            }
            let text = row.labels.get(BOUND).unwrap_or_default();
            match parse_bound(text) {
                Some(bound) => {
                    let at = place(row.labels.without(|name| name == BOUND), &mut families);
                    families[at].classic.push((i, bound));
                }
                None => self.note(&Note::BadBucketLabel(text.to_owned()), self.shown_name(&row.labels), context.span),
            }
        }
        Ok(families)
    }

    /// The metric's name where the answer still has it.
    fn shown_name<'l>(&self, labels: &'l Labels) -> &'l str {
        if self.budget.delayed_name_removal { labels.metric_name() } else { "" }
    }

    fn answer(
        &self,
        (at, family): (usize, &Family),
        asked: &Asked,
        context: &Context<'_>,
        forced: &mut Forced,
    ) -> Result<Column, Error> {
        let mut out = Column::new(context.steps.count);
        let name = self.shown_name(&family.labels);
        let mut buckets = Vec::with_capacity(family.classic.len());
        for step in 0..context.steps.count {
            self.tick((family.classic.len() + family.native.len() + 1) as u64)?;
            buckets.clear();
            for (row, upper) in &family.classic {
                let column = &context.rows[*row].column;
                if column.present.has(step) {
                    buckets.push(ClassicBucket { upper: *upper, count: column.values[step] });
                }
            }
            let native = family.native.iter().find_map(|row| context.rows[*row].column.histogram(step));
            let (value, note) = match (native, buckets.is_empty()) {
                (None, true) => continue,
                (Some(_), false) => {
                    self.note(&Note::MixedClassicNative, name, context.span);
                    continue;
                }
                (Some(histogram), true) => match asked {
                    Asked::Quantile(q) => of_histogram(q.values[step], histogram),
                    Asked::Fraction(lower, upper) => {
                        fraction_of_histogram(lower.values[step], upper.values[step], histogram)
                    }
                },
                (None, false) => match asked {
                    Asked::Quantile(q) => {
                        let answer = of_classic(q.values[step], &mut buckets);
                        if let Some(found) = answer.forced {
                            let note = ForcedMonotonicity {
                                first: context.steps.at(step),
                                last: context.steps.at(step),
                                bucket_min: found.bucket_min,
                                bucket_max: found.bucket_max,
                                diff_max: found.diff_max,
                                samples: 1,
                            };
                            forced.put((at, step), name, note);
                        }
                        (answer.value, None)
                    }
                    Asked::Fraction(lower, upper) => {
                        (fraction_of_classic(lower.values[step], upper.values[step], &mut buckets), None)
                    }
                },
            };
            if let Some(note) = note {
                self.note(&note, name, context.span);
            }
            out.put(step, value);
        }
        Ok(out)
    }

    /// Gives an answer its labels: with the quantile in one of them where there are several. What is put to `out` is
    /// held.
    fn label_answers(
        &self,
        family: &Family,
        label: Option<&str>,
        asked: &Asked,
        column: Column,
        out: &mut Vec<Row>,
    ) -> Result<(), Error> {
        let labels = self.without_name(&family.labels);
        let (Some(label), Asked::Quantile(q)) = (label, asked) else {
            self.hold(column.weight())?;
            out.push(Row { labels, drop_name: true, column });
            return Ok(());
        };
        // A quantile may change from step to step, and its label with it: each value is a column of its own, which is
        // asked for before it is made.
        let mut rows: HashMap<u64, usize> = HashMap::new();
        let first = out.len();
        let count = column.values.len();
        for step in column.present.iter() {
            self.tick(1)?;
            let at = match rows.entry(q.values[step].to_bits()) {
                Entry::Occupied(entry) => *entry.get(),
                Entry::Vacant(entry) => {
                    self.hold(count as u64)?;
                    let labels = labels.to_builder().set(label, &open_metrics_float(q.values[step])).build();
                    out.push(Row { labels, drop_name: true, column: Column::new(count) });
                    *entry.insert(out.len() - 1)
                }
            };
            out[at].column.put(step, column.values[step]);
        }
        self.release((count * (out.len() - first)) as u64 - weight(&out[first..]));
        Ok(())
    }
}

/// A float as OpenMetrics writes it: always with a point or an exponent.
fn open_metrics_float(value: f64) -> String {
    let text = go_float(value);
    if value.is_finite() && !text.contains(['.', 'e']) { format!("{text}.0") } else { text }
}
