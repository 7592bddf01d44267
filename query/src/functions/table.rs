//! Which function is which kernel, and how the engine treats it.

use super::{Function, Kernel, over_time as over, pointwise as point, rate, reset, trend};

const PLAIN: Function = Function {
    name: "",
    kernel: Kernel::Special,
    drops_name: true,
    anchored: false,
    smoothed: false,
    reads_starts: false,
    wants_counter: false,
    depends_on_time: false,
};

const fn range(name: &'static str, kernel: super::RangeKernel) -> Function {
    Function { name, kernel: Kernel::Range(kernel), ..PLAIN }
}

const fn vector(name: &'static str, kernel: super::VectorKernel) -> Function {
    Function { name, kernel: Kernel::Vector(kernel), ..PLAIN }
}

/// Dates of the evaluation time where they have no argument.
const fn date(name: &'static str, kernel: super::VectorKernel) -> Function {
    Function { depends_on_time: true, ..vector(name, kernel) }
}

const fn special(name: &'static str, drops_name: bool) -> Function {
    Function { name, drops_name, ..PLAIN }
}

/// Special ones that keep the metric's name.
const fn keeps(name: &'static str) -> Function {
    special(name, false)
}

const fn time_bound(name: &'static str) -> Function {
    Function { depends_on_time: true, ..special(name, true) }
}

/// All functions, by name.
pub static FUNCTIONS: [Function; 90] = [
    vector("abs", point::abs),
    special("absent", true),
    special("absent_over_time", true),
    vector("acos", point::acos),
    vector("acosh", point::acosh),
    vector("asin", point::asin),
    vector("asinh", point::asinh),
    vector("atan", point::atan),
    vector("atanh", point::atanh),
    range("avg_over_time", over::avg_over_time),
    vector("ceil", point::ceil),
    Function { anchored: true, ..range("changes", reset::changes) },
    vector("clamp", point::clamp),
    vector("clamp_max", point::clamp_max),
    vector("clamp_min", point::clamp_min),
    vector("cos", point::cos),
    vector("cosh", point::cosh),
    range("count_over_time", over::count_over_time),
    date("day_of_month", point::day_of_month),
    date("day_of_week", point::day_of_week),
    date("day_of_year", point::day_of_year),
    date("days_in_month", point::days_in_month),
    vector("deg", point::deg),
    Function { anchored: true, smoothed: true, ..range("delta", rate::delta) },
    range("deriv", trend::deriv),
    range("double_exponential_smoothing", trend::double_exponential_smoothing),
    time_bound("end"),
    vector("exp", point::exp),
    Function { drops_name: false, ..range("first_over_time", over::first_over_time) },
    vector("floor", point::floor),
    vector("histogram_avg", point::histogram_avg),
    vector("histogram_count", point::histogram_count),
    special("histogram_fraction", true),
    special("histogram_quantile", true),
    special("histogram_quantiles", true),
    vector("histogram_stddev", point::histogram_stddev),
    vector("histogram_stdvar", point::histogram_stdvar),
    vector("histogram_sum", point::histogram_sum),
    date("hour", point::hour),
    range("idelta", rate::idelta),
    Function {
        anchored: true,
        smoothed: true,
        reads_starts: true,
        wants_counter: true,
        ..range("increase", rate::increase)
    },
    keeps("info"),
    Function { reads_starts: true, ..range("irate", rate::irate) },
    keeps("label_join"),
    keeps("label_replace"),
    Function { drops_name: false, ..range("last_over_time", over::last_over_time) },
    vector("ln", point::ln),
    vector("log10", point::log10),
    vector("log2", point::log2),
    range("mad_over_time", over::mad_over_time),
    special("max_of", true),
    range("max_over_time", over::max_over_time),
    special("min_of", true),
    range("min_over_time", over::min_over_time),
    date("minute", point::minute),
    date("month", point::month),
    special("pi", true),
    Function { depends_on_time: true, ..range("predict_linear", trend::predict_linear) },
    range("present_over_time", over::present_over_time),
    range("quantile_over_time", over::quantile_over_time),
    vector("rad", point::rad),
    time_bound("range"),
    Function { anchored: true, smoothed: true, reads_starts: true, wants_counter: true, ..range("rate", rate::rate) },
    Function { anchored: true, reads_starts: true, ..range("resets", reset::resets) },
    vector("round", point::round),
    special("scalar", true),
    vector("sgn", point::sgn),
    vector("sin", point::sin),
    vector("sinh", point::sinh),
    keeps("sort"),
    keeps("sort_by_label"),
    keeps("sort_by_label_desc"),
    keeps("sort_desc"),
    vector("sqrt", point::sqrt),
    time_bound("start"),
    Function { reads_starts: true, ..special("start_timestamp", true) },
    range("stddev_over_time", over::stddev_over_time),
    range("stdvar_over_time", over::stdvar_over_time),
    time_bound("step"),
    range("sum_over_time", over::sum_over_time),
    vector("tan", point::tan),
    vector("tanh", point::tanh),
    time_bound("time"),
    Function { depends_on_time: true, ..vector("timestamp", point::timestamp) },
    range("ts_of_first_over_time", over::ts_of_first_over_time),
    range("ts_of_last_over_time", over::ts_of_last_over_time),
    range("ts_of_max_over_time", over::ts_of_max_over_time),
    range("ts_of_min_over_time", over::ts_of_min_over_time),
    special("vector", true),
    date("year", point::year),
];

/// The function of that name.
#[must_use]
pub fn lookup(name: &str) -> Option<&'static Function> {
    FUNCTIONS.binary_search_by(|f| f.name.cmp(name)).ok().map(|at| &FUNCTIONS[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_is_found() {
        assert!(FUNCTIONS.is_sorted_by(|a, b| a.name < b.name));
        for f in &FUNCTIONS {
            assert_eq!(lookup(f.name).unwrap().name, f.name);
        }
        assert!(lookup("holt_winters").is_none());
    }
}
