//! e^x in f32 and what is made of it: SiLU and softmax. One definition, which the reference states its ops with and the
//! CPU's kernels inline, so that both give the same bits; GPUs have their own.
//!
//! x = n·ln 2 + r with |r| ≤ ln 2 / 2, a polynomial in r, and n into the exponent. Relative error below 3e-7.

/// 1.5 · 2²³: a float below 2²² in size, added to this, is rounded to the nearest integer, ties to even.
pub const ROUND: f32 = 12_582_912.0;

/// Scores of softmax are told apart below this size; larger ones give NaN.
const LARGEST_SCORE: f32 = 1_048_576.0;

/// e^r and, for n, n + [`ROUND`]; |x| < 2²¹.
#[inline(always)]
fn parts(x: f32) -> (f32, f32) {
    // The sum leaves the nearest integer in the low bits, without a conversion.
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, the first exact in 12 bits: n times it has no rounding below 2¹².
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.984_126_9e-4f32;
    p = p.mul_add(r, 1.388_888_9e-3);
    p = p.mul_add(r, 8.333_333e-3);
    p = p.mul_add(r, 4.166_666_6e-2);
    p = p.mul_add(r, 0.166_666_67);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    (p, shifted)
}

/// 2^k for an integer k below 128; what would be subnormal is 0.
#[inline(always)]
pub fn power_of_two(k: f32) -> f32 {
    let bits = (k + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    if k < -126.0 { 0.0 } else { f32::from_bits(bits) }
}

/// e^x: 0 below −87.3, infinity above 88.3, NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Below, the result would be subnormal; above, the exponent would leave its field. NaN passes both.
    let clamped = if x < -87.3 { -87.3 } else { x };
    let clamped = if clamped > 88.3 { 88.3 } else { clamped };
    let (p, shifted) = parts(clamped);
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let y = p * f32::from_bits(exponent << 23);
    let y = if x < -87.3 { 0.0 } else { y };
    if x > 88.3 { f32::INFINITY } else { y }
}

/// x · sigmoid(x).
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// x · ½ (1 + tanh u) with u = √(2/π) (x + 0.044715 x³): GELU by its tanh form. That is x · sigmoid(2u).
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    // 2·√(2/π), and 0.044715 times that.
    let u = x * (x * x).mul_add(0.071_354_814, 1.595_769_1);
    x / (1.0 + exp(-u))
}

/// cap · tanh(x / cap), by e^(−2|x|/cap). NaN stays NaN.
#[inline(always)]
pub fn soft_cap(x: f32, cap: f32) -> f32 {
    let e = exp(-2.0 * (x / cap).abs());
    (cap * ((1.0 - e) / (1.0 + e))).copysign(x)
}

/// min(max(x, −limit), limit). NaN stays NaN.
#[inline(always)]
pub fn clamp(x: f32, limit: f32) -> f32 {
    let c = if x > limit { limit } else { x };
    if c < -limit { -limit } else { c }
}

/// 1 / (1 + e^−x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// ln(1 + e^x), rounded once from f64; no size of x overflows it.
#[inline(always)]
pub fn softplus(x: f32) -> f32 {
    let x = f64::from(x);
    // NaN passes.
    let positive = if x < 0.0 { 0.0 } else { x };
    (positive + (-x.abs()).exp().ln_1p()) as f32
}

/// max(x, 0)²; NaN stays NaN.
#[inline(always)]
pub fn relu_squared(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x * x }
}

/// c · sigmoid(alpha · c) with c = min(x, limit): the gate of a clamped SwiGLU.
#[inline(always)]
pub fn clamped_silu(x: f32, alpha: f32, limit: f32) -> f32 {
    // NaN passes.
    let c = if x > limit { limit } else { x };
    c / (1.0 + exp(-(alpha * c)))
}

/// clamp(x, −limit, limit) + 1: what a clamped SwiGLU's gate lets through. NaN stays NaN.
#[inline(always)]
pub fn clamped_up(x: f32, limit: f32) -> f32 {
    clamp(x, limit) + 1.0
}

/// The integer n of e^x = e^r · 2^n: what softmax takes off exponents, in place of a maximum. Since it is an integer,
/// sums under one shift become sums under another by an exact factor, in whatever pieces they were taken.
#[inline(always)]
pub fn shift_of(largest_score: f32) -> f32 {
    let x = largest_score.clamp(-LARGEST_SCORE, LARGEST_SCORE);
    x.mul_add(std::f32::consts::LOG2_E, ROUND) - ROUND
}

/// Below every [`shift_of`]: where a running shift begins.
pub const NO_SHIFT: f32 = -4_194_304.0;

/// e^x · 2^−shift, for a shift of a score not below x: 0 where that would be subnormal, NaN for NaN and for infinity.
#[inline(always)]
pub fn exp_shifted(x: f32, shift: f32) -> f32 {
    let clamped = if x < -2.0 * LARGEST_SCORE { -2.0 * LARGEST_SCORE } else { x };
    let clamped = if clamped > LARGEST_SCORE { LARGEST_SCORE } else { clamped };
    let (p, shifted) = parts(clamped);
    let y = p * power_of_two(shifted - ROUND - shift);
    if x > LARGEST_SCORE { f32::NAN } else { y }
}

/// What attention's weighted sum is multiplied with: 1 / (Σ + e^sink · 2^−shift), the sink counting in the denominator
/// only.
#[inline(always)]
pub fn softmax_factor(sum: f64, shift: f32, sink: Option<f32>) -> f32 {
    let sink = sink.map_or(0.0, |s| (f64::from(s) - f64::from(shift) * std::f64::consts::LN_2).exp());
    (1.0 / (sum + sink)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_holds_over_its_range_and_at_its_ends() {
        for i in -8800..8830 {
            let x = i as f32 / 100.0;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - want).abs() <= 3e-7 * want || x < -87.2, "{x}: {got} {want}");
        }
        assert_eq!(exp(-1e4), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn shifted_exponentials_are_those_of_softmax() {
        for largest in [-900.0f32, -3.25, 0.0, 0.4, 70.5, 2000.0] {
            let shift = shift_of(largest);
            assert_eq!(shift, shift.round());
            for below in [0.0f32, 1e-3, 0.7, 12.0, 80.0] {
                let x = largest - below;
                let want = (f64::from(x) - f64::from(shift) * std::f64::consts::LN_2).exp();
                let got = f64::from(exp_shifted(x, shift));
                assert!((got - want).abs() <= 4e-7 * want, "{x} under {shift}: {got} {want}");
            }
            assert_eq!(exp_shifted(largest - 100.0, shift), 0.0);
            assert_eq!(exp_shifted(f32::NEG_INFINITY, shift), 0.0);
            assert!(exp_shifted(f32::NAN, shift).is_nan() && exp_shifted(f32::INFINITY, shift).is_nan());
        }
        assert!(exp_shifted(f32::INFINITY, shift_of(f32::INFINITY)).is_nan());
        assert_eq!(exp_shifted(f32::NEG_INFINITY, shift_of(f32::NEG_INFINITY)), 0.0);
        assert_eq!(power_of_two(NO_SHIFT - shift_of(f32::NEG_INFINITY)), 0.0);
    }

    #[test]
    fn another_shift_is_another_power_of_two() {
        for (i, shift) in (0..200).zip((-40..40).cycle()) {
            let x = i as f32 * 0.37 - 30.0;
            let shift = shift_of(x).max(shift as f32);
            let later = shift + 3.0;
            assert_eq!(exp_shifted(x, later), exp_shifted(x, shift) * power_of_two(shift - later));
        }
    }

    #[test]
    fn silu_is_the_gate_times_its_sigmoid() {
        for i in -2000..2000 {
            let x = i as f32 / 50.0;
            let want = f64::from(x) / (1.0 + f64::from(-x).exp());
            assert!((f64::from(silu(x)) - want).abs() <= 4e-7 * want.abs() + 1e-37, "{x}");
            let want = 1.0 / (1.0 + f64::from(-x).exp());
            assert!((f64::from(sigmoid(x)) - want).abs() <= 4e-7 * want, "{x}");
        }
    }

    #[test]
    fn softplus_and_relu_squared_hold_at_their_ends() {
        for (x, want) in [(0.0, std::f32::consts::LN_2), (-1e4, 0.0), (200.0, 200.0), (1.0, 1.313_261_7)] {
            assert!((softplus(x) - want).abs() <= 1e-6, "{x}");
        }
        assert_eq!(softplus(-20.0), (-20.0f64).exp().ln_1p() as f32);
        assert!(softplus(f32::NAN).is_nan() && softplus(f32::INFINITY) == f32::INFINITY);
        assert_eq!((relu_squared(-3.0), relu_squared(3.0), relu_squared(-0.0)), (0.0, 9.0, 0.0));
        assert!(relu_squared(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_and_the_soft_cap_are_those_of_tanh() {
        for i in -3000..3000 {
            let x = i as f32 / 200.0;
            let wide = f64::from(x);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            // 1 + tanh u where it does not cancel.
            let want = wide / (1.0 + (-2.0 * u).exp());
            // The exponent is rounded before exp.
            let limit = 4e-7 * want.abs() * (1.0 + u.abs()) + 1e-37;
            assert!((f64::from(gelu_tanh(x)) - want).abs() <= limit, "{x}");
            for cap in [0.5f32, 30.0] {
                let want = f64::from(cap) * (wide / f64::from(cap)).tanh();
                assert!((f64::from(soft_cap(x, cap)) - want).abs() <= 2e-7 * f64::from(cap), "{x} of {cap}");
            }
            assert_eq!(clamp(x, 2.5), x.clamp(-2.5, 2.5));
        }
        assert!(
            gelu_tanh(f32::NAN).is_nan()
                && soft_cap(f32::NAN, 30.0).is_nan()
                && clamp(f32::NAN, 1.0).is_nan()
        );
        assert_eq!((soft_cap(f32::INFINITY, 30.0), soft_cap(f32::NEG_INFINITY, 30.0)), (30.0, -30.0));
    }

    #[test]
    fn a_clamped_swiglu_holds_its_bounds_and_hides_no_nan() {
        let (alpha, limit) = (1.702, 7.0);
        for i in -2000..2000 {
            let x = i as f32 / 100.0;
            let c = f64::from(x).min(7.0);
            let want = c / (1.0 + (-f64::from(alpha) * c).exp());
            // The exponent, up to 35, is rounded before exp.
            let got = f64::from(clamped_silu(x, alpha, limit));
            assert!((got - want).abs() <= 3e-6 * want.abs(), "{x}: {got} {want}");
            assert_eq!(clamped_up(x, limit), x.clamp(-7.0, 7.0) + 1.0);
        }
        assert!(clamped_silu(f32::NAN, alpha, limit).is_nan() && clamped_up(f32::NAN, limit).is_nan());
        assert_eq!(clamped_silu(f32::INFINITY, alpha, limit), clamped_silu(7.0, alpha, limit));
    }
}
