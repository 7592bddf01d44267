//! What happens to a head, by chance.

use std::sync::Arc;

use engram_model::histogram::{BucketSpan, Histogram, ResetHint};
use engram_model::sample::{Value, stale_nan};
use engram_model::{Labels, MatchOp, Matcher};
use proptest::prelude::*;

use crate::model::{Stamped, WINDOW};

pub fn labels() -> impl Strategy<Value = Labels> {
    let value = || prop_oneof![Just(""), Just("x"), Just("y"), Just("xy"), Just("é")];
    (prop_oneof![Just("up"), Just("down")], value(), value())
        .prop_map(|(name, a, b)| Labels::from_pairs([("__name__", name), ("a", a), ("b", b)]))
}

pub fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        8 => (0_u8..4).prop_map(|v| Value::Float(f64::from(v))),
        1 => Just(Value::Float(stale_nan())),
        1 => Just(Value::Float(0.1)),
        2 => (0_u32..3, any::<bool>(), 0_u32..3).prop_map(|(n, gauge, buckets)| Value::Histogram(Arc::new(Histogram {
            integer: n != 2,
            reset_hint: if gauge { ResetHint::Gauge } else { ResetHint::Unknown },
            count: f64::from(n) / if n == 2 { 3.0 } else { 1.0 },
            sum: f64::from(n),
            positive_spans: vec![BucketSpan { offset: 1, length: buckets }],
            positive_buckets: vec![f64::from(n); buckets as usize],
            ..Histogram::default()
        }))),
    ]
}

#[derive(Clone, Debug)]
pub enum Step {
    Write {
        series: Vec<(Labels, Vec<Stamped>)>,
        late_ms: i64,
        repair: bool,
    },
    Forget(i64),
    /// Seals a window; the number grows by more than one now and then.
    Seal {
        window: (i64, i64),
        step: u64,
    },
    /// Forgets the frozen part of this rank, if there are so many.
    ForgetFrozen(usize),
    Sweep,
}

pub fn step() -> impl Strategy<Value = Step> {
    let start = prop_oneof![Just(0), Just(-3), Just(7)];
    let sample = ((0_i64..200).prop_map(|n| n * 20_000), value(), start);
    let samples = (proptest::collection::vec(sample, 0..12), any::<bool>(), 0_i64..200, any::<bool>()).prop_map(
        |(mut s, sort, run, starts)| {
            if !starts {
                s.iter_mut().for_each(|s| s.2 = 0);
            }
            if sort {
                s.sort_by_key(|s| s.0);
            }
            // A run longer than a chunk, so that full chunks are met too.
            let start = |i: i64| if starts { i / 50 } else { 0 };
            s.extend((0..run).map(|i| (3_000_000 + i * 5000, Value::Float((i % 7) as f64), start(i))));
            s
        },
    );
    let write = (
        proptest::collection::vec((labels(), samples), 0..6),
        prop_oneof![Just(0), Just(500_000), Just(i64::MAX)],
        0_u8..5,
    )
        .prop_map(|(series, late_ms, repair)| Step::Write { series, late_ms, repair: repair == 0 });
    let window = prop_oneof![
        6 => (0_i64..5).prop_map(|i| (i * WINDOW, (i + 1) * WINDOW)),
        1 => (0_i64..4_200_000, 0_i64..2_000_000).prop_map(|(start, length)| (start, start + length)),
    ];
    prop_oneof![
        8 => write,
        1 => (0_i64..4_200_000).prop_map(Step::Forget),
        4 => (window, 1_u64..3).prop_map(|(window, step)| Step::Seal { window, step }),
        2 => (0_usize..3).prop_map(Step::ForgetFrozen),
        1 => Just(Step::Sweep),
    ]
}

pub fn matcher() -> impl Strategy<Value = Matcher> {
    let name = prop_oneof![Just("a"), Just("b"), Just("__name__"), Just("none")];
    let op = prop_oneof![Just(MatchOp::Equal), Just(MatchOp::NotEqual), Just(MatchOp::Regex), Just(MatchOp::NotRegex)];
    let text = prop_oneof![
        Just(""),
        Just("x"),
        Just("up"),
        Just("x|y"),
        Just("x.*"),
        Just(".*"),
        Just(".+"),
        Just("|y"),
        Just("u.|x"),
        Just("x.+y?")
    ];
    (name, op, text).prop_map(|(name, op, text)| Matcher::new(name, op, text).unwrap())
}
