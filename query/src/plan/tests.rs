//! Goal: selectors ask for exactly the time they look at, and what is the same at every step is evaluated once.

use engram_model::TimeRange;

use super::*;
use crate::parse::{Switches, parse};

/// A plan for the times 1000 s to 2000 s, a step of 10 s, a lookback of 300 s.
fn made(text: &str) -> Plan {
    let times =
        Times { start: 1_000_000, end: 2_000_000, step_ms: 10_000, lookback_ms: 300_000, subquery_step_ms: 60_000 };
    plan(&parse(text, &Switches::all()).unwrap(), times).unwrap()
}

#[test]
fn selectors_ask_for_what_they_look_at() {
    let cases = [
        ("m", (700_001, 2_000_000)),
        ("m offset 1m", (640_001, 1_940_000)),
        ("m[1m]", (940_001, 2_000_000)),
        ("m @ 50", (-249_999, 50_000)),
        ("rate(m[1m] @ end())", (1_940_001, 2_000_000)),
        ("rate(m[1m] anchored)", (640_001, 2_000_000)),
        ("rate(m[1m] smoothed)", (640_001, 2_300_000)),
        ("m smoothed", (700_001, 2_300_000)),
        ("max_over_time(m[10m:1m])", (100_001, 2_000_000)),
        ("max_over_time(m[10m:1m] offset 1m)", (40_001, 1_940_000)),
        ("max_over_time(rate(m[1m])[10m:1m] @ 5000)", (4_340_001, 5_000_000)),
    ];
    for (text, (start, last)) in cases {
        let plan = made(text);
        assert_eq!(plan.selects.len(), 1, "{text}");
        assert_eq!(plan.selects[0].range, TimeRange::closed(start, last), "{text}");
    }
}

#[test]
fn identical_selectors_share_a_select() {
    assert_eq!(made("rate(m[5m]) + rate(m[5m])").selects.len(), 1);
    assert_eq!(made("rate(m[5m]) + rate(m[6m])").selects.len(), 2);
    assert_eq!(made("m + m{a=\"b\"}").selects.len(), 2);
}

#[test]
fn what_is_fixed_is_evaluated_once() {
    let is_once = |text: &str| matches!(made(text).root, Node::Once(_));
    for text in ["m @ 1", "sum(rate(m[1m] @ start()))", "abs(m @ 1) + m @ 2", "timestamp(m @ 1)", "1 + 1"] {
        assert!(is_once(text), "{text}");
    }
    for text in ["m", "m @ 1 + m", "time()", "hour(m @ 1)", "predict_linear(m[1m] @ 1, 2)", "timestamp(abs(m @ 1))"] {
        assert!(!is_once(text), "{text}");
    }
    let Node::Binary(binary) = made("m @ 1 + m").root else { unreachable!("it is an operator") };
    assert!(matches!(binary.lhs, Node::Once(_)) && matches!(binary.rhs, Node::Instant(_)));
}

#[test]
fn functions_of_the_request_are_numbers() {
    let number = |text: &str| match made(text).root {
        Node::Number(value, _) => value,
        other => unreachable!("{other:?}"),
    };
    assert_eq!([number("start()"), number("end()"), number("step()"), number("range()")], [1e3, 2e3, 10.0, 1e3]);
}

#[test]
fn buckets_are_left_out_where_only_statistics_are_asked_for() {
    let only = |text: &str| {
        fn selector(node: &Node) -> Option<&Selector> {
            match node {
                Node::Instant(s) => Some(s),
                Node::Range(r) => Some(&r.of),
                Node::Subquery(s) => selector(&s.inner),
                Node::Negate(n, _) | Node::Once(n) => selector(n),
                Node::Binary(b) => selector(&b.lhs),
                Node::Aggregate(a) => selector(&a.inner),
                Node::Call(c) => c.args.iter().find_map(selector),
                Node::Number(..) | Node::Text(..) | Node::Shared(_) | Node::Nothing(_) => None,
            }
        }
        selector(&made(text).root).unwrap().statistics_only
    };
    assert!(only("histogram_count(rate(m[5m]))") && only("sum(histogram_avg(m))"));
    assert!(!only("rate(m[5m])") && !only("histogram_quantile(0.5, histogram_sum(m))"));
    assert!(!only("histogram_count(max_over_time(m[5m:1m]))") && !only("histogram_sum(m </ 2)"));
}

fn optimised(text: &str) -> Plan {
    let mut plan = made(text);
    optimise(&mut plan);
    plan
}

fn nodes<'p>(node: &'p Node, all: &mut Vec<&'p Node>) {
    all.push(node);
    node.children().into_iter().for_each(|child| nodes(child, all));
}

/// Numbers and sizes of what is shared, in order.
fn shared(text: &str) -> Vec<(usize, usize)> {
    let plan = optimised(text);
    let mut all = Vec::new();
    nodes(&plan.root, &mut all);
    let each = all.into_iter().filter_map(|node| match node {
        Node::Shared(shared) => Some((shared.slot, shared.uses)),
        _ => None,
    });
    each.collect()
}

#[test]
fn numbers_are_folded() {
    for (text, value) in [
        ("1 + 2 * 3", 7.0),
        ("-(2 ^ 3)", -8.0),
        ("3 > bool 2", 1.0),
        ("min_of(pi(), 3) + 0", 3.0),
        ("scalar(vector(5)) - step()", -5.0),
    ] {
        assert!(matches!(optimised(text).root, Node::Number(have, _) if have == value), "{text}");
    }
    let plan = optimised("m * (60 * 60)");
    let Node::Binary(binary) = &plan.root else { unreachable!("it is an operator") };
    assert!(matches!(binary.rhs, Node::Number(value, _) if value == 3600.0));
    assert_eq!(plan.folded, [binary.rhs.span()]);
    assert!(!matches!(optimised("time() - 1").root, Node::Number(..)));
}

#[test]
fn the_largest_common_part_is_shared_where_the_steps_are_the_same() {
    assert_eq!(shared("rate(m[5m]) + rate(m[5m])"), [(0, 2), (0, 2)]);
    assert_eq!(shared("m + m{}"), [(0, 2), (0, 2)]);
    assert_eq!(shared("rate(m[5m]) + rate(m[5m] offset 1m)"), []);
    assert_eq!(shared("sum by (a) (m) / sum by (b) (m)").len(), 2);
    assert_eq!(shared("m + max_over_time((m + 1)[5m:1m])"), []);
    assert_eq!(shared("m @ 5 + m @ 5 + n"), [(0, 2), (0, 2)]);
    assert_eq!(shared("timestamp(m) + absent(m) + 1 + 1"), []);
    // The part inside is counted once for both, and once for the one outside.
    assert_eq!(shared("abs(m) / abs(m) + m").iter().filter(|(_, uses)| *uses == 2).count(), 5);
}

#[test]
fn all_take_the_copy_that_stands_last() {
    let plan = optimised("m + m");
    let Node::Binary(b) = &plan.root else { unreachable!("it is an operator") };
    let (Node::Shared(left), Node::Shared(right)) = (&b.lhs, &b.rhs) else { unreachable!("both are shared") };
    assert_eq!(left.inner.span(), right.span);
    assert_ne!(left.span, right.span);
}

#[test]
fn what_contradicts_itself_is_not_fetched() {
    let plan = optimised("absent(m{a=\"1\", a!=\"1\"}) or m{a=\"\", a=~\".+\"} or m{a=\"1\", a=~\"1|2\"}");
    assert_eq!(plan.selects.iter().map(|s| s.is_empty).collect::<Vec<_>>(), [true, true, false]);
    for text in ["n and m{a=\"1\", a=\"2\"}", "m{a=\"1\"} + m{a=\"2\"}", "m{a=\"1\", a=\"2\"} unless n"] {
        let plan = optimised(text);
        assert!(matches!(plan.root, Node::Nothing(_)) && plan.selects.is_empty(), "{text}");
    }
    // Either side may have something to say.
    for text in ["rate(n[5m]) and m{a=\"1\", a=\"2\"}", "n unless m{a=\"1\", a=\"2\"}"] {
        assert!(matches!(optimised(text).root, Node::Binary(_)), "{text}");
    }
}
