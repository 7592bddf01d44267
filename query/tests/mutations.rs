//! Goal: no text panics, hangs or takes much memory, from the parser to the answer; what parses prints to text that
//! parses to the same print. Method: good expressions, cut, doubled, spliced and sprinkled with tokens, from a seed.
//!
//! A failure names its seed; `ENGRAM_MUTATIONS_FROM=<seed> ENGRAM_MUTATIONS=1` runs that one again, with a larger number
//! this is a fuzzer. `query/fuzz` has one that is led by coverage, for nightly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "test")]

mod memory;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engram_model::Labels;
use engram_model::series::{Columns, SampleSource, Series};
use engram_query::engine::{Budget, Cancel, Request, evaluate};
use engram_query::parse::{Switches, parse, parse_selector, prettify, resolve_durations, to_json};
use engram_query::port::SharedQueryable;
use futures::executor::block_on;
use memory::Memory;

const CASES: u64 = 3_000;

/// One of each kind of thing that can be written.
const GOOD: [&str; 32] = [
    "sum by (x, \"a b\") (rate(m{i=~\"1|2\", x!=\"\"}[5m] offset 1m)) / 2e3",
    "histogram_quantile(0.9, sum without (i) (rate({__name__=\"m\"}[1h:1m] @ end())))",
    "m * on (x) group_left (i) m or m unless on () vector(1)",
    "topk by (x) (scalar(m) + 0x1F, -m ^ 2 ^ -1)",
    "label_replace(m, \"d\", \"${1}-$2\", 'i', `(.*)(\\d?)`)",
    "count_values without (i) (\"v\", m > bool 3 < Inf)",
    "max_over_time(deriv(m[10m])[30m:15s] offset -5m)",
    "m{i=\"\\u00e9\\x41\\n\"} @ 1e3 offset 1h30m # said",
    "quantile_over_time(NaN, m[1d2h3m4s5ms])",
    "{\"a.b\", i!~\"x*\"}[5m] anchored",
    "increase(m[step() + 5m] smoothed)",
    "m + fill(0) m - on (x) group_right () fill_left (1) m",
    "limitk(2, m) and limit_ratio(-0.5, m)",
    "sort_by_label_desc(info(m, {job=~\".+\"}), \"x\", \"i\")",
    "absent_over_time(m{x=\"1\"}[1m]) == 1",
    "predict_linear(m[1h], time() % 60) atan2 m",
    "histogram_quantiles(m, \"q\", 0.1, time() / 1e4)",
    "m </ 5 >/ 2",
    "min_of(1, 2) + max_of(step(), range())",
    "double_exponential_smoothing(m[1h], 0.5, 0.5)",
    "sum(m) by (x) + avg without () (m)",
    "\"text \\\" 'in' `marks`\"",
    "-1 ^ 2 * +3 % 4",
    "m[5m]",
    "m[5m:]",
    "label_join(m, \"j\", \"-\", \"x\", \"i\")",
    "hour() + day_of_week(vector(1e9)) + timestamp(m offset 5m)",
    "changes(m[2m]) + resets(m[2m]) + irate(m[2m]) + idelta(m[2m])",
    "clamp(m, -1, 1) == bool on (x, i) m",
    "stddev(m) + stdvar(m) + group(m) + count(m) + quantile(0.5, m)",
    "start_timestamp(m) + ts_of_max_over_time(m[5m])",
    "sum(rate(m[5m])) / sum(rate(m[5m])) + sum(rate(m[5m] @ start()))",
];

const TOKENS: [&str; 56] = [
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "'",
    "`",
    "\\",
    "#",
    "\n",
    " ",
    "=",
    "==",
    "=~",
    "!~",
    "!=",
    "<=",
    "+",
    "-",
    "*",
    "/",
    "%",
    "^",
    "@",
    "0",
    "1",
    "0x",
    "1e",
    "Inf",
    "NaN",
    "5m",
    "1y",
    "-5m",
    "m",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "offset",
    "bool",
    "and",
    "or",
    "unless",
    "sum",
    "rate",
    "topk",
    "é",
    "\u{0}",
    "step()",
    "anchored",
    "fill",
];

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n.max(1) as u64).unwrap()
    }

    /// A place between two characters.
    fn place(&mut self, text: &str) -> usize {
        let at = self.below(text.len() + 1);
        (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap()
    }

    fn part<'t>(&mut self, text: &'t str) -> &'t str {
        let (a, b) = (self.place(text), self.place(text));
        &text[a.min(b)..a.max(b)]
    }
}

fn mutated(dice: &mut Dice, good: &[String]) -> String {
    let any = |dice: &mut Dice| good[dice.below(good.len())].clone();
    let mut text = any(dice);
    for _ in 0..=dice.below(4) {
        let at = dice.place(&text);
        match dice.below(8) {
            0 => text = format!("{}{}", &text[..at], &text[at..][dice.place(&text[at..])..]),
            1 | 2 => text.insert_str(at, TOKENS[dice.below(TOKENS.len())]),
            3 => {
                let again = dice.part(&text).to_owned();
                text.insert_str(at, &again);
            }
            4 => {
                let other = any(dice);
                text = format!("{}{}", &text[..at], &other[dice.place(&other)..]);
            }
            5 => {
                let other = any(dice);
                text.insert_str(at, dice.part(&other));
            }
            6 => text = format!("({text}) {} ({})", TOKENS[15 + dice.below(12)], any(dice)),
            _ => text = format!("{}({text})", ["sum", "rate", "abs", "-", "max_over_time", "vector"][dice.below(6)]),
        }
    }
    text
}

fn memory() -> SharedQueryable {
    let series = (0..4_i64).map(|i| {
        let labels =
            Labels::from_pairs([("__name__", "m".to_owned()), ("i", i.to_string()), ("x", (i % 2).to_string())]);
        let times = (0..40).map(|n| n * 15_000 + i).collect();
        let values = (0..40).map(|n| (n * (i + 1) % 17) as f64).collect();
        let source: Arc<dyn SampleSource> = Arc::new(Columns { times, values, ..Columns::default() });
        Series { labels, source }
    });
    Arc::new(Memory(series.collect()))
}

/// Puts one text through everything.
fn check(text: &str, memory: &SharedQueryable, times: (i64, i64, i64)) {
    let _selector = parse_selector(text);
    let _plain = parse(text, &Switches::default());
    let Ok(mut expr) = parse(text, &Switches::all()) else { return };
    let printed = expr.to_string();
    for again in [&printed, &prettify(&expr)] {
        match parse(again, &Switches::all()) {
            Ok(read) => assert_eq!(read.to_string(), printed, "{text:?} became {again:?}"),
            Err(e) => panic!("{text:?} became {again:?}: {e}"),
        }
    }
    let _json = to_json(&expr);
    let (start, end, step_ms) = times;
    if resolve_durations(&mut expr, start, end, step_ms).is_err() {
        return;
    }
    for optimise in [true, false] {
        let budget = Budget {
            samples_max: 200_000,
            timeout: Duration::from_secs(60),
            delayed_name_removal: text.len().is_multiple_of(2),
            optimise,
            ..Budget::default()
        };
        let request = Request { text: text.to_owned(), expr: expr.clone(), start, end, step_ms, budget };
        let _answer = block_on(evaluate(&request, memory, &Cancel::default()));
    }
}

#[test]
fn no_mutated_text_does_harm() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let mut good: Vec<String> = GOOD.iter().map(|text| (*text).to_owned()).collect();
    for text in &good {
        parse(text, &Switches::all()).unwrap_or_else(|e| panic!("{text}: {e}"));
    }
    let shared = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/parser.jsonl");
    if let Ok(cases) = std::fs::read_to_string(shared) {
        let case = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["q"].as_str().map(str::to_owned);
        good.extend(cases.lines().filter_map(case).filter(|text| text.len() < 400));
    }
    let memory = memory();
    let from = number("ENGRAM_MUTATIONS_FROM").unwrap_or(0);
    let cases = number("ENGRAM_MUTATIONS").unwrap_or(CASES);
    let mut parsed = 0;
    for seed in from..from + cases {
        let mut dice = Dice(seed);
        // Half of them from what is here, so that a seed is of use where the list is not.
        let known = if seed % 2 == 0 { &good[..GOOD.len()] } else { &good[..] };
        let text = mutated(&mut dice, known);
        let times = [(600_000, 600_000, 0), (0, 600_000, 15_000), (i64::MAX - 10, i64::MAX, 5)][dice.below(3)];
        let done = catch_unwind(AssertUnwindSafe(|| check(&text, &memory, times)));
        assert!(done.is_ok(), "seed {seed}: {text:?} at {times:?}");
        parsed += u64::from(parse(&text, &Switches::all()).is_ok());
    }
    println!("{parsed} of {cases} texts were expressions");
    assert!(parsed > cases / 20, "too few texts parse: {parsed} of {cases}");
}
