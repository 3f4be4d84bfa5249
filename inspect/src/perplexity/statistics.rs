//! Means with their errors, and the logarithm of softmax, in f64.

use serde::Serialize;

/// A mean and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The standard deviation of the values over √(n − 1); 0 for fewer than two values.
    pub stderr: f64,
}

/// A running mean.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mean {
    count: usize,
    mean: f64,
    /// Σ (x − mean)², kept up to date as values arrive (Welford), so that nearly equal values lose no digits.
    squares: f64,
}

impl Mean {
    /// Adds a value.
    pub fn push(&mut self, value: f64) {
        self.count += 1;
        let delta = value - self.mean;
        self.mean += delta / self.count as f64;
        self.squares += delta * (value - self.mean);
    }

    /// Values so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The mean of the values so far, and its standard error.
    #[must_use]
    pub fn estimate(&self) -> Estimate {
        let n = self.count as f64;
        let stderr = if self.count < 2 { 0.0 } else { (self.squares / n / (n - 1.0)).sqrt() };
        Estimate { mean: self.mean, stderr }
    }
}

/// ln softmax of some logits: x − max − ln Σ exp(x − max).
pub fn log_softmax(logits: &[f32], out: &mut Vec<f64>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    let shift = f64::from(max) + sum.ln();
    out.clear();
    out.extend(logits.iter().map(|x| f64::from(*x) - shift));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_error_are_those_of_the_formula() {
        let mut mean = Mean::default();
        for x in [1.0, 2.0, 4.0, 9.0] {
            mean.push(x);
        }
        let Estimate { mean, stderr } = mean.estimate();
        // variance = (9 + 4 + 0 + 25) / 4 = 9.5; over n − 1 = 3.
        assert!((mean - 4.0).abs() < 1e-12 && (stderr - (9.5f64 / 3.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn log_softmax_survives_large_logits() {
        let mut out = Vec::new();
        log_softmax(&[1000.0, 1000.0, 0.0], &mut out);
        assert!((out[0] + 2f64.ln()).abs() < 1e-12 && (out[2] + 1000.0 + 2f64.ln()).abs() < 1e-9);
    }
}
