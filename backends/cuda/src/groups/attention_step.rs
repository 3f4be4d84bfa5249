//! kernels/attention_step.cu.

use super::{Runs, int, ops};
use crate::driver::Param;
use crate::ops::{Emit, attention};
use moe_run_graph::groups::parts::{Attended, Norm, Sliced, Written};
use moe_run_graph::groups::{AttentionStep, Group, NormSpan, Placed};
use moe_run_graph::ir::{AttentionAttrs, Graph, RopePairing};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

/// The widest head that there is shared memory for.
const MAX_HEAD_DIM: usize = 256;

/// The queries' room, in heads, that a normed value is put into beside one key.
const VALUE_HEADS: usize = attention::HEADS_PER_BLOCK - 1;

impl Runs for AttentionStep {
    fn fits(&self, graph: &Graph, kv_type: KvType) -> bool {
        // What becomes of q, k and v is told apart by `is_part_by_heads`, `is_placed_alike`, `are_values_normed_by_head`.
        let AttentionStep { q_part: _, q: _, k: _, v_norm: _, write, attention } = self;
        let Written { node: _, k: _, v: Some(_), slots: _, key: _, value: Some(_), states: _ } = write else {
            return false;
        };
        let Attended { node, q: _, states: _, positions: _, sequence: _, attrs, y: _ } = attention;
        let AttentionAttrs {
            num_attention_heads: _,
            num_key_value_heads: _,
            head_dim,
            value_head_dim,
            scale: _,
            window: _,
            chunk: _,
            soft_cap: _,
            sinks: _,
            value_in_key: false,
            masked: false,
        } = *attrs
        else {
            return false;
        };
        // A block of a Q8_0 cache is a warp's.
        let unit = if kv_type == KvType::Q8_0 { 32 } else { 4 };
        self.is_part_by_heads()
            && self.is_placed_alike(graph)
            && self.are_values_normed_by_head(graph)
            && (self.v_norm.is_none() || value_head_dim <= VALUE_HEADS * head_dim)
            && head_dim.is_multiple_of(unit)
            && value_head_dim.is_multiple_of(unit)
            && head_dim <= MAX_HEAD_DIM
            && graph.node(*node).is_some_and(|attention| ops::supports(graph, attention).is_ok())
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        let AttentionStep { q_part, q, k, v_norm, write, attention } = self;
        let a = &attention.attrs;
        let norm = |norm: Option<&Norm>| {
            norm.map_or((Param::NULL, 0.0), |n| (emit.weights.opt_vector(n.weight), n.eps))
        };
        let ((q_norm, q_eps), (k_norm, k_eps)) = (norm(q.norm.as_ref()), norm(k.norm.as_ref()));
        let (table, dims, interleaved) = match &q.rope {
            Some(rope) => (
                emit.rope_tables[rope.table.index()].param(),
                emit.graph.rope_tables[rope.table.index()].dims,
                rope.pairing == RopePairing::Interleaved,
            ),
            None => (Param::NULL, 0, false),
        };
        let normed = |placed: &Placed| placed.norm.as_ref().map_or(Param::NULL, |n| emit.opt_value(n.y));
        let rotated = |placed: &Placed| placed.rope.as_ref().map_or(Param::NULL, |r| emit.opt_value(r.y));
        let (blocks, splits) = ops::split_geometry(a, 1, emit.scratch.multiprocessors);
        let tiles = attention::fits_tiles(emit, a);
        let [window, chunk] = attention::visible(a);
        let q_source = match q_part {
            Some(Sliced { node: _, x, heads, start, len: _, y }) => {
                [emit.value(*x)?, int(emit.width(*x)? / (*heads).max(1)), int(*start), emit.opt_value(*y)]
            }
            None => [emit.value(q.x)?, int(a.head_dim), int(0), Param::NULL],
        };
        let v = v_norm.as_ref().map(|norm| norm.x).or(write.v);
        let v = v.map_or_else(|| Err(BackendError::mismatch(Self::NAME)), |v| emit.value(v))?;
        let mut params = q_source.to_vec();
        params.extend([
            emit.value(k.x)?,
            v,
            int(usize::from(v_norm.is_some())),
            v_norm.as_ref().map_or(Param::NULL, |norm| emit.weights.opt_vector(norm.weight)),
            Param::F32(v_norm.as_ref().map_or(0.0, |norm| norm.eps)),
            v_norm.as_ref().map_or(Param::NULL, |norm| emit.opt_value(norm.y)),
            q_norm,
            k_norm,
            Param::F32(q_eps),
            Param::F32(k_eps),
            int(usize::from(self.norm_span() == Some(NormSpan::WholeRows))),
            int(usize::from(q.is_norm_last)),
            table,
            int(dims),
            int(usize::from(interleaved)),
            int(emit.positions_capacity),
            emit.value(attention.positions)?,
            emit.value(write.slots)?,
            normed(q),
            normed(k),
            rotated(q),
            rotated(k),
            emit.cache(attention.states[0])?,
            emit.cache(attention.states[1])?,
            emit.weights.opt_vector(a.sinks),
            emit.scratch.partial.param(),
            emit.scratch.partial_state.param(),
            emit.scratch.arrived.param(),
            emit.value(attention.y)?,
            emit.kv_code(),
            int(a.num_attention_heads),
            int(a.num_key_value_heads),
            int(a.head_dim),
            int(a.value_head_dim),
            Param::F32(a.scale),
            window,
            chunk,
            attention::soft_cap(a),
            emit.cache_rows(attention.states[0])?,
            int(splits),
            int(usize::from(tiles)),
        ]);
        let mut shared = attention::shared_bytes(a) + 4 * (attention::HEADS_PER_BLOCK + 1) * a.head_dim;
        if tiles {
            // Four warps' sums and states.
            shared += 4 * 4 * attention::HEADS_PER_BLOCK * (a.head_dim + 2);
        }
        emit.push(Self::NAME, [blocks, splits, 1], attention::TILE as u32, shared, params);
        Ok(())
    }
}
