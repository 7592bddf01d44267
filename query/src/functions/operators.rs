//! Binary operators on two floats, for the engine's columns and the plan's constants alike.

use crate::parse::ast::BinaryOp;

/// Two floats under an arithmetic operator; a comparison says 0 or 1.
#[inline]
#[must_use]
pub fn floats(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Pow => a.powf(b),
        BinaryOp::Mod => a % b,
        BinaryOp::Atan2 => a.atan2(b),
        comparison => f64::from(u8::from(compares(comparison, a, b))),
    }
}

/// Whether a comparison of two floats holds.
#[inline]
#[must_use]
pub fn compares(op: BinaryOp, a: f64, b: f64) -> bool {
    match op {
        BinaryOp::Eq => a == b,
        BinaryOp::NotEq => a != b,
        BinaryOp::Less => a < b,
        BinaryOp::Greater => a > b,
        BinaryOp::LessEq => a <= b,
        BinaryOp::GreaterEq => a >= b,
        _ => false,
    }
}
