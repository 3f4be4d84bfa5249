//! A router's norm and logits, gate and up of the same row, and a further norm of it: router_gate_up.wgsl.

use super::norm_residual::fits_in_front;
use super::{
    Matrix, Runs, WORKGROUP_BYTES, bias_and_centred, gated_params, input_params, norms, product,
    row_per_token, staged_bytes, whole_norm,
};
use crate::emit::{Emitter, Extent, Grid, NONE, Rows};
use crate::params::Param;
use moe_run_graph::groups::parts::{Gated, Product};
use moe_run_graph::groups::{GateUp, Group, NormRouter, RouterGateUp};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

const LANES: usize = 128;
const ROWS: u32 = 16;

/// The parameters of a matrix of logits, by its name in the shader.
const LOGITS: [(&str, [&str; 7]); 2] = [
    (
        "first",
        [
            "first_y",
            "first_rows",
            "first_first",
            "first_bias",
            "first_scale",
            "first_row_words",
            "first_blocks",
        ],
    ),
    (
        "second",
        [
            "second_y",
            "second_rows",
            "second_first",
            "second_bias",
            "second_scale",
            "second_row_words",
            "second_blocks",
        ],
    ),
];

impl Runs for RouterGateUp {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let RouterGateUp { router: NormRouter { post, norm, logits }, gate_up, beside } = self;
        let GateUp { norm: own, gate, up, act } = gate_up;
        // `activation_params` numbers each function.
        let Gated { node: _, gate: _, up: _, activation: _, activated: _, y: _ } = act;
        let plain = |product: &Product| {
            let Product { node: _, x: _, weight: _, bias, scale, y: _ } = product;
            bias.is_none() && scale.is_none()
        };
        let (Some(g), Some(u)) = (product(graph, gate), product(graph, up)) else { return false };
        let of_logits: Option<Vec<Matrix>> = logits.iter().map(|p| product(graph, p)).collect();
        let Some(of_logits) = of_logits else { return false };
        let logit_forms: Vec<bool> = of_logits.iter().map(|m| m.format.is_quantized()).collect();
        row_per_token(graph, norm.x)
            && post.as_ref().is_none_or(fits_in_front)
            && [Some(norm), own.as_ref(), beside.as_ref()].into_iter().flatten().all(whole_norm)
            && of_logits.len() <= LOGITS.len()
            && plain(gate)
            && plain(up)
            && (g.rows, g.cols) == (u.rows, u.cols)
            // One form of the activations serves both pairs; floats' logits take the row as it is.
            && u.format.is_quantized() == g.format.is_quantized()
            && logit_forms.iter().all(|form| *form == logit_forms[0])
            && logit_forms.first().is_some_and(|form| *form <= g.format.is_quantized())
            && staged_bytes(g.cols) + LANES * 16 <= WORKGROUP_BYTES
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        let RouterGateUp { router: NormRouter { post, norm, logits }, gate_up, beside } = self;
        let GateUp { norm: own, gate, up, act } = gate_up;
        let defect = || BackendError::mismatch(Self::NAME);
        let graph = &e.plan.graph;
        let (g, u) = (product(graph, gate).ok_or_else(defect)?, product(graph, up).ok_or_else(defect)?);
        let sizes = [("LANES", LANES as u32), ("ROWS", ROWS), ("COLS", g.cols as u32)];
        let mut variant = e.variant(Self::NAME, &sizes).input(e.input_kind(g.format));
        let mut params = input_params(e, norm.x, Some(norm), post.as_ref())?;
        let (own, beside) = (own.as_ref(), beside.as_ref());
        params.retain(|(name, _)| *name != "norms");
        params.push(("norms", norms([Some(norm), own, beside]).into()));
        let (own_bias, own_centred) = bias_and_centred(own);
        let (further_bias, further_centred) = bias_and_centred(beside);
        params.extend([
            ("own", u32::from(own.is_some()).into()),
            ("own_norm", e.small(own.and_then(|own| own.weight))?.into()),
            ("own_norm_bias", e.small(own_bias)?.into()),
            ("own_centred", own_centred.into()),
            ("own_eps", own.map_or(0.0, |own| own.eps).into()),
            ("own_normed", own.and_then(|own| e.stored(own.y)).unwrap_or(NONE).into()),
            ("further_norm", e.small(beside.and_then(|further| further.weight))?.into()),
            ("further_norm_bias", e.small(further_bias)?.into()),
            ("further_centred", further_centred.into()),
            ("further_eps", beside.map_or(0.0, |further| further.eps).into()),
            ("further_normed", beside.map_or(NONE, |further| e.output(further.y)).into()),
        ]);
        let (mut fours, mut bound) = (0, Vec::new());
        for (i, (binding, fields)) in LOGITS.into_iter().enumerate() {
            // One that is not there has no rows, and the last one's binding.
            let (at, is_there) = (i.min(logits.len().saturating_sub(1)), i < logits.len());
            let product_of = logits.get(at).ok_or_else(defect)?;
            let matrix = product(graph, product_of).ok_or_else(defect)?;
            let layout = e.layout(&product_of.weight)?;
            let rows = if is_there { matrix.rows as u32 } else { 0 };
            fours += rows.div_ceil(4);
            variant = variant.weight(binding, matrix.format);
            bound.push(&product_of.weight);
            let values: [Param; 7] = [
                e.output(product_of.y).into(),
                rows.into(),
                (matrix.first as u32).into(),
                e.small(product_of.bias)?.into(),
                product_of.scale.unwrap_or(1.0).into(),
                (layout.row_words as u32).into(),
                (layout.blocks as u32).into(),
            ];
            params.extend(fields.into_iter().zip(values));
        }
        let (logit_groups, pair_groups) = (fours.div_ceil(ROWS / 4), (g.rows as u32).div_ceil(ROWS));
        params.extend([("logit_groups", logit_groups.into()), ("pair_groups", pair_groups.into())]);
        params.extend(gated_params(e, [(&g, &gate.weight, gate.y), (&u, &up.weight, up.y)], act)?);
        let variant = variant.weight("gate", g.format).weight("up", u.format);
        let tokens = Extent::Rows { rows: Rows::of(e.shape(act.y)), times: 1, over: 1 };
        let groups = Extent::Fixed(logit_groups + pair_groups + u32::from(beside.is_some()));
        e.push(variant, Grid::new(groups, tokens, Extent::Fixed(1)), &params);
        for weight in bound.into_iter().chain([&gate.weight, &up.weight]) {
            e.bind_part(weight, 0);
        }
        Ok(())
    }
}
