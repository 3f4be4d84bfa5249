//! kernels/latent_heads.cu.

use super::{
    MAX_NORM_ELEMS, Runs, any_rows, int, matmul, normed_bytes, one_row, stage, staged_bytes, whole_norm,
    width,
};
use crate::driver::Param;
use crate::ops::Emit;
use moe_run_graph::groups::parts::{Product, Rotated, RowNorm, RowNormKind};
use moe_run_graph::groups::{Group, LatentHeads, LatentQuery};
use moe_run_graph::ir::{Graph, PositionScaleAttrs, RopePairing};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

/// Shared memory of a block.
const SHARED_BYTES: usize = 48 * 1024;

/// A plain RMSNorm that a block can hold.
fn plain_norm(graph: &Graph, norm: &RowNorm) -> bool {
    whole_norm(graph, norm) && norm.kind == RowNormKind::Rms
}

/// Elements of a query, of its part that meets the latent, of its rotated part, and of the latent.
fn widths(group: &LatentHeads, graph: &Graph) -> [usize; 4] {
    let heads = group.q_joined.heads.max(1);
    let d = width(graph, group.nope.x) / heads;
    [d, group.nope.len, group.pe.len, width(graph, group.c_norm.x)]
}

impl Runs for LatentHeads {
    fn fits(&self, graph: &Graph, kv_type: KvType) -> bool {
        // The others, and what their heads, rotations and factors are, is told by `is_placed_alike`.
        let LatentHeads {
            query,
            nope,
            pe,
            q_rope: _,
            absorbed,
            q_joined: _,
            tempered: _,
            c_norm,
            k_rope: _,
            k_joined: _,
            write,
        } = self;
        let of_latent = |LatentQuery { norm, product }: &LatentQuery| {
            let Product { node: _, x, weight, bias: None, scale: None, y: _ } = product else { return false };
            plain_norm(graph, norm) && any_rows(graph, weight) && one_row(graph, *x)
        };
        let [d, nope_width, pe_width, rank] = widths(self, graph);
        let unit = if kv_type == KvType::Q8_0 { 32 } else { 4 };
        // What is kept at most: both forms of the latent of queries, a query, its part in 8 bits; or the key.
        let kept = query.as_ref().map_or(0, |query| normed_bytes(width(graph, query.norm.x), 3));
        query.as_ref().is_none_or(of_latent)
            && one_row(graph, nope.x)
            && self.is_placed_alike(graph)
            // It writes the slot as it is: no latent is read within a window alone.
            && graph.state(write.key).window().is_none()
            && any_rows(graph, &absorbed.weight)
            && plain_norm(graph, c_norm)
            && [nope.start, pe.start, d, nope_width, pe_width, rank].iter().all(|n| n.is_multiple_of(4))
            && (rank + pe_width).is_multiple_of(unit)
            && rank + pe_width <= MAX_NORM_ELEMS
            && kept.saturating_add(4 * d + staged_bytes(nope_width, 1) + 16) <= SHARED_BYTES
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        let LatentHeads {
            query,
            nope,
            pe,
            q_rope,
            absorbed,
            q_joined,
            tempered,
            c_norm,
            k_rope,
            k_joined,
            write,
        } = self;
        let [d, nope_width, pe_width, rank] = widths(self, emit.graph);
        let heads = q_joined.heads;
        let k_matrix = emit.weights.matrix(emit.graph, &absorbed.weight);
        let k_forms = stage(emit, k_matrix.format);
        let mut q_at = 0;
        let mut params = Vec::new();
        match query {
            Some(LatentQuery { norm, product }) => {
                let matrix = emit.weights.matrix(emit.graph, &product.weight);
                let forms = stage(emit, matrix.format);
                q_at = normed_bytes(matrix.inner, forms).next_multiple_of(16);
                params.extend([
                    emit.value(norm.x)?,
                    emit.weights.opt_vector(norm.weight),
                    Param::F32(norm.eps),
                    emit.opt_value(norm.y),
                    int(matrix.inner),
                    matrix.code(),
                    matrix.data,
                    Param::U64(matrix.row_bytes),
                    Param::I32(forms),
                    int(q_at),
                    emit.opt_value(product.y),
                ]);
            }
            None => params.extend([
                emit.value(nope.x)?,
                Param::NULL,
                Param::F32(0.0),
                Param::NULL,
                int(0),
                int(0),
                Param::NULL,
                Param::U64(0),
                int(0),
                int(0),
                Param::NULL,
            ]),
        }
        let turned =
            |rope: &Option<Rotated>| rope.as_ref().map_or(Param::NULL, |rope| emit.opt_value(rope.y));
        let (table, dims, interleaved) = match q_rope {
            Some(rope) => (
                emit.rope_tables[rope.table.index()].param(),
                emit.graph.rope_tables[rope.table.index()].dims,
                rope.pairing == RopePairing::Interleaved,
            ),
            None => (Param::NULL, 0, false),
        };
        let (joined, y, factor) = match tempered {
            Some(tempered) => {
                let PositionScaleAttrs { scale, length, offset } = tempered.attrs;
                (emit.opt_value(q_joined.y), tempered.y, [Param::F32(scale), int(length), int(offset)])
            }
            None => (Param::NULL, q_joined.y, [Param::F32(0.0), int(0), int(0)]),
        };
        params.extend([
            int(d),
            int(nope.start),
            int(pe.start),
            emit.opt_value(nope.y),
            emit.opt_value(pe.y),
            turned(q_rope),
            k_matrix.code(),
            k_matrix.data,
            Param::U64(k_matrix.row_bytes),
            Param::U64(k_matrix.expert_bytes),
            Param::I32(k_forms),
            emit.opt_value(absorbed.y),
            joined,
            int(rank),
            int(nope_width),
            int(pe_width),
        ]);
        params.extend(factor);
        params.extend([
            table,
            int(dims),
            int(usize::from(interleaved)),
            int(emit.positions_capacity),
            emit.value(emit.graph.inputs.positions)?,
            emit.value(y)?,
            emit.value(c_norm.x)?,
            emit.weights.opt_vector(c_norm.weight),
            Param::F32(c_norm.eps),
            emit.opt_value(c_norm.y),
            emit.value(k_rope.as_ref().map_or(k_joined.b, |rope| rope.x))?,
            turned(k_rope),
            emit.opt_value(k_joined.y),
            emit.value(write.slots)?,
            emit.state.param(write.key),
            emit.kv_code(),
            int(emit.positions_capacity),
        ]);
        // Blocks of a head make its query anew: no more than keep the device busy.
        let busy = emit.scratch.multiprocessors as usize * if query.is_some() { 1 } else { 4 };
        let parts = (busy / heads.max(1)).clamp(1, rank.div_ceil(matmul::ROWS_PER_BLOCK));
        let shared = (q_at + 4 * d + staged_bytes(nope_width, k_forms)).max(4 * (rank + pe_width));
        emit.push(Self::NAME, [parts, heads + 1, 1], matmul::THREADS, shared, params);
        Ok(())
    }
}
