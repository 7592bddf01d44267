//! From the tree to the plan, in one walk.

use engram_model::{MatchOp, Matcher, Millis, TimeRange};

use crate::functions::lookup;
use crate::parse::ast::{self, At, BinaryOp, Expr, Extension, Span};
use crate::port::SelectHints;

use super::{Aggregate, Binary, Call, Node, Plan, RangeSelector, Select, Selector, Subquery, Times};

/// What the walk knows of the nodes above.
#[derive(Clone, Copy)]
struct Above {
    /// Sum of the offsets of subqueries, since the last `@`.
    offset_ms: i64,
    /// Sum of the ranges of subqueries, since the last `@`.
    range_ms: i64,
    /// The last subquery's `@`.
    at: Option<Millis>,
    /// Step of the last subquery, or of the query.
    step_ms: i64,
    /// The nearest function or aggregation above with no operator between.
    func: &'static str,
    /// Which parts of histograms matter.
    buckets: Buckets,
}

/// Which parts of histograms the nodes above look at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Buckets {
    /// Nobody has said.
    Unknown,
    /// A function of count and sum stands above.
    Unneeded,
    /// Something needs them, or their resets.
    Needed,
}

impl Buckets {
    /// Under a function. Source: `prometheus promql/engine.go` (`detectHistogramStatsDecoding`).
    fn under(self, func: &str) -> Self {
        match (self, func) {
            (Self::Needed, _) | (_, "histogram_quantile" | "histogram_quantiles" | "histogram_fraction") => {
                Self::Needed
            }
            (_, "histogram_count" | "histogram_sum" | "histogram_avg") => Self::Unneeded,
            (same, _) => same,
        }
    }
}

/// What the walk says of a node.
struct Built {
    node: Node,
    /// Its value is the same at every step.
    is_invariant: bool,
    /// It is worth a [`Node::Once`] of its own.
    wants_once: bool,
}

impl Built {
    fn varying(node: Node) -> Self {
        Self { node, is_invariant: false, wants_once: false }
    }

    fn into_once(self) -> Node {
        if self.wants_once { Node::Once(Box::new(self.node)) } else { self.node }
    }
}

struct Builder {
    times: Times,
    selects: Vec<Select>,
}

pub(super) fn build(expr: &Expr, times: Times) -> Plan {
    let mut builder = Builder { times, selects: Vec::new() };
    let above =
        Above { offset_ms: 0, range_ms: 0, at: None, step_ms: times.step_ms, func: "", buckets: Buckets::Unknown };
    let root = builder.expr(expr, above).into_once();
    let yields = root.yields();
    Plan { root, selects: builder.selects, yields, folded: Vec::new() }
}

fn without_parens(mut expr: &Expr) -> &Expr {
    while let Expr::Paren(inner) = expr {
        expr = &inner.expr;
    }
    expr
}

impl Builder {
    fn expr(&mut self, expr: &Expr, above: Above) -> Built {
        let literal = |node| Built { node, is_invariant: true, wants_once: false };
        match expr {
            Expr::Number(n) => literal(Node::Number(n.value, n.span)),
            Expr::String(s) => literal(Node::Text(s.value.clone(), s.span)),
            Expr::Paren(paren) => self.expr(&paren.expr, above),
            Expr::Unary(unary) => {
                let inner = self.expr(&unary.expr, above);
                if unary.minus {
                    Built { node: Node::Negate(Box::new(inner.node), unary.span), ..inner }
                } else {
                    inner
                }
            }
            Expr::Binary(binary) => self.binary(binary, above),
            Expr::Aggregate(aggregate) => self.aggregate(aggregate, above),
            Expr::Call(call) => self.call(call, above),
            Expr::VectorSelector(selector) => {
                let selector = self.selector(selector, 0, above);
                let fixed = selector.at.is_some();
                Built { node: Node::Instant(selector), is_invariant: fixed, wants_once: fixed }
            }
            Expr::MatrixSelector(matrix) => {
                let range_ms = matrix.range_ms;
                let of = self.selector(&matrix.selector, range_ms, above);
                let fixed = of.at.is_some();
                let node = Node::Range(RangeSelector { of, range_ms, span: matrix.span });
                Built { node, is_invariant: fixed, wants_once: false }
            }
            Expr::Subquery(subquery) => self.subquery(subquery, above),
        }
    }

    fn binary(&mut self, binary: &ast::BinaryExpr, above: Above) -> Built {
        let trims = matches!(binary.op, BinaryOp::TrimUpper | BinaryOp::TrimLower);
        let buckets = if trims { Buckets::Needed } else { above.buckets };
        let below = Above { func: "", buckets, ..above };
        let lhs = self.expr(&binary.lhs, below);
        let rhs = self.expr(&binary.rhs, below);
        let is_invariant = lhs.is_invariant && rhs.is_invariant;
        let (lhs, rhs) = if is_invariant { (lhs.node, rhs.node) } else { (lhs.into_once(), rhs.into_once()) };
        let node = Node::Binary(Box::new(Binary {
            op: binary.op,
            lhs,
            rhs,
            matching: binary.matching.clone().unwrap_or_default(),
            return_bool: binary.return_bool,
            span: Span { start: binary.lhs.span().start, end: binary.rhs.span().end },
        }));
        Built { node, is_invariant, wants_once: is_invariant }
    }

    fn aggregate(&mut self, aggregate: &ast::AggregateExpr, above: Above) -> Built {
        let below = Above { func: aggregate.op.as_str(), ..above };
        let param = aggregate.param.as_ref().map(|param| self.expr(without_parens(param), below).node);
        let Built { node: inner, is_invariant, wants_once } = self.expr(without_parens(&aggregate.expr), below);
        let mut grouping = aggregate.grouping.clone();
        grouping.sort_unstable();
        let node = Node::Aggregate(Box::new(Aggregate {
            op: aggregate.op,
            inner,
            inner_span: without_parens(&aggregate.expr).span(),
            param,
            grouping,
            without: aggregate.without,
            span: aggregate.span,
        }));
        Built { node, is_invariant, wants_once }
    }

    fn call(&mut self, call: &ast::Call, above: Above) -> Built {
        if let Some(value) = self.constant(call.func) {
            return Built { node: Node::Number(value, call.span), is_invariant: true, wants_once: false };
        }
        let below = Above { func: call.func, buckets: above.buckets.under(call.func), ..above };
        let mut is_invariant = !lookup(call.func).is_some_and(|function| function.depends_on_time);
        let mut is_fixed_timestamp = call.func == "timestamp";
        let is_info = call.func == "info";
        let mut args = Vec::with_capacity(call.args.len());
        for (i, arg) in call.args.iter().enumerate() {
            let arg = without_parens(arg);
            if is_info && i == 1 {
                // The second argument only lends its matchers to the select of info series.
                args.push(Built::varying(self.info_labels(arg)));
                continue;
            }
            let built = self.expr(arg, below);
            is_invariant &= built.is_invariant;
            is_fixed_timestamp &= built.is_invariant && matches!(built.node, Node::Instant(_));
            args.push(built);
        }
        let is_invariant = is_invariant || is_fixed_timestamp;
        let info = is_info.then(|| self.info_select(call, above));
        let args =
            args.into_iter().map(|arg| if is_invariant { arg.node } else { arg.into_once() }).collect::<Vec<_>>();
        let node = Node::Call(Box::new(Call { func: call.func, args, info, span: call.span }));
        Built { node, is_invariant, wants_once: is_invariant }
    }

    /// Functions that only say what the request is.
    fn constant(&self, func: &str) -> Option<f64> {
        let seconds = |millis: i64| millis as f64 / 1000.0;
        let times = self.times;
        match func {
            "start" => Some(seconds(times.start)),
            "end" => Some(seconds(times.end)),
            "range" => Some(seconds(times.end.saturating_sub(times.start))),
            "step" if times.start == times.end => Some(0.0),
            "step" => Some(seconds(times.step_ms)),
            _ => None,
        }
    }

    fn at(&self, at: Option<At>) -> Option<Millis> {
        at.map(|at| match at {
            At::Time(time) => time,
            At::Start => self.times.start,
            At::End => self.times.end,
        })
    }

    fn subquery(&mut self, subquery: &ast::SubqueryExpr, above: Above) -> Built {
        let (range_ms, offset_ms) = (subquery.range_ms, subquery.offset_ms);
        let step_ms = if subquery.step_ms == 0 { self.times.subquery_step_ms.max(1) } else { subquery.step_ms };
        let at = self.at(subquery.at);
        let (outer_offset, outer_range) = if at.is_some() { (0, 0) } else { (above.offset_ms, above.range_ms) };
        let below = Above {
            offset_ms: outer_offset.saturating_add(offset_ms),
            range_ms: outer_range.saturating_add(range_ms),
            at: at.or(above.at),
            step_ms,
            buckets: Buckets::Needed,
            ..above
        };
        let inner = self.expr(&subquery.expr, below);
        let inner = if inner.is_invariant { Node::Once(Box::new(inner.node)) } else { inner.node };
        let node = Node::Subquery(Box::new(Subquery { inner, range_ms, step_ms, offset_ms, at, span: subquery.span }));
        Built { node, is_invariant: at.is_some(), wants_once: false }
    }

    fn selector(&mut self, ast: &ast::VectorSelector, range_ms: i64, above: Above) -> Selector {
        let offset_ms = ast.offset_ms;
        let at = self.at(ast.at);
        let range = self.needed(at, offset_ms, range_ms, ast.extension, above);
        let hints =
            SelectHints { func: above.func.to_owned(), step_ms: above.step_ms, range_ms, ..SelectHints::default() };
        let select = self.select(Select { matchers: ast.matchers.clone(), range, hints, is_empty: false });
        Selector {
            select,
            matchers: ast.matchers.clone(),
            offset_ms,
            at,
            extension: ast.extension,
            statistics_only: above.buckets == Buckets::Unneeded,
            span: ast.span,
        }
    }

    fn select(&mut self, select: Select) -> usize {
        super::register(&mut self.selects, select)
    }

    /// The samples a selector can look at.
    fn needed(
        &self,
        at: Option<Millis>,
        offset_ms: i64,
        range_ms: i64,
        extension: Extension,
        above: Above,
    ) -> TimeRange {
        let (mut start, mut end) = match above.at {
            Some(at) => (at, at),
            None => (self.times.start, self.times.end),
        };
        if let Some(at) = at {
            (start, end) = (at, at);
        } else {
            start = start.saturating_sub(above.offset_ms).saturating_sub(above.range_ms);
            end = end.saturating_sub(above.offset_ms);
        }
        let lookback = self.times.lookback_ms;
        let back = match (range_ms, extension) {
            (0, _) => lookback,
            (_, Extension::None) => range_ms,
            (_, Extension::Anchored | Extension::Smoothed) => range_ms.saturating_add(lookback),
        };
        // Ranges are open to the left: a sample exactly `back` ago is outside.
        start = start.saturating_sub(back.saturating_sub(1));
        if extension == Extension::Smoothed {
            end = end.saturating_add(lookback);
        }
        TimeRange::closed(start.saturating_sub(offset_ms), end.saturating_sub(offset_ms))
    }

    /// The second argument of `info`, as a selector that is never evaluated itself.
    fn info_labels(&self, arg: &Expr) -> Node {
        match arg {
            Expr::VectorSelector(ast) => Node::Instant(Selector {
                select: usize::MAX,
                matchers: ast.matchers.clone(),
                offset_ms: 0,
                at: None,
                extension: Extension::None,
                statistics_only: false,
                span: ast.span,
            }),
            other => Node::Text(Vec::new(), other.span()),
        }
    }

    /// The select of the info series of `info(v, {…})`.
    ///
    /// Which of them fit is known only when `v` is: all of the name are fetched, the engine keeps those that fit.
    fn info_select(&mut self, call: &ast::Call, above: Above) -> Selector {
        let (at, offset_ms) = match call.args.first() {
            Some(first) => self.info_time(first).unwrap_or((None, 0)),
            None => (None, 0),
        };
        let mut matchers: Vec<Matcher> = Vec::new();
        if let Some(Expr::VectorSelector(labels)) = call.args.get(1).map(without_parens) {
            matchers.extend(labels.matchers.iter().cloned());
        }
        let (names, mut rest): (Vec<_>, Vec<_>) =
            matchers.into_iter().partition(|m| &*m.name == engram_model::labels::METRIC_NAME);
        rest.extend(info_names(&names));
        let range = self.needed(at, offset_ms, 0, Extension::None, above);
        let hints = SelectHints { func: "info".to_owned(), step_ms: above.step_ms, ..SelectHints::default() };
        let select = self.select(Select { matchers: rest.clone(), range, hints, is_empty: false });
        Selector {
            select,
            matchers: rest,
            offset_ms,
            at,
            extension: Extension::None,
            statistics_only: false,
            span: call.span,
        }
    }

    /// `@` and offset of the first selector inside, which rule when info series are looked up too: the innermost `@`
    /// counts, and the offsets up to it. `None`: there is no selector.
    fn info_time(&self, expr: &Expr) -> Option<(Option<Millis>, i64)> {
        let first = |list: &[&Expr]| list.iter().find_map(|expr| self.info_time(expr));
        match expr {
            Expr::Number(_) | Expr::String(_) => None,
            Expr::Paren(p) => self.info_time(&p.expr),
            Expr::Unary(u) => self.info_time(&u.expr),
            Expr::Binary(b) => first(&[&b.lhs, &b.rhs]),
            Expr::Aggregate(a) => self.info_time(&a.expr).or_else(|| self.info_time(a.param.as_ref()?)),
            Expr::Call(c) => first(&c.args.iter().collect::<Vec<_>>()),
            Expr::VectorSelector(s) => Some((self.at(s.at), s.offset_ms)),
            Expr::MatrixSelector(m) => Some((self.at(m.selector.at), m.selector.offset_ms)),
            Expr::Subquery(s) => {
                let (at, offset) = self.info_time(&s.expr)?;
                match at {
                    Some(_) => Some((at, offset)),
                    None => Some((self.at(s.at), offset.saturating_add(s.offset_ms))),
                }
            }
        }
    }
}

/// The tests on the name of info series: as written, with `target_info` where nothing is.
pub(crate) fn info_names(written: &[Matcher]) -> Vec<Matcher> {
    if written.is_empty() {
        return vec![Matcher::equal(engram_model::labels::METRIC_NAME, "target_info")];
    }
    let mut names = written.to_vec();
    if written.iter().all(Matcher::is_negative)
        && let Ok(any) = Matcher::new(engram_model::labels::METRIC_NAME, MatchOp::Regex, ".+_info")
    {
        names.insert(0, any);
    }
    names
}
