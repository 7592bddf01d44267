//! Goal: what is summed up where series lie, and put together, is what one place would have answered. Method: random
//! series in three places, each of which sums up, ships its series, or sums up the first steps and ships the rest; the
//! same queries with and without.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engram_model::histogram::Histogram;
use engram_model::sample::stale_nan;
use engram_model::series::{Columns, Series};
use engram_model::{Labels, Matcher, Millis, TimeRange};
use engram_query::engine::{Budget, Cancel, Outcome, Request, evaluate, sum_up};
use engram_query::error::Error;
use engram_query::fragment::Fragment;
use engram_query::parse::{Switches, parse};
use engram_query::port::{Queryable, SORTED_MAX, SelectHints, Selection, SharedQueryable, SourceError};
use engram_query::value::Value;
use futures::executor::block_on;
use futures::future::BoxFuture;
use proptest::prelude::*;

const PLACES: usize = 3;

/// Series by place; which of the places sum up, and how many of a hundred steps they do.
struct Split {
    places: [Vec<Series>; PLACES],
    sums_up: [bool; PLACES],
    percent: usize,
    pushed: AtomicUsize,
}

impl Split {
    fn of(&self, place: usize, matchers: &[Matcher]) -> Vec<Series> {
        let fits = |s: &&Series| matchers.iter().all(|m| m.matches(s.labels.get(&m.name).unwrap_or_default()));
        self.places[place].iter().filter(fits).cloned().collect()
    }

    fn pushed(&self, fragment: &Fragment, matchers: &[Matcher]) -> Selection {
        let steps = fragment.steps * self.percent / 100;
        let (mut out, first) = (Selection::default(), fragment.first(steps));
        for (place, sums_up) in self.sums_up.into_iter().enumerate() {
            let series = self.of(place, matchers);
            let budget = Budget { lookback_ms: fragment.rules.lookback_ms, ..Budget::default() };
            let budget = Budget { delayed_name_removal: fragment.rules.delayed_name_removal, ..budget };
            let summed = match sums_up && steps > 0 {
                true => sum_up(&first, series.clone(), &budget, &Cancel::default()).unwrap(),
                false => None,
            };
            match summed {
                None => out.series.extend(series),
                Some(partial) => {
                    self.pushed.fetch_add(1, Ordering::Relaxed);
                    out.partials.push(partial);
                    if steps < fragment.steps {
                        out.late.extend(series.iter().map(|one| cut(one, fragment.range_from(steps))));
                    }
                }
            }
        }
        out
    }
}

/// Few series come in the order of their labels.
fn sorted(mut selection: Selection) -> Selection {
    if selection.series.len() <= SORTED_MAX {
        selection.series.sort_by(|a, b| a.labels.cmp(&b.labels));
    }
    selection
}

/// Only the samples of a range: no step before it could be answered from them.
fn cut(series: &Series, range: TimeRange) -> Series {
    let mut columns = Columns::default();
    series.source.read(range, &mut columns).unwrap();
    Series { labels: series.labels.clone(), source: Arc::new(columns) }
}

impl Queryable for Split {
    fn select<'a>(
        &'a self,
        _: TimeRange,
        matchers: &'a [Matcher],
        hints: &'a SelectHints,
    ) -> BoxFuture<'a, Result<Selection, SourceError>> {
        let selection = match &hints.fragment {
            Some(fragment) => self.pushed(fragment, matchers),
            None => {
                let series = (0..PLACES).flat_map(|place| self.of(place, matchers)).collect();
                Selection { series, ..Selection::default() }
            }
        };
        let selection = sorted(selection);
        Box::pin(async move { Ok(selection) })
    }
}

fn run(text: &str, times: (Millis, Millis, i64), source: &Arc<Split>, budget: Budget) -> Result<Outcome, Error> {
    let expr = parse(text, &Switches::all()).unwrap_or_else(|e| panic!("{text}: {e}"));
    let (start, end, step_ms) = times;
    let request = Request { text: text.to_owned(), expr, start, end, step_ms, budget };
    block_on(evaluate(&request, &(Arc::clone(source) as SharedQueryable), &Cancel::default()))
}

/// Every value by its labels and time.
fn values(value: &Value) -> BTreeMap<(String, Millis), String> {
    match value {
        Value::Matrix(all) => {
            let floats =
                all.iter().flat_map(|s| s.floats.iter().map(|(at, v)| ((s.labels.to_string(), *at), format!("{v}"))));
            let histograms = all
                .iter()
                .flat_map(|s| s.histograms.iter().map(|(at, h)| ((s.labels.to_string(), *at), format!("{h:?}"))));
            floats.chain(histograms).collect()
        }
        Value::Vector(all) => all
            .iter()
            .map(|s| {
                let text = match &s.value {
                    engram_model::sample::Value::Float(v) => format!("{v}"),
                    engram_model::sample::Value::Histogram(h) => format!("{h:?}"),
                };
                ((s.labels.to_string(), s.at), text)
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// Whether two answers agree: to the last bit where `exact`, else in all but the last digits.
fn agree(a: &Value, b: &Value, exact: bool) -> bool {
    let (a, b) = (values(a), values(b));
    let near = |x: &str, y: &str| match (x.parse::<f64>(), y.parse::<f64>()) {
        (Ok(x), Ok(y)) => {
            (x.is_nan() && y.is_nan()) || x == y || (x - y).abs() <= 1e-9 * x.abs().max(y.abs()).max(1e-3)
        }
        _ => false,
    };
    a.len() == b.len()
        && a.iter().zip(&b).all(|((at, x), (other, y))| at == other && (x == y || (!exact && near(x, y))))
}

/// Queries, and whether their answers agree to the last bit where the samples are whole numbers.
const QUERIES: [(&str, bool); 26] = [
    ("sum(m)", true),
    ("sum by (a) (m)", true),
    ("sum without (i) (m)", true),
    ("count by (a, b) (m)", true),
    ("min by (b) (m)", true),
    ("max(m)", true),
    ("group by (a) (m)", true),
    ("avg by (a) (m)", true),
    ("stddev by (a) (m)", false),
    ("stdvar(m)", false),
    ("sum by (a) (rate(m[90s]))", false),
    ("sum by (a) (rate(m_total[90s]))", false),
    ("max by (b) (increase(m_total[2m] offset 1m))", true),
    ("avg(delta(m[100s]))", false),
    ("sum by (b) (sum_over_time(m[1m]))", true),
    ("max(quantile_over_time(0.5, m[3m]))", true),
    ("min by (a) (last_over_time({__name__=~\"m|m_total\"}[1m]))", true),
    ("sum by (a) (m @ 300)", true),
    ("sum by (a) (m) / count by (a) (m_total)", true),
    ("sum(m) / count(m)", true),
    ("max_over_time(sum by (a) (m)[3m:30s])", true),
    ("topk(1, sum by (a) (m offset 30s))", true),
    ("topk(1, count by (b) (m))", true),
    ("limitk(1, sum by (b) (m))", true),
    ("sum by (a) (count_over_time(m[2m] @ end()))", true),
    ("sum(rate({__name__=~\"m.*\"}[2m]))", false),
];

fn series() -> impl Strategy<Value = Vec<(Labels, Columns)>> {
    let samples = proptest::collection::btree_map(0_i64..60, prop_oneof![8 => 0_i32..1000, 1 => Just(-1)], 0..40);
    let one = (0_u8..2, 0_u8..3, 0_u8..3, 0_u8..30, samples).prop_map(|(name, a, b, kind, samples)| {
        let name = ["m", "m_total"][usize::from(name)];
        let pairs = [("__name__", name.to_owned()), ("a", a.to_string()), ("b", b.to_string())];
        let times: Vec<Millis> = samples.keys().map(|n| n * 10_000).collect();
        let columns = if kind == 0 {
            let histogram = |v: &i32| Arc::new(Histogram { count: f64::from(*v), sum: 1.0, ..Histogram::default() });
            let histograms = samples.values().map(histogram).collect();
            Columns { histogram_times: times, histograms, ..Columns::default() }
        } else {
            let float = |v: &i32| if *v < 0 { stale_nan() } else { f64::from(*v) };
            Columns { times, values: samples.values().map(float).collect(), ..Columns::default() }
        };
        (pairs, columns)
    });
    proptest::collection::vec(one, 0..60).prop_map(|all| {
        let labelled = all.into_iter().enumerate().map(|(i, (pairs, columns))| {
            let i = ("i", i.to_string());
            (Labels::from_pairs(pairs.into_iter().chain([i])), columns)
        });
        labelled.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn parts_put_together_are_the_whole(
        series in series(),
        sums_up in proptest::array::uniform3(proptest::bool::weighted(0.8)),
        percent in prop_oneof![Just(100_usize), 0_usize..100],
        times in prop_oneof![
            (0_i64..600_000).prop_map(|at| (at, at, 0)),
            (0_i64..300_000, 1_i64..40).prop_map(|(start, step)| (start, 600_000, step * 1000)),
        ],
        experimental: bool,
    ) {
        let mut places: [Vec<Series>; PLACES] = Default::default();
        for (labels, columns) in series {
            let place = usize::try_from(labels.hash128() % PLACES as u128).unwrap();
            places[place].push(Series { labels, source: Arc::new(columns) });
        }
        let source = Arc::new(Split { places, sums_up, percent, pushed: AtomicUsize::new(0) });
        for (text, exact) in QUERIES {
            let budget = Budget { delayed_name_removal: experimental, ..Budget::default() };
            let off = run(text, times, &source, Budget { push_down: false, ..budget.clone() });
            let on = run(text, times, &source, budget);
            match (off, on) {
                (Ok(off), Ok(on)) => {
                    prop_assert!(agree(&off.value, &on.value, exact), "{text}\n{:?}\n{:?}", off.value, on.value);
                    prop_assert_eq!(off.annotations, on.annotations, "{}", text);
                    prop_assert_eq!(off.stats.series_total, on.stats.series_total, "{}", text);
                    prop_assert_eq!(off.stats.samples_total, on.stats.samples_total, "{}", text);
                }
                (off, on) => prop_assert_eq!(off.map(|o| o.value), on.map(|o| o.value), "{}", text),
            }
        }
    }
}

/// So many series of one sample every ten seconds.
fn plain(count: usize, extra: &[(&str, &str)]) -> Vec<Series> {
    let columns = Columns { times: vec![0, 10_000, 20_000], values: vec![1.0, 2.0, 3.0], ..Columns::default() };
    let columns = Arc::new(columns);
    let labels = |i: usize| {
        let pairs = [("__name__", "m_total".to_owned()), ("i", i.to_string()), ("g", (i % 8).to_string())];
        let extra = extra.iter().map(|(name, value)| (*name, (*value).to_owned()));
        Labels::from_pairs(pairs.into_iter().chain(extra))
    };
    (0..count).map(|i| Series { labels: labels(i), source: columns.clone() }).collect()
}

fn split(series: Vec<Series>) -> Arc<Split> {
    let places = [series, Vec::new(), Vec::new()];
    Arc::new(Split { places, sums_up: [true; PLACES], percent: 100, pushed: AtomicUsize::new(0) })
}

#[test]
fn of_equals_the_same_is_chosen_whoever_sums_up() {
    // By their labels the series of `y` come first, and so would that group.
    let one = |i: usize| {
        let g = if i < 32 { "y" } else { "x" };
        let labels = Labels::from_pairs([("__name__", "m"), ("a", &format!("{i:02}")), ("g", g)]);
        let columns = Columns { times: vec![0], values: vec![1.0], ..Columns::default() };
        Series { labels, source: Arc::new(columns) }
    };
    let source = split((0..64).map(one).collect());
    for text in ["topk(1, sum by (g) (m))", "bottomk(1, sum by (g) (m))", "limitk(1, sum by (g) (m))"] {
        let mut answers = [false, true].map(|push_down| {
            let before = source.pushed.load(Ordering::Relaxed);
            let outcome = run(text, (0, 0, 0), &source, Budget { push_down, ..Budget::default() }).unwrap();
            assert_eq!(source.pushed.load(Ordering::Relaxed) > before, push_down, "{text}");
            values(&outcome.value)
        });
        assert_eq!(answers[0], answers[1], "{text}");
        let (labels, _) = std::mem::take(&mut answers[0]).into_keys().next().unwrap();
        assert_eq!(labels, "{g=\"x\"}", "{text}");
    }
}

#[test]
fn what_is_not_worth_it_or_cannot_be_told_apart_is_not_pushed() {
    let pushed = |text: &str, series: Vec<Series>| {
        let source = split(series);
        run(text, (20_000, 20_000, 0), &source, Budget::default()).unwrap();
        source.pushed.load(Ordering::Relaxed)
    };
    // Every place that is asked answers, two of them without series.
    assert_eq!(pushed("sum by (g) (rate(m_total[1m]))", plain(64, &[])), 3);
    assert_eq!(pushed("sum by (g) (m_total)", plain(5000, &[])), 3);
    assert_eq!(pushed("sum by (i) (m_total)", plain(64, &[])), 2, "a group for each series");
    assert_eq!(pushed("sum(rate(m_total[1m]))", plain(64, &[("__type__", "counter")])), 2);
    assert_eq!(pushed("sum(m_total)", plain(64, &[("__type__", "counter")])), 3);
    for text in [
        "sum(rate({g=\"1\"}[1m]))",
        "sum(abs(m_total))",
        "topk(3, m_total)",
        "quantile(0.5, m_total)",
        "sum(m_total) + m_total",
        "sum(m_total smoothed)",
        "sum(last_over_time(m_total[1m:10s]))",
    ] {
        assert_eq!(pushed(text, plain(64, &[])), 0, "{text}");
    }
}

#[test]
fn budgets_hold_where_series_are_summed_up() {
    let source = split(plain(64, &[]));
    let fragment = Arc::new(std::sync::Mutex::new(None));
    struct Spy(Arc<std::sync::Mutex<Option<Fragment>>>);
    impl Queryable for Spy {
        fn select<'a>(
            &'a self,
            _: TimeRange,
            _: &'a [Matcher],
            hints: &'a SelectHints,
        ) -> BoxFuture<'a, Result<Selection, SourceError>> {
            *self.0.lock().unwrap() = hints.fragment.as_deref().cloned();
            Box::pin(async { Ok(Selection::default()) })
        }
    }
    let request = Request {
        text: String::new(),
        expr: parse("sum by (g) (rate(m_total[20s]))", &Switches::default()).unwrap(),
        start: 0,
        end: 20_000,
        step_ms: 1,
        budget: Budget { samples_max: 77, ..Budget::default() },
    };
    let spy: SharedQueryable = Arc::new(Spy(fragment.clone()));
    assert!(block_on(evaluate(&request, &spy, &Cancel::default())).is_err(), "more steps than samples");
    let fragment = fragment.lock().unwrap().take().unwrap();
    assert_eq!((fragment.rules.samples_max, fragment.steps), (77, 20_001));
    let asked = |budget: &Budget, cancel: &Cancel| sum_up(&fragment, source.places[0].clone(), budget, cancel);
    assert!(asked(&Budget::default(), &Cancel::default()).unwrap().is_some());
    let small = Budget { samples_max: fragment.rules.samples_max, ..Budget::default() };
    assert!(matches!(asked(&small, &Cancel::default()), Err(Error::OverBudget(_))));
    let late = Budget { timeout: std::time::Duration::ZERO, ..Budget::default() };
    assert!(matches!(asked(&late, &Cancel::default()), Err(Error::Timeout { .. })));
    assert!(matches!(asked(&Budget::default(), &Cancel::at_look(3)), Err(Error::Cancelled { .. })));
    // A partial that nobody asked for, or that is not whole, is an error and no answer.
    let whole = asked(&Budget::default(), &Cancel::default()).unwrap().unwrap();
    assert!(whole.groups.iter().all(|group| group.is_whole(fragment.op, fragment.steps)));
    assert!(!whole.groups[0].is_whole(fragment.op, 10_000));
}
