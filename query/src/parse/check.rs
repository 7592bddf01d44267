//! Types, argument counts and matching clauses: what a tree of the right shape may still get wrong.
//!
//! Also settles what only types tell: whether operands are matched as vectors, and that set operators are many-to-many.
//!
//! Source: `prometheus promql/parser/parse.go` (`checkAST`), Prometheus 3.14.

use engram_model::labels::METRIC_NAME;

use super::ast::{
    AggregateExpr, AggregateOp, BinaryExpr, Call, Cardinality, Expr, Span, ValueType, VectorMatching, VectorSelector,
};
use super::error::ParseError;
use super::functions::{Function, function};
use super::literal::quote;

type Result<T> = std::result::Result<T, ParseError>;

/// Checks `expr`, which was read from `text`, and yields its type.
///
/// # Errors
/// The first thing wrong, in the order Prometheus looks.
pub(super) fn check(text: &str, expr: &mut Expr) -> Result<ValueType> {
    Checker { text }.expr(expr)
}

struct Checker<'a> {
    text: &'a str,
}

impl Checker<'_> {
    fn fail<T>(&self, span: Span, msg: impl Into<String>) -> Result<T> {
        Err(ParseError::new(self.text, span, msg.into()))
    }

    fn expr(&self, expr: &mut Expr) -> Result<ValueType> {
        let span = expr.span();
        match expr {
            Expr::Number(_) => Ok(ValueType::Scalar),
            Expr::String(_) => Ok(ValueType::String),
            Expr::Paren(paren) => self.expr(&mut paren.expr),
            Expr::Unary(unary) => match self.expr(&mut unary.expr)? {
                found @ (ValueType::Scalar | ValueType::Vector) => Ok(found),
                found => {
                    let found = found.documented();
                    self.fail(
                        span,
                        format!(
                            "unary expression only allowed on expressions of type scalar or instant vector, got \"{found}\""
                        ),
                    )
                }
            },
            Expr::Binary(binary) => self.binary(binary),
            Expr::Aggregate(aggregate) => self.aggregate(aggregate),
            Expr::Call(call) => self.call(call),
            Expr::VectorSelector(selector) => {
                self.selector(selector, false)?;
                Ok(ValueType::Vector)
            }
            Expr::MatrixSelector(matrix) => {
                self.selector(&matrix.selector, false)?;
                Ok(ValueType::Matrix)
            }
            Expr::Subquery(subquery) => match self.expr(&mut subquery.expr)? {
                ValueType::Vector => Ok(ValueType::Matrix),
                found => {
                    let found = found.as_str();
                    self.fail(span, format!("subquery is only allowed on instant vector, got {found} instead"))
                }
            },
        }
    }

    fn expect(&self, expr: &mut Expr, want: ValueType, context: &str) -> Result<()> {
        let found = self.expr(expr)?;
        if found == want {
            return Ok(());
        }
        let (want, found) = (want.documented(), found.documented());
        self.fail(expr.span(), format!("expected type {want} in {context}, got {found}"))
    }

    fn aggregate(&self, aggregate: &mut AggregateExpr) -> Result<ValueType> {
        self.expect(&mut aggregate.expr, ValueType::Vector, "aggregation expression")?;
        if let Some(param) = &mut aggregate.param {
            let want = match aggregate.op {
                AggregateOp::CountValues => ValueType::String,
                _ => ValueType::Scalar,
            };
            self.expect(param, want, "aggregation parameter")?;
        }
        Ok(ValueType::Vector)
    }

    fn binary(&self, binary: &mut BinaryExpr) -> Result<ValueType> {
        let left = self.expr(&mut binary.lhs)?;
        let right = self.expr(&mut binary.rhs)?;
        let whole = Span { start: binary.lhs.span().start, end: binary.rhs.span().end };
        let op = binary.op;
        let scalars = left == ValueType::Scalar && right == ValueType::Scalar;
        if binary.return_bool && !op.is_comparison() {
            return self.fail(self.between(binary), "bool modifier can only be used on comparison operators");
        }
        if op.is_comparison() && !binary.return_bool && scalars {
            return self.fail(self.between(binary), "comparisons between scalars must use BOOL modifier");
        }
        let at = self.between(binary);
        let mut matching = binary.matching.take().unwrap_or_default();
        if op.is_set() && matching.cardinality == Cardinality::OneToOne {
            matching.cardinality = Cardinality::ManyToMany;
        }
        if matching.on
            && let Some(label) = matching.labels.iter().find(|label| matching.include.contains(label))
        {
            let label = quote(label.as_bytes());
            return self.fail(at, format!("label {label} must not occur in ON and GROUP clause at once"));
        }
        for (found, side) in [(left, &binary.lhs), (right, &binary.rhs)] {
            if !matches!(found, ValueType::Scalar | ValueType::Vector) {
                let msg = "binary expression must contain only scalar and instant vector types";
                return self.fail(side.span(), msg);
            }
        }
        let vectors = left == ValueType::Vector && right == ValueType::Vector;
        if let Some(msg) = Self::clauses(op.is_set(), vectors, op.as_str(), &matching) {
            return self.fail(whole, msg);
        }
        binary.matching = vectors.then_some(matching);
        Ok(if scalars { ValueType::Scalar } else { ValueType::Vector })
    }

    /// What is wrong with the clauses after an operator.
    fn clauses(set: bool, vectors: bool, op: &str, matching: &VectorMatching) -> Option<String> {
        let filled = matching.fill_left.is_some() || matching.fill_right.is_some();
        if !vectors {
            return if !matching.labels.is_empty() {
                Some("vector matching only allowed between instant vectors".into())
            } else if filled {
                Some("filling in missing series only allowed between instant vectors".into())
            } else if set {
                Some(format!("set operator \"{op}\" not allowed in binary scalar expression"))
            } else {
                None
            };
        }
        if !set {
            return None;
        }
        match matching.cardinality {
            Cardinality::ManyToMany if filled => Some("filling in missing series not allowed for set operators".into()),
            Cardinality::ManyToMany => None,
            _ => Some(format!("no grouping allowed for \"{op}\" operation")),
        }
    }

    /// Where the operator is: from the first byte after the left side that is no white space.
    fn between(&self, binary: &BinaryExpr) -> Span {
        let start = binary.lhs.span().end;
        let rest = usize::try_from(start).ok().and_then(|at| self.text.get(at..)).unwrap_or_default();
        let blank = rest.bytes().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
        let start = start.saturating_add(u32::try_from(blank).unwrap_or(u32::MAX));
        Span { start, end: binary.op_span.end.max(start) }
    }

    fn call(&self, call: &mut Call) -> Result<ValueType> {
        let Some(function) = function(call.func) else {
            return self.fail(call.span, format!("unknown function with name {}", quote(call.func.as_bytes())));
        };
        if let Some(msg) = count(function, call.args.len()) {
            return self.fail(call.span, msg);
        }
        let is_info = function.name == "info";
        if is_info && let Some(labels) = call.args.get(1) {
            let found = labels.value_type();
            if found != ValueType::Vector {
                let found = found.documented();
                return self.fail(
                    call.span,
                    format!("expected type instant vector in call to function \"info\", got {found}"),
                );
            }
            match labels {
                Expr::VectorSelector(selector) if selector.name.is_none() => {}
                Expr::VectorSelector(_) => {
                    return self.fail(labels.span(), "expected label selectors only, got vector selector instead");
                }
                _ => return self.fail(labels.span(), "expected label selectors only"),
            }
        }
        let context = format!("call to function \"{}\"", function.name);
        for (i, arg) in call.args.iter_mut().enumerate() {
            if let (true, 1, Expr::VectorSelector(selector)) = (is_info, i, &*arg) {
                self.selector(selector, true)?;
                continue;
            }
            let Some(want) = function.args.get(i).or(function.args.last()) else { break };
            self.expect(arg, *want, &context)?;
        }
        Ok(function.returns)
    }

    /// `may_match_all`: the labels of `info`, where an empty selector is fine.
    fn selector(&self, selector: &VectorSelector, may_match_all: bool) -> Result<()> {
        let Some(name) = &selector.name else {
            if may_match_all || selector.matchers.iter().any(|matcher| !matcher.matches_empty()) {
                return Ok(());
            }
            return self.fail(selector.span, "vector selector must contain at least one non-empty matcher");
        };
        // The last one is the name's own.
        let others = selector.matchers.split_last().map_or(&[][..], |(_, others)| others);
        match others.iter().find(|matcher| &*matcher.name == METRIC_NAME) {
            None => Ok(()),
            Some(second) => {
                let (name, second) = (quote(name.as_bytes()), quote(second.value.as_bytes()));
                self.fail(selector.span, format!("metric name must not be set twice: {name} or {second}"))
            }
        }
    }
}

/// What is wrong with this number of arguments.
fn count(function: &Function, got: usize) -> Option<String> {
    let (name, all) = (function.name, function.args.len());
    if function.variadic == 0 {
        return (got != all).then(|| format!("expected {all} argument(s) in call to \"{name}\", got {got}"));
    }
    let least = all.saturating_sub(1);
    if got < least {
        return Some(format!("expected at least {least} argument(s) in call to \"{name}\", got {got}"));
    }
    let most = least + usize::try_from(function.variadic).ok()?;
    (got > most).then(|| format!("expected at most {most} argument(s) in call to \"{name}\", got {got}"))
}
