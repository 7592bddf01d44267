//! PromQL, slow and obvious: one step after another, each written as the documentation says it, nothing kept.
//!
//! Floats only, names removed at once. `Err(Refused)`: Prometheus gives an error. `Err(Unsure)`: what it gives depends on
//! an order that is not part of the language.

use std::collections::{BTreeMap, BTreeSet};

use engram_model::sample::is_stale;
use engram_model::{MatchOp, Matcher, Millis};
use engram_query::parse::ast::{
    AggregateExpr, AggregateOp, At, BinaryExpr, BinaryOp, Call, Cardinality, Expr, ValueType, VectorMatching,
    VectorSelector,
};

pub(super) type Labels = BTreeMap<String, String>;
pub(super) type Samples = Vec<(Millis, f64)>;
/// Values by labels; no label set twice.
pub(super) type Vector = BTreeMap<Labels, f64>;

/// A stored series.
pub(super) struct Stored {
    pub(super) labels: Labels,
    pub(super) samples: Samples,
}

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fail {
    Refused,
    Unsure,
}

type Result<T> = std::result::Result<T, Fail>;

const LOOKBACK: i64 = 300_000;

/// The data, and the times of the whole query.
pub(super) struct World<'a> {
    pub(super) data: &'a [Stored],
    pub(super) start: Millis,
    pub(super) end: Millis,
}

fn without_name(labels: &Labels) -> Labels {
    labels.iter().filter(|(name, _)| *name != "__name__").map(|(n, v)| (n.clone(), v.clone())).collect()
}

/// Puts a value where none may be.
fn put(out: &mut Vector, labels: Labels, value: f64) -> Result<()> {
    if out.insert(labels, value).is_some() { Err(Fail::Refused) } else { Ok(()) }
}

fn fits(labels: &Labels, matchers: &[Matcher]) -> bool {
    matchers.iter().all(|m| m.matches(labels.get(&*m.name).map_or("", String::as_str)))
}

impl World<'_> {
    fn shifted(&self, at: Option<At>, offset_ms: i64, now: Millis) -> Millis {
        let base = match at {
            None => now,
            Some(At::Time(time)) => time,
            Some(At::Start) => self.start,
            Some(At::End) => self.end,
        };
        base - offset_ms
    }

    /// Any vector at one time.
    pub(super) fn vector(&self, expr: &Expr, now: Millis) -> Result<Vector> {
        match expr {
            Expr::Paren(paren) => self.vector(&paren.expr, now),
            Expr::Unary(unary) => {
                let mut out = Vector::new();
                for (labels, value) in self.vector(&unary.expr, now)? {
                    put(&mut out, without_name(&labels), -value)?;
                }
                Ok(out)
            }
            Expr::VectorSelector(selector) => Ok(self.instant(selector, now)),
            Expr::Aggregate(aggregate) => self.aggregate(aggregate, now),
            Expr::Call(call) => self.call(call, now),
            Expr::Binary(binary) if binary.lhs.value_type() == binary.rhs.value_type() => self.vectors(binary, now),
            Expr::Binary(binary) => self.with_scalar(binary, now),
            other => panic!("no vector: {other:?}"),
        }
    }

    fn scalar(&self, expr: &Expr, now: Millis) -> Result<f64> {
        match expr {
            Expr::Number(number) => Ok(number.value),
            Expr::Paren(paren) => self.scalar(&paren.expr, now),
            Expr::Unary(unary) => Ok(-self.scalar(&unary.expr, now)?),
            Expr::Call(call) if call.func == "time" => Ok(now as f64 / 1000.0),
            Expr::Call(call) if call.func == "scalar" => {
                let values: Vec<f64> = self.vector(&call.args[0], now)?.into_values().collect();
                Ok(if let [one] = values[..] { one } else { f64::NAN })
            }
            other => panic!("no scalar: {other:?}"),
        }
    }

    fn instant(&self, selector: &VectorSelector, now: Millis) -> Vector {
        let at = self.shifted(selector.at, selector.offset_ms, now);
        let all = self.data.iter().filter(|s| fits(&s.labels, &selector.matchers));
        all.filter_map(|series| {
            let (time, value) = series.samples.iter().rev().find(|(time, _)| *time <= at)?;
            (*time > at - LOOKBACK && !is_stale(*value)).then(|| (series.labels.clone(), *value))
        })
        .collect()
    }

    /// Samples of a range with the range's ends.
    fn range(&self, expr: &Expr, now: Millis) -> Result<(BTreeMap<Labels, Samples>, Millis, Millis)> {
        let mut out: BTreeMap<Labels, Samples> = BTreeMap::new();
        match expr {
            Expr::MatrixSelector(matrix) => {
                let selector = &matrix.selector;
                let end = self.shifted(selector.at, selector.offset_ms, now);
                let start = end - matrix.range_ms;
                for series in self.data.iter().filter(|s| fits(&s.labels, &selector.matchers)) {
                    let inside = series.samples.iter().filter(|(at, v)| *at > start && *at <= end && !is_stale(*v));
                    out.insert(series.labels.clone(), inside.copied().collect());
                }
                Ok((out, start, end))
            }
            Expr::Subquery(subquery) => {
                let end = self.shifted(subquery.at, subquery.offset_ms, now);
                let start = end - subquery.range_ms;
                let mut at = start / subquery.step_ms * subquery.step_ms;
                if at <= start {
                    at += subquery.step_ms;
                }
                while at <= end {
                    for (labels, value) in self.vector(&subquery.expr, at)? {
                        out.entry(labels).or_default().push((at, value));
                    }
                    at += subquery.step_ms;
                }
                Ok((out, start, end))
            }
            other => panic!("no range: {other:?}"),
        }
    }

    fn call(&self, call: &Call, now: Millis) -> Result<Vector> {
        let arg = call.args.iter().find(|a| matches!(a.value_type(), ValueType::Vector | ValueType::Matrix)).unwrap();
        if call.func == "absent" || call.func == "absent_over_time" {
            return self.absent(call.func, arg, now);
        }
        let params = call.args.iter().filter(|a| a.value_type() == ValueType::Scalar).map(|a| self.scalar(a, now));
        let params = params.collect::<Result<Vec<_>>>()?;
        let mut out = Vector::new();
        if arg.value_type() == ValueType::Matrix {
            let (series, start, end) = self.range(arg, now)?;
            for (labels, samples) in series {
                if let Some(value) = over_time(call.func, &samples, (start, end), params.first().copied()) {
                    let labels = if call.func == "last_over_time" { labels } else { without_name(&labels) };
                    put(&mut out, labels, value)?;
                }
            }
            return Ok(out);
        }
        for (labels, v) in self.vector(arg, now)? {
            let value = match call.func {
                "abs" => v.abs(),
                "ceil" => v.ceil(),
                "floor" => v.floor(),
                "sqrt" => v.sqrt(),
                "round" => (v + 0.5).floor(),
                "sgn" if v == 0.0 || v.is_nan() => v,
                "sgn" => v.signum(),
                "clamp_min" | "clamp_max" if params[0].is_nan() => f64::NAN,
                "clamp_min" => {
                    if v < params[0] {
                        params[0]
                    } else {
                        v
                    }
                }
                "clamp_max" => {
                    if v > params[0] {
                        params[0]
                    } else {
                        v
                    }
                }
                other => panic!("no function {other}"),
            };
            put(&mut out, without_name(&labels), value)?;
        }
        Ok(out)
    }

    fn absent(&self, func: &str, arg: &Expr, now: Millis) -> Result<Vector> {
        let is_there = match func {
            "absent" => !self.vector(arg, now)?.is_empty(),
            _ => self.range(arg, now)?.0.values().any(|samples| !samples.is_empty()),
        };
        let matchers: &[Matcher] = match arg {
            Expr::VectorSelector(selector) => &selector.matchers,
            Expr::MatrixSelector(matrix) => &matrix.selector.matchers,
            _ => &[],
        };
        let told = matchers.iter().filter(|m| m.op == MatchOp::Equal && &*m.name != "__name__" && !m.value.is_empty());
        let labels = told.map(|m| (m.name.to_string(), m.value.to_string())).collect();
        Ok(if is_there { Vector::new() } else { Vector::from([(labels, 1.0)]) })
    }

    fn aggregate(&self, aggregate: &AggregateExpr, now: Millis) -> Result<Vector> {
        let param = match &aggregate.param {
            Some(param) => self.scalar(param, now)?,
            None => 0.0,
        };
        let named = |name: &str| aggregate.grouping.iter().any(|have| have == name);
        let keeps = |name: &str| if aggregate.without { name != "__name__" && !named(name) } else { named(name) };
        let mut groups: BTreeMap<Labels, Vec<(Labels, f64)>> = BTreeMap::new();
        for (labels, value) in self.vector(&aggregate.expr, now)? {
            let group = labels.iter().filter(|(name, _)| keeps(name)).map(|(n, v)| (n.clone(), v.clone())).collect();
            groups.entry(group).or_default().push((labels, value));
        }
        let mut out = Vector::new();
        for (group, rows) in groups {
            if matches!(aggregate.op, AggregateOp::TopK | AggregateOp::BottomK) {
                out.extend(best(rows, param, aggregate.op == AggregateOp::TopK)?);
                continue;
            }
            let values: Vec<f64> = rows.into_iter().map(|(_, value)| value).collect();
            out.insert(group, of_values(aggregate.op, param, values));
        }
        Ok(out)
    }

    fn with_scalar(&self, binary: &BinaryExpr, now: Millis) -> Result<Vector> {
        let scalar_first = binary.lhs.value_type() == ValueType::Scalar;
        let (vector, scalar) = if scalar_first { (&binary.rhs, &binary.lhs) } else { (&binary.lhs, &binary.rhs) };
        let scalar = self.scalar(scalar, now)?;
        let mut out = Vector::new();
        for (labels, value) in self.vector(vector, now)? {
            let (a, b) = if scalar_first { (scalar, value) } else { (value, scalar) };
            let keeps_name = binary.op.is_comparison() && !binary.return_bool;
            let labels = if keeps_name { labels } else { without_name(&labels) };
            match operate(binary.op, a, b) {
                Ok(result) => put(&mut out, labels, result)?,
                Err(holds) if binary.return_bool => put(&mut out, labels, f64::from(u8::from(holds)))?,
                Err(true) => put(&mut out, labels, value)?,
                Err(false) => {}
            }
        }
        Ok(out)
    }

    fn vectors(&self, binary: &BinaryExpr, now: Millis) -> Result<Vector> {
        let (left, right) = (self.vector(&binary.lhs, now)?, self.vector(&binary.rhs, now)?);
        let default = VectorMatching::default();
        let matching = binary.matching.as_ref().unwrap_or(&default);
        let signature = |labels: &Labels| -> Labels {
            let named = |name: &str| matching.labels.iter().any(|have| have == name);
            let counts = |name: &str| if matching.on { named(name) } else { name != "__name__" && !named(name) };
            labels.iter().filter(|(name, _)| counts(name)).map(|(n, v)| (n.clone(), v.clone())).collect()
        };
        if binary.op.is_set() {
            let signatures = |vector: &Vector| vector.keys().map(signature).collect::<BTreeSet<_>>();
            let (mine, theirs) = (signatures(&left), signatures(&right));
            let mut out = left;
            match binary.op {
                BinaryOp::And => out.retain(|labels, _| theirs.contains(&signature(labels))),
                BinaryOp::Unless => out.retain(|labels, _| !theirs.contains(&signature(labels))),
                _ => {
                    for (labels, value) in right.into_iter().filter(|(labels, _)| !mine.contains(&signature(labels))) {
                        put(&mut out, labels, value)?;
                    }
                }
            }
            return Ok(out);
        }
        if left.is_empty() || right.is_empty() {
            return Ok(Vector::new());
        }
        let swapped = matching.cardinality == Cardinality::OneToMany;
        let (many, one) = if swapped { (&right, &left) } else { (&left, &right) };
        let mut by_signature: BTreeMap<Labels, (&Labels, f64)> = BTreeMap::new();
        for (labels, value) in one {
            if by_signature.insert(signature(labels), (labels, *value)).is_some() {
                return Err(Fail::Refused);
            }
        }
        let one_to_one = matching.cardinality == Cardinality::OneToOne;
        let (mut out, mut matched) = (Vector::new(), BTreeSet::new());
        for (labels, value) in many {
            let Some((other, other_value)) = by_signature.get(&signature(labels)) else { continue };
            let (a, b) = if swapped { (*other_value, *value) } else { (*value, *other_value) };
            let result = result_labels(labels, other, binary, matching, one_to_one);
            if !matched.insert(if one_to_one { signature(labels) } else { result.clone() }) {
                return Err(Fail::Refused);
            }
            match operate(binary.op, a, b) {
                Ok(made) => put(&mut out, result, made)?,
                Err(holds) if binary.return_bool => put(&mut out, result, f64::from(u8::from(holds)))?,
                Err(true) => put(&mut out, result, a)?,
                Err(false) => {}
            }
        }
        Ok(out)
    }
}

fn result_labels(
    many: &Labels,
    one: &Labels,
    binary: &BinaryExpr,
    matching: &VectorMatching,
    one_to_one: bool,
) -> Labels {
    let named = |name: &str| matching.labels.iter().any(|have| have == name);
    let drops_name = !binary.op.is_comparison() || binary.return_bool;
    let keeps = |name: &str| (!drops_name || name != "__name__") && (!one_to_one || matching.on == named(name));
    let mut out: Labels = many.iter().filter(|(name, _)| keeps(name)).map(|(n, v)| (n.clone(), v.clone())).collect();
    for name in &matching.include {
        match one.get(name) {
            Some(value) => out.insert(name.clone(), value.clone()),
            None => out.remove(name),
        };
    }
    out
}

/// A number, or whether a comparison holds.
fn operate(op: BinaryOp, a: f64, b: f64) -> std::result::Result<f64, bool> {
    match op {
        BinaryOp::Add => Ok(a + b),
        BinaryOp::Sub => Ok(a - b),
        BinaryOp::Mul => Ok(a * b),
        BinaryOp::Div => Ok(a / b),
        BinaryOp::Pow => Ok(a.powf(b)),
        BinaryOp::Atan2 => Ok(a.atan2(b)),
        BinaryOp::Eq => Err(a == b),
        BinaryOp::NotEq => Err(a != b),
        BinaryOp::Less => Err(a < b),
        BinaryOp::Greater => Err(a > b),
        BinaryOp::LessEq => Err(a <= b),
        BinaryOp::GreaterEq => Err(a >= b),
        other => panic!("no operator {other:?}"),
    }
}

/// The `k` best; which of equals is not said.
fn best(mut rows: Vec<(Labels, f64)>, k: f64, top: bool) -> Result<Vec<(Labels, f64)>> {
    if rows.iter().any(|(_, value)| value.is_nan()) {
        return Err(Fail::Unsure);
    }
    rows.sort_by(|a, b| if top { b.1.total_cmp(&a.1) } else { a.1.total_cmp(&b.1) });
    let k = (0..rows.len()).take_while(|i| (*i as f64) < k).count();
    if rows.get(k).is_some_and(|next| k > 0 && next.1 == rows[k - 1].1) {
        return Err(Fail::Unsure);
    }
    rows.truncate(k);
    Ok(rows)
}

fn quantile(q: f64, mut values: Vec<f64>) -> f64 {
    if !(0.0..=1.0).contains(&q) {
        return if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    // NaN is the smallest.
    values.sort_by(|a, b| b.is_nan().cmp(&a.is_nan()).then(a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal)));
    let rank = q * (values.len() - 1) as f64;
    let below = (0..values.len()).rev().find(|i| *i as f64 <= rank).unwrap();
    let above = (below + 1).min(values.len() - 1);
    let weight = rank - rank.floor();
    values[below] * (1.0 - weight) + values[above] * weight
}

fn mean_and_variance(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n)
}

/// The smallest or greatest number; NaN where there is no other.
fn extreme(values: &[f64], is_better: fn(f64, f64) -> bool) -> f64 {
    let numbers = values.iter().copied().filter(|v| !v.is_nan());
    numbers.reduce(|a, b| if is_better(b, a) { b } else { a }).unwrap_or(f64::NAN)
}

fn of_values(op: AggregateOp, param: f64, values: Vec<f64>) -> f64 {
    match op {
        AggregateOp::Sum => values.iter().sum(),
        AggregateOp::Avg => mean_and_variance(&values).0,
        AggregateOp::Count => values.len() as f64,
        AggregateOp::Min => extreme(&values, |a, b| a < b),
        AggregateOp::Max => extreme(&values, |a, b| a > b),
        AggregateOp::Group => 1.0,
        AggregateOp::Stddev => mean_and_variance(&values).1.sqrt(),
        AggregateOp::Stdvar => mean_and_variance(&values).1,
        AggregateOp::Quantile => quantile(param, values),
        other => panic!("no aggregation {other:?}"),
    }
}

fn over_time(func: &str, samples: &[(Millis, f64)], (start, end): (Millis, Millis), param: Option<f64>) -> Option<f64> {
    let values: Vec<f64> = samples.iter().map(|(_, v)| *v).collect();
    let pairs = || values.windows(2).map(|w| (w[0], w[1]));
    let last = *values.last()?;
    Some(match func {
        "min_over_time" => extreme(&values, |a, b| a < b),
        "max_over_time" => extreme(&values, |a, b| a > b),
        "sum_over_time" => values.iter().sum(),
        "count_over_time" => values.len() as f64,
        "last_over_time" => last,
        "present_over_time" => 1.0,
        "avg_over_time" => mean_and_variance(&values).0,
        "stddev_over_time" => mean_and_variance(&values).1.sqrt(),
        "stdvar_over_time" => mean_and_variance(&values).1,
        "quantile_over_time" => quantile(param?, values),
        "changes" => pairs().filter(|(a, b)| a != b && !(a.is_nan() && b.is_nan())).count() as f64,
        "resets" => pairs().filter(|(a, b)| b < a).count() as f64,
        "irate" | "idelta" => {
            let [.., (t0, v0), (t1, v1)] = *samples else { return None };
            let difference = if func == "irate" && v1 < v0 { v1 } else { v1 - v0 };
            if func == "irate" { difference / ((t1 - t0) as f64 / 1000.0) } else { difference }
        }
        "deriv" => slope(samples)?,
        "rate" | "increase" | "delta" => extrapolated(func, samples, start, end)?,
        other => panic!("no function {other}"),
    })
}

/// Least squares, times counted from the first sample.
fn slope(samples: &[(Millis, f64)]) -> Option<f64> {
    let [(zero, first), _, ..] = *samples else { return None };
    if samples.iter().all(|(_, v)| *v == first) {
        return Some(if first.is_infinite() { f64::NAN } else { 0.0 });
    }
    let n = samples.len() as f64;
    let x = |at: Millis| (at - zero) as f64 / 1000.0;
    let mean_x = samples.iter().map(|(at, _)| x(*at)).sum::<f64>() / n;
    let mean_y = samples.iter().map(|(_, v)| v).sum::<f64>() / n;
    let covariance: f64 = samples.iter().map(|(at, v)| (x(*at) - mean_x) * (v - mean_y)).sum();
    let variance: f64 = samples.iter().map(|(at, _)| (x(*at) - mean_x).powi(2)).sum();
    Some(covariance / variance)
}

fn extrapolated(func: &str, samples: &[(Millis, f64)], start: Millis, end: Millis) -> Option<f64> {
    let [(first_at, first), .., (last_at, last)] = *samples else { return None };
    let is_counter = func != "delta";
    let resets = samples.windows(2).filter(|w| is_counter && w[1].1 < w[0].1).map(|w| w[0].1).sum::<f64>();
    let increase = last - first + resets;
    let sampled = (last_at - first_at) as f64 / 1000.0;
    let between = sampled / (samples.len() - 1) as f64;
    let mut to_start = (first_at - start) as f64 / 1000.0;
    let mut to_end = (end - last_at) as f64 / 1000.0;
    if to_start >= between * 1.1 {
        to_start = between / 2.0;
    }
    if is_counter {
        let to_zero = if increase > 0.0 && first >= 0.0 { sampled * (first / increase) } else { to_start };
        to_start = to_start.min(to_zero);
    }
    if to_end >= between * 1.1 {
        to_end = between / 2.0;
    }
    let whole = increase * ((sampled + to_start + to_end) / sampled);
    Some(if func == "rate" { whole / ((end - start) as f64 / 1000.0) } else { whole })
}
