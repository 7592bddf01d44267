//! Aggregations that may run where their series lie: which of a plan do, and how one is run there.
//!
//! An aggregation is pushed down where its select is for nothing else, and where each series answers by itself: an
//! instant selector, or one function of a range. A function that takes the name away needs a selector that gives one,
//! or rows of different places could become the same without anybody seeing it.

use std::ops::ControlFlow;
use std::sync::Arc;

use engram_model::labels::METRIC_NAME;
use engram_model::series::Series;
use engram_model::time::Stopwatch;
use engram_model::{Labels, MatchOp};
use hashbrown::HashSet;

use crate::error::Error;
use crate::fragment::{Fragment, OPS, Partial, Rules};
use crate::functions::{Kernel, lookup};
use crate::parse::ast::{Extension, ValueType};
use crate::plan::{Aggregate, Call, Node, Plan, RangeSelector, Select, Selector};
use crate::port::{SelectHints, Selection};

use super::aggregate::group_key;
use super::eval::{Counters, Evaluator, Parts, is_metadata, selection_bytes};
use super::range::inner_steps;
use super::row::Steps;
use super::{Budget, Cancel};

/// A partial is worth its bytes where a group has so many series: it holds two numbers a step, compressed samples take
/// a byte or two each.
const SERIES_EACH_MIN: usize = 4;
/// Series after which it is said that there are few groups.
const LOOKED_AT_MIN: usize = 1024;
/// Of fewer series nothing is asked.
const FEW_SERIES: usize = 16;

/// Writes fragments into the hints of the selects that are for one aggregation only.
pub(super) fn fill_fragments(plan: &mut Plan, steps: Steps, budget: &Budget) {
    let mut uses = vec![0_usize; plan.selects.len()];
    plan.root.each_selector(&mut |selector| {
        if let Some(count) = uses.get_mut(selector.select) {
            *count += 1;
        }
    });
    let mut found = Vec::new();
    walk(&plan.root, steps, &mut |aggregate, steps| {
        if let Some((at, fragment)) = fragment_of(aggregate, &plan.selects, steps, budget) {
            if uses.get(at) == Some(&1) {
                found.push((at, fragment));
            }
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    for (at, fragment) in found {
        plan.selects[at].hints.fragment = Some(Arc::new(fragment));
    }
}

/// Shows each aggregation with the steps it is evaluated at, the outer ones first.
fn walk(node: &Node, steps: Steps, f: &mut impl FnMut(&Aggregate, Steps) -> ControlFlow<()>) {
    let below = match node {
        Node::Once(_) => Steps { count: steps.count.min(1), is_instant: true, ..steps },
        Node::Subquery(subquery) => inner_steps(subquery, steps),
        Node::Aggregate(aggregate) if f(aggregate, steps).is_break() => return,
        _ => steps,
    };
    node.children().into_iter().for_each(|child| walk(child, below, f));
}

/// The aggregation as a fragment, with the number of its select.
fn fragment_of(aggregate: &Aggregate, selects: &[Select], steps: Steps, budget: &Budget) -> Option<(usize, Fragment)> {
    let (selector, func, range_ms, params, span) = match &aggregate.inner {
        Node::Instant(selector) => (selector, None, 0, Vec::new(), selector.span),
        Node::Call(call) => {
            let (range, params) = range_and_numbers(call)?;
            (&range.of, Some(call.func), range.range_ms, params, call.args.first()?.span())
        }
        _ => return None,
    };
    let select = selects.get(selector.select).filter(|select| !select.is_empty)?;
    let function = func.and_then(lookup);
    let is_plain = OPS.contains(&aggregate.op)
        && aggregate.param.is_none()
        && selector.extension == Extension::None
        && steps.count > 0
        && u32::try_from(steps.count).is_ok()
        && !budget.count_steps;
    let has_one_name = select.matchers.iter().any(|m| m.op == MatchOp::Equal && &*m.name == METRIC_NAME);
    let stays_apart = has_one_name || budget.delayed_name_removal || function.is_none_or(|f| !f.drops_name);
    let looks_at_starts = budget.use_start_timestamps && function.is_some_and(|f| f.reads_starts);
    if !is_plain || !stays_apart || looks_at_starts {
        return None;
    }
    let fragment = Fragment {
        op: aggregate.op,
        grouping: aggregate.grouping.clone(),
        without: aggregate.without,
        func,
        params,
        range_ms,
        matchers: select.matchers.clone(),
        offset_ms: selector.offset_ms,
        at: selector.at,
        start: steps.start,
        step_ms: steps.step_ms,
        steps: steps.count,
        rules: Rules {
            lookback_ms: budget.lookback_ms,
            samples_max: budget.samples_max,
            bytes_max: budget.bytes_max,
            within_ms: u64::try_from(budget.timeout.as_millis()).unwrap_or(u64::MAX),
            delayed_name_removal: budget.delayed_name_removal,
            type_and_unit_labels: budget.type_and_unit_labels,
        },
        span,
    };
    fragment.check().is_ok().then_some((selector.select, fragment))
}

/// The range argument of a function of ranges, and the numbers beside it.
fn range_and_numbers(call: &Call) -> Option<(&RangeSelector, Vec<f64>)> {
    if !matches!(lookup(call.func)?.kernel, Kernel::Range(_)) {
        return None;
    }
    let (mut range, mut params) = (None, Vec::new());
    for arg in &call.args {
        match arg {
            Node::Range(found) if range.is_none() => range = Some(found),
            Node::Number(value, _) => params.push(*value),
            _ => return None,
        }
    }
    Some((range?, params))
}

/// Sums up `series`, all that a place has for the fragment.
///
/// `None`: they are better read as they are. There are histograms among them, or nearly as many groups as series, or
/// labels that only all series together tell apart, or what is to be said about them does not travel.
///
/// # Errors
/// As [`super::Prepared::run`]; the time counts from now on.
pub fn sum_up(
    fragment: &Fragment,
    series: Vec<Series>,
    budget: &Budget,
    cancel: &Cancel,
) -> Result<Option<Partial>, Error> {
    let steps = Steps {
        start: fragment.start,
        step_ms: fragment.step_ms,
        count: fragment.steps,
        is_instant: fragment.steps == 1,
    };
    let (plan, aggregate) = plan_of(fragment);
    if has_kind_labels(&aggregate, fragment, &series) || has_many_groups(&aggregate, &series) {
        return Ok(None);
    }
    let selections = [Selection { series, ..Selection::default() }];
    let counters = Counters::new(budget.pool.clone(), selection_bytes(&selections[0]));
    let watch = Stopwatch::start();
    let (plan, selections) = (&plan, selections.as_slice());
    let parts = Parts { plan, selections, budget, cancel, counters: &counters, watch, profile: None };
    let evaluator = Evaluator::new(parts);
    evaluator.hold(0)?;
    let groups = match evaluator.in_shards(&aggregate, steps)? {
        Some(groups) => groups,
        None => match evaluator.groups(&aggregate, steps, false)? {
            Some(groups) => groups,
            None => return Ok(None),
        },
    };
    let Some(remarks) = evaluator.notes.take().into_remarks() else { return Ok(None) };
    Ok(Some(Partial {
        steps: steps.count,
        series: selections[0].series.len() as u64,
        samples: evaluator.tally.take().looked_at,
        groups: groups.into_partials(),
        remarks,
    }))
}

/// A fragment as a plan; its aggregation apart.
fn plan_of(fragment: &Fragment) -> (Plan, Aggregate) {
    let of: Selector = fragment.selector();
    let inner = match fragment.function() {
        None => Node::Instant(of),
        Some(function) => {
            let range = Node::Range(RangeSelector { of, range_ms: fragment.range_ms, span: fragment.span });
            let numbers = fragment.params.iter().map(|value| Node::Number(*value, fragment.span));
            let args = std::iter::once(range).chain(numbers).collect();
            Node::Call(Box::new(Call { func: function.name, args, info: None, span: fragment.span }))
        }
    };
    let aggregate = Aggregate {
        op: fragment.op,
        inner,
        inner_span: fragment.span,
        param: None,
        grouping: fragment.grouping.clone(),
        without: fragment.without,
        span: fragment.span,
    };
    let range = fragment.range_from(0);
    let select = Select { matchers: fragment.matchers.clone(), range, hints: SelectHints::default(), is_empty: false };
    // The root is asked only what stands around a place where rows are merged: there is none.
    let root = Node::Nothing(fragment.span);
    (Plan { root, selects: vec![select], yields: ValueType::Vector, folded: Vec::new() }, aggregate)
}

/// Whether names go that more than one label says.
fn has_kind_labels(aggregate: &Aggregate, fragment: &Fragment, series: &[Series]) -> bool {
    let drops = matches!(aggregate.inner, Node::Call(_)) && fragment.function().is_none_or(|f| f.drops_name);
    drops && !fragment.rules.delayed_name_removal && series.iter().any(|one| has_kind(&one.labels))
}

/// Whether labels beside the name say what the metric is: they go with it, and two series may then be the same.
#[must_use]
pub fn has_kind(labels: &Labels) -> bool {
    labels.iter().any(|(name, _)| name != METRIC_NAME && is_metadata(name))
}

/// Whether the groups would take as much as the series. Looks at no more of them than it must to know.
fn has_many_groups(aggregate: &Aggregate, series: &[Series]) -> bool {
    if series.len() < FEW_SERIES {
        return false;
    }
    let (mut seen, mut key) = (HashSet::new(), Vec::new());
    for (at, one) in series.iter().enumerate() {
        group_key(&one.labels, aggregate, &mut key);
        if !seen.contains(key.as_slice()) {
            seen.insert(key.clone());
        }
        if seen.len() * SERIES_EACH_MIN > series.len() {
            return true;
        }
        if at + 1 >= LOOKED_AT_MIN && (seen.len() * 2 * SERIES_EACH_MIN) < at {
            return false;
        }
    }
    false
}
