//! Two vectors: which series meet, and what comes of it.
//!
//! Series are put into groups by the labels that must agree. A group is then worked off over all steps at once: most
//! have one series on either side, and cost one pass over two arrays. What upstream checks step by step (two series of
//! one group on the "one" side) is checked where a group has more than one there.
//!
//! Source: `prometheus promql/engine.go` (`VectorBinop`, `VectorAnd`, `VectorOr`, `VectorUnless`), Prometheus 3.14.

use engram_model::Labels;
use engram_model::labels::METRIC_NAME;
use hashbrown::{HashMap, HashSet};

use crate::error::Error;
use crate::functions::Point;
use crate::parse::ast::{BinaryOp, Cardinality, VectorMatching};
use crate::plan::Binary;

use super::binary::{StepNotes, changes_meaning, combine};
use super::eval::{Evaluator, is_metadata, taken, weight};
use super::pace::Pace;
use super::row::{Bits, Collector, Row, Steps};

/// Rows of both sides whose matching labels agree, by index.
#[derive(Default)]
struct Group {
    left: Vec<usize>,
    right: Vec<usize>,
}

/// Labels that decide about a match, and those that do not.
fn match_labels(labels: &Labels, matching: &VectorMatching) -> Labels {
    let named = |name: &str| matching.labels.iter().any(|have| have == name);
    match matching.on {
        true => labels.without(|name| !named(name)),
        false => labels.without(|name| name == METRIC_NAME || named(name)),
    }
}

/// Writes the bytes of [`match_labels`].
fn match_key(labels: &Labels, matching: &VectorMatching, key: &mut Vec<u8>) {
    let named = |name: &str| matching.labels.iter().any(|have| have == name);
    match matching.on {
        true => labels.put_without(key, |name| !named(name)),
        false => labels.put_without(key, |name| name == METRIC_NAME || named(name)),
    }
}

/// Groups in order of first appearance, left rows first.
fn group(lhs: &[Row], rhs: &[Row], matching: &VectorMatching, pace: &Pace<'_>) -> Result<Vec<Group>, Error> {
    let mut groups: Vec<Group> = Vec::new();
    let mut index: HashMap<Labels, usize> = HashMap::with_capacity(lhs.len().min(rhs.len()));
    let mut key = Vec::new();
    let mut place = |labels: &Labels, groups: &mut Vec<Group>| {
        key.clear();
        match_key(labels, matching, &mut key);
        // Most rows of the "many" side find their group there: they need no label set of their own to look it up.
        if let Some(at) = index.get(key.as_slice()) {
            return *at;
        }
        groups.push(Group::default());
        index.insert(match_labels(labels, matching), groups.len() - 1);
        groups.len() - 1
    };
    pace.each(lhs.iter().enumerate(), |(i, row)| {
        let at = place(&row.labels, &mut groups);
        groups[at].left.push(i);
    })?;
    pace.each(rhs.iter().enumerate(), |(i, row)| {
        let at = place(&row.labels, &mut groups);
        groups[at].right.push(i);
    })?;
    Ok(groups)
}

/// Everything one operation on two vectors needs. Sides are swapped for `group_right`: left is "many".
struct Matching<'a> {
    evaluator: &'a Evaluator<'a>,
    binary: &'a Binary,
    lhs: &'a [Row],
    rhs: &'a [Row],
    swapped: bool,
    steps: Steps,
    /// Steps at which anything can match at all.
    active: Bits,
    delayed: bool,
    out: Collector,
    notes: StepNotes,
    /// Output rows by operands (`usize::MAX`: a filled one).
    made: HashMap<(usize, usize), (usize, Labels)>,
    /// Of each output row, the first row it was made from: those of the "many" side, then those of the other.
    places: Vec<usize>,
    /// Samples held for output rows beyond one for each row of the "many" side: where `group_left` takes labels of
    /// series that take turns, there may be one for each pair.
    held: u64,
}

impl Evaluator<'_> {
    /// Two vectors under any operator.
    pub(super) fn vectors(&self, binary: &Binary, steps: Steps) -> Result<Vec<Row>, Error> {
        let lhs = self.rows(&binary.lhs, steps)?;
        let rhs = self.rows(&binary.rhs, steps)?;
        let held = weight(&lhs) + weight(&rhs);
        let out = match binary.op {
            BinaryOp::And | BinaryOp::Or | BinaryOp::Unless => self.sets(binary, lhs, rhs, steps)?,
            _ => self.matched(binary, &lhs, &rhs, steps)?,
        };
        self.release(held);
        Ok(out)
    }

    fn sets(&self, binary: &Binary, mut lhs: Vec<Row>, mut rhs: Vec<Row>, steps: Steps) -> Result<Vec<Row>, Error> {
        let groups = group(&lhs, &rhs, &binary.matching, &self.pace)?;
        for group in &groups {
            let bits_of = |rows: &[Row], which: &[usize]| {
                let mut bits = Bits::new(steps.count);
                which.iter().for_each(|i| bits.join(&rows[*i].column.taken()));
                bits
            };
            self.tick(((group.left.len() + group.right.len()) * (1 + steps.count / 512)) as u64)?;
            if binary.op == BinaryOp::Or {
                let left = bits_of(&lhs, &group.left);
                for i in &group.right {
                    let mut keep = rhs[*i].column.taken();
                    keep.remove(&left);
                    rhs[*i].column.keep(&keep);
                }
                continue;
            }
            let right = bits_of(&rhs, &group.right);
            for i in &group.left {
                let mut keep = lhs[*i].column.taken();
                if binary.op == BinaryOp::And {
                    keep.keep(&right)
                } else {
                    keep.remove(&right)
                }
                lhs[*i].column.keep(&keep);
            }
        }
        if binary.op == BinaryOp::Or {
            lhs.append(&mut rhs);
        }
        lhs.retain(|row| !row.column.is_empty());
        self.merged(lhs, steps)
    }

    fn matched(&self, binary: &Binary, lhs: &[Row], rhs: &[Row], steps: Steps) -> Result<Vec<Row>, Error> {
        let swapped = binary.matching.cardinality == Cardinality::OneToMany;
        let (lhs, rhs) = if swapped { (rhs, lhs) } else { (lhs, rhs) };
        let delayed = self.budget.delayed_name_removal;
        let mut active = taken(lhs, steps);
        match binary.matching.fill_left.is_none() && binary.matching.fill_right.is_none() {
            true => active.keep(&taken(rhs, steps)),
            false => active.join(&taken(rhs, steps)),
        }
        let mut matching = Matching {
            evaluator: self,
            binary,
            lhs,
            rhs,
            swapped,
            steps,
            active,
            delayed,
            out: Collector::new(steps, delayed && steps.is_instant),
            notes: StepNotes::default(),
            made: HashMap::new(),
            places: Vec::new(),
            held: 0,
        };
        let mut groups = group(lhs, rhs, &binary.matching, &self.pace)?;
        let mut failed: Option<Failed> = None;
        for group in &groups {
            self.tick((group.right.len() * (1 + steps.count / 512)) as u64)?;
            keep_first(&mut failed, matching.check_one_side(group));
        }
        // What the right side alone gives to is made last, in its own order.
        groups.sort_by_key(|group| group.left.is_empty());
        for group in &groups {
            match matching.work_off(group).err() {
                Some(failed) if failed.ends_all => return Err(failed.error),
                one => keep_first(&mut failed, one),
            }
        }
        if let Some(failed) = failed {
            return Err(failed.error);
        }
        std::mem::take(&mut matching.notes).make(self, binary.span);
        self.release(matching.held);
        matching.finish()
    }
}

/// An error and where upstream, which goes step by step, would meet it.
struct Failed {
    /// The step; what is met there: two series of one group, two matches, two results; which series.
    at: (usize, u8, usize),
    error: Error,
    /// Nothing comes before it: the query is to stop, or holds too much.
    ends_all: bool,
}

impl Failed {
    fn new(at: (usize, u8, usize), error: Error) -> Self {
        Self { at, error, ends_all: false }
    }
}

/// The query is to stop, or holds too much.
impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { at: (0, 0, 0), error, ends_all: true }
    }
}

/// Two results of the same labels: found when a step is done.
fn same_labels(step: usize, error: Error) -> Failed {
    Failed::new((step, 2, 0), error)
}

fn keep_first(have: &mut Option<Failed>, new: Option<Failed>) {
    if let Some(new) = new
        && have.as_ref().is_none_or(|have| new.at < have.at)
    {
        *have = Some(new);
    }
}

/// One operand at one step: the row (none for a filled value) and its value.
struct Operand<'a> {
    row: Option<usize>,
    labels: &'a Labels,
    value: Point,
}

impl Matching<'_> {
    fn is_one_to_one(&self) -> bool {
        self.binary.matching.cardinality == Cardinality::OneToOne
    }

    /// The first step at which two series of a group have a value on the side that may have one.
    fn check_one_side(&self, group: &Group) -> Option<Failed> {
        if group.right.len() < 2 {
            return None;
        }
        let mut seen = Bits::new(self.steps.count);
        let mut first: Option<(usize, usize, usize)> = None;
        for (n, i) in group.right.iter().enumerate() {
            let mut bits = self.rhs[*i].column.taken();
            bits.keep(&self.active);
            if let Some(step) = (seen.meets(&bits)).then(|| bits.iter().find(|step| seen.has(*step))).flatten()
                && first.is_none_or(|(have, ..)| step < have)
            {
                let earlier = group.right[..n].iter().find(|j| self.rhs[**j].column.has(step));
                first = Some((step, *i, *earlier.unwrap_or(i)));
            }
            seen.join(&bits);
        }
        first.map(|(step, i, earlier)| Failed::new((step, 0, i), self.duplicate(i, earlier)))
    }

    fn duplicate(&self, a: usize, b: usize) -> Error {
        let mut texts = [print_labels(&self.rhs[a].labels), print_labels(&self.rhs[b].labels)];
        texts.sort();
        Error::Execution(format!(
            "found duplicate series for the match group {} on the {} hand-side of the operation: [{}, {}];many-to-many \
             matching not allowed: matching labels must be unique on one side",
            print_labels(&match_labels(&self.rhs[a].labels, &self.binary.matching)),
            if self.swapped { "left" } else { "right" },
            texts[0],
            texts[1]
        ))
    }

    fn work_off(&mut self, group: &Group) -> Result<(), Failed> {
        let fill_right = self.binary.matching.fill_right;
        let fill_left = self.binary.matching.fill_left;
        if group.right.is_empty() && fill_right.is_none() || group.left.is_empty() && fill_left.is_none() {
            return Ok(());
        }
        if self.work_off_floats(group)? {
            return Ok(());
        }
        let (lhs, rhs) = (self.lhs, self.rhs);
        let filler = match group.left.first().map(|i| &lhs[*i]).or(group.right.first().map(|i| &rhs[*i])) {
            Some(row) => match_labels(&row.labels, &self.binary.matching),
            None => return Ok(()),
        };
        let active = self.active.clone();
        let mut inserted: HashSet<Labels> = HashSet::new();
        for step in active.iter() {
            self.evaluator.tick((group.left.len() + group.right.len()) as u64)?;
            let right = group.right.iter().find_map(|i| Some((*i, rhs[*i].column.get(step)?)));
            let is_right = right.is_some();
            let right = match (right, fill_right) {
                (Some((i, value)), _) => Some(Operand { row: Some(i), labels: &rhs[i].labels, value }),
                (None, Some(fill)) => Some(Operand { row: None, labels: &filler, value: Point::Float(fill) }),
                (None, None) => None,
            };
            let mut matched = false;
            inserted.clear();
            if let Some(right) = &right {
                for i in &group.left {
                    let Some(value) = lhs[*i].column.get(step) else { continue };
                    let left = Operand { row: Some(*i), labels: &lhs[*i].labels, value };
                    self.combine(&left, right, step, &mut matched, &mut inserted)?;
                }
            }
            if let (false, true, Some(fill), Some(right)) = (matched, is_right, fill_left, &right) {
                let left = Operand { row: None, labels: &filler, value: Point::Float(fill) };
                self.combine(&left, right, step, &mut matched, &mut inserted)?;
            }
        }
        Ok(())
    }

    /// Works off a group of floats with one series on the "one" side, column by column. Says no where a step needs a
    /// closer look.
    fn work_off_floats(&mut self, group: &Group) -> Result<bool, Failed> {
        let matching = &self.binary.matching;
        let op = self.binary.op;
        let (lhs, rhs) = (self.lhs, self.rhs);
        let [one] = group.right.as_slice() else { return Ok(false) };
        let has_histograms = |row: &Row| !row.column.histograms.is_empty();
        if matching.fill_left.is_some()
            || matching.fill_right.is_some()
            || matches!(op, BinaryOp::TrimUpper | BinaryOp::TrimLower)
            || (self.is_one_to_one() && group.left.len() > 1)
            || has_histograms(&rhs[*one])
            || group.left.iter().any(|i| has_histograms(&lhs[*i]))
        {
            return Ok(false);
        }
        let right = &rhs[*one];
        let mut both = Vec::with_capacity(group.left.len());
        let mut targets = HashSet::new();
        for i in &group.left {
            self.evaluator.tick(1 + self.steps.count as u64 / 8)?;
            let mut bits = lhs[*i].column.present.clone();
            bits.keep(&right.column.present);
            if bits.is_empty() {
                continue;
            }
            // Asked for once: only what is asked for step by step is kept in `made`.
            let labels = result_labels(&lhs[*i].labels, &right.labels, self.binary, self.delayed);
            let target = self.row(labels)?;
            self.place(target, *i);
            if group.left.len() > 1 && !targets.insert(target) {
                return Ok(false);
            }
            both.push((*i, target, bits));
        }
        for (i, target, bits) in both {
            let (many, one) = (&lhs[i].column.values, &right.column.values);
            let (a, b) = if self.swapped { (one, many) } else { (many, one) };
            self.evaluator.tick(1 + self.steps.count as u64 / 8)?;
            if op.is_comparison() && !self.binary.return_bool {
                for step in bits.iter().filter(|step| super::binary::compares(op, a[*step], b[*step])) {
                    self.out.put(target, step, Point::Float(a[step])).map_err(|e| same_labels(step, e))?;
                }
                continue;
            }
            let first = bits.iter().next().unwrap_or_default();
            let out = self.out.free_steps(target, &bits).map_err(|e| same_labels(first, e))?;
            bits.iter().for_each(|step| out.put(step, super::binary::floats(op, a[step], b[step])));
        }
        Ok(true)
    }

    fn combine(
        &mut self,
        left: &Operand<'_>,
        right: &Operand<'_>,
        step: usize,
        matched: &mut bool,
        inserted: &mut HashSet<Labels>,
    ) -> Result<(), Failed> {
        let order = left.row.unwrap_or(self.lhs.len() + right.row.unwrap_or(0));
        let failed = |what: &str| Failed::new((step, 1, order), Error::Execution(what.to_owned()));
        let (a, b) = if self.swapped { (&right.value, &left.value) } else { (&left.value, &right.value) };
        let combined = match combine(self.binary.op, a, b) {
            Ok(combined) => combined,
            Err(note) => {
                self.notes.put(step, order, note);
                return Ok(());
            }
        };
        if let Some(note) = combined.note {
            self.notes.put(step, order, note);
        }
        if self.is_one_to_one() {
            if *matched {
                let what =
                    "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)";
                return Err(failed(what));
            }
        } else if !inserted.insert(self.target(left, right)?.1.clone()) {
            let what = "multiple matches for labels: grouping labels must ensure unique matches";
            return Err(failed(what));
        }
        *matched = true;
        let value = match (self.binary.return_bool, combined.keep) {
            (true, keep) => Point::Float(f64::from(u8::from(keep))),
            (false, true) => combined.value,
            (false, false) => return Ok(()),
        };
        let row = self.target(left, right)?.0;
        self.out.put(row, step, value).map_err(|e| same_labels(step, e))
    }

    /// The rows, in the order of the "many" side, and then of what the other side alone gives to.
    fn finish(self) -> Result<Vec<Row>, Error> {
        let mut rows: Vec<_> = self.places.into_iter().zip(self.out.rows).collect();
        self.evaluator.pace.sort_by(&mut rows, |(a, _), (b, _)| a.cmp(b))?;
        Ok(rows.into_iter().map(|(_, row)| row).filter(|row| !row.column.is_empty()).collect())
    }

    /// The output row of these labels.
    fn row(&mut self, labels: Labels) -> Result<usize, Error> {
        let made = self.out.rows.len();
        let row = self.out.row(labels, self.binary.return_bool);
        if row == made && made >= self.lhs.len().max(self.rhs.len()) {
            let more = self.steps.count as u64 / 2 + 16;
            self.held += more;
            self.evaluator.hold(more)?;
        }
        Ok(row)
    }

    /// Says what an output row was made from.
    fn place(&mut self, row: usize, from: usize) {
        if self.places.len() <= row {
            self.places.resize(row + 1, usize::MAX);
        }
        self.places[row] = self.places[row].min(from);
    }

    /// The output row of two operands, and its labels.
    fn target(&mut self, left: &Operand<'_>, right: &Operand<'_>) -> Result<&(usize, Labels), Error> {
        let key = (left.row.unwrap_or(usize::MAX), right.row.unwrap_or(usize::MAX));
        if !self.made.contains_key(&key) {
            let labels = result_labels(left.labels, right.labels, self.binary, self.delayed);
            let row = self.row(labels.clone())?;
            self.place(row, if key.0 == usize::MAX { self.lhs.len().saturating_add(key.1) } else { key.0 });
            self.made.insert(key, (row, labels));
        }
        Ok(&self.made[&key])
    }
}

/// Labels of a result: those of the "many" side, cut down to what was matched where both sides are "one", and with
/// those that `group_left (…)` takes from the other.
fn result_labels(left: &Labels, right: &Labels, binary: &Binary, delayed: bool) -> Labels {
    let matching = &binary.matching;
    let drops_name = changes_meaning(binary.op) || (binary.return_bool && !delayed);
    let named = |name: &str| matching.labels.iter().any(|have| have == name);
    let one_to_one = matching.cardinality == Cardinality::OneToOne;
    let kept = left.without(|name| (drops_name && is_metadata(name)) || (one_to_one && matching.on != named(name)));
    if matching.include.is_empty() {
        return kept;
    }
    let mut builder = kept.to_builder();
    for name in &matching.include {
        builder.set(name, right.get(name).unwrap_or_default());
    }
    builder.build()
}

/// A label set as upstream prints it in errors.
pub(super) fn print_labels(labels: &Labels) -> String {
    labels.to_string()
}
