//! kernels/router_gate_up.cu.

use super::norm_residual::{fits_in_front, in_front_params};
use super::{Runs, any_rows, int, matmul, norm_params, normed_bytes, one_row, stage, whole_norm, width};
use crate::driver::Param;
use crate::ops::{Emit, activation_params};
use moe_run_graph::groups::parts::{Gated, Product};
use moe_run_graph::groups::{GateUp, Group, NormRouter, RouterGateUp};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

/// The products of logits that the kernel takes.
const MAX_LOGITS: usize = 2;

impl Runs for RouterGateUp {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let RouterGateUp { router: NormRouter { post, norm, logits }, gate_up, beside } = self;
        let GateUp { norm: own, gate, up, act } = gate_up;
        // `activation_params` numbers each function.
        let Gated { node: _, gate: _, up: _, activation: _, activated: _, y: _ } = act;
        let any = |product: &Product| {
            let Product { node: _, x: _, weight, bias: _, scale: _, y: _ } = product;
            any_rows(graph, weight)
        };
        let plain = |product: &Product| any(product) && product.bias.is_none() && product.scale.is_none();
        one_row(graph, norm.x)
            && post.as_ref().is_none_or(|post| fits_in_front(graph, post))
            && [Some(norm), own.as_ref(), beside.as_ref()].into_iter().flatten().all(|n| whole_norm(graph, n))
            && logits.len() <= MAX_LOGITS
            && logits.iter().all(any)
            && plain(gate)
            && plain(up)
            && width(graph, gate.y) == width(graph, up.y)
    }

    fn emit(&self, emit: &mut Emit<'_>) -> Result<(), BackendError> {
        let RouterGateUp { router: NormRouter { post, norm, logits }, gate_up, beside } = self;
        let GateUp { norm: own, gate, up, act } = gate_up;
        let n = emit.width(norm.x)?;
        let (gate_matrix, up_matrix) =
            (emit.weights.matrix(emit.graph, &gate.weight), emit.weights.matrix(emit.graph, &up.weight));
        let pair_forms = stage(emit, gate_matrix.format) | stage(emit, up_matrix.format);
        let (mut logit_forms, mut logit_rows, mut of_logits) = (0, 0, Vec::new());
        for i in 0..MAX_LOGITS {
            let Some(Product { node: _, x: _, weight, bias, scale, y }) = logits.get(i) else {
                let none = Param::NULL;
                of_logits.extend([int(0), none, Param::U64(0), none, Param::F32(0.0), none, int(0)]);
                continue;
            };
            let matrix = emit.weights.matrix(emit.graph, weight);
            logit_forms |= stage(emit, matrix.format);
            logit_rows += matrix.rows;
            of_logits.extend([
                matrix.code(),
                matrix.data,
                Param::U64(matrix.row_bytes),
                emit.weights.opt_vector(*bias),
                Param::F32(scale.unwrap_or(1.0)),
                emit.value(*y)?,
                int(matrix.rows),
            ]);
        }
        let shared = normed_bytes(n, logit_forms).max(normed_bytes(n, pair_forms));
        let at_once = emit.blocks_at_once(Self::NAME, matmul::THREADS, shared)?;
        // Two rows of logits are a warp's. What the device holds beside their blocks, and beside the further norm's, is gate's and
        // up's.
        let logit_blocks = logit_rows.div_ceil(2).div_ceil(matmul::ROWS_PER_BLOCK).min(at_once);
        let left = at_once.saturating_sub(logit_blocks + usize::from(beside.is_some())).max(1);
        let pair_blocks = gate_matrix.rows.div_ceil(matmul::ROWS_PER_BLOCK).min(left);
        let mut params = vec![emit.value(post.as_ref().map_or(norm.x, |post| post.norm.x))?];
        params.extend(match post {
            Some(post) => in_front_params(emit, post)?,
            None => [Param::NULL, Param::F32(0.0), Param::NULL, Param::NULL, Param::NULL],
        });
        params.extend(norm_params(emit, Some(norm)));
        params.extend([emit.opt_value(norm.y), int(usize::from(own.is_some()))]);
        params.extend(norm_params(emit, own.as_ref()));
        params.push(own.as_ref().map_or(Param::NULL, |own| emit.opt_value(own.y)));
        params.extend(norm_params(emit, beside.as_ref()));
        params.push(beside.as_ref().map_or(Ok(Param::NULL), |beside| emit.value(beside.y))?);
        params.extend([
            int(n),
            Param::I32(logit_forms),
            Param::I32(pair_forms),
            int(logit_blocks),
            int(pair_blocks),
        ]);
        params.append(&mut of_logits);
        params.extend([
            gate_matrix.code(),
            gate_matrix.data,
            Param::U64(gate_matrix.row_bytes),
            up_matrix.code(),
            up_matrix.data,
            Param::U64(up_matrix.row_bytes),
        ]);
        params.extend(activation_params(Some(act.activation)));
        params.extend([
            emit.opt_value(gate.y),
            emit.opt_value(up.y),
            emit.opt_value(act.activated),
            emit.value(act.y)?,
            int(gate_matrix.rows),
        ]);
        let grid = [logit_blocks + pair_blocks + usize::from(beside.is_some()), 1, 1];
        emit.push(Self::NAME, grid, matmul::THREADS, shared, params);
        Ok(())
    }
}
