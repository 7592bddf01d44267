//! A tree as JSON, as `parse_query` answers it: user interfaces draw queries from it.
//!
//! Source: `prometheus web/api/v1/translate_ast.go`, Prometheus 3.14.

use engram_model::Matcher;
use serde_json::{Value, json};

use super::ast::{
    AggregateExpr, At, BinaryExpr, Call, Cardinality, DurationExpr, DurationKind, Expr, Extension, MatrixSelector,
    SubqueryExpr, ValueType, VectorSelector,
};
use super::functions::function;
use super::literal::float;

/// The tree as JSON.
#[must_use]
pub fn to_json(expr: &Expr) -> Value {
    match expr {
        Expr::Number(number) => json!({"type": "numberLiteral", "val": float(number.value)}),
        Expr::String(string) => json!({"type": "stringLiteral", "val": String::from_utf8_lossy(&string.value)}),
        Expr::Paren(paren) => json!({"type": "parenExpr", "expr": to_json(&paren.expr)}),
        Expr::Unary(unary) => {
            json!({"type": "unaryExpr", "op": if unary.minus { "-" } else { "+" }, "expr": to_json(&unary.expr)})
        }
        Expr::Binary(binary) => binary_to_json(binary),
        Expr::Aggregate(aggregate) => aggregate_to_json(aggregate),
        Expr::Call(call) => call_to_json(call),
        Expr::VectorSelector(selector) => selector_to_json("vectorSelector", selector),
        Expr::MatrixSelector(matrix) => matrix_to_json(matrix),
        Expr::Subquery(subquery) => subquery_to_json(subquery),
    }
}

fn aggregate_to_json(aggregate: &AggregateExpr) -> Value {
    let AggregateExpr { op, expr, param, grouping, without, .. } = aggregate;
    json!({
        "type": "aggregation",
        "op": op.as_str(),
        "expr": to_json(expr),
        "param": param.as_ref().map(to_json),
        "grouping": grouping,
        "without": without,
    })
}

fn matrix_to_json(matrix: &MatrixSelector) -> Value {
    let mut value = selector_to_json("matrixSelector", &matrix.selector);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("range".into(), json!(matrix.range_ms));
        fields.insert("rangeExpr".into(), duration_to_json(matrix.range_expr.as_deref()));
    }
    value
}

fn subquery_to_json(subquery: &SubqueryExpr) -> Value {
    let SubqueryExpr { expr, range_ms, range_expr, step_ms, step_expr, offset_ms, offset_expr, at, .. } = subquery;
    json!({
        "type": "subquery",
        "expr": to_json(expr),
        "range": range_ms,
        "rangeExpr": duration_to_json(range_expr.as_deref()),
        "offset": offset_ms,
        "offsetExpr": duration_to_json(offset_expr.as_deref()),
        "step": step_ms,
        "stepExpr": duration_to_json(step_expr.as_deref()),
        "timestamp": timestamp(*at),
        "startOrEnd": start_or_end(*at),
    })
}

fn binary_to_json(binary: &BinaryExpr) -> Value {
    let matching = binary.matching.as_ref().map(|matching| {
        let card = match matching.cardinality {
            Cardinality::OneToOne => "one-to-one",
            Cardinality::ManyToOne => "many-to-one",
            Cardinality::OneToMany => "one-to-many",
            Cardinality::ManyToMany => "many-to-many",
        };
        json!({
            "card": card,
            "labels": matching.labels,
            "on": matching.on,
            "include": matching.include,
            "fillValues": {"lhs": matching.fill_left, "rhs": matching.fill_right},
        })
    });
    json!({
        "type": "binaryExpr",
        "op": binary.op.as_str(),
        "lhs": to_json(&binary.lhs),
        "rhs": to_json(&binary.rhs),
        "matching": matching,
        "bool": binary.return_bool,
    })
}

fn call_to_json(call: &Call) -> Value {
    let signature = function(call.func).map(|function| {
        json!({
            "name": function.name,
            "argTypes": function.args.iter().map(|arg| arg.as_str()).collect::<Vec<_>>(),
            "variadic": function.variadic,
            "returnType": ValueType::as_str(function.returns),
        })
    });
    json!({"type": "call", "func": signature, "args": call.args.iter().map(to_json).collect::<Vec<_>>()})
}

fn selector_to_json(kind: &str, selector: &VectorSelector) -> Value {
    json!({
        "type": kind,
        "name": selector.name.as_deref().unwrap_or_default(),
        "offset": selector.offset_ms,
        "offsetExpr": duration_to_json(selector.offset_expr.as_deref()),
        "matchers": selector.matchers.iter().map(matcher_to_json).collect::<Vec<_>>(),
        "timestamp": timestamp(selector.at),
        "startOrEnd": start_or_end(selector.at),
        "anchored": selector.extension == Extension::Anchored,
        "smoothed": selector.extension == Extension::Smoothed,
    })
}

fn matcher_to_json(matcher: &Matcher) -> Value {
    json!({"name": &*matcher.name, "value": &*matcher.value, "type": matcher.op.as_str()})
}

fn timestamp(at: Option<At>) -> Option<i64> {
    match at {
        Some(At::Time(millis)) => Some(millis),
        _ => None,
    }
}

fn start_or_end(at: Option<At>) -> Option<&'static str> {
    match at {
        Some(At::Start) => Some("start"),
        Some(At::End) => Some("end"),
        _ => None,
    }
}

fn duration_to_json(duration: Option<&DurationExpr>) -> Value {
    let Some(duration) = duration else { return Value::Null };
    let side = |side: &DurationExpr| duration_to_json(Some(side));
    let (op, lhs, rhs) = match &duration.kind {
        DurationKind::Number(number) => {
            return json!({"type": "numberLiteral", "val": float(number.value), "duration": number.duration});
        }
        DurationKind::Step => ("step", Value::Null, Value::Null),
        DurationKind::Range => ("range", Value::Null, Value::Null),
        DurationKind::Unary { minus, operand } => (if *minus { "-" } else { "+" }, Value::Null, side(operand)),
        DurationKind::Binary { op, lhs, rhs } => (op.as_str(), side(lhs), side(rhs)),
        DurationKind::Min(lhs, rhs) => ("min_of", side(lhs), side(rhs)),
        DurationKind::Max(lhs, rhs) => ("max_of", side(lhs), side(rhs)),
    };
    json!({"type": "durationExpr", "op": op, "lhs": lhs, "rhs": rhs, "wrapped": duration.wrapped})
}
