//! What the labels of a node's rows are known to be, before any data is.
//!
//! [`promised`]: tests every row passes. [`are_apart`]: no two rows of one step agree in the labels that are matched.
//! Both only say what is certain; "nothing known" is always a right answer. Labels that say what a metric is
//! (`__name__`, `__type__`, `__unit__`) come and go with functions and are never spoken of.

use engram_model::labels::METRIC_NAME;
use engram_model::{MatchOp, Matcher};

use crate::functions::{Kernel, lookup};
use crate::parse::ast::{AggregateOp, BinaryOp, Cardinality, ValueType, VectorMatching};

use super::{Aggregate, Binary, Call, Node, Selector};

/// Most tests kept of one node: more would cost more than they save.
pub(super) const TESTS_MAX: usize = 16;

pub(super) fn is_same(a: &Matcher, b: &Matcher) -> bool {
    a.name == b.name && a.op == b.op && a.value == b.value
}

/// Adds what is not there yet.
pub(super) fn add(all: &mut Vec<Matcher>, more: impl IntoIterator<Item = Matcher>) {
    for matcher in more {
        if all.len() < TESTS_MAX && !all.iter().any(|have| is_same(have, &matcher)) {
            all.push(matcher);
        }
    }
}

/// Whether rows that match agree in this label.
pub(super) fn decides(matching: &VectorMatching, label: &str) -> bool {
    matching.on == matching.labels.iter().any(|have| have == label)
}

/// Whether an aggregation's rows carry this label of its series.
pub(super) fn keeps(aggregate: &Aggregate, label: &str) -> bool {
    aggregate.without != aggregate.grouping.iter().any(|have| have == label)
}

/// Whether an aggregation gives back some of its series as they are.
pub(crate) fn chooses(op: AggregateOp) -> bool {
    matches!(op, AggregateOp::TopK | AggregateOp::BottomK | AggregateOp::LimitK | AggregateOp::LimitRatio)
}

/// The argument whose rows a call answers one by one, and the label it takes away; `None`: it makes rows of its own.
pub(super) fn passes_on(call: &Call) -> Option<(usize, Option<&'static str>)> {
    let lost = match call.func {
        "histogram_quantile" | "histogram_fraction" => Some("le"),
        "sort" | "sort_desc" | "sort_by_label" | "sort_by_label_desc" | "timestamp" | "start_timestamp" => None,
        "absent"
        | "absent_over_time"
        | "label_replace"
        | "label_join"
        | "info"
        | "histogram_quantiles"
        | "vector"
        | "scalar" => return None,
        other if lookup(other).is_some_and(|f| !matches!(f.kernel, Kernel::Special)) => None,
        _ => return None,
    };
    let at = call.args.iter().position(|arg| matches!(arg.yields(), ValueType::Vector | ValueType::Matrix))?;
    Some((at, lost))
}

/// The vector of an operation of a vector and a scalar.
pub(super) fn only_vector(binary: &Binary) -> Option<&Node> {
    match (binary.lhs.yields(), binary.rhs.yields()) {
        (ValueType::Vector, ValueType::Scalar) => Some(&binary.lhs),
        (ValueType::Scalar, ValueType::Vector) => Some(&binary.rhs),
        _ => None,
    }
}

fn of_selector(selector: &Selector) -> Vec<Matcher> {
    let tests = selector.matchers.iter().filter(|m| {
        matches!(m.op, MatchOp::Equal | MatchOp::Regex) && !matches!(&*m.name, METRIC_NAME | "__type__" | "__unit__")
    });
    tests.take(TESTS_MAX).cloned().collect()
}

/// Tests all rows of a node pass.
pub(super) fn promised(node: &Node) -> Vec<Matcher> {
    match node {
        Node::Instant(selector) => of_selector(selector),
        Node::Range(range) => of_selector(&range.of),
        Node::Negate(inner, _) | Node::Once(inner) => promised(inner),
        Node::Subquery(subquery) => promised(&subquery.inner),
        Node::Shared(shared) => promised(&shared.inner),
        Node::Aggregate(a) if a.op == AggregateOp::CountValues => Vec::new(),
        Node::Aggregate(a) => {
            let mut all = promised(&a.inner);
            all.retain(|m| chooses(a.op) || keeps(a, &m.name));
            all
        }
        Node::Call(call) => match passes_on(call) {
            Some((at, lost)) => {
                let mut all = promised(&call.args[at]);
                all.retain(|m| Some(&*m.name) != lost);
                all
            }
            None => Vec::new(),
        },
        Node::Binary(binary) => match only_vector(binary) {
            Some(vector) => promised(vector),
            None => of_vectors(binary),
        },
        Node::Number(..) | Node::Text(..) | Node::Nothing(_) => Vec::new(),
    }
}

fn of_vectors(binary: &Binary) -> Vec<Matcher> {
    let matching = &binary.matching;
    if matching.fill_left.is_some() || matching.fill_right.is_some() || binary.lhs.yields() != ValueType::Vector {
        return Vec::new();
    }
    let (mut left, mut right) = (promised(&binary.lhs), promised(&binary.rhs));
    match (binary.op, matching.cardinality) {
        (BinaryOp::Unless, _) => left,
        (BinaryOp::Or, _) => {
            left.retain(|m| right.iter().any(|other| is_same(m, other)));
            left
        }
        (BinaryOp::And, _) => {
            right.retain(|m| decides(matching, &m.name));
            add(&mut left, right);
            left
        }
        (_, Cardinality::OneToOne | Cardinality::ManyToMany) => {
            add(&mut left, right);
            left.retain(|m| decides(matching, &m.name));
            left
        }
        (_, cardinality) => {
            if cardinality == Cardinality::OneToMany {
                std::mem::swap(&mut left, &mut right);
            }
            let taken = |m: &Matcher| matching.include.iter().any(|name| **name == *m.name);
            left.retain(|m| !taken(m));
            right.retain(|m| decides(matching, &m.name) || taken(m));
            add(&mut left, right);
            left
        }
    }
}

/// Whether rows of a node differ even without their names, so that nothing is told apart by what a function drops.
pub(super) fn have_one_name(node: &Node) -> bool {
    let one = |s: &Selector| s.matchers.iter().any(|m| m.op == MatchOp::Equal && &*m.name == METRIC_NAME);
    match node {
        Node::Instant(selector) => one(selector),
        Node::Range(range) => one(&range.of),
        Node::Negate(inner, _) | Node::Once(inner) => have_one_name(inner),
        Node::Subquery(subquery) => have_one_name(&subquery.inner),
        Node::Shared(shared) => have_one_name(&shared.inner),
        Node::Aggregate(a) if chooses(a.op) => have_one_name(&a.inner),
        Node::Aggregate(a) => a.without || !a.grouping.iter().any(|name| name == METRIC_NAME),
        Node::Call(call) => passes_on(call).is_some_and(|(at, _)| have_one_name(&call.args[at])),
        Node::Binary(binary) => match only_vector(binary) {
            Some(vector) => have_one_name(vector),
            None => !binary.op.is_comparison() && !matches!(binary.op, BinaryOp::And | BinaryOp::Or | BinaryOp::Unless),
        },
        Node::Number(..) | Node::Text(..) | Node::Nothing(_) => false,
    }
}

/// Whether no two rows of a node agree in all labels that decide about a match.
pub(super) fn are_apart(node: &Node, matching: &VectorMatching) -> bool {
    let selector = |s: &Selector| {
        let fixed = |name: &String| s.matchers.iter().any(|m| m.op == MatchOp::Equal && *m.name == **name);
        have_one_name(node) && !matching.on && matching.labels.iter().all(fixed)
    };
    match node {
        Node::Instant(s) => selector(s),
        Node::Range(range) => selector(&range.of),
        Node::Negate(inner, _) | Node::Once(inner) => are_apart(inner, matching),
        Node::Subquery(subquery) => are_apart(&subquery.inner, matching),
        Node::Shared(shared) => are_apart(&shared.inner, matching),
        Node::Aggregate(a) if chooses(a.op) => are_apart(&a.inner, matching),
        Node::Aggregate(a) if a.op == AggregateOp::CountValues => false,
        Node::Aggregate(a) => differ_in(&a.grouping, a.without, matching),
        Node::Call(call) => match passes_on(call) {
            Some((at, None)) => are_apart(&call.args[at], matching),
            _ => false,
        },
        Node::Binary(b) => match only_vector(b) {
            Some(vector) => are_apart(vector, matching),
            None => {
                let is_set = matches!(b.op, BinaryOp::And | BinaryOp::Or | BinaryOp::Unless);
                !is_set
                    && b.matching.cardinality == Cardinality::OneToOne
                    && differ_in(&b.matching.labels, !b.matching.on, matching)
            }
        },
        Node::Number(..) | Node::Text(..) | Node::Nothing(_) => false,
    }
}

/// Rows carry only these labels (or all but these), no two the same: do they still differ in what is matched?
fn differ_in(labels: &[String], without: bool, matching: &VectorMatching) -> bool {
    match (without, matching.on) {
        (false, _) => labels.iter().all(|name| decides(matching, name) && name != METRIC_NAME),
        (true, true) => false,
        (true, false) => matching.labels.iter().all(|name| labels.contains(name)),
    }
}
