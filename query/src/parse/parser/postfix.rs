//! What may follow an operand: `[5m]`, `[1h:5m]`, `offset`, `@`, `anchored`, `smoothed`.

use engram_model::Millis;

use super::super::ast::{
    At, DurationExpr, DurationKind, Expr, Extension, MatrixSelector, Span, SubqueryExpr, VectorSelector,
};
use super::super::literal;
use super::super::token::{Kind, Token};
use super::{Parser, Result, Tree, Within};

const RANGE: Within =
    Within { context: "subquery or range selector", expected: "number, duration, step(), or range()" };
const RANGE_END: Within = Within { context: "subquery or range", expected: "\":\" or \"]\"" };
const STEP: Within = Within { context: "subquery selector", expected: "number, duration, step(), range(), or \"]\"" };
const STEP_END: Within = Within { context: "subquery selector", expected: "\"]\"" };
const OFFSET: Within = Within { context: "offset", expected: "number, duration, step(), or range()" };
const AT: Within = Within { context: "@", expected: "timestamp" };

/// Bound of `@` in seconds.
const AT_SECONDS_MAX: f64 = 9_223_372_036_854_775_807.0;

/// What `offset` and `@` change.
struct Modified<'e> {
    offset_ms: &'e mut i64,
    offset_expr: &'e mut Option<Box<DurationExpr>>,
    at: &'e mut Option<At>,
    span: &'e mut Span,
}

fn modified(expr: &mut Expr) -> Option<Modified<'_>> {
    match expr {
        Expr::VectorSelector(selector) => {
            let VectorSelector { offset_ms, offset_expr, at, span, .. } = selector.as_mut();
            Some(Modified { offset_ms, offset_expr, at, span })
        }
        Expr::MatrixSelector(matrix) => {
            let MatrixSelector { selector: VectorSelector { offset_ms, offset_expr, at, .. }, span, .. } =
                matrix.as_mut();
            Some(Modified { offset_ms, offset_expr, at, span })
        }
        Expr::Subquery(subquery) => {
            let SubqueryExpr { offset_ms, offset_expr, at, span, .. } = subquery.as_mut();
            Some(Modified { offset_ms, offset_expr, at, span })
        }
        _ => None,
    }
}

/// A range or step: a number's milliseconds, or the expression. Never 0 where something was written: less than a
/// millisecond counts as one, so that what is printed can be read again.
fn range_of(duration: DurationExpr) -> (i64, Option<Box<DurationExpr>>) {
    match duration.kind {
        DurationKind::Number(number) => (literal::millis(number.value).max(1), None),
        _ => (0, Some(Box::new(duration))),
    }
}

impl<'a> Parser<'a> {
    /// All that follows `tree`.
    pub(super) fn postfix(&mut self, mut tree: Tree) -> Result<Tree> {
        loop {
            let token = self.peek()?;
            match token.kind {
                Kind::LeftBracket => tree = self.range(tree, token)?,
                Kind::Offset => self.offset(&mut tree.expr)?,
                Kind::At => self.at(&mut tree.expr)?,
                Kind::Anchored => self.extend(&mut tree.expr, Extension::Anchored)?,
                Kind::Smoothed => self.extend(&mut tree.expr, Extension::Smoothed)?,
                _ => return Ok(tree),
            }
        }
    }

    fn range(&mut self, tree: Tree, open: Token<'a>) -> Result<Tree> {
        self.take();
        let range = self.positive_duration(RANGE)?;
        let start = tree.expr.span().start;
        if self.accept(Kind::RightBracket)?.is_some() {
            let span = Span { start, end: self.taken_end };
            let at = Span { start: open.span.start, end: span.end };
            let selector = match tree.expr {
                Expr::VectorSelector(selector) => *selector,
                _ => return self.fail(at, "ranges only allowed for vector selectors"),
            };
            if selector.offset_ms != 0 || selector.offset_expr.is_some() {
                return self.fail(at, "no offset modifiers allowed before range");
            }
            if selector.at.is_some() {
                return self.fail(at, "no @ modifiers allowed before range");
            }
            let (range_ms, range_expr) = range_of(range);
            let matrix = MatrixSelector { selector, range_ms, range_expr, span };
            return self.tree(Expr::MatrixSelector(Box::new(matrix)), 0);
        }
        if self.accept(Kind::Colon)?.is_none() {
            return self.unexpected_in(RANGE_END);
        }
        let step = match self.peek()?.kind {
            Kind::RightBracket => None,
            _ => Some(self.positive_duration(STEP)?),
        };
        if self.accept(Kind::RightBracket)?.is_none() {
            return self.unexpected_in(STEP_END);
        }
        let (range_ms, range_expr) = range_of(range);
        let (step_ms, step_expr) = step.map(range_of).unwrap_or_default();
        let subquery = SubqueryExpr {
            expr: tree.expr,
            range_ms,
            range_expr,
            step_ms,
            step_expr,
            offset_ms: 0,
            offset_expr: None,
            at: None,
            span: Span { start, end: self.taken_end },
        };
        self.tree(Expr::Subquery(Box::new(subquery)), tree.height)
    }

    fn offset(&mut self, expr: &mut Expr) -> Result<()> {
        self.take();
        let offset = self.offset_duration(OFFSET)?;
        let whole = expr.span();
        let Some(target) = modified(expr) else {
            let msg =
                "offset modifier must be preceded by an instant vector selector or range vector selector or a subquery";
            return self.fail(whole, msg);
        };
        if *target.offset_ms != 0 || target.offset_expr.is_some() {
            return self.fail(whole, "offset may not be set multiple times");
        }
        match offset.kind {
            DurationKind::Number(number) => *target.offset_ms = literal::millis(number.value),
            _ => *target.offset_expr = Some(Box::new(offset)),
        }
        target.span.end = self.taken_end;
        Ok(())
    }

    fn at(&mut self, expr: &mut Expr) -> Result<()> {
        self.take();
        let at = self.moment(expr.span())?;
        let whole = expr.span();
        let Some(target) = modified(expr) else {
            let msg =
                "@ modifier must be preceded by an instant vector selector or range vector selector or a subquery";
            return self.fail(whole, msg);
        };
        if target.at.is_some() {
            return self.fail(whole, "@ <timestamp> may not be set multiple times");
        }
        *target.at = Some(at);
        target.span.end = self.taken_end;
        Ok(())
    }

    /// What `@` names; `whole` is where a bad moment is reported.
    fn moment(&mut self, whole: Span) -> Result<At> {
        let at = match self.peek()?.kind {
            Kind::Start => At::Start,
            Kind::End => At::End,
            _ => {
                let minus = self.sign()?.is_some_and(|(minus, _)| minus);
                let Some(number) = self.number()? else {
                    return self.unexpected_in(AT);
                };
                let seconds = if minus { -number.value } else { number.value };
                if seconds.is_nan() || seconds.abs() >= AT_SECONDS_MAX {
                    let shown = if seconds.is_finite() { format!("{seconds:.6}") } else { literal::float(seconds) };
                    return self.fail(whole, format!("timestamp out of bounds for @ modifier: {shown}"));
                }
                return Ok(At::Time(moment_millis(seconds)));
            }
        };
        self.take();
        for kind in [Kind::LeftParen, Kind::RightParen] {
            if self.accept(kind)?.is_none() {
                return self.unexpected_in(AT);
            }
        }
        Ok(at)
    }

    fn extend(&mut self, expr: &mut Expr, extension: Extension) -> Result<()> {
        self.take();
        let word = if extension == Extension::Anchored { "anchored" } else { "smoothed" };
        let whole = expr.span();
        if !self.switches.extended_range_selectors {
            return self.fail(whole, format!("{word} modifier is experimental and not enabled"));
        }
        // The span stays as it is: upstream's does, and error positions after it depend on that.
        let have = match expr {
            Expr::VectorSelector(selector) => &mut selector.extension,
            Expr::MatrixSelector(matrix) => &mut matrix.selector.extension,
            Expr::Subquery(_) => return self.fail(whole, format!("{word} modifier is not supported for subqueries")),
            _ => return self.fail(whole, format!("{word} modifier not implemented")),
        };
        if *have != Extension::None && *have != extension {
            return self.fail(whole, "anchored and smoothed modifiers cannot be used together");
        }
        *have = extension;
        Ok(())
    }
}

/// Seconds to milliseconds; what does not fit is the earliest moment there is, as on the machines Prometheus runs on.
fn moment_millis(seconds: f64) -> Millis {
    let millis = (seconds * 1000.0).round();
    if millis.abs() >= AT_SECONDS_MAX {
        return Millis::MIN;
    }
    #[allow(clippy::cast_possible_truncation, reason = "bounded just above")]
    let millis = millis as Millis;
    millis
}
