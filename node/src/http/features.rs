//! `features`: what this server can do, by category, for clients that ask before they try.
//!
//! Made of the tables the parser itself goes by, so it cannot promise what the parser refuses.
//!
//! Source: Prometheus HTTP API, "Features".

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use engram_query::parse::Switches;
use engram_query::parse::functions::FUNCTIONS;
use serde_json::{Map, Value, json};

use super::App;
use super::answer::{Remarks, success};
use super::params::Tenant;

const OPERATORS: [&str; 33] = [
    "!=",
    "!~",
    "%",
    "*",
    "+",
    "-",
    "/",
    "<",
    "</",
    "<=",
    "==",
    "=~",
    ">",
    ">/",
    ">=",
    "@",
    "^",
    "and",
    "atan2",
    "avg",
    "bottomk",
    "count",
    "count_values",
    "group",
    "max",
    "min",
    "or",
    "quantile",
    "stddev",
    "stdvar",
    "sum",
    "topk",
    "unless",
];

/// `features`: a map of categories to features to whether they are on for the asking tenant.
pub(crate) async fn features(tenant: Tenant, State(app): State<Arc<App>>) -> Response {
    let all = json_of(&app.read.switches(&tenant.0));
    success(all.to_string().as_bytes(), &Remarks::default())
}

fn json_of(switches: &Switches) -> Value {
    let experimental = switches.experimental_functions;
    let functions: Map<String, Value> = FUNCTIONS
        .iter()
        .map(|function| (function.name.to_owned(), json!(experimental || !function.experimental)))
        .collect();
    let mut operators: Map<String, Value> = OPERATORS.iter().map(|name| ((*name).to_owned(), json!(true))).collect();
    for name in ["limitk", "limit_ratio"] {
        operators.insert(name.to_owned(), json!(experimental));
    }
    json!({
        "api": {
            "admin": true, "label_values_match": true, "lifecycle": false, "query_stats": true,
            "query_warnings": true, "remote_write_receiver": true, "otlp_write_receiver": false, "search": false,
            "time_range_labels": true, "time_range_series": true, "exclude_alerts": false, "openapi_3.1": false,
            "openapi_3.2": false,
        },
        "promql": {
            "anchored": switches.extended_range_selectors, "smoothed": switches.extended_range_selectors,
            "at_modifier": true, "bool": true, "by": true, "delayed_name_removal": experimental,
            "duration_expr": switches.duration_expressions, "fill": switches.binop_fill,
            "fill_left": switches.binop_fill, "fill_right": switches.binop_fill, "group_left": true,
            "group_right": true, "ignoring": true, "negative_offset": true, "offset": true, "on": true,
            "per_query_lookback_delta": true, "per_step_stats": true, "subqueries": true, "type_and_unit_labels": false,
            "without": true,
        },
        "promql_functions": functions,
        "promql_operators": operators,
        "tsdb": { "exemplar_storage": true, "native_histograms": true, "st_storage": true },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use engram_query::parse::parse;

    #[test]
    fn what_is_promised_parses_and_what_is_not_does_not() {
        for switches in [Switches::default(), Switches::all()] {
            let all = json_of(&switches);
            for (name, text) in [("limitk", "limitk(1, up)"), ("sum", "sum(up)"), ("</", "up </ 1")] {
                assert_eq!(all["promql_operators"][name], json!(parse(text, &switches).is_ok()), "{name}");
            }
            for (name, text) in
                [("mad_over_time", "mad_over_time(up[5m])"), ("rate", "rate(up[5m])"), ("step", "step()")]
            {
                assert_eq!(all["promql_functions"][name], json!(parse(text, &switches).is_ok()), "{name}");
            }
            for (name, text) in
                [("fill", "a + fill(0) b"), ("anchored", "up[5m] anchored"), ("duration_expr", "up[5m*2]")]
            {
                assert_eq!(all["promql"][name], json!(parse(text, &switches).is_ok()), "{name}");
            }
        }
    }
}
