//! What of the selected series is wanted, as hints to whoever answers: which labels, and whether the last sample will do.
//!
//! Why: `sum by (code) (rate(x[5m]))` over a hundred thousand series spends more time on their labels, which nobody
//! looks at, than on their samples; and `sum(x)` at one time needs one sample a series, which lies at hand.
//!
//! Labels may be left out where every row goes straight into a group of an aggregation `by` some labels, and the
//! selector names its metric: rows then stay different series though their labels became the same.

use engram_model::MatchOp;
use engram_model::labels::METRIC_NAME;

use crate::functions::{Kernel, lookup};
use crate::parse::ast::{AggregateOp, Extension, ValueType};
use crate::plan::{Node, Plan, Selector};

use super::Budget;
use super::call::is_row_by_row;

/// What all selectors of one select want together.
#[derive(Clone, Default)]
struct Want {
    /// Any selector looked at it.
    seen: bool,
    /// Any of them needs all labels.
    all_labels: bool,
    /// Labels needed, sorted.
    labels: Vec<String>,
    /// Any of them needs more than the last sample.
    all_samples: bool,
}

struct Walk<'a> {
    budget: &'a Budget,
    /// Length of each select's range.
    lengths: Vec<i64>,
    wants: Vec<Want>,
}

/// Writes what is wanted into the hints of the plan's selects.
pub(super) fn fill_hints(plan: &mut Plan, budget: &Budget) {
    let lengths = plan.selects.iter().map(|s| s.range.end.saturating_sub(s.range.start)).collect::<Vec<_>>();
    let wants = vec![Want::default(); lengths.len()];
    let mut walk = Walk { budget, lengths, wants };
    walk.node(&plan.root, None);
    for (select, want) in plan.selects.iter_mut().zip(walk.wants) {
        select.hints.projection = (want.seen && !want.all_labels).then_some(want.labels);
        select.hints.last_only = want.seen && !want.all_samples;
    }
}

impl Walk<'_> {
    /// `labels`: those that are looked at above; `None`: all.
    fn node(&mut self, node: &Node, labels: Option<&[String]>) {
        match node {
            Node::Number(..) | Node::Text(..) | Node::Nothing(_) => {}
            Node::Instant(selector) => {
                // A range as long as the lookback is looked at from one time only: its end.
                let length = self.lengths.get(selector.select).copied();
                let is_once = length == Some(self.budget.lookback_ms) && selector.extension == Extension::None;
                self.selector(selector, labels, is_once);
            }
            Node::Range(range) => self.selector(&range.of, labels, false),
            Node::Subquery(subquery) => self.node(&subquery.inner, None),
            Node::Negate(inner, _) | Node::Once(inner) => self.node(inner, labels),
            // Each of its places is walked, and wants of the same selects.
            Node::Shared(shared) => self.node(&shared.inner, labels),
            Node::Binary(b) => match (b.lhs.yields(), b.rhs.yields()) {
                (ValueType::Vector, ValueType::Vector) => {
                    self.node(&b.lhs, None);
                    self.node(&b.rhs, None);
                }
                _ => {
                    self.node(&b.lhs, labels);
                    self.node(&b.rhs, labels);
                }
            },
            Node::Aggregate(aggregate) => {
                let is_grouping = !aggregate.without && is_streaming(aggregate.op);
                self.node(&aggregate.inner, is_grouping.then_some(aggregate.grouping.as_slice()));
                aggregate.param.iter().for_each(|param| self.node(param, None));
            }
            Node::Call(call) => {
                let is_plain = is_row_by_row(call.func)
                    && !matches!(call.func, "timestamp" | "start_timestamp")
                    && lookup(call.func).is_some_and(|f| !matches!(f.kernel, Kernel::Special));
                call.args.iter().for_each(|arg| self.node(arg, labels.filter(|_| is_plain)));
                call.info.iter().for_each(|info| self.selector(info, None, false));
            }
        }
    }

    fn selector(&mut self, selector: &Selector, labels: Option<&[String]>, is_once: bool) {
        let Some(want) = self.wants.get_mut(selector.select) else { return };
        want.seen = true;
        want.all_samples |= !is_once;
        let has_one_name = selector.matchers.iter().any(|m| m.op == MatchOp::Equal && &*m.name == METRIC_NAME);
        match labels.filter(|_| has_one_name || self.budget.delayed_name_removal) {
            None => want.all_labels = true,
            Some(labels) => {
                want.labels.extend_from_slice(labels);
                want.labels.sort_unstable();
                want.labels.dedup();
            }
        }
    }
}

/// Whether nothing of a row but its group outlives the aggregation.
fn is_streaming(op: AggregateOp) -> bool {
    !matches!(
        op,
        AggregateOp::TopK
            | AggregateOp::BottomK
            | AggregateOp::LimitK
            | AggregateOp::LimitRatio
            | AggregateOp::CountValues
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{Switches, parse};
    use crate::plan::{Times, plan};

    /// Labels and whether the last sample will do, of each select of a query over one time.
    fn wanted(text: &str) -> Vec<(Option<Vec<String>>, bool)> {
        let budget = Budget::default();
        let times = Times { start: 0, end: 0, step_ms: 0, lookback_ms: budget.lookback_ms, subquery_step_ms: 60_000 };
        let mut plan = plan(&parse(text, &Switches::all()).unwrap(), times).unwrap();
        fill_hints(&mut plan, &budget);
        plan.selects.into_iter().map(|s| (s.hints.projection, s.hints.last_only)).collect()
    }

    fn some(labels: &[&str]) -> Option<Vec<String>> {
        Some(labels.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn aggregations_want_what_they_group_by() {
        assert_eq!(wanted("sum by (b, a) (x)"), [(some(&["a", "b"]), true)]);
        assert_eq!(wanted("count(x)"), [(some(&[]), true)]);
        assert_eq!(wanted("sum by (a) (rate(x[5m]) * 2)"), [(some(&["a"]), false)]);
        assert_eq!(wanted("max by (le) (abs(-x))"), [(some(&["le"]), true)]);
        assert_eq!(wanted("histogram_quantile(0.9, sum by (le) (rate(x[5m])))"), [(some(&["le"]), false)]);
    }

    #[test]
    fn whoever_looks_at_series_wants_all_labels() {
        for text in [
            "x",
            "sum without (a) (x)",
            "topk(1, x)",
            "sum by (a) (topk(1, x))",
            "count_values(\"v\", x)",
            "sum by (a) (label_replace(x, \"a\", \"$1\", \"b\", \"(.*)\"))",
            "sum by (a) (x and x)",
            "sum(timestamp(x))",
            "sum({__name__=~\"x|y\"})",
        ] {
            assert!(wanted(text).iter().all(|(labels, _)| labels.is_none()), "{text}");
        }
        // One select for both: the wider wish counts.
        assert_eq!(wanted("sum by (a) (x) + on (a) sum by (b, a) (x)"), [(some(&["a", "b"]), true)]);
        assert_eq!(wanted("sum(abs(x)) / scalar(abs(x))"), [(None, true)]);
    }

    #[test]
    fn one_sample_will_do_at_one_time_only() {
        for text in ["x", "x @ 7", "x offset 1m", "sum(timestamp(x))"] {
            assert!(wanted(text)[0].1, "{text}");
        }
        for text in ["x smoothed", "x[5m]", "max_over_time(x[2m:1m])", "rate(x[5m])", "rate(x[5m] smoothed)"] {
            assert!(!wanted(text)[0].1, "{text}");
        }
    }
}
