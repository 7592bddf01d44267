//! The functions of the language: what each takes and yields. What they compute is the engine's.
//!
//! Source: `prometheus promql/parser/functions.go`, Prometheus 3.14.

use super::ast::ValueType::{self, Matrix, Scalar, String, Vector};

/// A function's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub args: &'static [ValueType],
    /// 0: all arguments are needed. `n`: the last may be left out, and may stand up to `n` times. -1: any number of times.
    pub variadic: i32,
    /// What it yields.
    pub returns: ValueType,
    /// Whether it must be switched on.
    pub experimental: bool,
}

const fn plain(name: &'static str, args: &'static [ValueType]) -> Function {
    Function { name, args, variadic: 0, returns: Vector, experimental: false }
}

const fn experimental(name: &'static str, args: &'static [ValueType]) -> Function {
    Function { name, args, variadic: 0, returns: Vector, experimental: true }
}

const fn variadic(variadic: i32, function: Function) -> Function {
    Function { variadic, ..function }
}

const fn number(function: Function) -> Function {
    Function { returns: Scalar, ..function }
}

/// All functions, sorted by name.
pub const FUNCTIONS: &[Function] = &[
    plain("abs", &[Vector]),
    plain("absent", &[Vector]),
    plain("absent_over_time", &[Matrix]),
    plain("acos", &[Vector]),
    plain("acosh", &[Vector]),
    plain("asin", &[Vector]),
    plain("asinh", &[Vector]),
    plain("atan", &[Vector]),
    plain("atanh", &[Vector]),
    plain("avg_over_time", &[Matrix]),
    plain("ceil", &[Vector]),
    plain("changes", &[Matrix]),
    plain("clamp", &[Vector, Scalar, Scalar]),
    plain("clamp_max", &[Vector, Scalar]),
    plain("clamp_min", &[Vector, Scalar]),
    plain("cos", &[Vector]),
    plain("cosh", &[Vector]),
    plain("count_over_time", &[Matrix]),
    variadic(1, plain("day_of_month", &[Vector])),
    variadic(1, plain("day_of_week", &[Vector])),
    variadic(1, plain("day_of_year", &[Vector])),
    variadic(1, plain("days_in_month", &[Vector])),
    plain("deg", &[Vector]),
    plain("delta", &[Matrix]),
    plain("deriv", &[Matrix]),
    experimental("double_exponential_smoothing", &[Matrix, Scalar, Scalar]),
    number(experimental("end", &[])),
    plain("exp", &[Vector]),
    plain("first_over_time", &[Matrix]),
    plain("floor", &[Vector]),
    plain("histogram_avg", &[Vector]),
    plain("histogram_count", &[Vector]),
    plain("histogram_fraction", &[Scalar, Scalar, Vector]),
    plain("histogram_quantile", &[Scalar, Vector]),
    variadic(9, experimental("histogram_quantiles", &[Vector, String, Scalar, Scalar])),
    plain("histogram_stddev", &[Vector]),
    plain("histogram_stdvar", &[Vector]),
    plain("histogram_sum", &[Vector]),
    variadic(1, plain("hour", &[Vector])),
    plain("idelta", &[Matrix]),
    plain("increase", &[Matrix]),
    variadic(1, experimental("info", &[Vector, Vector])),
    plain("irate", &[Matrix]),
    variadic(-1, plain("label_join", &[Vector, String, String, String])),
    plain("label_replace", &[Vector, String, String, String, String]),
    plain("last_over_time", &[Matrix]),
    plain("ln", &[Vector]),
    plain("log10", &[Vector]),
    plain("log2", &[Vector]),
    experimental("mad_over_time", &[Matrix]),
    number(experimental("max_of", &[Scalar, Scalar])),
    plain("max_over_time", &[Matrix]),
    number(experimental("min_of", &[Scalar, Scalar])),
    plain("min_over_time", &[Matrix]),
    variadic(1, plain("minute", &[Vector])),
    variadic(1, plain("month", &[Vector])),
    number(plain("pi", &[])),
    plain("predict_linear", &[Matrix, Scalar]),
    plain("present_over_time", &[Matrix]),
    plain("quantile_over_time", &[Scalar, Matrix]),
    plain("rad", &[Vector]),
    number(experimental("range", &[])),
    plain("rate", &[Matrix]),
    plain("resets", &[Matrix]),
    variadic(1, plain("round", &[Vector, Scalar])),
    number(plain("scalar", &[Vector])),
    plain("sgn", &[Vector]),
    plain("sin", &[Vector]),
    plain("sinh", &[Vector]),
    plain("sort", &[Vector]),
    variadic(-1, experimental("sort_by_label", &[Vector, String])),
    variadic(-1, experimental("sort_by_label_desc", &[Vector, String])),
    plain("sort_desc", &[Vector]),
    plain("sqrt", &[Vector]),
    number(experimental("start", &[])),
    experimental("start_timestamp", &[Vector]),
    plain("stddev_over_time", &[Matrix]),
    plain("stdvar_over_time", &[Matrix]),
    number(experimental("step", &[])),
    plain("sum_over_time", &[Matrix]),
    plain("tan", &[Vector]),
    plain("tanh", &[Vector]),
    number(plain("time", &[])),
    plain("timestamp", &[Vector]),
    experimental("ts_of_first_over_time", &[Matrix]),
    experimental("ts_of_last_over_time", &[Matrix]),
    experimental("ts_of_max_over_time", &[Matrix]),
    experimental("ts_of_min_over_time", &[Matrix]),
    plain("vector", &[Scalar]),
    variadic(1, plain("year", &[Vector])),
];

/// The function of this name; names are case-sensitive.
#[must_use]
pub fn function(name: &str) -> Option<&'static Function> {
    let at = FUNCTIONS.binary_search_by(|have| have.name.cmp(name)).ok()?;
    FUNCTIONS.get(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_every_name_is_found() {
        assert!(FUNCTIONS.is_sorted_by(|a, b| a.name < b.name));
        assert!(FUNCTIONS.iter().all(|f| function(f.name) == Some(f)));
        assert_eq!(function("Rate"), None);
    }
}
