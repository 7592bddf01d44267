//! Plan: the tree as the engine walks it.
//!
//! Why another tree: what depends on the request (`@ start()`, `step()`, durations that are expressions, the default
//! step of subqueries) is settled once, and each selector becomes a numbered [`Select`] with the time it needs, so that
//! all data can be fetched before the first value is computed, identical selectors once.
//!
//! A [`Node::Once`] stands above every part whose value is the same at all steps: `@` makes it so, and literals are.
//!
//! ```text
//! build.rs   from the tree to the plan        narrow.rs  tests of one side are made on the other
//! fold.rs    numbers                          empty.rs   what cannot have rows is left out
//! facts.rs   what is known of labels          share.rs   what is written twice is evaluated once
//! ```
//!
//! Source: `prometheus promql/engine.go` (`PreprocessExpr`, `getTimeRangesForSelector`), Prometheus 3.14.

use engram_model::{Matcher, Millis, TimeRange};

use crate::error::Error;
use crate::parse::ast::{AggregateOp, BinaryOp, Expr, Extension, Span, ValueType, VectorMatching};
use crate::parse::functions::function;
use crate::parse::resolve_durations;
use crate::port::SelectHints;

mod build;
mod empty;
mod facts;
mod fold;
mod narrow;
mod share;

pub(crate) use build::info_names;
pub(crate) use facts::chooses;

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
    /// No series can pass: there is nothing to be fetched.
    pub is_empty: bool,
}

impl Select {
    /// Whether both fetch the same series of the same time.
    fn is_same(&self, other: &Self) -> bool {
        self.hints.func == other.hints.func && self.is_same_but_for_func(other)
    }

    fn is_same_but_for_func(&self, other: &Self) -> bool {
        self.range == other.range
            && self.matchers.len() == other.matchers.len()
            && self.matchers.iter().all(|m| other.matchers.iter().any(|have| facts::is_same(m, have)))
            && other.matchers.iter().all(|m| self.matchers.iter().any(|have| facts::is_same(m, have)))
    }
}

/// The number of a select, which is put to the others where there is none like it.
fn register(selects: &mut Vec<Select>, select: Select) -> usize {
    if let Some(at) = selects.iter().position(|have| have.is_same(&select)) {
        return at;
    }
    selects.push(select);
    selects.len() - 1
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
    /// Where numbers stand now that were not written as numbers.
    pub folded: Vec<Span>,
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
    Negate(Box<Node>, Span),
    /// `a + b`.
    Binary(Box<Binary>),
    /// `sum(expr)`.
    Aggregate(Box<Aggregate>),
    /// `func(args)`.
    Call(Box<Call>),
    /// The same at every step.
    Once(Box<Node>),
    /// Written more than once, evaluated once.
    Shared(Box<Shared>),
    /// A vector without rows, whatever the data is.
    Nothing(Span),
}

/// One of several places where the same is written.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Its number: the same at all places.
    pub slot: usize,
    /// How many places there are.
    pub uses: usize,
    /// What.
    pub inner: Node,
    /// Where this one stands.
    pub span: Span,
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
            Self::Instant(_) | Self::Aggregate(_) | Self::Nothing(_) => ValueType::Vector,
            Self::Range(_) | Self::Subquery(_) => ValueType::Matrix,
            Self::Negate(inner, _) | Self::Once(inner) => inner.yields(),
            Self::Shared(shared) => shared.inner.yields(),
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
            Self::Number(_, span) | Self::Text(_, span) | Self::Nothing(span) => *span,
            Self::Instant(selector) => selector.span,
            Self::Range(selector) => selector.span,
            Self::Subquery(subquery) => subquery.span,
            Self::Negate(_, span) => *span,
            Self::Once(inner) => inner.span(),
            Self::Binary(b) => b.span,
            Self::Aggregate(a) => a.span,
            Self::Call(call) => call.span,
            Self::Shared(shared) => shared.span,
        }
    }

    /// What is evaluated for it, in order. The second argument of `info` only lends its matchers.
    #[must_use]
    pub fn children(&self) -> Vec<&Self> {
        match self {
            Self::Number(..) | Self::Text(..) | Self::Instant(_) | Self::Range(_) | Self::Nothing(_) => Vec::new(),
            Self::Negate(inner, _) | Self::Once(inner) => vec![inner],
            Self::Subquery(subquery) => vec![&subquery.inner],
            Self::Shared(shared) => vec![&shared.inner],
            Self::Binary(b) => vec![&b.lhs, &b.rhs],
            Self::Aggregate(a) => a.param.iter().chain([&a.inner]).collect(),
            Self::Call(call) => call.args.iter().take(call.args_evaluated()).collect(),
        }
    }

    /// [`Self::children`], to be changed.
    fn children_mut(&mut self) -> Vec<&mut Self> {
        match self {
            Self::Number(..) | Self::Text(..) | Self::Instant(_) | Self::Range(_) | Self::Nothing(_) => Vec::new(),
            Self::Negate(inner, _) | Self::Once(inner) => vec![inner],
            Self::Subquery(subquery) => vec![&mut subquery.inner],
            Self::Shared(shared) => vec![&mut shared.inner],
            Self::Binary(b) => {
                let Binary { lhs, rhs, .. } = &mut **b;
                vec![lhs, rhs]
            }
            Self::Aggregate(a) => {
                let Aggregate { param, inner, .. } = &mut **a;
                param.iter_mut().chain([inner]).collect()
            }
            Self::Call(call) => {
                let count = call.args_evaluated();
                call.args.iter_mut().take(count).collect()
            }
        }
    }

    /// Nodes of the tree.
    fn count(&self) -> usize {
        1 + self.children().into_iter().map(Self::count).sum::<usize>()
    }

    /// Calls `f` for each selector whose series are read.
    pub(crate) fn each_selector(&mut self, f: &mut impl FnMut(&mut Selector)) {
        match self {
            Self::Instant(selector) => f(selector),
            Self::Range(range) => f(&mut range.of),
            Self::Call(call) => call.info.iter_mut().for_each(&mut *f),
            _ => {}
        }
        self.children_mut().into_iter().for_each(|child| child.each_selector(f));
    }
}

impl Call {
    fn args_evaluated(&self) -> usize {
        if self.info.is_some() { 1 } else { self.args.len() }
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

/// Makes a plan cheaper that gives the same answer: see the files of the passes for why each is sound.
///
/// ```text
/// fold → narrow → (unused selects go) → empty → share
/// ```
pub fn optimise(plan: &mut Plan) {
    fold::fold(plan);
    narrow::narrow(plan);
    empty::empty(plan);
    sweep(plan);
    share::share(plan);
}

/// Leaves only the selects that a node reads, in order of their first reader. Those that differ only in what they are
/// for become one, for nothing in particular.
fn sweep(plan: &mut Plan) {
    let old = std::mem::take(&mut plan.selects);
    let selects = &mut plan.selects;
    plan.root.each_selector(&mut |selector| {
        let Some(select) = old.get(selector.select) else { return };
        let is_like = |have: &&mut Select| {
            let (have, this) = (&have.hints, &select.hints);
            (have.step_ms, have.range_ms) == (this.step_ms, this.range_ms)
        };
        let alike = selects.iter().position(|have| have.is_same_but_for_func(select));
        selector.select = match alike.and_then(|at| Some((at, selects.get_mut(at).filter(is_like)?))) {
            Some((at, have)) => {
                if have.hints.func != select.hints.func {
                    have.hints.func.clear();
                }
                at
            }
            None => {
                selects.push(select.clone());
                selects.len() - 1
            }
        };
    });
}

#[cfg(test)]
mod tests;
