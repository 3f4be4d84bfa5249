//! What happens to q, k and v between their products and attention: per-head norm, RoPE, and k and v into the cache.

use super::{Launch, Scratch, Step};
use crate::pool::Worker;
use crate::share::{Input, Output, StateOutput};
use moe_run_graph::ir::RopePairing;

/// Tokens in a chunk.
pub const CHUNK_TOKENS: usize = 4;

/// Norm and rotation of the heads of q or k.
pub struct Heads {
    /// Elements of a head.
    pub head_dim: usize,
    /// Weight and eps of the per-head norm, and where its result goes, if anybody wants it.
    pub norm: Option<(Box<[f32]>, f32, Option<Output>)>,
    /// Table and pairing.
    pub rope: Option<(usize, RopePairing)>,
    /// Where the rotated heads go, if anybody wants them.
    pub out: Option<Output>,
}

impl Heads {
    /// Rotates heads `x` of a token into `out`, and hands `store` what is wanted on the way.
    pub fn rotate(
        &self,
        step: &Step<'_>,
        token: usize,
        x: &[f32],
        out: &mut [f32],
        mut store: impl FnMut(&Output, &[f32]),
    ) {
        match &self.norm {
            Some((weight, eps, normed)) => {
                step.kernels.rms_norm(x, weight, *eps, out);
                if let Some(to) = normed {
                    store(to, out);
                }
            }
            None => out.copy_from_slice(x),
        }
        if let Some((table, pairing)) = self.rope {
            step.kernels.rope(pairing, self.head_dim, step.rope[table].row(step.position(token)), out);
        }
        if let Some(to) = &self.out {
            store(to, out);
        }
    }
}

/// k and v of a step, and their states.
pub struct Cache {
    /// [T, G · d].
    pub k: Input,
    /// Norm and RoPE of k.
    pub heads: Heads,
    /// The keys' state.
    pub key: StateOutput,
    /// v [T, G · dv] and the values' state; `None` where values are parts of keys.
    pub value: Option<(Input, StateOutput)>,
}

/// The launch for many tokens: q rotated and stored, k rotated and cached, v cached. Whatever is written is shared by
/// [`CHUNK_TOKENS`] rows.
pub struct KvWrite {
    /// q [T, H · d] and what happens to it; `None` where only the cache is written.
    pub q: Option<(Input, Heads)>,
    /// The rest.
    pub cache: Cache,
}

impl Launch for KvWrite {
    fn run(&self, step: &Step<'_>, worker: &mut Worker<'_>, scratch: &mut Scratch) {
        let tokens = step.sizes.tokens;
        let Cache { k, heads, key, value } = &self.cache;
        for mut chunk in worker.shares(tokens.div_ceil(CHUNK_TOKENS)) {
            for token in chunk.range(CHUNK_TOKENS, tokens) {
                let mut rotate = |from: Input, heads: &Heads| {
                    let x = step.row(from, token);
                    let rotated = &mut scratch.normed[..x.len()];
                    heads.rotate(step, token, x, rotated, |to, x| {
                        chunk.row_mut(step, to, token).copy_from_slice(x);
                    });
                };
                if let Some((q, q_heads)) = &self.q {
                    rotate(*q, q_heads);
                }
                rotate(*k, heads);
                chunk.encode(step, key, token, &scratch.normed[..k.width()]);
                if let Some((v, value)) = value {
                    chunk.encode(step, value, token, step.row(*v, token));
                }
            }
        }
    }
}
