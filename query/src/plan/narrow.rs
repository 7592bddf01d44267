//! Matcher propagation: a test that one side of an operator passes is made on the other side too, before the fetch.
//!
//! `a{x="1"} / b` needs of `b` only what has `x="1"`, where `x` is among the labels that are matched. What is needed
//! goes down the tree: rows that fail a wanted test have no part in the answer.
//!
//! ```text
//! a ∘ b          both sides learn from each other, where the "one" side cannot have two series of one group: two are
//!                an error, which a narrower fetch would hide
//! and            both sides learn from each other          unless   the right side learns from the left
//! or             only what is wanted of the whole goes down, and only of matched labels
//! sum by (x)     what is wanted of x                       f(v)     everything, where f answers row by row
//! ```
//!
//! Never: through what makes labels (`label_replace`, `absent`, `info` …), with `fill`, for the metric's name and the
//! other labels that functions drop. Remarks and errors about series that cannot be in the answer are not made.

use engram_model::labels::METRIC_NAME;
use engram_model::{MatchOp, Matcher};

use crate::functions::is_counter_name;
use crate::parse::ast::{AggregateOp, BinaryOp, Cardinality, ValueType};

use super::facts::{add, are_apart, chooses, decides, have_one_name, is_same, keeps, only_vector, passes_on, promised};
use super::{Binary, Call, Node, Plan, Select, Selector, register};

/// Largest tree that is looked at: what is known of a node is found again at each level above it.
const NODES_MAX: usize = 256;

pub(super) fn narrow(plan: &mut Plan) {
    if plan.root.count() > NODES_MAX {
        return;
    }
    let Plan { root, selects, .. } = plan;
    push(root, Vec::new(), selects);
}

fn push(node: &mut Node, mut wanted: Vec<Matcher>, selects: &mut Vec<Select>) {
    match node {
        Node::Instant(selector) => narrow_selector(selector, &wanted, selects),
        Node::Range(range) => narrow_selector(&mut range.of, &wanted, selects),
        Node::Once(inner) => push(inner, wanted, selects),
        Node::Subquery(subquery) => push(&mut subquery.inner, wanted, selects),
        Node::Shared(shared) => push(&mut shared.inner, wanted, selects),
        Node::Negate(inner, _) => {
            let wanted = if have_one_name(inner) { wanted } else { Vec::new() };
            push(inner, wanted, selects);
        }
        Node::Aggregate(a) => {
            wanted.retain(|m| a.op != AggregateOp::CountValues && keeps(a, &m.name));
            debug_assert!(!chooses(a.op) || wanted.iter().all(|m| keeps(a, &m.name)), "whole groups are chosen from");
            push(&mut a.inner, wanted, selects);
            if let Some(param) = &mut a.param {
                push(param, Vec::new(), selects);
            }
        }
        Node::Call(call) => {
            let through = passes_on(call).filter(|(at, _)| have_one_name(&call.args[*at]));
            let speaks = remarks_for_sure(call);
            wanted.retain(|m| !speaks && through.is_some_and(|(_, lost)| Some(&*m.name) != lost));
            let args = if call.func == "info" { 1 } else { call.args.len() };
            for (i, arg) in call.args.iter_mut().take(args).enumerate() {
                let wanted = if through.is_some_and(|(at, _)| at == i) { wanted.clone() } else { Vec::new() };
                push(arg, wanted, selects);
            }
        }
        Node::Binary(binary) => push_binary(binary, wanted, selects),
        Node::Number(..) | Node::Text(..) | Node::Nothing(_) => {}
    }
}

/// Whether a call makes a remark as soon as there is any series, so that a narrower fetch would silence it.
fn remarks_for_sure(call: &Call) -> bool {
    match (call.func, call.args.as_slice()) {
        ("rate" | "increase", [Node::Range(range)]) => {
            let name = range.of.matchers.iter().find(|m| m.op == MatchOp::Equal && &*m.name == METRIC_NAME);
            name.is_none_or(|name| !is_counter_name(&name.value))
        }
        ("quantile_over_time" | "histogram_quantile", [Node::Number(q, _), ..]) => !(0.0..=1.0).contains(q),
        _ => false,
    }
}

fn push_binary(binary: &mut Binary, wanted: Vec<Matcher>, selects: &mut Vec<Select>) {
    let (left, right) = match only_vector(binary) {
        Some(vector) => {
            let keeps_name = binary.op.is_comparison() && !binary.return_bool;
            let wanted = if keeps_name || have_one_name(vector) { wanted } else { Vec::new() };
            match binary.lhs.yields() {
                ValueType::Vector => (wanted, Vec::new()),
                _ => (Vec::new(), wanted),
            }
        }
        None if binary.lhs.yields() == ValueType::Vector => of_sides(binary, wanted),
        None => (Vec::new(), Vec::new()),
    };
    push(&mut binary.lhs, left, selects);
    push(&mut binary.rhs, right, selects);
}

/// What is wanted of each of two vectors.
fn of_sides(binary: &Binary, wanted: Vec<Matcher>) -> (Vec<Matcher>, Vec<Matcher>) {
    let matching = &binary.matching;
    if matching.fill_left.is_some() || matching.fill_right.is_some() {
        return (Vec::new(), Vec::new());
    }
    let matched =
        |all: &[Matcher]| -> Vec<Matcher> { all.iter().filter(|m| decides(matching, &m.name)).cloned().collect() };
    let joined = |mut all: Vec<Matcher>, more: Vec<Matcher>| {
        add(&mut all, more);
        all
    };
    match binary.op {
        BinaryOp::Or => (matched(&wanted), matched(&wanted)),
        BinaryOp::Unless => {
            let right = joined(matched(&wanted), matched(&promised(&binary.lhs)));
            (wanted, right)
        }
        BinaryOp::And => {
            let right = joined(matched(&wanted), matched(&promised(&binary.lhs)));
            (joined(wanted, matched(&promised(&binary.rhs))), right)
        }
        _ => {
            let is_swapped = matching.cardinality == Cardinality::OneToMany;
            let (many, one) = if is_swapped { (&binary.rhs, &binary.lhs) } else { (&binary.lhs, &binary.rhs) };
            if !are_apart(one, matching) {
                return (Vec::new(), Vec::new());
            }
            let is_one_to_one = matching.cardinality == Cardinality::OneToOne;
            // Two series of the "many" side with one result are an error, too.
            let is_sure = if is_one_to_one { are_apart(many, matching) } else { have_one_name(many) };
            let mut wanted = wanted;
            wanted.retain(|m| {
                is_sure
                    && if is_one_to_one {
                        decides(matching, &m.name)
                    } else {
                        !matching.include.iter().any(|name| **name == *m.name)
                    }
            });
            let of_one = joined(matched(&wanted), matched(&promised(many)));
            let of_many = joined(wanted, matched(&promised(one)));
            if is_swapped { (of_one, of_many) } else { (of_many, of_one) }
        }
    }
}

fn narrow_selector(selector: &mut Selector, wanted: &[Matcher], selects: &mut Vec<Select>) {
    let Some(old) = selects.get(selector.select) else { return };
    let mut more: Vec<Matcher> =
        wanted.iter().filter(|m| !old.matchers.iter().any(|have| is_same(have, m))).cloned().collect();
    if more.is_empty() {
        return;
    }
    more.sort_by(|a, b| (&a.name, a.op.as_str(), &a.value).cmp(&(&b.name, b.op.as_str(), &b.value)));
    let mut select = old.clone();
    select.matchers.append(&mut more);
    selector.select = register(selects, select);
}
