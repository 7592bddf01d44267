//! What stands for a duration: in brackets and after `offset`.
//!
//! After `offset` a plain number or call ends the duration (`foo offset 5 * 2` is `(foo offset 5) * 2`), but one in
//! parentheses goes on (`foo offset (5) * 2` shifts by ten), as in Prometheus' grammar.

use super::super::ast::{BinaryOp, DurationExpr, DurationKind, NumberLiteral, Span};
use super::super::literal;
use super::super::token::Kind;
use super::{HEIGHT_MAX, POWER, Parser, Result, Within, precedence};

/// A duration and how high its tree is.
struct Tree {
    expr: DurationExpr,
    height: u32,
}

fn leaf(number: NumberLiteral) -> Tree {
    let span = number.span;
    Tree { expr: DurationExpr { kind: DurationKind::Number(number), wrapped: false, span }, height: 1 }
}

/// Marks a duration as being in parentheses; a number has no such mark and is put below a `+`.
fn wrap(mut tree: Tree, start: u32) -> Tree {
    if let DurationKind::Number(_) = tree.expr.kind {
        let span = Span { start, end: tree.expr.span.end };
        let kind = DurationKind::Unary { minus: false, operand: Box::new(tree.expr) };
        return Tree { expr: DurationExpr { kind, wrapped: true, span }, height: tree.height + 1 };
    }
    tree.expr.wrapped = true;
    tree
}

/// `-x` of a number is a number; `+x` is `x`.
fn signed(minus: bool, at: Span, mut tree: Tree) -> Tree {
    if let DurationKind::Number(number) = &mut tree.expr.kind {
        number.value = if minus { -number.value } else { number.value };
        number.span.start = at.start;
        tree.expr.span.start = at.start;
        return tree;
    }
    if !minus {
        return tree;
    }
    let span = Span { start: at.start, end: tree.expr.span.end };
    let kind = DurationKind::Unary { minus, operand: Box::new(tree.expr) };
    Tree { expr: DurationExpr { kind, wrapped: false, span }, height: tree.height + 1 }
}

/// Operators that continue a duration.
pub(super) fn goes_on(op: BinaryOp) -> bool {
    matches!(op, BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Mod | BinaryOp::Pow)
}

fn in_range(seconds: f64) -> bool {
    seconds.abs() <= literal::SECONDS_MAX
}

/// Whether an offset that started with signs or a parenthesis is read whole when it is printed as it is. Signs that
/// cancel out are gone (`--5 * 2`), and `5 * 2` would end after the five: such an offset is put in parentheses.
fn reads_back(offset: &DurationExpr) -> bool {
    if offset.wrapped {
        return true;
    }
    match &offset.kind {
        DurationKind::Binary { lhs, .. } => starts_open(lhs),
        DurationKind::Unary { operand, .. } => {
            !matches!(operand.kind, DurationKind::Binary { .. }) || operand.wrapped || starts_open(offset)
        }
        _ => true,
    }
}

/// Whether it prints with `(` or `--` first, after which an offset goes on.
pub(super) fn starts_open(offset: &DurationExpr) -> bool {
    if offset.wrapped {
        return true;
    }
    match &offset.kind {
        DurationKind::Binary { lhs, .. } => starts_open(lhs),
        DurationKind::Unary { operand, .. } => {
            !operand.wrapped && matches!(operand.kind, DurationKind::Unary { minus: true, .. })
        }
        _ => false,
    }
}

impl Parser<'_> {
    /// In brackets: a duration above zero, or an expression whose value is not known yet.
    pub(super) fn positive_duration(&mut self, within: Within) -> Result<DurationExpr> {
        let tree = self.duration(0, within)?;
        match &tree.expr.kind {
            DurationKind::Number(number) if number.value <= 0.0 => {
                self.fail(number.span, "duration must be greater than 0")
            }
            _ => Ok(tree.expr),
        }
    }

    /// After `offset`.
    pub(super) fn offset_duration(&mut self, within: Within) -> Result<DurationExpr> {
        let sign = self.sign()?;
        let token = self.peek()?;
        if matches!(token.kind, Kind::Number | Kind::Duration) {
            let number = self.number_in(within)?;
            let seconds = number.value;
            let tree = match sign {
                Some((minus, at)) => signed(minus, at, leaf(number)),
                None => leaf(number),
            };
            if !in_range(seconds) {
                return self.fail(tree.expr.span, "duration out of range");
            }
            return Ok(tree.expr);
        }
        let tree = match (sign, token.kind) {
            (None, Kind::LeftParen) => self.duration_operand(within)?,
            (None, _) => return Ok(self.duration_call(None, within)?.expr),
            (Some((minus, at)), Kind::LeftParen) => {
                self.take();
                let inner = self.nested(token.span, |p| p.duration(0, within))?;
                self.expect_in(Kind::RightParen, within)?;
                let start = inner.expr.span.start;
                return Ok(signed(minus, at, wrap(inner, start)).expr);
            }
            (Some((minus, at)), Kind::Op(BinaryOp::Add | BinaryOp::Sub)) => {
                signed(minus, at, self.nested(at, |p| p.duration(POWER, within))?)
            }
            (Some((minus, at)), _) => return Ok(signed(minus, at, self.duration_call(Some(at), within)?).expr),
        };
        let mut whole = self.duration_rest(tree, 0, within)?.expr;
        whole.wrapped |= !reads_back(&whole);
        Ok(whole)
    }

    fn duration(&mut self, floor: u8, within: Within) -> Result<Tree> {
        let first = self.duration_operand(within)?;
        self.duration_rest(first, floor, within)
    }

    /// Operators and operands after the first one.
    fn duration_rest(&mut self, mut lhs: Tree, floor: u8, within: Within) -> Result<Tree> {
        loop {
            let token = self.peek()?;
            let op = match token.kind {
                Kind::Op(op) if goes_on(op) && precedence(op) >= floor => op,
                _ => return Ok(lhs),
            };
            self.take();
            let above = if op == BinaryOp::Pow { POWER } else { precedence(op) + 1 };
            let rhs = self.nested(token.span, |p| p.duration(above, within))?;
            self.experimental_duration(lhs.expr.span)?;
            let by_zero = matches!(&rhs.expr.kind, DurationKind::Number(number) if number.value == 0.0);
            match op {
                BinaryOp::Div if by_zero => return self.fail(token.span, "division by zero"),
                BinaryOp::Mod if by_zero => return self.fail(token.span, "modulo by zero"),
                _ => {}
            }
            let span = Span { start: lhs.expr.span.start, end: rhs.expr.span.end };
            let height = lhs.height.max(rhs.height) + 1;
            if height > HEIGHT_MAX {
                return self.fail(span, format!("expression has more than {HEIGHT_MAX} levels"));
            }
            let kind = DurationKind::Binary { op, lhs: Box::new(lhs.expr), rhs: Box::new(rhs.expr) };
            lhs = Tree { expr: DurationExpr { kind, wrapped: false, span }, height };
        }
    }

    fn duration_operand(&mut self, within: Within) -> Result<Tree> {
        if let Some((minus, at)) = self.sign()? {
            return Ok(signed(minus, at, self.nested(at, |p| p.duration(POWER, within))?));
        }
        let token = self.peek()?;
        match token.kind {
            Kind::Number | Kind::Duration => {
                let number = self.number_in(within)?;
                if !in_range(number.value) {
                    return self.fail(number.span, "duration out of range");
                }
                Ok(leaf(number))
            }
            Kind::LeftParen => {
                self.take();
                let inner = self.nested(token.span, |p| p.duration(0, within))?;
                self.expect_in(Kind::RightParen, within)?;
                self.experimental_duration(inner.expr.span)?;
                Ok(wrap(inner, token.span.start))
            }
            _ => self.duration_call(None, within),
        }
    }

    /// `step()`, `range()`, `max_of(x, y)`, `min_of(x, y)`. A sign before it is where an error is reported.
    fn duration_call(&mut self, sign: Option<Span>, within: Within) -> Result<Tree> {
        let name = self.peek()?;
        if !matches!(name.kind, Kind::Step | Kind::Range | Kind::MaxOf | Kind::MinOf) {
            return self.unexpected_in(within);
        }
        self.take();
        self.expect_in(Kind::LeftParen, within)?;
        let mut below = 0;
        let (kind, mut span) = if matches!(name.kind, Kind::Step | Kind::Range) {
            let kind = if name.kind == Kind::Step { DurationKind::Step } else { DurationKind::Range };
            (kind, name.span)
        } else {
            let lhs = self.nested(name.span, |p| p.duration(0, within))?;
            self.expect_in(Kind::Comma, within)?;
            let rhs = self.nested(name.span, |p| p.duration(0, within))?;
            below = lhs.height.max(rhs.height);
            // The name is not part of the span, as upstream.
            let span = Span { start: lhs.expr.span.start, end: rhs.expr.span.end };
            let (lhs, rhs) = (Box::new(lhs.expr), Box::new(rhs.expr));
            let max = name.kind == Kind::MaxOf;
            (if max { DurationKind::Max(lhs, rhs) } else { DurationKind::Min(lhs, rhs) }, span)
        };
        self.expect_in(Kind::RightParen, within)?;
        if matches!(kind, DurationKind::Step | DurationKind::Range) {
            span.end = self.taken_end;
        }
        self.experimental_duration(sign.unwrap_or(span))?;
        Ok(Tree { expr: DurationExpr { kind, wrapped: false, span }, height: below + 1 })
    }

    fn experimental_duration(&self, at: Span) -> Result<()> {
        match self.switches.duration_expressions {
            true => Ok(()),
            false => self.fail(at, "experimental duration expression is not enabled"),
        }
    }

    fn number_in(&mut self, within: Within) -> Result<NumberLiteral> {
        match self.number()? {
            Some(number) => Ok(number),
            None => self.unexpected_in(within),
        }
    }

    fn expect_in(&mut self, kind: Kind, within: Within) -> Result<()> {
        match self.accept(kind)? {
            Some(_) => Ok(()),
            None => self.unexpected_in(within),
        }
    }
}
