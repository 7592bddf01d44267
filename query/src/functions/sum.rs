//! Sums that keep what rounding would lose.
//!
//! Why: a plain sum of many floats drifts, and dashboards of rates sum thousands of series. Each addition here also
//! returns the part that did not fit into the sum (Kahan's method with Neumaier's order of operands), exactly as
//! upstream does it, so that answers agree to the last bit.
//!
//! Source: `prometheus util/kahansum/kahansum.go`; Neumaier, ZAMM 54 (1974).

/// Adds `x` to `sum`; `lost` is what earlier additions lost. Returns the new sum and the new loss; the best answer is
/// their sum. An infinite sum has lost nothing.
#[inline]
#[must_use]
pub fn kahan(x: f64, sum: f64, lost: f64) -> (f64, f64) {
    let total = sum + x;
    if total.is_infinite() {
        return (total, 0.0);
    }
    let part = if sum.abs() >= x.abs() { (sum - total) + x } else { (x - total) + sum };
    (total, lost + part)
}

/// Sum of all values.
#[must_use]
pub fn sum(values: &[f64]) -> f64 {
    let (mut total, mut lost) = (0.0, 0.0);
    for v in values {
        (total, lost) = kahan(*v, total, lost);
    }
    if total.is_infinite() { total } else { total + lost }
}

/// Arithmetic mean of a stream: the sum divided at the end while it is finite, else a mean that moves with each value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    count: f64,
    /// The sum, or the mean once the sum overflowed.
    value: f64,
    lost: f64,
    moving: bool,
}

impl Mean {
    /// The mean of one value.
    #[must_use]
    pub fn new(first: f64) -> Self {
        Self { count: 1.0, value: first, lost: 0.0, moving: false }
    }

    /// Takes a further value in.
    #[inline]
    pub fn add(&mut self, x: f64) {
        self.count += 1.0;
        if !self.moving {
            let (sum, lost) = kahan(x, self.value, self.lost);
            if !sum.is_infinite() {
                (self.value, self.lost) = (sum, lost);
                return;
            }
            self.moving = true;
            self.value /= self.count - 1.0;
            self.lost /= self.count - 1.0;
        }
        let keep = (self.count - 1.0) / self.count;
        (self.value, self.lost) = kahan(x / self.count, keep * self.value, keep * self.lost);
    }

    /// The mean so far.
    #[must_use]
    pub fn get(&self) -> f64 {
        if self.moving { self.value + self.lost } else { self.value / self.count + self.lost / self.count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_parts_survive_large_ones() {
        assert_eq!(sum(&[1.0, 1e100, 1.0, -1e100]), 2.0);
        assert_eq!(sum(&[f64::MAX, f64::MAX, -1.0]), f64::INFINITY);
        assert!(sum(&[1.0, f64::NAN]).is_nan());
    }

    #[test]
    fn a_mean_outlives_its_sum() {
        let mut mean = Mean::new(f64::MAX);
        for _ in 0..9 {
            mean.add(f64::MAX);
        }
        assert!(mean.get() > f64::MAX * (1.0 - 1e-15));
        let mut mean = Mean::new(1.0);
        mean.add(2.0);
        mean.add(6.0);
        assert_eq!(mean.get(), 3.0);
    }
}
