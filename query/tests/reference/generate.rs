//! Random data and random queries, all from one number.
//!
//! A query is *exact* where no rounding can come into it: values are eighths, sums and products of few of them are
//! whole sixty-fourths. What jumps (comparisons, `ceil`, `changes` …) is only written over exact ones, because the
//! reference need not round where the engine rounds.

use engram_model::Millis;
use engram_model::sample::stale_nan;

use super::naive::{Labels, Stored};

/// A small generator of numbers: splitmix64.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap()
    }

    pub(super) fn pick<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Three metrics of some series each: gauges of eighths, counters that restart, samples at uneven times, gaps, ends.
pub(super) fn data(dice: &mut Dice) -> Vec<Stored> {
    let mut all = Vec::new();
    for name in ["a", "b", "c_total"] {
        for i in 0..=dice.below(5) {
            let labels: Labels = [
                ("__name__", name.to_owned()),
                ("i", i.to_string()),
                ("x", dice.below(3).to_string()),
                ("y", dice.below(2).to_string()),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into();
            let (mut at, mut value, mut samples) = (0_i64, 0.0, Vec::new());
            for _ in 0..dice.below(70) {
                at += [15_000, 15_000, 15_000, 14_500, 31_000, 400_000][dice.below(6)];
                let eighths = f64::from(u32::try_from(dice.below(160)).unwrap()) / 8.0;
                value = match name {
                    "c_total" if dice.one_in(12) => eighths,
                    "c_total" => value + eighths,
                    _ => eighths - 10.0,
                };
                samples.push((at, if dice.one_in(25) { stale_nan() } else { value }));
            }
            all.push(Stored { labels, samples });
        }
    }
    all
}

/// First time, last time, step (0: instant), all in milliseconds.
pub(super) fn times(dice: &mut Dice) -> (Millis, Millis, i64) {
    let start = [0, 60_000, 301_000, 612_500, 900_000][dice.below(5)];
    if dice.one_in(3) {
        return (start, start, 0);
    }
    let step = [7_000, 15_000, 60_000, 200_000][dice.below(4)];
    (start, start + step * i64::try_from(dice.below(12)).unwrap() + 500, step)
}

/// A query, and whether its values are exact.
pub(super) type Query = (String, bool);

fn duration(dice: &mut Dice) -> &'static str {
    dice.pick(&["15s", "31s", "1m", "2m30s", "10m"])
}

fn shift(dice: &mut Dice) -> String {
    let mut out = String::new();
    if dice.one_in(5) {
        out += &format!(" offset {}", dice.pick(&["15s", "2m", "-1m"]));
    }
    if dice.one_in(6) {
        out += &format!(" @ {}", dice.pick(&["300", "start()", "end()", "612.5"]));
    }
    out
}

fn selector(dice: &mut Dice) -> String {
    let name = dice.pick(&["a", "b", "c_total"]);
    let test = dice.pick(&[
        "",
        "",
        "",
        "{x=\"1\"}",
        "{x!=\"0\"}",
        "{y=~\"0|2\"}",
        "{x=~\".+\",y!~\"1\"}",
        "{z=\"\"}",
        "{i=\"0\"}",
    ]);
    format!("{name}{test}")
}

/// A vector; `names`: rows may have several metrics' names.
pub(super) fn vector(dice: &mut Dice, depth: usize, names: bool) -> Query {
    match if depth == 0 { 0 } else { dice.below(10) } {
        0 | 1 => (format!("{}{}", selector(dice), shift(dice)), true),
        2 | 3 => over_time(dice, depth - 1),
        4 => pointwise(dice, depth - 1),
        5 | 6 => aggregation(dice, depth - 1),
        7 => with_scalar(dice, depth - 1),
        8 if dice.one_in(6) => (format!("absent({})", selector(dice)), true),
        _ => vectors(dice, depth - 1, names),
    }
}

fn scalar(dice: &mut Dice, depth: usize) -> Query {
    if depth > 0 && dice.one_in(5) {
        let (inner, exact) = vector(dice, depth - 1, true);
        return (format!("scalar({inner})"), exact);
    }
    (dice.pick(&["0", "1", "2", "-1", "0.5", "8", "time()", "1e3", "NaN", "Inf"]).to_owned(), true)
}

fn range(dice: &mut Dice, depth: usize) -> Query {
    if depth > 0 && dice.one_in(3) {
        let (inner, exact) = vector(dice, depth - 1, false);
        return (format!("({inner})[{}:{}]{}", duration(dice), dice.pick(&["15s", "7s", "1m"]), shift(dice)), exact);
    }
    (format!("{}[{}]{}", selector(dice), duration(dice), shift(dice)), true)
}

fn over_time(dice: &mut Dice, depth: usize) -> Query {
    let (inner, exact) = range(dice, depth);
    let exact_ones =
        ["min_over_time", "max_over_time", "sum_over_time", "count_over_time", "last_over_time", "present_over_time"];
    match dice.below(8) {
        0..=2 => (format!("{}({inner})", dice.pick(&exact_ones)), exact),
        3 if exact => (format!("{}({inner})", dice.pick(&["changes", "resets"])), true),
        4 => (format!("quantile_over_time({}, {inner})", dice.pick(&["0.5", "0", "0.9", "1", "-1", "2"])), false),
        5 => (format!("absent_over_time({inner})"), true),
        _ => {
            let name = dice.pick(&[
                "rate",
                "increase",
                "delta",
                "irate",
                "idelta",
                "avg_over_time",
                "stddev_over_time",
                "stdvar_over_time",
                "deriv",
            ]);
            (format!("{name}({inner})"), name == "idelta" && exact)
        }
    }
}

fn pointwise(dice: &mut Dice, depth: usize) -> Query {
    let (inner, exact) = vector(dice, depth, true);
    if exact && dice.one_in(2) {
        return (format!("{}({inner})", dice.pick(&["ceil", "floor", "sgn", "round"])), true);
    }
    match dice.below(5) {
        0 => (format!("abs({inner})"), exact),
        1 => (format!("-({inner})"), exact),
        2 => (format!("clamp_min({inner}, {})", scalar(dice, 0).0), exact),
        3 => (format!("clamp_max({inner}, {})", scalar(dice, 0).0), exact),
        _ => (format!("sqrt({inner})"), false),
    }
}

fn labels(dice: &mut Dice) -> &'static str {
    dice.pick(&["", "x", "y", "x, y", "i", "i, x, y", "z"])
}

fn aggregation(dice: &mut Dice, depth: usize) -> Query {
    let (inner, exact) = vector(dice, depth, true);
    let by = match dice.below(4) {
        0 => String::new(),
        1 => format!(" without ({})", labels(dice)),
        _ => format!(" by ({})", labels(dice)),
    };
    match dice.below(7) {
        0..=2 => (format!("{}{by} ({inner})", dice.pick(&["sum", "min", "max", "count", "group"])), exact),
        3 if exact => {
            (format!("{}{by} ({}, {inner})", dice.pick(&["topk", "bottomk"]), dice.pick(&["1", "2", "3"])), exact)
        }
        4 => (format!("quantile{by} ({}, {inner})", dice.pick(&["0.5", "0", "0.9", "2"])), false),
        _ => (format!("{}{by} ({inner})", dice.pick(&["avg", "stddev", "stdvar"])), false),
    }
}

/// An operator that fits: comparisons only of exact values; the flag: its results are exact.
fn operator(dice: &mut Dice, exact: bool) -> (&'static str, bool) {
    if exact && dice.one_in(2) {
        let op = dice
            .pick(&["==", "!=", "<", ">", "<=", ">=", "== bool", "!= bool", "< bool", "> bool", "<= bool", ">= bool"]);
        return (op, true);
    }
    match dice.below(4) {
        0 => (dice.pick(&["/", "^", "atan2"]), false),
        _ => (dice.pick(&["+", "-", "*"]), exact),
    }
}

fn with_scalar(dice: &mut Dice, depth: usize) -> Query {
    let (vector, exact) = vector(dice, depth, true);
    let (scalar, exact_too) = scalar(dice, depth);
    let (op, exact) = operator(dice, exact && exact_too);
    let (left, right) = if dice.one_in(2) { (vector, scalar) } else { (scalar, vector) };
    (format!("({left} {op} {right})"), exact)
}

fn vectors(dice: &mut Dice, depth: usize, names: bool) -> Query {
    let (left, first) = vector(dice, depth, names);
    let (right, second) = vector(dice, depth, names);
    let exact = first && second;
    let matching = match dice.below(4) {
        0 => String::new(),
        1 => format!(" ignoring ({})", labels(dice)),
        _ => format!(" on ({})", labels(dice)),
    };
    if dice.one_in(3) {
        let op = if names { dice.pick(&["and", "or", "unless"]) } else { dice.pick(&["and", "unless"]) };
        return (format!("({left} {op}{matching} {right})"), exact);
    }
    let (op, exact) = operator(dice, exact);
    let group = match dice.below(3) {
        _ if matching.is_empty() => "",
        0 => {
            let group = dice.pick(&[" group_left ()", " group_left (z)"]);
            // A label cannot be in both clauses.
            if matching.ends_with("on (z)") { " group_left ()" } else { group }
        }
        1 => " group_right ()",
        _ => "",
    };
    (format!("({left} {op}{matching}{group} {right})"), exact)
}
