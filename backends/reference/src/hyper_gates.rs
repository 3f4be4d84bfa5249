//! How streams meet a block, from what a product makes of them.

use super::router::{sigmoid, softmax};
use moe_run_graph::ir::HyperGatesAttrs;

/// `w` [T, width] → `pre` [T, n] and, with mixing, `post` [T, n] and `comb` [T, n·n].
pub fn hyper_gates(
    w: &[f32],
    attrs: &HyperGatesAttrs,
    scale: &[f32],
    base: &[f32],
    pre: &mut [f32],
    mixed: Option<[&mut [f32]; 2]>,
) {
    let n = attrs.streams;
    let eps = f64::from(attrs.eps);
    let value =
        |w: &[f32], i: usize, part: usize| f64::from(w[i]) * f64::from(scale[part]) + f64::from(base[i]);
    for (w, pre) in w.chunks_exact(attrs.width()).zip(pre.chunks_exact_mut(n)) {
        for (i, pre) in pre.iter_mut().enumerate() {
            *pre = (sigmoid(value(w, i, 0)) + eps) as f32;
        }
    }
    let (Some([post, comb]), Some(iterations)) = (mixed, attrs.iterations) else { return };
    let outputs = post.chunks_exact_mut(n).zip(comb.chunks_exact_mut(n * n));
    for (w, (post, comb)) in w.chunks_exact(attrs.width()).zip(outputs) {
        for (i, post) in post.iter_mut().enumerate() {
            *post = (2.0 * sigmoid(value(w, n + i, 1))) as f32;
        }
        let rows = (0..n).flat_map(|j| {
            let row: Vec<f64> = (0..n).map(|k| value(w, 2 * n + j * n + k, 2)).collect();
            softmax(&row).into_iter().map(|share| share + eps)
        });
        let mut m: Vec<f64> = rows.collect();
        divide(&mut m, n, |line, i| i * n + line, eps);
        for _ in 1..iterations {
            divide(&mut m, n, |line, i| line * n + i, eps);
            divide(&mut m, n, |line, i| i * n + line, eps);
        }
        comb.iter_mut().zip(m).for_each(|(out, m)| *out = m as f32);
    }
}

/// Divides each line of a matrix by its sum + ε; `at` is where its i-th element stands.
fn divide(m: &mut [f64], n: usize, at: impl Fn(usize, usize) -> usize, eps: f64) {
    for line in 0..n {
        let sum: f64 = (0..n).map(|i| m[at(line, i)]).sum();
        (0..n).for_each(|i| m[at(line, i)] /= sum + eps);
    }
}
