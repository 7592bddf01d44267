//! Binary operators on two values, on two scalars, and on a vector with a scalar.
//!
//! Source: `prometheus promql/engine.go` (`vectorElemBinop`, `VectorscalarBinop`), Prometheus 3.14.

use std::sync::Arc;

use engram_model::histogram::Histogram;
use hashbrown::HashMap;

use crate::error::Error;
pub(super) use crate::functions::operators::{compares, floats};
use crate::functions::{HistogramOperation, Note, Point};
use crate::histogram::{Joined, Side, equal};
use crate::parse::ast::{BinaryOp, Span, ValueType};
use crate::plan::Binary;

use super::eval::{Evaluator, Sink, weight};
use super::histograms::{divided, minus, plus, times, trimmed};
use super::row::{Row, Steps};

/// What an operator makes of two values.
pub(super) struct Combined {
    /// The value: of a comparison, the left one.
    pub(super) value: Point,
    /// Whether a comparison holds; true for other operators.
    pub(super) keep: bool,
    /// What is to be said although there is a value.
    pub(super) note: Option<Note>,
}

/// Whether the result means something else than its operands, and loses the name.
pub(super) fn changes_meaning(op: BinaryOp) -> bool {
    matches!(
        op,
        BinaryOp::Add | BinaryOp::Sub | BinaryOp::Div | BinaryOp::Mul | BinaryOp::Pow | BinaryOp::Mod | BinaryOp::Atan2
    )
}

fn is_trim(op: BinaryOp) -> bool {
    matches!(op, BinaryOp::TrimUpper | BinaryOp::TrimLower)
}

/// Applies an operator to two values.
///
/// # Errors
/// The [`Note`] that says why there is no result.
pub(super) fn combine(op: BinaryOp, a: &Point, b: &Point) -> Result<Combined, Note> {
    let incompatible = |left, right| Err(Note::IncompatibleTypesInBinOp(left, op.as_str(), right));
    let made = |histogram: Arc<Histogram>| Ok(Combined { value: Point::Histogram(histogram), keep: true, note: None });
    match (a, b) {
        (Point::Float(_), Point::Float(_)) if is_trim(op) => incompatible("float", "float"),
        (Point::Float(x), Point::Float(_)) if op.is_comparison() => {
            let Point::Float(y) = b else { unreachable!("the pattern says so") };
            Ok(Combined { value: Point::Float(*x), keep: compares(op, *x, *y), note: None })
        }
        (Point::Float(x), Point::Float(y)) => {
            Ok(Combined { value: Point::Float(floats(op, *x, *y)), keep: true, note: None })
        }
        (Point::Float(x), Point::Histogram(h)) => match op {
            BinaryOp::Mul => made(times(h, *x)),
            _ => incompatible("float", "histogram"),
        },
        (Point::Histogram(h), Point::Float(y)) => match op {
            BinaryOp::Mul => made(times(h, *y)),
            BinaryOp::Div => made(divided(h, *y)),
            BinaryOp::TrimUpper => made(trimmed(h, *y, Side::Below)),
            BinaryOp::TrimLower => made(trimmed(h, *y, Side::Above)),
            _ => incompatible("histogram", "float"),
        },
        (Point::Histogram(g), Point::Histogram(h)) => match op {
            BinaryOp::Add | BinaryOp::Sub => join(op, g, h),
            BinaryOp::Eq => Ok(Combined { value: a.clone(), keep: equal(g, h), note: None }),
            BinaryOp::NotEq => Ok(Combined { value: a.clone(), keep: !equal(g, h), note: None }),
            _ => incompatible("histogram", "histogram"),
        },
    }
}

/// Sum or difference of two histograms.
fn join(op: BinaryOp, g: &Histogram, h: &Histogram) -> Result<Combined, Note> {
    let (joined, operation) = match op {
        BinaryOp::Add => (plus(g, h), HistogramOperation::Addition),
        _ => (minus(g, h), HistogramOperation::Subtraction),
    };
    let (out, Joined { collision, reconciled }) =
        joined.map_err(|_| Note::IncompatibleBucketLayoutInBinOp(op.as_str()))?;
    if collision {
        return Err(Note::CounterResetCollision(operation));
    }
    let note = reconciled.then_some(Note::MismatchedCustomBuckets(operation));
    Ok(Combined { value: Point::Histogram(out), keep: true, note })
}

/// The last remark of each step: upstream makes one a step, and the last one wins.
#[derive(Default)]
pub(super) struct StepNotes(HashMap<usize, (usize, Note)>);

impl StepNotes {
    /// `order`: of the series at this step.
    pub(super) fn put(&mut self, step: usize, order: usize, note: Note) {
        match self.0.get(&step) {
            Some((have, _)) if *have > order => {}
            _ => {
                self.0.insert(step, (order, note));
            }
        }
    }

    /// Makes them.
    pub(super) fn make(self, evaluator: &Evaluator<'_>, span: Span) {
        self.0.into_values().for_each(|(_, note)| evaluator.note(&note, "", span));
    }
}

impl Evaluator<'_> {
    /// Two scalars.
    pub(super) fn scalars(&self, binary: &Binary, steps: Steps) -> Result<Row, Error> {
        let mut lhs = self.scalar(&binary.lhs, steps)?;
        let rhs = self.scalar(&binary.rhs, steps)?;
        self.pace.each(0..steps.count, |step| {
            lhs.values[step] = floats(binary.op, lhs.values[step], rhs.values[step]);
        })?;
        Ok(Row { column: lhs, ..Row::default() })
    }

    /// A vector with a scalar on either side.
    pub(super) fn stream_with_scalar(&self, binary: &Binary, steps: Steps, sink: Sink<'_>) -> Result<(), Error> {
        let scalar_first = binary.lhs.yields() == ValueType::Scalar;
        let (vector, scalar) = if scalar_first { (&binary.rhs, &binary.lhs) } else { (&binary.lhs, &binary.rhs) };
        let scalar = self.scalar(scalar, steps)?;
        let drops_name = changes_meaning(binary.op) || binary.return_bool;
        let mut notes = StepNotes::default();
        let mut apply = |row: &mut Row| {
            if drops_name {
                row.labels = self.without_name(&row.labels);
                row.drop_name = true;
            }
            self.apply_scalar(binary, scalar_first, &scalar.values, row, &mut notes)
        };
        if !drops_name || self.names_stay_unique(vector)? {
            self.stream(vector, steps, &mut |row| {
                apply(row)?;
                if row.column.is_empty() { Ok(()) } else { sink(row) }
            })?;
            notes.make(self, binary.span);
            return Ok(());
        }
        let mut rows = self.rows(vector, steps)?;
        self.release(weight(&rows));
        rows.iter_mut().try_for_each(apply)?;
        notes.make(self, binary.span);
        rows.retain(|row| !row.column.is_empty());
        self.merged(rows, steps)?.iter_mut().try_for_each(sink)
    }

    fn apply_scalar(
        &self,
        binary: &Binary,
        scalar_first: bool,
        scalar: &[f64],
        row: &mut Row,
        notes: &mut StepNotes,
    ) -> Result<(), Error> {
        let op = binary.op;
        let column = &mut row.column;
        if !op.is_comparison() && !is_trim(op) && column.histograms.is_empty() {
            // The common case: every bit stays, only values change.
            return self.pace.each(column.values.iter_mut().zip(scalar), |(value, s)| {
                *value = if scalar_first { floats(op, *s, *value) } else { floats(op, *value, *s) };
            });
        }
        let taken = column.taken();
        let old = std::mem::take(column);
        column.reset(old.values.len());
        self.pace.each(taken.iter(), |step| {
            let Some(value) = old.get(step) else { return };
            let number = Point::Float(scalar[step]);
            let (a, b) = if scalar_first { (&number, &value) } else { (&value, &number) };
            match combine(op, a, b) {
                Ok(combined) if binary.return_bool => {
                    column.put(step, f64::from(u8::from(combined.keep)));
                }
                Ok(combined) if combined.keep => {
                    // A comparison keeps the vector's value, whichever side it is on.
                    column.put_point(step, if op.is_comparison() { value } else { combined.value });
                }
                Ok(_) => {}
                Err(note) => notes.put(step, 0, note),
            }
        })
    }
}
