//! What happens to q, k and v between their products and attention: per-head norm, RoPE, and k and v into the cache.

use super::{Launch, Scratch, Step};
use crate::memory::Val;
use crate::pool::Worker;
use moe_run_graph::ir::RopePairing;

/// Tokens in a chunk.
const CHUNK_TOKENS: usize = 4;

/// Norm and rotation of the heads of q or k.
pub struct Heads {
    /// Elements of a head.
    pub head_dim: usize,
    /// Weight and eps of the per-head norm, and where its result goes, if anybody wants it.
    pub norm: Option<(Box<[f32]>, f32, Option<Val>)>,
    /// Table and pairing.
    pub rope: Option<(usize, RopePairing)>,
    /// Where the turned heads go, if anybody wants them.
    pub out: Option<Val>,
}

impl Heads {
    /// Turns heads `x` of a token, which begin at column `first` of its row, into `out`. With `write`, stores what is
    /// wanted on the way.
    ///
    /// # Safety
    /// With `write`, no other worker touches these columns of this token until the next barrier.
    pub unsafe fn turn(
        &self,
        step: &Step<'_>,
        token: usize,
        first: usize,
        x: &[f32],
        out: &mut [f32],
        write: bool,
    ) {
        let columns = first..first + x.len();
        match &self.norm {
            Some((weight, eps, normed)) => {
                step.kernels.rms_norm(x, weight, *eps, out);
                if let (Some(to), true) = (normed, write) {
                    // SAFETY: the caller's promise.
                    unsafe { step.arena.part_mut(*to, token, columns.clone()).copy_from_slice(out) };
                }
            }
            None => out.copy_from_slice(x),
        }
        if let Some((table, pairing)) = self.rope {
            step.kernels.rope(pairing, self.head_dim, step.rope[table].row(step.position(token)), out);
        }
        if let (Some(to), true) = (self.out, write) {
            // SAFETY: the caller's promise.
            unsafe { step.arena.part_mut(to, token, columns).copy_from_slice(out) };
        }
    }
}

/// k and v of a step, and their states.
pub struct Cache {
    /// [T, G · d].
    pub k: Val,
    /// Norm and RoPE of k.
    pub heads: Heads,
    /// The keys' state.
    pub key: usize,
    /// v [T, G · dv] and the values' state; `None` where values are parts of keys.
    pub value: Option<(Val, usize)>,
}

/// The launch for many tokens: q turned and stored, k turned and cached, v cached.
pub struct KvWrite {
    /// q [T, H · d] and what happens to it; `None` where only the cache is written.
    pub q: Option<(Val, Heads)>,
    /// The rest.
    pub cache: Cache,
}

impl Launch for KvWrite {
    fn run(&self, step: &Step<'_>, worker: &Worker<'_>, scratch: &mut Scratch) {
        let tokens = step.sizes.tokens;
        let Cache { k, heads, key, value } = &self.cache;
        for chunk in worker.chunks(tokens.div_ceil(CHUNK_TOKENS)) {
            for token in chunk * CHUNK_TOKENS..((chunk + 1) * CHUNK_TOKENS).min(tokens) {
                let slot = step.slot(token);
                // SAFETY: the token's rows and slot are this chunk's; inputs are older than the last barrier.
                unsafe {
                    if let Some((q, q_heads)) = &self.q {
                        let x = step.arena.rows(*q, token..token + 1);
                        q_heads.turn(step, token, 0, x, &mut scratch.normed[..x.len()], true);
                    }
                    let x = step.arena.rows(*k, token..token + 1);
                    let turned = &mut scratch.normed[..x.len()];
                    heads.turn(step, token, 0, x, turned, true);
                    step.state.encode(step.kernels, *key, 0, slot, turned);
                    if let Some((v, value)) = value {
                        let x = step.arena.rows(*v, token..token + 1);
                        step.state.encode(step.kernels, *value, 0, slot, x);
                    }
                }
            }
        }
    }
}
