//! Constant folding: what is a number whatever the data is, becomes one.
//!
//! Sound because the operators are those the engine would use, on the same floats, and numbers make no remarks: a
//! folded quantile that is out of bounds is remarked upon at the place the whole stood at.

use crate::functions::operators::floats;
use crate::functions::pointwise::{max_of, min_of};
use crate::parse::ast::Span;

use super::{Node, Plan};

pub(super) fn fold(plan: &mut Plan) {
    let Plan { root, folded, .. } = plan;
    each(root, folded);
}

fn each(node: &mut Node, folded: &mut Vec<Span>) {
    node.children_mut().into_iter().for_each(|child| each(child, folded));
    let span = node.span();
    if let Node::Once(inner) = node {
        if let Node::Number(value, span) = **inner {
            *node = Node::Number(value, span);
        }
        return;
    }
    if let Some(value) = value(node) {
        folded.push(span);
        *node = Node::Number(value, span);
    }
}

/// The number a node is.
fn value(node: &Node) -> Option<f64> {
    let number = |node: &Node| match node {
        Node::Number(value, _) => Some(*value),
        _ => None,
    };
    match node {
        Node::Negate(inner, _) => number(inner).map(|value| -value),
        Node::Binary(b) => Some(floats(b.op, number(&b.lhs)?, number(&b.rhs)?)),
        Node::Call(call) => match (call.func, call.args.as_slice()) {
            ("pi", []) => Some(std::f64::consts::PI),
            ("min_of", [a, b]) => Some(min_of(number(a)?, number(b)?)),
            ("max_of", [a, b]) => Some(max_of(number(a)?, number(b)?)),
            ("scalar", [Node::Call(vector)]) if vector.func == "vector" => number(vector.args.first()?),
            _ => None,
        },
        _ => None,
    }
}
