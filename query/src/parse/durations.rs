//! Evaluates expressions of durations: once start, end and step of a query are known, each becomes milliseconds.
//!
//! Source: `prometheus promql/durations.go`, Prometheus 3.14.

use engram_model::Millis;

use super::ast::{BinaryOp, DurationExpr, DurationKind, Expr, Span, VectorSelector};
use super::literal;
use crate::error::Error;

/// Sets every `offset_ms`, `range_ms` and `step_ms` of `expr` whose expression depends on the query's times. The
/// expressions stay, so that the tree prints as before. `step` is in milliseconds, 0 for an instant query.
///
/// # Errors
/// [`Error::BadRequest`] naming the bytes of an expression that divides by zero, or is not positive where it must be.
pub fn resolve_durations(expr: &mut Expr, start: Millis, end: Millis, step: Millis) -> Result<(), Error> {
    Times { step: seconds(step), range: seconds(end.saturating_sub(start)) }.expr(expr)
}

#[allow(clippy::cast_precision_loss, reason = "durations of queries are far below 2^53 milliseconds")]
fn seconds(millis: Millis) -> f64 {
    millis as f64 / 1000.0
}

/// Times of the query, in seconds.
struct Times {
    step: f64,
    range: f64,
}

fn bad<T>(at: Span, what: &str) -> Result<T, Error> {
    Err(Error::BadRequest(format!("{}:{}: {what}", at.start, at.end)))
}

impl Times {
    fn expr(&self, expr: &mut Expr) -> Result<(), Error> {
        match expr {
            Expr::Number(_) | Expr::String(_) => Ok(()),
            Expr::Paren(paren) => self.expr(&mut paren.expr),
            Expr::Unary(unary) => self.expr(&mut unary.expr),
            Expr::Binary(binary) => {
                self.expr(&mut binary.lhs)?;
                self.expr(&mut binary.rhs)
            }
            Expr::Aggregate(aggregate) => {
                self.expr(&mut aggregate.expr)?;
                aggregate.param.iter_mut().try_for_each(|param| self.expr(param))
            }
            Expr::Call(call) => call.args.iter_mut().try_for_each(|arg| self.expr(arg)),
            Expr::VectorSelector(selector) => self.selector(selector),
            Expr::MatrixSelector(matrix) => {
                self.set(&mut matrix.range_ms, matrix.range_expr.as_deref(), false)?;
                self.selector(&mut matrix.selector)
            }
            Expr::Subquery(subquery) => {
                self.set(&mut subquery.offset_ms, subquery.offset_expr.as_deref(), true)?;
                self.set(&mut subquery.step_ms, subquery.step_expr.as_deref(), false)?;
                self.set(&mut subquery.range_ms, subquery.range_expr.as_deref(), false)?;
                self.expr(&mut subquery.expr)
            }
        }
    }

    fn selector(&self, selector: &mut VectorSelector) -> Result<(), Error> {
        self.set(&mut selector.offset_ms, selector.offset_expr.as_deref(), true)
    }

    fn set(&self, millis: &mut i64, expr: Option<&DurationExpr>, may_be_negative: bool) -> Result<(), Error> {
        let Some(expr) = expr else { return Ok(()) };
        let seconds = self.value(expr)?;
        if !seconds.is_finite() {
            return bad(expr.span, "duration is NaN or infinite");
        }
        if seconds <= 0.0 && !may_be_negative {
            return bad(expr.span, "duration must be greater than 0");
        }
        if seconds.abs() > literal::SECONDS_MAX {
            return bad(expr.span, "duration is out of range");
        }
        let whole = literal::millis(seconds);
        // A window or step of nothing would make no sense: less than a millisecond counts as one.
        *millis = if may_be_negative { whole } else { whole.max(1) };
        Ok(())
    }

    fn value(&self, expr: &DurationExpr) -> Result<f64, Error> {
        Ok(match &expr.kind {
            DurationKind::Number(number) => number.value,
            DurationKind::Step => self.step,
            DurationKind::Range => self.range,
            DurationKind::Unary { minus, operand } => {
                let value = self.value(operand)?;
                if *minus { -value } else { value }
            }
            DurationKind::Binary { op, lhs, rhs } => {
                let (lhs, rhs) = (self.value(lhs)?, self.value(rhs)?);
                match op {
                    BinaryOp::Add => lhs + rhs,
                    BinaryOp::Sub => lhs - rhs,
                    BinaryOp::Mul => lhs * rhs,
                    BinaryOp::Div if rhs == 0.0 => return bad(expr.span, "division by zero"),
                    BinaryOp::Div => lhs / rhs,
                    BinaryOp::Mod if rhs == 0.0 => return bad(expr.span, "modulo by zero"),
                    BinaryOp::Mod => lhs % rhs,
                    BinaryOp::Pow => lhs.powf(rhs),
                    op => {
                        return bad(expr.span, &format!("unexpected duration expression operator {:?}", op.as_str()));
                    }
                }
            }
            DurationKind::Min(lhs, rhs) => pick(self.value(lhs)?, self.value(rhs)?, f64::min),
            DurationKind::Max(lhs, rhs) => pick(self.value(lhs)?, self.value(rhs)?, f64::max),
        })
    }
}

/// Unlike the standard library's, NaN wins.
fn pick(lhs: f64, rhs: f64, of: fn(f64, f64) -> f64) -> f64 {
    if lhs.is_nan() || rhs.is_nan() { f64::NAN } else { of(lhs, rhs) }
}
