//! Goal: the language as a user meets it. Method: own expressions with their trees, texts and errors; random tokens.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::ast::{At, BinaryOp, DurationKind, Expr, Extension, ValueType};
use super::*;

fn all(text: &str) -> Expr {
    parse(text, &Switches::all()).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn refusal(text: &str) -> String {
    parse(text, &Switches::all()).map(|e| e.to_string()).unwrap_err().to_string()
}

fn printed(text: &str) -> String {
    all(text).to_string()
}

/// The tree without places, matchers in order.
fn shape(expr: &Expr) -> Value {
    fn sort(value: &mut Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(sort),
            Value::Object(fields) => {
                if let Some(Value::Array(matchers)) = fields.get_mut("matchers") {
                    matchers.sort_by_key(Value::to_string);
                }
                fields.values_mut().for_each(sort);
            }
            _ => {}
        }
    }
    let mut value = to_json(expr);
    sort(&mut value);
    value
}

#[test]
fn operators_bind_as_in_the_manual() {
    for (text, grouped) in [
        ("a + b * c", "a + (b * c)"),
        ("a - b - c", "(a - b) - c"),
        ("a ^ b ^ c", "a ^ (b ^ c)"),
        ("-a ^ b", "-(a ^ b)"),
        ("-a * b", "(-a) * b"),
        ("a or b and c unless d", "a or ((b and c) unless d)"),
        ("a == b + c < d", "(a == (b + c)) < d"),
        ("a atan2 b % c", "(a atan2 b) % c"),
        ("a </ 1 + 2", "a </ (1 + 2)"),
        ("a ^ -b ^ c * d", "(a ^ (-(b ^ c))) * d"),
    ] {
        fn bare(value: &Value) -> Value {
            match value {
                Value::Object(fields) if fields.get("type") == Some(&json!("parenExpr")) => bare(&fields["expr"]),
                Value::Object(fields) => Value::Object(fields.iter().map(|(k, v)| (k.clone(), bare(v))).collect()),
                Value::Array(items) => items.iter().map(bare).collect(),
                other => other.clone(),
            }
        }
        assert_eq!(bare(&shape(&all(text))), bare(&shape(&all(grouped))), "{text}");
    }
}

#[test]
fn a_selector_has_its_parts() {
    let text = r#"  jobs:rate5m{zone!="b", "odd name"=~'x|y',} @ 12.5 offset -90s  "#;
    let Expr::VectorSelector(selector) = all(text) else { panic!("a selector") };
    assert_eq!(selector.name.as_deref(), Some("jobs:rate5m"));
    assert_eq!(selector.matchers.len(), 3);
    assert_eq!(&*selector.matchers[1].name, "odd name");
    assert_eq!((selector.at, selector.offset_ms), (Some(At::Time(12_500)), -90_000));
    assert_eq!(selector.span, ast::Span { start: 2, end: u32::try_from(text.trim_end().len()).unwrap() });
    assert_eq!(printed(text), r#"jobs:rate5m{"odd name"=~"x|y",zone!="b"} @ 12.500 offset -1m30s"#);
}

#[test]
fn windows_and_steps_are_milliseconds() {
    let Expr::Subquery(subquery) = all("max_over_time(x[1h])[1d:90s] @ end()") else { panic!("a subquery") };
    assert_eq!((subquery.range_ms, subquery.step_ms, subquery.at), (86_400_000, 90_000, Some(At::End)));
    let Expr::MatrixSelector(matrix) = all("x[1.5] smoothed offset 250ms") else { panic!("a matrix") };
    assert_eq!((matrix.range_ms, matrix.selector.offset_ms), (1500, 250));
    assert_eq!(matrix.selector.extension, Extension::Smoothed);
}

#[test]
fn words_are_names_where_they_can_be() {
    for text in
        ["sum", "by + on(by) offset", "start", "fill - fill", "step{range=\"min_of\"}", "sum by (bool, on) (and)"]
    {
        let once = printed(text);
        assert_eq!(printed(&once), once, "{text}");
    }
    assert_eq!(printed("AVG WITHOUT(a) (x) Or y"), "avg without (a) (x) or y");
    assert_eq!(printed("sum by (\"inf\", le) (x)"), "sum by (\"inf\", le) (x)");
}

#[test]
fn numbers_and_strings_keep_their_value() {
    for (text, print) in [
        ("0x1F + 010", "31 + 8"),
        ("-1e3", "-1000"),
        ("1h", "1h"),
        ("-Inf", "-Inf"),
        ("nan", "NaN"),
        (r#""a\x00\u00e9\"""#, r#""a\x00é\"""#),
        (r"`raw\n`", r#""raw\\n""#),
        ("\"\\xff\"", "\"\\xff\""),
        ("1 # one\n + 2", "1 + 2"),
    ] {
        assert_eq!(printed(text), print, "{text}");
    }
    let Expr::String(string) = all(r"'\xfe\''") else { panic!("a string") };
    assert_eq!(string.value, b"\xfe'");
}

#[test]
fn types_are_known() {
    for (text, wanted) in [
        ("1 + 2", ValueType::Scalar),
        ("-(x)", ValueType::Vector),
        ("x > 2", ValueType::Vector),
        ("x[5m]", ValueType::Matrix),
        ("x[5m:]", ValueType::Matrix),
        ("\"s\"", ValueType::String),
        ("time()", ValueType::Scalar),
        ("count(x)", ValueType::Vector),
    ] {
        assert_eq!(all(text).value_type(), wanted, "{text}");
    }
}

#[test]
fn matching_is_settled_by_types() {
    let Expr::Binary(binary) = all("x and on(a) y") else { panic!("a binary expression") };
    assert_eq!(binary.matching.unwrap().cardinality, ast::Cardinality::ManyToMany);
    let Expr::Binary(binary) = all("x * 2") else { panic!("a binary expression") };
    assert_eq!((binary.matching, binary.op, binary.op_span.start), (None, BinaryOp::Mul, 2));
    let text = "x + bool on(a) group_left y";
    assert_eq!(refusal(text), "1:3: parse error: bool modifier can only be used on comparison operators");
    assert_eq!(printed("x / on(a) group_left y"), "x / on (a) group_left () y");
    assert_eq!(printed("x + fill_right(-2) fill_left(1) y"), "x + fill_left (1) fill_right (-2) y");
}

#[test]
fn errors_have_the_place_of_their_cause() {
    for (text, wanted) in [
        ("x +\n\n  )", "3:4: parse error: unexpected right parenthesis ')'"),
        ("sum(x y)", "1:7: parse error: unexpected identifier \"y\" in aggregation"),
        ("x[1m:2m:3m]", "1:8: parse error: unexpected colon ':'"),
        ("x[:1m]", "1:4: parse error: unexpected colon before duration in duration expression"),
        ("x @ y", "1:5: parse error: unexpected identifier \"y\" in @, expected timestamp"),
        (
            "x{a=\"b\" c=\"d\"}",
            "1:9: parse error: unexpected identifier \"c\" in label matching, expected \",\" or \"}\"",
        ),
        ("rate(x[1m]) + rte(x[1m])", "1:15: parse error: unknown function with name \"rte\""),
        ("\"a\" + 1", "1:1: parse error: binary expression must contain only scalar and instant vector types"),
        ("clamp(x, 1)", "1:1: parse error: expected 3 argument(s) in call to \"clamp\", got 2"),
        ("label_join(x)", "1:1: parse error: expected at least 3 argument(s) in call to \"label_join\", got 1"),
        (
            "x offset \"a string that is long\"",
            "1:10: parse error: unexpected string \"\\\"a string \"... in offset, expected number, duration, step(), or range()",
        ),
    ] {
        assert_eq!(refusal(text), wanted, "{text}");
    }
}

#[test]
fn experimental_parts_are_off_unless_switched_on() {
    for (text, wanted) in [
        ("x[step()]", "1:3: parse error: experimental duration expression is not enabled"),
        ("x anchored", "1:1: parse error: anchored modifier is experimental and not enabled"),
        ("x + fill(0) y", "1:1: parse error: binop fill modifiers are experimental and not enabled"),
        ("x + end()", "1:5: parse error: function \"end\" is not enabled"),
    ] {
        assert_eq!(parse(text, &Switches::default()).unwrap_err().to_string(), wanted);
        all(text);
    }
}

#[test]
fn durations_are_evaluated_when_the_times_are_known() {
    let mut expr = all("sum_over_time(x[step() * 2:max_of(15, range() / 100)] offset -(1m - 30s))");
    resolve_durations(&mut expr, 0, 10_000_000, 60_000).unwrap();
    let Expr::Call(call) = &expr else { panic!("a call") };
    let Expr::Subquery(subquery) = &call.args[0] else { panic!("a subquery") };
    assert_eq!((subquery.range_ms, subquery.step_ms, subquery.offset_ms), (120_000, 100_000, -30_000));
    for (text, wanted) in [
        ("x[step()]", "2:8: duration must be greater than 0"),
        ("x[5m / (step() * 0)]", "2:17: division by zero"),
        ("x offset (0 - 1) ^ 0.5", "9:22: duration is NaN or infinite"),
        ("x[1y ^ 9]", "2:8: duration is out of range"),
    ] {
        let found = resolve_durations(&mut all(text), 0, 0, 0).unwrap_err().to_string();
        assert_eq!(found.split_once(": ").unwrap().1, wanted.split_once(": ").unwrap().1, "{text}");
    }
}

#[test]
fn an_offset_goes_on_only_after_a_parenthesis() {
    let Expr::Binary(_) = all("x offset 5 * 2") else { panic!("a product") };
    let Expr::VectorSelector(selector) = all("x offset (5) * 2") else { panic!("a selector") };
    assert!(matches!(selector.offset_expr.unwrap().kind, DurationKind::Binary { .. }));
    for text in [
        "x offset --5 * 2",
        "x offset +-2 ^ 2",
        "x offset (5m) @ 1 + y",
        "-x offset (5m) @ 1 * y",
        "1 + rate(x[5m] offset (5m) @ 1)",
    ] {
        let once = all(text);
        assert_eq!(shape(&all(&once.to_string())), shape(&once), "{text} became {once}");
    }
}

#[test]
fn selectors_of_the_api_parse_alone() {
    let matchers = parse_selector(r#"up{job="x"}"#).unwrap();
    assert_eq!(matchers.len(), 2);
    assert!(parse_selector("{}").unwrap().is_empty());
    assert_eq!(parse_selector("up[5m]").unwrap_err().to_string(), "1:3: parse error: unexpected \"[\"");
    assert_eq!(parse_selector("").unwrap_err().to_string(), "unknown position: parse error: unexpected end of input");
}

#[test]
fn long_lines_are_split_at_the_operators() {
    let text = "sum by (namespace, instance, zone) (rate(requests_total{code=~\"5..\"}[5m])) \
                / on(namespace) group_left ignored_metric_with_a_long_name";
    let wanted = "  sum by (namespace, instance, zone) (rate(requests_total{code=~\"5..\"}[5m]))\n\
                  / on (namespace) group_left ()\n  ignored_metric_with_a_long_name";
    assert_eq!(prettify(&all(text)), wanted);
    assert_eq!(prettify(&all("sum( x )by(a)")), "sum by (a) (x)");
    let long = format!("-abs(({}))", ["some_metric_with_a_name"; 6].join(" + "));
    let lines = prettify(&all(&long));
    assert!(lines.lines().count() > 6 && lines.starts_with("-abs(\n  (\n"), "{lines}");
    assert_eq!(shape(&all(&lines)), shape(&all(&long)));
}

#[test]
fn json_is_what_user_interfaces_read() {
    let wanted = json!({
        "type": "call",
        "func": {"name": "round", "argTypes": ["vector", "scalar"], "variadic": 1, "returnType": "vector"},
        "args": [{
            "type": "vectorSelector", "name": "x", "offset": 0, "offsetExpr": null, "timestamp": null,
            "matchers": [{"name": "__name__", "type": "=", "value": "x"}], "startOrEnd": "start",
            "anchored": false, "smoothed": false,
        }],
    });
    assert_eq!(to_json(&all("round(x @ start())")), wanted);
}

#[test]
fn what_is_too_large_is_refused_and_takes_no_stack() {
    for piece in
        ["(", "-", "{", "[", "x[1m:1m]", "abs(", "sum(x) + ", "x ^ ", "\"", "x offset -", "x[1+", "x[-", "x[(", "a=~"]
    {
        let text = piece.repeat(TEXT_BYTES_MAX / piece.len());
        assert!(parse(&text, &Switches::all()).is_err(), "{piece}");
        assert!(parse_selector(&text).is_err(), "{piece}");
    }
}

#[test]
fn limits_are_where_they_are_said_to_be() {
    let long = "1+".repeat(TEXT_BYTES_MAX);
    assert!(refusal(&long).contains("is longer than"));
    let deep = |n: usize| format!("{}x{}", "(".repeat(n), ")".repeat(n));
    let levels = usize::try_from(NESTING_MAX).unwrap();
    all(&deep(levels));
    assert!(refusal(&deep(levels + 1)).contains("nests deeper"));
}

#[test]
fn a_chain_of_operators_has_a_bounded_height() {
    let chain = |n: usize| vec!["x"; n].join(" or ");
    let height = usize::try_from(HEIGHT_MAX).unwrap();
    let highest = all(&chain(height));
    assert_eq!(shape(&all(&highest.to_string())), shape(&highest));
    assert!(prettify(&highest).len() > height);
    assert!(refusal(&chain(height + 1)).contains("levels"));
}

#[test]
fn regular_expressions_are_counted() {
    let regexes = |n: u32| format!("{{{}}}", vec!["a=~\"b.+\""; usize::try_from(n).unwrap()].join(","));
    all(&regexes(REGEX_MATCHERS_MAX));
    assert!(refusal(&regexes(REGEX_MATCHERS_MAX + 1)).contains("regular expressions"));
}

fn token() -> impl Strategy<Value = &'static str> {
    const TOKENS: &str = "sum topk count_values by without on ignoring group_left fill bool offset anchored smoothed \
        start end step range max_of min_of and or atan2 inf nan foo a:b rate abs label_replace time info + - * / % ^ \
        == != <= </ >/ =~ = @ ( ) ( ) { } [ ] , : # ! 5 5m 1h30m 0 .5 1e 017 \"s\" ' `r` {a=\"b\"} {x!~\".*\"} [5m] \
        [5m:1m] [5m:] (foo) (5) () step() start() foo[5m] rate(foo[5m]) \u{e9} \u{fffd} -- sum(foo)";
    prop::sample::select(TOKENS.split_whitespace().chain(["\n"]).collect::<Vec<_>>())
}

fn expression() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "foo",
        "a:b{c!=\"d\"}",
        "{\"x y\"}",
        "1",
        "2m",
        "Inf",
        "foo offset 5m",
        "foo @ end()",
        "foo offset --5",
        "foo offset (step())",
        "foo @ 1 offset -step()",
        "up anchored",
        "time()",
        "foo offset -(5m) smoothed",
    ]);
    leaf.prop_map(String::from).prop_recursive(6, 40, 3, |inner| {
        let op = prop::sample::select(vec![
            "+",
            "-",
            "*",
            "/",
            "%",
            "^",
            "== bool",
            "<",
            "and",
            "or on (a)",
            "unless",
            "* on (a) group_left (b)",
            "+ fill (1)",
            "</",
            "atan2",
        ]);
        prop_oneof![
            (inner.clone(), op, inner.clone()).prop_map(|(l, o, r)| format!("{l} {o} {r}")),
            inner.clone().prop_map(|e| format!("({e})")),
            inner.clone().prop_map(|e| format!("-{e}")),
            inner.clone().prop_map(|e| format!("sum by (a, \"b c\") ({e})")),
            inner.clone().prop_map(|e| format!("topk(2, {e}) without (x)")),
            inner.clone().prop_map(|e| format!("abs({e})")),
            inner.clone().prop_map(|e| format!("rate(({e})[5m:step()] @ 5 offset (1m))")),
            inner.prop_map(|e| format!("+{e}")),
        ]
    })
}

fn reads_back(text: &str) -> Result<(), TestCaseError> {
    for switches in [Switches::all(), Switches::default()] {
        let Ok(expr) = parse(text, &switches) else { continue };
        let once = shape(&expr);
        for again in [expr.to_string(), prettify(&expr)] {
            match parse(&again, &Switches::all()) {
                Ok(expr) => prop_assert_eq!(shape(&expr), once.clone(), "{} became {}", text, again),
                Err(e) => prop_assert!(false, "{} became {}: {}", text, again, e),
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_tokens_never_panic_and_what_parses_reads_back(
        tokens in prop::collection::vec((token(), prop::bool::weighted(0.7)), 0..14),
    ) {
        let text: String = tokens.iter().flat_map(|(token, space)| [*token, if *space { " " } else { "" }]).collect();
        let selector = parse_selector(&text);
        prop_assert!(selector.is_ok() || !selector.unwrap_err().to_string().is_empty());
        reads_back(&text)?;
    }

    #[test]
    fn random_text_never_panics(text in "\\PC{0,30}", bytes in prop::collection::vec(any::<u8>(), 0..30)) {
        reads_back(&text)?;
        reads_back(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn expressions_read_back(text in expression()) {
        reads_back(&text)?;
    }
}
