//! RmsNorm, or none, gate and up of a dense layer or a shared expert, and the activation of both.

use super::{
    Runs, WORKGROUP_BYTES, gated_params, input_params, product, row_per_token, staged_bytes, whole_norm,
};
use crate::emit::{Emitter, Extent, Grid, Rows};
use moe_run_graph::groups::parts::{Gated, Product};
use moe_run_graph::groups::{GateUp, Group};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

const LANES: usize = 128;
const ROWS: u32 = 16;

impl Runs for GateUp {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let GateUp { norm, gate, up, act } = self;
        // `activation_params` numbers each function.
        let Gated { node: _, gate: _, up: _, activation: _, activated: _, y: _ } = act;
        let plain = |product: &Product| {
            let Product { node: _, x: _, weight: _, bias, scale, y: _ } = product;
            bias.is_none() && scale.is_none()
        };
        let (Some(g), Some(u)) = (product(graph, gate), product(graph, up)) else { return false };
        norm.as_ref().is_none_or(whole_norm)
            && row_per_token(graph, gate.x)
            && plain(gate)
            && plain(up)
            && (g.rows, g.cols) == (u.rows, u.cols)
            && g.format.is_quantized() == u.format.is_quantized()
            && staged_bytes(g.cols) + LANES * 16 <= WORKGROUP_BYTES
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        let GateUp { norm, gate, up, act } = self;
        let graph = &e.plan.graph;
        let (Some(g), Some(u)) = (product(graph, gate), product(graph, up)) else {
            return Err(BackendError::mismatch(Self::NAME));
        };
        let (rows, cols) = (g.rows as u32, g.cols as u32);
        let sizes = [("LANES", LANES as u32), ("ROWS", ROWS), ("COLS", cols)];
        let variant = e.variant("gate_up", &sizes).weight("gate", g.format).weight("up", u.format);
        let variant = variant.input(e.input_kind(g.format));
        let x = norm.as_ref().map_or(gate.x, |norm| norm.x);
        let mut params = input_params(e, x, norm.as_ref(), None)?;
        params.extend(gated_params(e, [(&g, &gate.weight, gate.y), (&u, &up.weight, up.y)], act)?);
        let tokens = Extent::Rows { rows: Rows::of(e.shape(act.y)), times: 1, over: 1 };
        e.push(variant, Grid::new(Extent::Fixed(rows.div_ceil(ROWS)), tokens, Extent::Fixed(1)), &params);
        e.bind_part(&gate.weight, 0);
        e.bind_part(&up.weight, 0);
        Ok(())
    }
}
