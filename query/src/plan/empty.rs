//! Statically empty branches: what cannot select a series is not fetched, and what it makes empty is not evaluated.
//!
//! A select is empty when an `=` test of a label fails another test of that label (`{a="1", a="2"}`, `{a="", a=~".+"}`);
//! matcher propagation makes more of them. Its selector stays, over no series, so that everything above it (`absent`,
//! say) is what it would be. An operator that then has no rows is left out as a whole only where the other side could
//! not have made a remark or an error: selectors and set operators of them.

use engram_model::{MatchOp, Matcher};

use crate::parse::ast::{BinaryOp, Extension, ValueType};

use super::{Node, Plan, Select};

pub(super) fn empty(plan: &mut Plan) {
    for select in &mut plan.selects {
        select.is_empty = contradicts_itself(&select.matchers);
    }
    let Plan { root, selects, .. } = plan;
    if selects.iter().any(|select| select.is_empty) {
        leave_out(root, selects);
    }
}

fn contradicts_itself(matchers: &[Matcher]) -> bool {
    matchers
        .iter()
        .filter(|m| m.op == MatchOp::Equal)
        .any(|exact| matchers.iter().any(|other| other.name == exact.name && !other.matches(&exact.value)))
}

fn leave_out(node: &mut Node, selects: &[Select]) {
    if matches!(node, Node::Binary(_)) && is_empty(node, selects) && is_silent(node, selects) {
        *node = Node::Nothing(node.span());
        return;
    }
    node.children_mut().into_iter().for_each(|child| leave_out(child, selects));
}

/// Whether there can be no row.
fn is_empty(node: &Node, selects: &[Select]) -> bool {
    match node {
        Node::Instant(s) => selects.get(s.select).is_some_and(|select| select.is_empty),
        Node::Negate(inner, _) | Node::Once(inner) => is_empty(inner, selects),
        Node::Nothing(_) => true,
        Node::Binary(b) => {
            let (left, right) = (is_empty(&b.lhs, selects), is_empty(&b.rhs, selects));
            let are_vectors = b.lhs.yields() == ValueType::Vector && b.rhs.yields() == ValueType::Vector;
            match b.op {
                _ if !are_vectors => left || right,
                BinaryOp::Or => left && right,
                BinaryOp::Unless => left,
                BinaryOp::And => left || right,
                _ => (left || right) && b.matching.fill_left.is_none() && b.matching.fill_right.is_none(),
            }
        }
        _ => false,
    }
}

/// Whether evaluating it can neither say nor refuse anything.
fn is_silent(node: &Node, selects: &[Select]) -> bool {
    match node {
        Node::Instant(s) => s.extension == Extension::None,
        Node::Nothing(_) | Node::Number(..) => true,
        Node::Negate(inner, _) | Node::Once(inner) => is_silent(inner, selects) && is_empty(inner, selects),
        Node::Binary(b) => {
            let is_set = matches!(b.op, BinaryOp::And | BinaryOp::Or | BinaryOp::Unless);
            let one_is_empty = is_empty(&b.lhs, selects) && is_empty(&b.rhs, selects);
            (is_set || one_is_empty) && is_silent(&b.lhs, selects) && is_silent(&b.rhs, selects)
        }
        _ => false,
    }
}
