//! Functions of ranges over all windows of one series at once, where they need not look at each window anew.
//!
//! Why beside the kernels: windows of neighbouring steps overlap, often twenty times over. Restarts of a counter are
//! found once; the least value is kept in a queue. Sums may not slide: what a sum loses by rounding depends on where it
//! began, and answers are to agree with upstream's to the last bit. So neighbouring windows are summed side by side,
//! each in its own order: one addition need not wait for the last.
//!
//! Only floats, without extension and without start timestamps; all else goes to the kernels, which these must equal.

use engram_model::Millis;

use super::rate::{Mode, Stretch};
use super::sum::{Mean, sum};

/// Windows summed side by side.
const LANES: usize = 4;
/// Windows whose differences are stretched side by side.
const RATE_LANES: usize = 8;

/// A function that has a way over all windows.
#[derive(Clone, Copy)]
pub(crate) enum Slide {
    Rate(Mode),
    Sum,
    Avg,
    Count,
    /// The sign: the greatest value is the least of the negated ones.
    Least(f64),
}

/// One window: places of its samples, and its ends in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) start: Millis,
    pub(crate) end: Millis,
}

/// Memory used from series to series.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Windows of the steps that may have samples, which follow each other.
    pub(crate) places: Vec<Place>,
    /// Samples lower than the one before; or the queue of samples that may become the least.
    marks: Vec<usize>,
}

impl Slide {
    /// The way of a function, where it has one.
    pub(crate) fn of(function: &str) -> Option<Self> {
        let rate = |counter, per_second| Some(Self::Rate(Mode { counter, per_second }));
        match function {
            "rate" => rate(true, true),
            "increase" => rate(true, false),
            "delta" => rate(false, false),
            "sum_over_time" => Some(Self::Sum),
            "avg_over_time" => Some(Self::Avg),
            "count_over_time" => Some(Self::Count),
            "min_over_time" => Some(Self::Least(1.0)),
            "max_over_time" => Some(Self::Least(-1.0)),
            _ => None,
        }
    }

    /// Whether each sample costs once for each window it is in.
    pub(crate) fn adds_each(self) -> bool {
        matches!(self, Self::Sum | Self::Avg)
    }

    /// The values of all windows in `scratch.places`, whose ends only grow; empty windows have none.
    pub(crate) fn run(self, times: &[Millis], values: &[f64], scratch: &mut Scratch, put: impl FnMut(usize, f64)) {
        match self {
            Self::Rate(mode) => rates(times, values, mode, scratch, put),
            Self::Sum => sums(values, &scratch.places, 0.0, put, |total, _| total.0 + total.1, sum),
            Self::Avg => {
                let mean = |total: (f64, f64), count: f64| total.0 / count + total.1 / count;
                sums(values, &scratch.places, -0.0, put, mean, mean_of);
            }
            Self::Count => filled(&scratch.places).for_each({
                let mut put = put;
                move |(step, place)| put(step, (place.to - place.from) as f64)
            }),
            Self::Least(sign) => least(values, sign, scratch, put),
        }
    }
}

fn filled(places: &[Place]) -> impl Iterator<Item = (usize, &Place)> {
    places.iter().enumerate().filter(|(_, place)| place.from < place.to)
}

fn rates(times: &[Millis], values: &[f64], mode: Mode, scratch: &mut Scratch, mut put: impl FnMut(usize, f64)) {
    let falls = &mut scratch.marks;
    falls.clear();
    let from = scratch.places.first().map_or(0, |place| place.from);
    let to = scratch.places.last().map_or(0, |place| place.to);
    if mode.counter {
        find_falls(&values[from..to], from, falls);
    }
    let mut first_fall = 0;
    let mut difference = |place: &Place| {
        let mut difference = values[place.to - 1] - values[place.from];
        while falls.get(first_fall).is_some_and(|fall| *fall < place.from) {
            first_fall += 1;
        }
        for fall in falls[first_fall..].iter().take_while(|fall| **fall + 1 < place.to) {
            difference += values[*fall];
        }
        difference
    };
    let is_enough = |place: &Place| place.to - place.from >= 2;
    let (blocks, rest) = scratch.places.as_chunks::<RATE_LANES>();
    for (block, places) in blocks.iter().enumerate().filter(|(_, places)| places.iter().any(is_enough)) {
        let mut lanes = RateLanes::default();
        for (lane, place) in places.iter().enumerate().filter(|(_, place)| is_enough(place)) {
            lanes.set(lane, place, times, (values[place.from], difference(place)));
        }
        let out = lanes.stretched(mode);
        for (lane, _) in places.iter().enumerate().filter(|(_, place)| is_enough(place)) {
            put(block * RATE_LANES + lane, out[lane]);
        }
    }
    for (lane, place) in rest.iter().enumerate().filter(|(_, place)| is_enough(place)) {
        let (first, difference) = (values[place.from], difference(place));
        let stretch = Stretch {
            first: times[place.from],
            last: times[place.to - 1],
            gaps: place.to - place.from - 1,
            start: None,
            range: (place.start, place.end),
        };
        let zero = (mode.counter && difference > 0.0 && first >= 0.0).then_some((first, difference));
        put(blocks.len() * RATE_LANES + lane, difference * stretch.factor(mode, zero));
    }
}

/// Places of the samples that are followed by a lesser one. Restarts are rare: most runs are only looked over, several
/// pairs at a time.
fn find_falls(values: &[f64], offset: usize, falls: &mut Vec<usize>) {
    const RUN: usize = 32;
    for (run, befores) in values.chunks(RUN).enumerate() {
        let at = run * RUN;
        let pairs = befores.iter().zip(&values[(at + 1).min(values.len())..]);
        if pairs.clone().filter(|(before, now)| now < before).count() > 0 {
            falls.extend(pairs.zip(at + offset..).filter(|((before, now), _)| now < before).map(|(_, i)| i));
        }
    }
}

/// What [`Stretch::factor`] works on, of several windows: a division takes a processor as long for two as for one.
#[derive(Default)]
struct RateLanes {
    first: [f64; RATE_LANES],
    difference: [f64; RATE_LANES],
    gaps: [f64; RATE_LANES],
    sampled_ms: [f64; RATE_LANES],
    before_ms: [f64; RATE_LANES],
    after_ms: [f64; RATE_LANES],
    range_ms: [f64; RATE_LANES],
}

impl RateLanes {
    /// A window of at least two samples; `values`: its first one, and the difference.
    #[inline]
    fn set(&mut self, lane: usize, place: &Place, times: &[Millis], values: (f64, f64)) {
        let (first_at, last_at) = (times[place.from], times[place.to - 1]);
        (self.first[lane], self.difference[lane]) = values;
        self.gaps[lane] = (place.to - place.from - 1) as f64;
        self.sampled_ms[lane] = (last_at - first_at) as f64;
        self.before_ms[lane] = (first_at - place.start) as f64;
        self.after_ms[lane] = (place.end - last_at) as f64;
        self.range_ms[lane] = (place.end - place.start) as f64;
    }

    /// The differences, stretched: in each lane what [`Stretch::factor`] would say, where a window has two samples
    /// and knows no start.
    #[inline]
    fn stretched(&self, mode: Mode) -> [f64; RATE_LANES] {
        let mut out = [0.0; RATE_LANES];
        for (i, out) in out.iter_mut().enumerate() {
            let (first, difference) = (self.first[i], self.difference[i]);
            let sampled = self.sampled_ms[i] / 1000.0;
            let gap = sampled / self.gaps[i];
            let near = gap * 1.1;
            let (before, after) = (self.before_ms[i] / 1000.0, self.after_ms[i] / 1000.0);
            let before = if before >= near { gap / 2.0 } else { before };
            let after = if after >= near { gap / 2.0 } else { after };
            let to_zero = sampled * (first / difference);
            let may_be_zero = mode.counter & (difference > 0.0) & (first >= 0.0);
            let before = if may_be_zero & (to_zero < before) { to_zero } else { before };
            let stretched = (sampled + before + after) / sampled;
            let factor = if sampled == 0.0 { 1.0 } else { stretched };
            let factor = if mode.per_second { factor / (self.range_ms[i] / 1000.0) } else { factor };
            *out = difference * factor;
        }
        out
    }
}

fn mean_of(values: &[f64]) -> f64 {
    let Some((first, rest)) = values.split_first() else { return f64::NAN };
    let mut mean = Mean::new(*first);
    rest.iter().for_each(|v| mean.add(*v));
    mean.get()
}

/// Sums with what rounding lost, [`LANES`] windows at a time. `zero`: what is there before the first value; only the
/// negative one leaves each value as it is. `finish` makes the answer of a sum and a count; a sum
/// that is not finite is left to `slow`.
fn sums(
    values: &[f64],
    places: &[Place],
    zero: f64,
    mut put: impl FnMut(usize, f64),
    finish: impl Fn((f64, f64), f64) -> f64,
    slow: impl Fn(&[f64]) -> f64,
) {
    for (at, lanes) in places.chunks(LANES).enumerate() {
        let mut totals = [(zero, 0.0); LANES];
        let windows: [&[f64]; LANES] =
            std::array::from_fn(|i| lanes.get(i).map_or(&[][..], |place| &values[place.from..place.to]));
        let common = if lanes.len() == LANES { windows.iter().map(|w| w.len()).min().unwrap_or(0) } else { 0 };
        let heads = windows.map(|w| &w[..common]);
        for i in 0..common {
            for (total, head) in totals.iter_mut().zip(&heads) {
                *total = add(head[i], *total);
            }
        }
        for (i, window) in windows.iter().enumerate().filter(|(_, window)| !window.is_empty()) {
            let total = window[common..].iter().fold(totals[i], |total, v| add(*v, total));
            let value = if total.0.is_finite() { finish(total, window.len() as f64) } else { slow(window) };
            put(at * LANES + i, value);
        }
    }
}

/// [`super::sum::kahan`] for as long as the sum is finite; after that it is not looked at.
#[inline]
fn add(x: f64, (sum, lost): (f64, f64)) -> (f64, f64) {
    let total = sum + x;
    let is_sum_larger = sum.abs() >= x.abs();
    let (large, small) = if is_sum_larger { (sum, x) } else { (x, sum) };
    (total, lost + ((large - total) + small))
}

/// The least of each window; of equal ones the first, NaN only where there is nothing else.
fn least(values: &[f64], sign: f64, scratch: &mut Scratch, mut put: impl FnMut(usize, f64)) {
    // Places of samples none of which is followed by a lesser one; the first is the least.
    let queue = &mut scratch.marks;
    queue.clear();
    let (mut head, mut seen) = (0, 0);
    for (step, place) in filled(&scratch.places) {
        for (i, value) in values.iter().enumerate().take(place.to).skip(seen.max(place.from)) {
            if value.is_nan() {
                continue;
            }
            while queue.len() > head && sign * values[queue[queue.len() - 1]] > sign * value {
                queue.pop();
            }
            queue.push(i);
        }
        seen = place.to;
        while queue.get(head).is_some_and(|i| *i < place.from) {
            head += 1;
        }
        put(step, queue.get(head).map_or(f64::NAN, |i| values[*i]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::functions::{Kernel, Notes, Point, Window, lookup};
    use crate::parse::ast::Extension;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            6 => (0_i32..20).prop_map(|v| f64::from(v) / 10.0),
            2 => any::<f64>(),
            1 => Just(f64::NAN),
            1 => Just(f64::INFINITY),
            1 => Just(-0.0),
            1 => Just(1e300),
        ]
    }

    proptest! {
        /// Goal: no way over all windows differs from the kernel in any bit. Method: random samples and windows.
        #[test]
        fn all_windows_at_once_are_each_window_by_itself(
            samples in proptest::collection::vec((1_i64..40_000, value()), 0..80),
            range in 1_i64..400_000,
            step in 1_i64..200_000,
        ) {
            let mut at = 0;
            let (times, values): (Vec<i64>, Vec<f64>) =
                samples.iter().map(|(gap, v)| { at += gap; (at, *v) }).unzip();
            let mut scratch = Scratch::default();
            for name in ["rate", "increase", "delta", "sum_over_time", "avg_over_time", "count_over_time",
                "min_over_time", "max_over_time"] {
                let Some(Kernel::Range(kernel)) = lookup(name).map(|f| f.kernel) else { unreachable!("a kernel") };
                scratch.places = (0..30).map(|i| {
                    let end = i * step;
                    let start = end - range;
                    let from = times.partition_point(|t| *t <= start);
                    Place { from, to: times.partition_point(|t| *t <= end), start, end }
                }).collect();
                let mut have = [None; 30];
                Slide::of(name).unwrap().run(&times, &values, &mut scratch, |i, v| have[i] = Some(v.to_bits()));
                for (place, have) in scratch.places.iter().zip(have) {
                    let span = place.from..place.to;
                    let window = Window {
                        times: &times[span.clone()], values: &values[span], starts: &[], histogram_times: &[],
                        histograms: &[], histogram_starts: &[], range_start: place.start, range_end: place.end,
                        at: place.end, extension: Extension::None,
                    };
                    let want = if window.values.is_empty() { None } else {
                        kernel(&window, &[], &mut Notes::default())
                    };
                    let want = want.map(|point| match point {
                        Point::Float(v) => v,
                        Point::Histogram(_) => unreachable!("floats make floats"),
                    });
                    let same = |a: f64, b: f64| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan() || name.starts_with('m') && a == b;
                    let have = have.map(f64::from_bits);
                    prop_assert!(
                        match (have, want) { (Some(a), Some(b)) => same(a, b), (a, b) => a.is_none() && b.is_none() },
                        "{} of {:?}: {:?}, not {:?}", name, place, have, want
                    );
                }
            }
        }
    }
}
