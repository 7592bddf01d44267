//! Goal: an optimised plan answers what the plan as written answers, and does less for it. Method: random expressions
//! over random series, evaluated both ways; and plans whose selects and samples are counted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "test")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use engram_model::series::{Columns, Series};
use engram_model::{Labels, Matcher, Millis, TimeRange};
use engram_query::engine::{Budget, Cancel, Outcome, Request, evaluate};
use engram_query::error::Error;
use engram_query::parse::{Switches, parse};
use engram_query::port::{Queryable, SelectHints, Selection, SharedQueryable, SourceError};
use engram_query::value::Value;
use futures::executor::block_on;
use futures::future::BoxFuture;
use proptest::prelude::*;

/// Series, and what was asked: the matchers as text and how many series they gave.
#[derive(Default)]
struct Memory {
    series: Vec<Series>,
    asked: Mutex<Vec<(String, usize)>>,
}

impl Queryable for Memory {
    fn select<'a>(
        &'a self,
        _: TimeRange,
        matchers: &'a [Matcher],
        _: &'a SelectHints,
    ) -> BoxFuture<'a, Result<Selection, SourceError>> {
        let fits = |s: &&Series| matchers.iter().all(|m| m.matches(s.labels.get(&m.name).unwrap_or_default()));
        let series: Vec<Series> = self.series.iter().filter(fits).cloned().collect();
        let text: Vec<String> = matchers.iter().map(|m| format!("{}{}{}", m.name, m.op.as_str(), m.value)).collect();
        self.asked.lock().unwrap().push((text.join(","), series.len()));
        Box::pin(async move { Ok(Selection { series, ..Selection::default() }) })
    }
}

fn memory(all: impl IntoIterator<Item = (Labels, Vec<(Millis, f64)>)>) -> Arc<Memory> {
    let mut series: Vec<Series> = all
        .into_iter()
        .map(|(labels, samples)| {
            let (times, values) = samples.into_iter().unzip();
            Series { labels, source: Arc::new(Columns { times, values, ..Columns::default() }) }
        })
        .collect();
    series.sort_by(|a, b| a.labels.cmp(&b.labels));
    series.dedup_by(|a, b| a.labels == b.labels);
    Arc::new(Memory { series, ..Memory::default() })
}

fn run(text: &str, times: (Millis, Millis, i64), budget: Budget, memory: &Arc<Memory>) -> Result<Outcome, Error> {
    let expr = parse(text, &Switches::all()).unwrap_or_else(|e| panic!("{text}: {e}"));
    let (start, end, step_ms) = times;
    let request = Request { text: text.to_owned(), expr, start, end, step_ms, budget };
    block_on(evaluate(&request, &(Arc::clone(memory) as SharedQueryable), &Cancel::default()))
}

/// An answer as text: every float by its bits, NaN as NaN.
fn printed(value: &Value) -> Vec<String> {
    let float = |v: f64| if v.is_nan() { "NaN".to_owned() } else { format!("{:x}", v.to_bits()) };
    match value {
        Value::Matrix(all) => all
            .iter()
            .map(|s| {
                let points: Vec<String> = s.floats.iter().map(|(at, v)| format!("{at}={}", float(*v))).collect();
                format!("{} {}", s.labels, points.join(" "))
            })
            .collect(),
        other => vec![format!("{other:?}")],
    }
}

fn pick(all: &'static [&'static str]) -> impl Strategy<Value = String> {
    proptest::sample::select(all).prop_map(str::to_owned)
}

fn matchers() -> impl Strategy<Value = String> {
    pick(&["", "{x=\"1\"}", "{x=\"2\"}", "{y=\"1\"}", "{x=\"\"}", "{x=~\"1|3\"}", "{x!=\"1\"}", "{x=\"1\",y=\"2\"}"])
}

fn selector() -> impl Strategy<Value = String> {
    (pick(&["a", "b", "c"]), matchers()).prop_map(|(name, matchers)| format!("{name}{matchers}"))
}

fn matching() -> impl Strategy<Value = String> {
    pick(&["", "", "on (x)", "on (x, y)", "ignoring (y)", "ignoring (x, i)"])
}

/// Vector expressions of a few levels.
fn vector() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        selector(),
        selector().prop_map(|s| format!("{s} @ 600")),
        (pick(&["rate", "max_over_time", "last_over_time"]), selector()).prop_map(|(f, s)| format!("{f}({s}[5m])")),
        pick(&["vector(1 + 1)", "vector(time())", "{x=\"1\",x=\"2\"}", "{y=\"1\"}"]),
    ];
    leaf.prop_recursive(4, 16, 2, |inner| {
        let grouping = pick(&["", "by (x)", "by (x, y)", "without (i)", "without (x)", "by (y)"]);
        prop_oneof![
            (inner.clone(), pick(&["+", "/", ">", "== bool", "and", "or", "unless"]), matching(), inner.clone())
                .prop_map(|(a, op, matching, b)| format!("({a} {op} {matching} {b})")),
            (inner.clone(), pick(&["*", "-"]), pick(&["on (x)", "on (x, y)", "ignoring (i)"]), inner.clone())
                .prop_map(|(a, op, on, b)| format!("({a} {op} {on} group_left () {b})")),
            (inner.clone(), pick(&["*", "-"]), pick(&["on (x)", "ignoring (i)"]), inner.clone())
                .prop_map(|(a, op, on, b)| format!("({a} {op} {on} group_right (y) {b})")),
            (pick(&["sum", "max", "count", "topk", "quantile"]), grouping, inner.clone()).prop_map(
                |(op, grouping, v)| match op.as_str() {
                    "topk" | "quantile" => format!("{op} {grouping} (1, {v})"),
                    _ => format!("{op} {grouping} ({v})"),
                }
            ),
            inner.clone().prop_map(|v| format!("abs({v})")),
            inner.clone().prop_map(|v| format!("(-{v})")),
            inner.clone().prop_map(|v| format!("absent({v})")),
            inner.clone().prop_map(|v| format!("timestamp({v})")),
            inner.clone().prop_map(|v| format!("max_over_time(({v})[10m:1m])")),
            inner.clone().prop_map(|v| format!("label_replace({v}, \"x\", \"$1\", \"y\", \"(.*)\")")),
            (inner.clone(), pick(&["* 2", "> 3", "- scalar(a{x=\"1\"})", "+ pi() * 0"]))
                .prop_map(|(v, op)| format!("({v} {op})")),
            inner.clone().prop_map(|v| format!("({v} / {v})")),
            (inner.clone(), inner).prop_map(|(v, w)| format!("({v} and on (x) {w} or {v})")),
        ]
    })
}

type Rows = Vec<(Labels, Vec<(Millis, f64)>)>;

fn series() -> impl Strategy<Value = Rows> {
    let samples = proptest::collection::btree_map(0_i64..1200, 0_i32..10, 1..30);
    let one = (pick(&["a", "b", "c"]), 0_u8..4, 0_u8..3, 0_u8..2, samples);
    proptest::collection::vec(one, 1..16).prop_map(|all| {
        let row = |(name, x, y, i, samples): (String, u8, u8, u8, std::collections::BTreeMap<i64, i32>)| {
            let mut pairs = vec![("__name__", name)];
            for (label, value) in [("x", x), ("y", y), ("i", i)] {
                if value > 0 {
                    pairs.push((label, value.to_string()));
                }
            }
            (Labels::from_pairs(pairs), samples.into_iter().map(|(at, v)| (at * 1000, f64::from(v))).collect())
        };
        all.into_iter().map(row).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_optimised_plan_answers_what_the_written_one_does(
        text in vector(),
        rows in series(),
        start in 0_i64..900,
        delayed_name_removal: bool,
    ) {
        let times = (start * 1000, (start + 600) * 1000, 120_000);
        let memory = memory(rows);
        let budget = Budget { delayed_name_removal, ..Budget::default() };
        let written = run(&text, times, Budget { optimise: false, ..budget.clone() }, &memory);
        let optimised = run(&text, times, budget, &memory);
        match (written, optimised) {
            (Ok(written), Ok(optimised)) => {
                prop_assert_eq!(printed(&written.value), printed(&optimised.value), "{}", &text);
                // Of equal remarks only the last place is named, which may be another one.
                let texts = |all: &BTreeSet<String>| -> BTreeSet<String> {
                    all.iter().map(|text| text.rsplit_once(" (").map_or(text.as_str(), |(text, _)| text).to_owned()).collect()
                };
                let less = |a: &BTreeSet<String>, b: &BTreeSet<String>| texts(a).is_subset(&texts(b));
                let (had, has) = (&written.annotations, &optimised.annotations);
                prop_assert!(less(&has.warnings, &had.warnings) && less(&has.infos, &had.infos), "{}", &text);
            }
            (Err(written), Err(optimised)) => prop_assert_eq!(
                std::mem::discriminant(&written), std::mem::discriminant(&optimised), "{}", &text
            ),
            (written, optimised) => prop_assert!(
                false, "{}: {:?} became {:?}", &text, written.map(|o| o.value), optimised.map(|o| o.value)
            ),
        }
    }
}

/// `a`, `b` and `c` of ten instances in ten zones.
fn wide() -> Arc<Memory> {
    memory(["a", "b", "c"].into_iter().flat_map(|name| {
        (0..100).map(move |i| {
            let labels = Labels::from_pairs([
                ("__name__", name.to_owned()),
                ("i", (i / 10).to_string()),
                ("x", (i % 10).to_string()),
            ]);
            (labels, (0..=60).map(|m| (m * 60_000, m as f64)).collect())
        })
    }))
}

/// Series fetched and samples looked at, as written and optimised.
fn costs(text: &str) -> [(usize, u64); 2] {
    [false, true].map(|optimise| {
        let memory = wide();
        let budget = Budget { optimise, ..Budget::default() };
        let outcome = run(text, (600_000, 3_600_000, 60_000), budget, &memory).unwrap();
        let series = memory.asked.lock().unwrap().iter().map(|(_, series)| series).sum();
        (series, outcome.stats.samples_total)
    })
}

#[test]
fn a_test_of_one_side_narrows_the_other() {
    for (text, written, optimised) in [
        ("a{x=\"1\"} / b", 110, 20),
        ("a / on (i, x) b{x=\"1\"}", 110, 110),
        ("sum by (x) (delta(a[5m])) / on (x) sum by (x) (delta(b{x=\"1\"}[5m]))", 110, 20),
        // `rate` of what is no counter by its name is remarked upon, wherever its series would have been left out.
        ("a{x=\"1\"} / rate(b[5m])", 110, 110),
        ("a * on (x) group_left () max by (x) (b{x=\"1\"})", 110, 20),
        ("a and on (x) b{x=\"1\"}", 110, 20),
        ("a{x=\"1\"} unless b", 110, 20),
        ("a{x=\"1\"} / b / c", 210, 30),
        ("a{x=\"1\"} or b", 110, 110),
        ("a{x=\"1\"} / ignoring (x) group_left () sum without (x) (b)", 110, 110),
        ("a{x=\"1\"} + absent(b)", 110, 110),
        ("a{x=\"1\"} / b{x=\"2\"}", 20, 0),
        ("a{x=\"1\", x=\"2\"} or b{x=\"\", x=~\".+\"}", 0, 0),
    ] {
        let [(before, _), (after, _)] = costs(text);
        assert_eq!((before, after), (written, optimised), "{text}");
    }
}

#[test]
fn what_is_written_twice_counts_as_looked_at_twice() {
    for text in ["a + a", "rate(a[5m]) / rate(a[5m])", "sum(a) / count(a)", "(a + b) / (a + b) + a"] {
        let [(_, before), (_, after)] = costs(text);
        assert_eq!(before, after, "{text}");
    }
}

#[test]
fn two_series_of_a_group_are_still_an_error() {
    let text = "a{x=\"1\"} / on (i) b{x=~\"1|2\"}";
    for optimise in [false, true] {
        let budget = Budget { optimise, ..Budget::default() };
        let error = run(text, (600_000, 600_000, 0), budget, &wide()).unwrap_err();
        assert!(error.to_string().contains("found duplicate series"), "{error}");
    }
}

#[test]
fn an_explained_query_tells_what_each_operator_did() {
    let budget = Budget { explain: true, ..Budget::default() };
    let text = "sum by (x) (delta(a{x=\"1\"}[5m])) / on (x) sum by (x) (delta(b[5m])) * (60 * 60)";
    let times = (600_000, 3_600_000, 60_000);
    let outcome = run(text, times, budget, &wide()).unwrap();
    let root = outcome.explain.unwrap();
    assert_eq!((root.operator.as_str(), root.series_in, root.series_out), ("*", 2, 1));
    assert_eq!((root.children[1].operator.as_str(), root.children[1].marks[0].as_str()), ("number 3600", "folded"));
    let division = &root.children[0];
    let rate = &division.children[1].children[0];
    assert_eq!((rate.operator.as_str(), rate.text.as_str(), rate.series_out), ("delta", "delta(b[5m])", 10));
    assert_eq!(rate.samples + division.children[0].children[0].samples, outcome.stats.samples_total);
    assert_eq!(rate.children[0].marks, ["narrowed by x=\"1\""]);
    assert_eq!(rate.children[0].select.as_ref().unwrap().series, 10);
    assert!(root.total_seconds >= division.total_seconds && root.samples_peak == outcome.stats.samples_peak);
    assert!(run(text, times, Budget::default(), &wide()).unwrap().explain.is_none());
}
