//! Tokens to tree: recursive descent, binary operators by precedence.
//!
//! Prometheus generates its parser from a grammar. Which error that one reports first is part of what users see, so
//! this parser follows its order: a reduction's own complaint comes before or after the look at the next token as
//! there, and a token that fits nowhere is named with the innermost construct that has an error rule
//! ([`Within`]; plain expressions have none, aggregations have).
//!
//! Files: this one has operators and operands; [`call`] calls and aggregations; [`postfix`] ranges, `offset`, `@`; [`duration`]
//! expressions of durations; [`selector`] braces and label lists.
//!
//! Source: `prometheus promql/parser/generated_parser.y`, `parse.go`, Prometheus 3.14.

mod call;
mod duration;
mod postfix;
mod selector;

use engram_model::Matcher;

use super::ast::{
    BinaryExpr, BinaryOp, Cardinality, Expr, Extension, NumberLiteral, ParenExpr, Span, StringLiteral, UnaryExpr,
    VectorMatching,
};
use super::error::ParseError;
use super::lexer::Lexer;
use super::literal;
use super::token::{Kind, Token};
use super::{HEIGHT_MAX, NESTING_MAX, Switches, TEXT_BYTES_MAX};

type Result<T> = std::result::Result<T, ParseError>;

/// Binds as tight as `^`, tighter than a sign.
const POWER: u8 = 6;

/// How tight an operator binds.
fn precedence(op: BinaryOp) -> u8 {
    match op {
        BinaryOp::Or => 1,
        BinaryOp::And | BinaryOp::Unless => 2,
        op if op.is_comparison() => 3,
        BinaryOp::TrimUpper | BinaryOp::TrimLower => 3,
        BinaryOp::Add | BinaryOp::Sub => 4,
        BinaryOp::Pow => POWER,
        _ => 5,
    }
}

/// An expression and how high its tree is.
struct Tree {
    expr: Expr,
    height: u32,
}

/// Whether `expr` ends in a selector whose offset, printed last, would swallow an operator after it: of
/// `foo offset (5m) @ 1 + 2` the modifiers change places when printed.
fn ends_in_open_offset(expr: &Expr) -> bool {
    let (at, extension, offset) = match expr {
        Expr::Unary(unary) => return ends_in_open_offset(&unary.expr),
        Expr::Binary(binary) => return ends_in_open_offset(&binary.rhs),
        Expr::VectorSelector(selector) => (selector.at, selector.extension, &selector.offset_expr),
        Expr::MatrixSelector(matrix) => (matrix.selector.at, matrix.selector.extension, &matrix.selector.offset_expr),
        Expr::Subquery(subquery) => (subquery.at, Extension::None, &subquery.offset_expr),
        _ => return false,
    };
    (at.is_some() || extension != Extension::None) && offset.as_deref().is_some_and(duration::starts_open)
}

/// The construct an error names, and what it wants there.
#[derive(Clone, Copy)]
struct Within {
    context: &'static str,
    expected: &'static str,
}

/// Reads one text.
pub(crate) struct Parser<'a> {
    text: &'a str,
    lexer: Lexer<'a>,
    switches: Switches,
    /// The token looked at and not taken.
    ahead: Option<Token<'a>>,
    /// End of the last token taken.
    taken_end: u32,
    /// How deep the parser itself is.
    depth: u32,
    /// Aggregations that are not finished.
    aggregations: u32,
    /// Regular expressions so far.
    regexes: u32,
}

impl<'a> Parser<'a> {
    /// A parser for `text`.
    ///
    /// # Errors
    /// The text is longer than [`TEXT_BYTES_MAX`].
    pub(crate) fn new(text: &'a str, switches: Switches) -> Result<Self> {
        let length = text.len();
        if length > TEXT_BYTES_MAX {
            let msg = format!("query of {length} bytes is longer than {TEXT_BYTES_MAX} bytes");
            return Err(ParseError::new(text, Span::default(), msg));
        }
        let lexer = Lexer::new(text);
        Ok(Self { text, lexer, switches, ahead: None, taken_end: 0, depth: 0, aggregations: 0, regexes: 0 })
    }

    /// The whole text as an expression, types not checked.
    ///
    /// # Errors
    /// The first thing wrong.
    pub(crate) fn expression(mut self) -> Result<Expr> {
        if self.peek()?.kind == Kind::Eof {
            return self.fail(Span::default(), "no expression found in input");
        }
        let tree = self.binary(0)?;
        self.end()?;
        Ok(tree.expr)
    }

    /// The whole text as a selector.
    ///
    /// # Errors
    /// The first thing wrong.
    pub(crate) fn selector(mut self) -> Result<Vec<Matcher>> {
        let token = self.peek()?;
        let selector = match token.kind {
            Kind::LeftBrace => self.vector_selector(None)?,
            kind if kind.may_name_a_metric() => {
                self.take();
                self.vector_selector(Some(token))?
            }
            _ => return self.unexpected(),
        };
        self.end()?;
        Ok(selector.matchers)
    }

    fn end(&mut self) -> Result<()> {
        if self.peek()?.kind == Kind::Eof { Ok(()) } else { self.unexpected() }
    }

    fn peek(&mut self) -> Result<Token<'a>> {
        match self.ahead {
            Some(token) => Ok(token),
            None => {
                let token = self.lexer.token()?;
                self.ahead = Some(token);
                Ok(token)
            }
        }
    }

    /// Takes the token that was looked at.
    fn take(&mut self) {
        if let Some(token) = self.ahead.take() {
            self.taken_end = token.span.end;
        }
    }

    /// Takes the next token if it is of this kind.
    fn accept(&mut self, kind: Kind) -> Result<Option<Token<'a>>> {
        let token = self.peek()?;
        if token.kind != kind {
            return Ok(None);
        }
        self.take();
        Ok(Some(token))
    }

    /// Takes the next token, which must be of this kind.
    fn expect(&mut self, kind: Kind) -> Result<Token<'a>> {
        match self.accept(kind)? {
            Some(token) => Ok(token),
            None => self.unexpected(),
        }
    }

    fn fail<T>(&self, span: Span, msg: impl Into<String>) -> Result<T> {
        Err(ParseError::new(self.text, span, msg.into()))
    }

    /// The next token fits nowhere.
    fn unexpected<T>(&mut self) -> Result<T> {
        let context = if self.aggregations > 0 { "aggregation" } else { "" };
        self.unexpected_in(Within { context, expected: "" })
    }

    fn unexpected_in<T>(&mut self, within: Within) -> Result<T> {
        let token = self.peek()?;
        let mut msg = format!("unexpected {}", token.describe());
        for (before, text) in [(" in ", within.context), (", expected ", within.expected)] {
            if !text.is_empty() {
                msg.push_str(before);
                msg.push_str(text);
            }
        }
        self.fail(token.span, msg)
    }

    /// Runs `inner` one level deeper.
    fn nested<T>(&mut self, at: Span, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= NESTING_MAX {
            return self.fail(at, format!("expression nests deeper than {NESTING_MAX} levels"));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn tree(&self, expr: Expr, below: u32) -> Result<Tree> {
        if below >= HEIGHT_MAX {
            return self.fail(expr.span(), format!("expression has more than {HEIGHT_MAX} levels"));
        }
        Ok(Tree { expr, height: below + 1 })
    }

    /// Operands joined by operators that bind at least as tight as `floor`.
    fn binary(&mut self, floor: u8) -> Result<Tree> {
        let mut lhs = self.operand()?;
        loop {
            let token = self.peek()?;
            let Kind::Op(op) = token.kind else { return Ok(lhs) };
            let binds = precedence(op);
            if binds < floor {
                return Ok(lhs);
            }
            if duration::goes_on(op) && ends_in_open_offset(&lhs.expr) {
                let span = lhs.expr.span();
                lhs = self.tree(Expr::Paren(Box::new(ParenExpr { expr: lhs.expr, span })), lhs.height)?;
            }
            self.take();
            let (matching, return_bool) = self.matching()?;
            let rhs = self.nested(token.span, |p| p.binary(if op == BinaryOp::Pow { binds } else { binds + 1 }))?;
            let height = lhs.height.max(rhs.height);
            let filled = matching.fill_left.is_some() || matching.fill_right.is_some();
            let expr = Expr::Binary(Box::new(BinaryExpr {
                op,
                op_span: token.span,
                lhs: lhs.expr,
                rhs: rhs.expr,
                matching: Some(matching),
                return_bool,
            }));
            if filled && !self.switches.binop_fill {
                return self.fail(expr.span(), "binop fill modifiers are experimental and not enabled");
            }
            lhs = self.tree(expr, height)?;
        }
    }

    /// `bool`, `on (…) group_left (…)`, `fill (…)` after an operator.
    fn matching(&mut self) -> Result<(VectorMatching, bool)> {
        let mut matching = VectorMatching::default();
        let return_bool = self.accept(Kind::Bool)?.is_some();
        let kind = self.peek()?.kind;
        if matches!(kind, Kind::On | Kind::Ignoring) {
            self.take();
            matching.on = kind == Kind::On;
            matching.labels = self.label_list()?;
            matching.cardinality = match self.peek()?.kind {
                Kind::GroupLeft => Cardinality::ManyToOne,
                Kind::GroupRight => Cardinality::OneToMany,
                _ => Cardinality::OneToOne,
            };
            if matching.cardinality != Cardinality::OneToOne {
                self.take();
                if self.peek()?.kind == Kind::LeftParen {
                    matching.include = self.label_list()?;
                }
            }
        }
        match self.peek()?.kind {
            Kind::Fill => {
                matching.fill_left = Some(self.fill_value()?);
                matching.fill_right = matching.fill_left;
            }
            Kind::FillLeft => {
                matching.fill_left = Some(self.fill_value()?);
                if self.peek()?.kind == Kind::FillRight {
                    matching.fill_right = Some(self.fill_value()?);
                }
            }
            Kind::FillRight => {
                matching.fill_right = Some(self.fill_value()?);
                if self.peek()?.kind == Kind::FillLeft {
                    matching.fill_left = Some(self.fill_value()?);
                }
            }
            _ => {}
        }
        Ok((matching, return_bool))
    }

    fn fill_value(&mut self) -> Result<f64> {
        self.take();
        self.expect(Kind::LeftParen)?;
        let minus = self.sign()?.is_some_and(|(minus, _)| minus);
        let number = match self.number()? {
            Some(number) => number,
            None => return self.unexpected(),
        };
        self.expect(Kind::RightParen)?;
        Ok(if minus { -number.value } else { number.value })
    }

    /// `+` or `-`: whether it is `-`, and where.
    fn sign(&mut self) -> Result<Option<(bool, Span)>> {
        let token = self.peek()?;
        let minus = match token.kind {
            Kind::Op(BinaryOp::Add) => false,
            Kind::Op(BinaryOp::Sub) => true,
            _ => return Ok(None),
        };
        self.take();
        Ok(Some((minus, token.span)))
    }

    /// A number or a duration.
    fn number(&mut self) -> Result<Option<NumberLiteral>> {
        let token = self.peek()?;
        let (value, duration) = match token.kind {
            Kind::Number => (literal::number(token.text), false),
            Kind::Duration => (literal::duration_seconds(token.text), true),
            _ => return Ok(None),
        };
        self.take();
        match value {
            Ok(value) => Ok(Some(NumberLiteral { value, duration, span: token.span })),
            Err(msg) => self.fail(token.span, msg),
        }
    }

    /// An operand with its signs and modifiers.
    fn operand(&mut self) -> Result<Tree> {
        if let Some((minus, span)) = self.sign()? {
            // A sign binds like `*`: only `^` and modifiers go first.
            let inner = self.nested(span, |p| p.binary(POWER))?;
            if let Expr::Number(mut number) = inner.expr {
                number.value = if minus { -number.value } else { number.value };
                number.span.start = span.start;
                return self.tree(Expr::Number(number), 0);
            }
            let span = Span { start: span.start, end: inner.expr.span().end };
            let expr = Expr::Unary(Box::new(UnaryExpr { minus, expr: inner.expr, span }));
            return self.tree(expr, inner.height);
        }
        let atom = self.atom()?;
        self.postfix(atom)
    }

    fn atom(&mut self) -> Result<Tree> {
        let token = self.peek()?;
        match token.kind {
            Kind::Number | Kind::Duration => match self.number()? {
                Some(number) => self.tree(Expr::Number(number), 0),
                None => self.unexpected(),
            },
            Kind::String => {
                self.take();
                match literal::unquote(token.text) {
                    Some(value) => self.tree(Expr::String(StringLiteral { value, span: token.span }), 0),
                    None => self.fail(token.span, format!("error unquoting string {}", token.text)),
                }
            }
            Kind::LeftParen => {
                self.take();
                let inner = self.nested(token.span, |p| p.binary(0))?;
                let close = self.expect(Kind::RightParen)?;
                let span = Span { start: token.span.start, end: close.span.end };
                self.tree(Expr::Paren(Box::new(ParenExpr { expr: inner.expr, span })), inner.height)
            }
            Kind::LeftBrace => {
                let selector = self.vector_selector(None)?;
                self.tree(Expr::VectorSelector(Box::new(selector)), 0)
            }
            kind if kind.may_name_a_metric() => {
                self.take();
                self.named(token)
            }
            _ => self.unexpected(),
        }
    }

    /// An aggregation, a call or a selector: what follows the word decides.
    fn named(&mut self, name: Token<'a>) -> Result<Tree> {
        let next = self.peek()?.kind;
        match name.kind {
            Kind::Aggregate(op) if matches!(next, Kind::LeftParen | Kind::By | Kind::Without) => {
                // An error ends the parse, so the count need not be right after one.
                self.aggregations += 1;
                let tree = self.aggregation(op, name.span)?;
                self.aggregations -= 1;
                Ok(tree)
            }
            kind if kind.may_name_a_function() && next == Kind::LeftParen => self.call(name),
            _ => {
                let selector = self.vector_selector(Some(name))?;
                self.tree(Expr::VectorSelector(Box::new(selector)), 0)
            }
        }
    }
}
