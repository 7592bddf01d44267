//! Plan: the tree as the engine walks it.
//!
//! Why another tree: what depends on the request (`@ start()`, `step()`, durations that are expressions, the default
//! step of subqueries) is settled once, and each selector becomes a numbered [`Select`] with the time it needs, so that
//! all data can be fetched before the first value is computed, identical selectors once.
//!
//! A [`Node::Once`] stands above every part whose value is the same at all steps: `@` makes it so, and literals are.
//!
//! Source: `prometheus promql/engine.go` (`PreprocessExpr`, `getTimeRangesForSelector`), Prometheus 3.14.

use engram_model::{Matcher, Millis, TimeRange};

use crate::error::Error;
use crate::parse::ast::{AggregateOp, BinaryOp, Expr, Extension, Span, ValueType, VectorMatching};
use crate::parse::functions::function;
use crate::parse::resolve_durations;
use crate::port::SelectHints;

mod build;

pub(crate) use build::info_names;

/// Times and defaults a plan is made for.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// First evaluation time.
    pub start: Millis,
    /// Last evaluation time, inside.
    pub end: Millis,
    /// Distance of evaluation times; 0 for an instant query.
    pub step_ms: i64,
    /// How far back an instant selector looks.
    pub lookback_ms: i64,
    /// Step of subqueries that name none.
    pub subquery_step_ms: i64,
}

/// What is to be fetched.
#[derive(Clone, Debug)]
pub struct Select {
    /// Tests on labels.
    pub matchers: Vec<Matcher>,
    /// Samples that can matter.
    pub range: TimeRange,
    /// What for.
    pub hints: SelectHints,
}

impl Select {
    /// Whether both fetch the same series of the same time.
    fn is_same(&self, other: &Self) -> bool {
        self.range == other.range
            && self.hints.func == other.hints.func
            && self.matchers.len() == other.matchers.len()
            && self
                .matchers
                .iter()
                .zip(&other.matchers)
                .all(|(a, b)| a.name == b.name && a.op == b.op && a.value == b.value)
    }
}

/// A finished plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The tree.
    pub root: Node,
    /// All that is to be fetched; nodes hold indexes into it.
    pub selects: Vec<Select>,
    /// What the whole yields.
    pub yields: ValueType,
}

/// One step of a plan.
#[derive(Clone, Debug)]
pub enum Node {
    /// A number.
    Number(f64, Span),
    /// A text.
    Text(Vec<u8>, Span),
    /// `metric`.
    Instant(Selector),
    /// `metric[5m]`.
    Range(RangeSelector),
    /// `expr[1h:5m]`.
    Subquery(Box<Subquery>),
    /// `-expr`.
    Negate(Box<Node>),
    /// `a + b`.
    Binary(Box<Binary>),
    /// `sum(expr)`.
    Aggregate(Box<Aggregate>),
    /// `func(args)`.
    Call(Box<Call>),
    /// The same at every step.
    Once(Box<Node>),
}

/// A selector of one sample a series and step.
#[derive(Clone, Debug)]
pub struct Selector {
    /// Index of its [`Select`].
    pub select: usize,
    /// As written.
    pub matchers: Vec<Matcher>,
    /// How far back it is shifted.
    pub offset_ms: i64,
    /// The moment it is fixed to.
    pub at: Option<Millis>,
    /// `anchored`, `smoothed`.
    pub extension: Extension,
    /// Of histograms, only count, sum and what is known of resets are asked for; buckets need not be kept.
    pub statistics_only: bool,
    /// Where.
    pub span: Span,
}

impl Selector {
    /// Time of the data for an evaluation time.
    #[must_use]
    pub fn data_time(&self, at: Millis) -> Millis {
        self.at.unwrap_or(at).saturating_sub(self.offset_ms)
    }
}

/// A selector of a range of samples.
#[derive(Clone, Debug)]
pub struct RangeSelector {
    /// Of what.
    pub of: Selector,
    /// How long.
    pub range_ms: i64,
    /// Where, with modifiers.
    pub span: Span,
}

/// An expression evaluated over a range of its own.
#[derive(Clone, Debug)]
pub struct Subquery {
    /// What.
    pub inner: Node,
    /// How long.
    pub range_ms: i64,
    /// Distance of its evaluation times.
    pub step_ms: i64,
    /// How far back it is shifted.
    pub offset_ms: i64,
    /// The moment it is fixed to.
    pub at: Option<Millis>,
    /// Where.
    pub span: Span,
}

impl Subquery {
    /// Time of the data for an evaluation time.
    #[must_use]
    pub fn data_time(&self, at: Millis) -> Millis {
        self.at.unwrap_or(at).saturating_sub(self.offset_ms)
    }
}

/// `lhs op rhs`.
#[derive(Clone, Debug)]
pub struct Binary {
    /// The operator.
    pub op: BinaryOp,
    /// Left.
    pub lhs: Node,
    /// Right.
    pub rhs: Node,
    /// How series are matched; only where both are vectors.
    pub matching: VectorMatching,
    /// `bool`.
    pub return_bool: bool,
    /// From the left's begin to the right's end.
    pub span: Span,
}

/// `op by (grouping) (param, inner)`.
#[derive(Clone, Debug)]
pub struct Aggregate {
    /// The operator.
    pub op: AggregateOp,
    /// Of what.
    pub inner: Node,
    /// Where that stands as written, with a sign before it but no parentheses around it: remarks point there.
    pub inner_span: Span,
    /// The parameter and where it stands.
    pub param: Option<Node>,
    /// Labels of `by` or `without`, sorted.
    pub grouping: Vec<String>,
    /// Whether it is `without`.
    pub without: bool,
    /// Where.
    pub span: Span,
}

/// `func(args)`.
#[derive(Clone, Debug)]
pub struct Call {
    /// The function.
    pub func: &'static str,
    /// Its arguments.
    pub args: Vec<Node>,
    /// For `info`: where the info series come from; its matchers are all that they must pass.
    pub info: Option<Selector>,
    /// Where.
    pub span: Span,
}

impl Node {
    /// What it yields.
    #[must_use]
    pub fn yields(&self) -> ValueType {
        match self {
            Self::Number(..) => ValueType::Scalar,
            Self::Text(..) => ValueType::String,
            Self::Instant(_) | Self::Aggregate(_) => ValueType::Vector,
            Self::Range(_) | Self::Subquery(_) => ValueType::Matrix,
            Self::Negate(inner) | Self::Once(inner) => inner.yields(),
            Self::Binary(b) => match (b.lhs.yields(), b.rhs.yields()) {
                (ValueType::Scalar, ValueType::Scalar) => ValueType::Scalar,
                _ => ValueType::Vector,
            },
            Self::Call(call) => function(call.func).map_or(ValueType::Vector, |f| f.returns),
        }
    }

    /// Where it stands in the text.
    #[must_use]
    pub fn span(&self) -> Span {
        match self {
            Self::Number(_, span) | Self::Text(_, span) => *span,
            Self::Instant(selector) => selector.span,
            Self::Range(selector) => selector.span,
            Self::Subquery(subquery) => subquery.span,
            Self::Negate(inner) | Self::Once(inner) => inner.span(),
            Self::Binary(b) => b.span,
            Self::Aggregate(a) => a.span,
            Self::Call(call) => call.span,
        }
    }
}

/// Makes the plan of an expression.
///
/// # Errors
/// [`Error::BadRequest`] when a duration that is an expression has no meaning.
pub fn plan(expr: &Expr, times: Times) -> Result<Plan, Error> {
    let mut expr = expr.clone();
    resolve_durations(&mut expr, times.start, times.end, times.step_ms)?;
    Ok(build::build(&expr, times))
}

#[cfg(test)]
mod tests;
