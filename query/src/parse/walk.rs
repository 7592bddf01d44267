//! Walking a tree: what it reads.

use engram_model::Matcher;

use super::ast::Expr;

/// The matchers of every selector of an expression, in order of the text.
#[must_use]
pub fn selectors(expr: &Expr) -> Vec<Vec<Matcher>> {
    let mut found = Vec::new();
    collect(expr, &mut found);
    found
}

fn collect(expr: &Expr, found: &mut Vec<Vec<Matcher>>) {
    match expr {
        Expr::Number(_) | Expr::String(_) => {}
        Expr::Paren(paren) => collect(&paren.expr, found),
        Expr::Unary(unary) => collect(&unary.expr, found),
        Expr::Binary(binary) => {
            collect(&binary.lhs, found);
            collect(&binary.rhs, found);
        }
        Expr::Aggregate(aggregate) => {
            if let Some(param) = &aggregate.param {
                collect(param, found);
            }
            collect(&aggregate.expr, found);
        }
        Expr::Call(call) => call.args.iter().for_each(|arg| collect(arg, found)),
        Expr::VectorSelector(selector) => found.push(selector.matchers.clone()),
        Expr::MatrixSelector(matrix) => found.push(matrix.selector.matchers.clone()),
        Expr::Subquery(subquery) => collect(&subquery.expr, found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{Switches, parse};

    #[test]
    fn every_selector_is_found() {
        let expr = parse("sum(rate(a[5m])) / -(b{x=\"1\"} or max_over_time(c[1h:1m]))", &Switches::default()).unwrap();
        let names: Vec<String> =
            selectors(&expr).iter().map(|m| m.last().map(|m| m.value.to_string()).unwrap()).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }
}
