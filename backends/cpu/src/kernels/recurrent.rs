//! What recurrent layers do with one token of one head: the gated delta rule and mamba2's scan, as
//! `moe_run_graph::ir::Op` defines their sums. As in `vector`, lanes and their order are part of each function.

/// Lanes of the widest vector.
const LANES: usize = 16;
/// Columns of a state that are updated at once: their sums stay in registers.
const COLUMNS: usize = 4 * LANES;

/// x / √(Σx² + eps) · scale, in f64 up to the result.
#[inline(always)]
pub fn l2_norm(x: &[f32], eps: f32, scale: f32, out: &mut [f32]) {
    let mut sums = [0.0f64; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        for i in 0..LANES {
            sums[i] += f64::from(x[i]) * f64::from(x[i]);
        }
    }
    for (i, x) in rest.iter().enumerate() {
        sums[i] += f64::from(*x) * f64::from(*x);
    }
    let squares: f64 = sums.iter().sum();
    let factor = f64::from(scale) / (squares + f64::from(eps)).sqrt();
    for (x, out) in x.iter().zip(out) {
        *out = (f64::from(*x) * factor) as f32;
    }
}

/// One token's vectors of a head, each [dk].
#[derive(Clone, Copy)]
pub struct DeltaToken<'a> {
    /// Normed and scaled.
    pub q: &'a [f32],
    /// Normed.
    pub k: &'a [f32],
    /// What is left of the state's rows.
    pub decay: &'a [f32],
    /// k · decay.
    pub decayed_k: &'a [f32],
    /// How much is written.
    pub beta: f32,
}

/// Updates the state `s` [dk, dv] of a head by a token whose value is `v` [dv], and reads it: `out` [dv]. Columns from
/// `first` on, as many as `v` and `out` have.
#[inline(always)]
pub fn delta_rule(token: DeltaToken<'_>, v: &[f32], s: &mut [f32], dv: usize, first: usize, out: &mut [f32]) {
    let mut at = 0;
    while at + COLUMNS <= v.len() {
        columns::<4>(token, &v[at..], s, dv, first + at, &mut out[at..]);
        at += COLUMNS;
    }
    while at + LANES <= v.len() {
        columns::<1>(token, &v[at..], s, dv, first + at, &mut out[at..]);
        at += LANES;
    }
    for at in at..v.len() {
        let column = first + at;
        let mut r = 0.0f32;
        for (i, k) in token.decayed_k.iter().enumerate() {
            r = k.mul_add(s[i * dv + column], r);
        }
        let delta = token.beta * (v[at] - r);
        let mut sum = 0.0f32;
        for i in 0..token.k.len() {
            let to = &mut s[i * dv + column];
            *to = token.k[i].mul_add(delta, token.decay[i] * *to);
            sum = token.q[i].mul_add(*to, sum);
        }
        out[at] = sum;
    }
}

/// [`delta_rule`] of N · 16 columns.
#[inline(always)]
fn columns<const N: usize>(
    token: DeltaToken<'_>,
    v: &[f32],
    s: &mut [f32],
    dv: usize,
    first: usize,
    out: &mut [f32],
) {
    let dk = token.k.len();
    let (q, decay, decayed_k) = (&token.q[..dk], &token.decay[..dk], &token.decayed_k[..dk]);
    let mut sums = [[0.0f32; LANES]; N];
    for (k, row) in decayed_k.iter().zip(s.chunks_exact(dv)) {
        let row = row[first..first + N * LANES].as_chunks::<LANES>().0;
        for n in 0..N {
            for i in 0..LANES {
                sums[n][i] = k.mul_add(row[n][i], sums[n][i]);
            }
        }
    }
    let v = v[..N * LANES].as_chunks::<LANES>().0;
    let mut delta = [[0.0f32; LANES]; N];
    for n in 0..N {
        for i in 0..LANES {
            delta[n][i] = token.beta * (v[n][i] - sums[n][i]);
        }
    }
    let mut sums = [[0.0f32; LANES]; N];
    for (at, row) in s.chunks_exact_mut(dv).enumerate() {
        let row = row[first..first + N * LANES].as_chunks_mut::<LANES>().0;
        for n in 0..N {
            for i in 0..LANES {
                row[n][i] = token.k[at].mul_add(delta[n][i], decay[at] * row[n][i]);
                sums[n][i] = q[at].mul_add(row[n][i], sums[n][i]);
            }
        }
    }
    for (out, sums) in out[..N * LANES].as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
        *out = sums;
    }
}

/// One token's numbers of a head.
#[derive(Clone, Copy)]
pub struct ScanToken<'a> {
    /// softplus(dt).
    pub delta: f32,
    /// e^(a·δ).
    pub decay: f32,
    /// What of x goes past the state.
    pub d: f32,
    /// B [N].
    pub b: &'a [f32],
    /// C [N].
    pub c: &'a [f32],
}

/// Updates rows of a head's state, `s` [rows, N], by their `x` [rows], and reads them: `out` [rows].
#[inline(always)]
pub fn ssm_scan(token: ScanToken<'_>, x: &[f32], s: &mut [f32], out: &mut [f32]) {
    let size = token.b.len();
    let (b, b_rest) = token.b.as_chunks::<LANES>();
    let (c, c_rest) = token.c[..size].as_chunks::<LANES>();
    for ((x, s), out) in x.iter().zip(s.chunks_exact_mut(size)).zip(out) {
        let x_delta = token.delta * x;
        let mut sums = [0.0f32; LANES];
        let (s, s_rest) = s.as_chunks_mut::<LANES>();
        for ((s, b), c) in s.iter_mut().zip(b).zip(c) {
            for i in 0..LANES {
                s[i] = x_delta.mul_add(b[i], token.decay * s[i]);
                sums[i] = s[i].mul_add(c[i], sums[i]);
            }
        }
        for i in 0..s_rest.len() {
            s_rest[i] = x_delta.mul_add(b_rest[i], token.decay * s_rest[i]);
            sums[i] = s_rest[i].mul_add(c_rest[i], sums[i]);
        }
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                sums[i] += sums[i + half];
            }
            half /= 2;
        }
        *out = token.d.mul_add(*x, sums[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kernels;
    use super::super::dispatch::Isa;
    use super::*;

    /// Every instruction set of this machine gives the plain functions' bits.
    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let number = |i: usize| ((i * 2_654_435_761) % 1009) as f32 / 504.5 - 1.0;
        let numbers = |from: usize, n: usize| (from..from + n).map(number).collect::<Vec<f32>>();
        for isa in Isa::ALL {
            let Some(kernels) = Kernels::with(*isa) else { continue };
            for (dk, dv) in [(16, 16), (128, 128), (20, 83), (1, 1), (64, 15)] {
                let (q, k, decay, v) = (numbers(1, dk), numbers(7, dk), numbers(99, dk), numbers(5, dv));
                let decayed_k: Vec<f32> = k.iter().zip(&decay).map(|(k, d)| k * d).collect();
                let token = DeltaToken { q: &q, k: &k, decay: &decay, decayed_k: &decayed_k, beta: 0.7 };
                let (mut s, mut plain_s) = (numbers(3, dk * dv), numbers(3, dk * dv));
                let (mut out, mut plain) = (vec![0.0; dv], vec![0.0; dv]);
                kernels.delta_rule(token, &v, &mut s, dv, 0, &mut out);
                delta_rule(token, &v, &mut plain_s, dv, 0, &mut plain);
                assert!(out == plain && s == plain_s, "{} {dk} {dv}", isa.name());
                kernels.l2_norm(&v, 1e-6, 0.5, &mut out);
                l2_norm(&v, 1e-6, 0.5, &mut plain);
                assert_eq!(out, plain, "{}", isa.name());
            }
            for (rows, size) in [(4, 16), (64, 128), (3, 37), (1, 1)] {
                let (b, c, x) = (numbers(1, size), numbers(11, size), numbers(4, rows));
                let token = ScanToken { delta: 0.3, decay: 0.9, d: -0.4, b: &b, c: &c };
                let (mut s, mut plain_s) = (numbers(3, rows * size), numbers(3, rows * size));
                let (mut out, mut plain) = (vec![0.0; rows], vec![0.0; rows]);
                kernels.ssm_scan(token, &x, &mut s, &mut out);
                ssm_scan(token, &x, &mut plain_s, &mut plain);
                assert!(out == plain && s == plain_s, "{} {rows} {size}", isa.name());
            }
        }
    }
}
