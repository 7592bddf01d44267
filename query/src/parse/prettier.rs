//! A tree as text of many lines: what does not fit into a line is split at the operators, indented by its depth.
//!
//! Follows Prometheus' `format_query` to the byte, so that queries under version control do not flip between the two.
//!
//! Source: `prometheus promql/parser/prettier.go`, Prometheus 3.14.

use std::fmt::{self, Write};

use super::ast::Expr;
use super::printer::{Aggregation, Operator, Window};

/// Longest line that is not split, in bytes, its indentation not counted.
const LINE_BYTES_MAX: usize = 100;

/// The text in lines.
#[must_use]
pub fn prettify(expr: &Expr) -> String {
    let mut out = String::new();
    let written = pretty(&mut out, expr, 0);
    debug_assert!(written.is_ok(), "writing to a string cannot fail");
    out
}

/// Counts what is written and stops once it is too much, so that a large tree is not printed at each of its levels.
struct Line(usize);

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        if self.0 > LINE_BYTES_MAX { Err(fmt::Error) } else { Ok(()) }
    }
}

fn fits(expr: &Expr) -> bool {
    write!(Line(0), "{expr}").is_ok()
}

fn indent(out: &mut String, level: usize) {
    out.extend(std::iter::repeat_n("  ", level));
}

fn pretty(out: &mut String, expr: &Expr, level: usize) -> fmt::Result {
    let splits = match expr {
        // A sign is set before its operand, wherever that splits.
        Expr::Unary(_) => true,
        Expr::Number(_) | Expr::String(_) | Expr::VectorSelector(_) | Expr::MatrixSelector(_) => false,
        _ => !fits(expr),
    };
    if !splits {
        // Upstream forgets the indentation of subqueries.
        if !matches!(expr, Expr::Subquery(_)) {
            indent(out, level);
        }
        return write!(out, "{expr}");
    }
    match expr {
        Expr::Unary(unary) => {
            let mut operand = String::new();
            pretty(&mut operand, &unary.expr, level)?;
            indent(out, level);
            write!(out, "{}{}", if unary.minus { '-' } else { '+' }, operand.trim())
        }
        Expr::Binary(binary) => {
            pretty(out, &binary.lhs, level + 1)?;
            out.push('\n');
            indent(out, level);
            writeln!(out, "{}", Operator(binary))?;
            pretty(out, &binary.rhs, level + 1)
        }
        Expr::Subquery(subquery) => {
            pretty(out, &subquery.expr, level)?;
            write!(out, "{}", Window(subquery))
        }
        Expr::Paren(paren) => {
            indent(out, level);
            inside(out, std::iter::once(&paren.expr), level)
        }
        Expr::Aggregate(aggregate) => {
            indent(out, level);
            write!(out, "{}", Aggregation(aggregate))?;
            inside(out, aggregate.param.iter().chain(std::iter::once(&aggregate.expr)), level)
        }
        Expr::Call(call) => {
            indent(out, level);
            out.push_str(call.func);
            inside(out, call.args.iter(), level)
        }
        Expr::Number(_) | Expr::String(_) | Expr::VectorSelector(_) | Expr::MatrixSelector(_) => Ok(()),
    }
}

/// Parentheses on their own lines, one expression a line between them.
fn inside<'e>(out: &mut String, exprs: impl Iterator<Item = &'e Expr>, level: usize) -> fmt::Result {
    out.push_str("(\n");
    for (i, expr) in exprs.enumerate() {
        if i > 0 {
            out.push_str(",\n");
        }
        pretty(out, expr, level + 1)?;
    }
    out.push('\n');
    indent(out, level);
    out.push(')');
    Ok(())
}
