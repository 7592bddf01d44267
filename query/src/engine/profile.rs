//! What each node of a plan did: made only where the query asks to be explained, else nobody looks at a clock.
//!
//! Rows are pushed, so the time of a node is the time of its stream without that of the sink it pushes to: what its
//! children take is inside, what its parent takes is not. A node is known by its place in memory, which is the same
//! for all threads while the plan lives.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use engram_model::time::Stopwatch;

use crate::error::Error;
use crate::parse::ast::Span;
use crate::plan::{Node, Selector};
use crate::port::Selection;
use crate::value::{SelectCost, Step};

use super::Prepared;
use super::eval::{Counters, Evaluator, Sink, selection_bytes};
use super::row::{Row, Steps};

/// Longest piece of the query's text that is shown.
const TEXT_CHARS_MAX: usize = 120;

#[derive(Clone, Copy, Default)]
struct Cost {
    time: Duration,
    series: u64,
    samples: u64,
    peak: u64,
}

/// Costs by place of the node.
#[derive(Default)]
pub(super) struct Profile(Mutex<HashMap<usize, Cost>>);

fn place(node: &Node) -> usize {
    std::ptr::from_ref(node).addr()
}

impl Profile {
    fn change(&self, place: usize, change: impl FnOnce(&mut Cost)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(place).or_default());
    }

    pub(super) fn looked_at(&self, place: usize, samples: u64) {
        self.change(place, |cost| cost.samples += samples);
    }

    pub(super) fn held(&self, place: usize, samples: u64) {
        self.change(place, |cost| cost.peak = cost.peak.max(samples));
    }

    fn of(&self, node: &Node) -> Cost {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&place(node)).copied().unwrap_or_default()
    }

    /// The tree as it is shown.
    pub(super) fn tree(&self, prepared: &Prepared, counters: &Counters) -> Step {
        self.step(&prepared.plan.root, prepared, counters)
    }

    fn step(&self, node: &Node, prepared: &Prepared, counters: &Counters) -> Step {
        let children: Vec<Step> =
            node.children().into_iter().map(|child| self.step(child, prepared, counters)).collect();
        let cost = self.of(node);
        let select = selector(node).map(|selector| select_cost(selector, prepared));
        let fetched = select.as_ref().map_or(0, |select| select.series);
        let total = cost.time.as_secs_f64();
        let inside: f64 = children.iter().map(|child| child.total_seconds).sum();
        let samples_peak = cost.peak.max(children.iter().map(|child| child.samples_peak).max().unwrap_or(0));
        let below: u64 = children.iter().map(|child| child.series_out).sum();
        Step {
            operator: operator(node),
            text: text_of(&prepared.text, node.span()),
            marks: marks(node, prepared),
            series_in: below + fetched,
            series_out: if let Node::Range(_) = node { fetched } else { cost.series },
            samples: cost.samples,
            samples_peak,
            bytes_peak: counters.bytes(samples_peak),
            total_seconds: total,
            self_seconds: (total - inside).max(0.0),
            select,
            children,
        }
    }
}

impl Evaluator<'_> {
    /// [`Evaluator::stream`], measured.
    pub(super) fn measured_stream(
        &self,
        profile: &Profile,
        node: &Node,
        steps: Steps,
        sink: Sink<'_>,
    ) -> Result<(), Error> {
        let above = self.at.replace(place(node));
        let watch = Stopwatch::start();
        let (mut outside, mut series) = (Duration::ZERO, 0);
        let done = self.plain_stream(node, steps, &mut |row| {
            series += 1;
            let watch = Stopwatch::start();
            self.at.set(above);
            let taken = sink(row);
            self.at.set(place(node));
            outside += watch.elapsed();
            taken
        });
        self.at.set(above);
        profile.change(place(node), |cost| {
            cost.time += watch.elapsed().saturating_sub(outside);
            cost.series += series;
        });
        done
    }

    /// [`Evaluator::rows`], measured.
    pub(super) fn measured_rows(&self, profile: &Profile, node: &Node, steps: Steps) -> Result<Vec<Row>, Error> {
        let above = self.at.replace(place(node));
        let watch = Stopwatch::start();
        let rows = self.plain_rows(node, steps);
        self.at.set(above);
        profile.change(place(node), |cost| {
            cost.time += watch.elapsed();
            cost.series += rows.as_ref().map_or(0, |rows| rows.len() as u64);
        });
        rows
    }

    /// Whether a node's work is measured already: it came in by the other door.
    pub(super) fn is_at(&self, node: &Node) -> bool {
        self.at.get() == place(node)
    }
}

fn selector(node: &Node) -> Option<&Selector> {
    match node {
        Node::Instant(selector) => Some(selector),
        Node::Range(range) => Some(&range.of),
        _ => None,
    }
}

fn select_cost(selector: &Selector, prepared: &Prepared) -> SelectCost {
    SelectCost {
        select: selector.select,
        series: prepared.selections.get(selector.select).map_or(0, Selection::series_count),
        bytes: prepared.selections.get(selector.select).map_or(0, selection_bytes),
        fetch_seconds: prepared.fetch_seconds.get(selector.select).copied().unwrap_or(0.0),
    }
}

fn operator(node: &Node) -> String {
    match node {
        Node::Number(value, _) => format!("number {value}"),
        Node::Text(..) => "string".to_owned(),
        Node::Instant(_) => "select".to_owned(),
        Node::Range(_) => "select range".to_owned(),
        Node::Subquery(_) => "subquery".to_owned(),
        Node::Negate(..) => "negate".to_owned(),
        Node::Binary(binary) => binary.op.as_str().to_owned(),
        Node::Aggregate(aggregate) => aggregate.op.as_str().to_owned(),
        Node::Call(call) => call.func.to_owned(),
        Node::Once(_) => "once".to_owned(),
        Node::Shared(_) => "shared".to_owned(),
        Node::Nothing(_) => "nothing".to_owned(),
    }
}

fn marks(node: &Node, prepared: &Prepared) -> Vec<String> {
    let mut marks = Vec::new();
    match node {
        Node::Number(_, span) if prepared.plan.folded.contains(span) => marks.push("folded".to_owned()),
        Node::Once(_) => marks.push("evaluated at one step".to_owned()),
        Node::Shared(shared) => marks.push(format!("#{} of {} places", shared.slot, shared.uses)),
        Node::Nothing(_) => marks.push("cannot have rows".to_owned()),
        _ => {}
    }
    let Some((selector, select)) = selector(node).and_then(|s| Some((s, prepared.plan.selects.get(s.select)?))) else {
        return marks;
    };
    if select.is_empty {
        marks.push("never fetched".to_owned());
    }
    let pushed = prepared.selections.get(selector.select).map(|s| &s.partials).filter(|partials| !partials.is_empty());
    if let Some(partials) = pushed {
        let series: u64 = partials.iter().map(|partial| partial.series).sum();
        marks.push(format!("{series} series summed up on {} other nodes", partials.len()));
    }
    let added = select.matchers.iter().filter(|m| {
        !selector.matchers.iter().any(|have| have.name == m.name && have.op == m.op && have.value == m.value)
    });
    let added: Vec<String> = added.map(|m| format!("{}{}{:?}", m.name, m.op.as_str(), &*m.value)).collect();
    if !added.is_empty() {
        marks.push(format!("narrowed by {}", added.join(", ")));
    }
    marks
}

/// A piece of the query in one line.
fn text_of(text: &str, span: Span) -> String {
    let piece = text.get(span.start as usize..span.end as usize).unwrap_or_default();
    piece.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(TEXT_CHARS_MAX).collect()
}
