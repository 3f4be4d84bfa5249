//! The down matmul of the chosen experts, their weighted sum, the shared expert, and the addition to the residual stream.

use super::{Runs, WORKGROUP_BYTES, experts, product, row_per_token, staged_bytes};
use crate::emit::{Emitter, Extent, Grid, NONE, Rows};
use moe_run_graph::groups::parts::{Combined, Product, Scaled, Sum};
use moe_run_graph::groups::{DownCombine, Group, SharedExpert, SharedGate, Sums};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

const ROWS: u32 = 8;

/// Lanes by the activations that they share the workgroup's memory with.
fn lanes(elems: usize) -> Option<usize> {
    // Two sums of four f32 for every lane.
    [128, 64].into_iter().find(|lanes| staged_bytes(elems) + lanes * 32 <= WORKGROUP_BYTES)
}

impl Runs for DownCombine {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let DownCombine { down, combined, shared, add } = self;
        let Combined { node: _, x: _, weights, y: _ } = combined;
        let sums = |shared: &SharedExpert| {
            let SharedExpert { down, x, gate, add: Sum { node: _, other: _, y: _ }, scaled } = shared;
            let plain = |down: &Product| {
                let Product { node: _, x, weight: _, bias, scale: _, y: _ } = down;
                bias.is_none() && row_per_token(graph, *x)
            };
            scaled.iter().for_each(|Scaled { node: _, x: _, factor: _, y: _ }| {});
            row_per_token(graph, *x)
                && gate.as_ref().is_none_or(SharedGate::is_sigmoid)
                && down.as_ref().is_none_or(plain)
        };
        let Some(matrix) = experts(graph, down) else { return false };
        let chosen = graph.value(*weights).shape.width().unwrap_or(usize::MAX);
        let beside = match shared.as_ref().and_then(|shared| shared.down.as_ref()) {
            None => 0,
            Some(down) => match product(graph, down) {
                // One form of the activations serves both.
                Some(m) if m.format.is_quantized() == matrix.format.is_quantized() => m.cols,
                _ => return false,
            },
        };
        graph.value(down.x).shape.0.len() == 3
            && matrix.cols % 16 == 0
            && chosen <= 64
            && lanes((chosen * matrix.cols).saturating_add(beside))
                .is_some_and(|lanes| lanes >= chosen.next_power_of_two())
            && shared.as_ref().is_none_or(sums)
            && add.as_ref().is_none_or(|Sum { node: _, other: _, y: _ }| true)
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        let DownCombine { down, combined, shared, add } = self;
        let defect = || BackendError::mismatch(Self::NAME);
        let graph = &e.plan.graph;
        let matrix = experts(graph, down).ok_or_else(defect)?;
        let layout = e.layout(&down.weight)?;
        let chosen = graph.value(combined.weights).shape.width().ok_or_else(defect)?;
        let shared_down = shared.as_ref().and_then(|shared| shared.down.as_ref());
        let shared_matrix = shared_down.and_then(|down| product(graph, down));
        let elems = chosen * matrix.cols + shared_matrix.as_ref().map_or(0, |matrix| matrix.cols);
        let lanes = lanes(elems).ok_or_else(defect)?;
        let experts = graph.weight(down.weight.tensor).shape[0];
        let rows = matrix.rows as u32;
        let sizes = [
            ("LANES", lanes as u32),
            ("ROWS", ROWS),
            ("COLS", (elems as u32).next_multiple_of(32)),
            ("EXPERT_SLOTS", chosen.next_power_of_two() as u32),
        ];
        let input = e.input_kind(matrix.format);
        let mut variant = e.variant(Self::NAME, &sizes).weight("weight", matrix.format).input(input);
        if let Some(matrix) = &shared_matrix {
            variant = variant.weight("shared_w", matrix.format).fused();
        }
        let stored = |e: &Emitter<'_>, value| e.stored(value).unwrap_or(NONE);
        let gate = shared.as_ref().and_then(|shared| shared.gate.as_ref());
        // What comes before the last sum is written if somebody reads it.
        let scaled = shared.as_ref().and_then(|shared| shared.scaled.as_ref());
        let Sums { y, routed, with_shared, mean } = self.sums();
        let [sum, with_shared, mean] =
            [routed, with_shared, mean].map(|value| value.map_or(NONE, |value| stored(e, value)));
        let shared_x = shared_down.map(|down| down.x).or(shared.as_ref().map(|shared| shared.x));
        let mut params = vec![
            ("x", e.at(down.x)?.into()),
            ("ids", e.at(down.ids)?.into()),
            ("weights", e.at(combined.weights)?.into()),
            ("shared_x", shared_x.map_or(Ok(NONE), |x| e.at(x))?.into()),
            ("shared_logit", gate.map_or(Ok(NONE), |g| e.at(g.routing.logits))?.into()),
            ("shared_scale", gate.map_or(1.0, |g| g.routing.attrs.scale).into()),
            ("factor_id", gate.map_or(NONE, |g| stored(e, g.routing.ids)).into()),
            ("factor", gate.map_or(NONE, |g| stored(e, g.routing.weights)).into()),
            ("gated", gate.map_or(NONE, |g| stored(e, g.gated.y)).into()),
            ("with_shared", with_shared.into()),
            ("sum_scale", scaled.map_or(1.0, |scaled| scaled.factor).into()),
            ("scaled", mean.into()),
            ("residual", add.as_ref().map_or(Ok(NONE), |add| e.at(add.other))?.into()),
            ("y", e.output(y).into()),
            ("expert_y", stored(e, down.y).into()),
            ("combined", sum.into()),
            ("cols", (matrix.cols as u32).into()),
            ("rows", rows.into()),
            ("first_row", (matrix.first as u32).into()),
            ("expert_rows", (matrix.expert_rows as u32).into()),
            ("bias", e.small(down.bias)?.into()),
            ("num_experts", (experts as u32).into()),
            ("experts_per_token", (chosen as u32).into()),
            ("weight_row_words", (layout.row_words as u32).into()),
            ("weight_blocks", (layout.blocks as u32).into()),
        ];
        if let (Some(down), Some(matrix)) = (shared_down, &shared_matrix) {
            let layout = e.layout(&down.weight)?;
            params.extend([
                ("shared_cols", (matrix.cols as u32).into()),
                ("shared_first", (matrix.first as u32).into()),
                ("shared_y", stored(e, down.y).into()),
                ("shared_down_scale", down.scale.unwrap_or(1.0).into()),
                ("shared_w_row_words", (layout.row_words as u32).into()),
                ("shared_w_blocks", (layout.blocks as u32).into()),
            ]);
        }
        let tokens = Extent::Rows { rows: Rows::of(e.shape(combined.y)), times: 1, over: 1 };
        e.push(variant, Grid::new(Extent::Fixed(rows.div_ceil(ROWS)), tokens, Extent::Fixed(1)), &params);
        e.bind_part(&down.weight, 0);
        if let Some(down) = shared_down {
            e.bind_part(&down.weight, 0);
        }
        Ok(())
    }
}
