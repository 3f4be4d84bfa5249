//! A gate, perhaps a norm of heads, a matmul of what comes out, and the addition to the residual stream: gated_matmul.wgsl.

use super::matmul_residual::{self, LANES, ROWS, Target};
use super::{Runs, WORKGROUP_BYTES, part_names, part_values, product, row_per_token, staged_bytes};
use crate::emit::{Emitter, NONE};
use crate::ops::{activation_params, rms_norm};
use moe_run_graph::groups::parts::{Gated, HeadsScaled, Norm, Sliced, Sum};
use moe_run_graph::groups::{GatedMatMul, Group, RowGate};
use moe_run_graph::ir::Graph;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::KvType;

/// The heads that are normed; 1 without a norm.
fn heads(group: &GatedMatMul) -> usize {
    group.norm.as_ref().map_or(1, |Norm { node: _, x: _, weight: _, eps: _, heads, y: _ }| *heads)
}

impl Runs for GatedMatMul {
    fn fits(&self, graph: &Graph, _: KvType) -> bool {
        let GatedMatMul { gate_part, gate, norm: _, is_norm_last: _, product: p, add } = self;
        let width = |value| graph.value(value).shape.width();
        // `activation_params` numbers each function.
        let same_width = match gate {
            RowGate::Elements(Gated { node: _, gate, up, activation: _, activated: _, y: _ }) => {
                width(*gate) == width(*up)
            }
            RowGate::Heads {
                act: Gated { node: _, gate: _, up: _, activation: _, activated: _, y: _ },
                scaled: HeadsScaled { node: _, x: _, factors: _, y: _ },
            } => true,
        };
        gate_part.iter().for_each(|Sliced { node: _, x: _, heads: _, start: _, len: _, y: _ }| {});
        add.iter().for_each(|Sum { node: _, other: _, y: _ }| {});
        // Sums of four and squares of every lane, a factor of every head.
        let memory = |cols| staged_bytes(cols) + LANES * 20 + heads(self) * 4;
        same_width
            && row_per_token(graph, p.x)
            && product(graph, p).is_some_and(|matrix| memory(matrix.cols) <= WORKGROUP_BYTES)
    }

    fn emit(&self, e: &mut Emitter<'_>) -> Result<(), BackendError> {
        let GatedMatMul { gate_part, gate, norm, is_norm_last, product: p, add } = self;
        let defect = || BackendError::mismatch(Self::NAME);
        let cols = product(&e.plan.graph, p).ok_or_else(defect)?.cols;
        let (act, gate_width) = match gate {
            RowGate::Elements(act) => (act, 0),
            RowGate::Heads { act, scaled } => {
                (act, cols / e.shape(scaled.factors).width().ok_or_else(defect)?.max(1))
            }
        };
        let heads = heads(self);
        let x = norm.as_ref().filter(|_| !is_norm_last).map_or(gate.x(), |norm| norm.x);
        let weight = norm.as_ref().and_then(|norm| norm.weight);
        let norm_place = match norm {
            None => 0u32,
            Some(_) if *is_norm_last => 2,
            Some(_) => 1,
        };
        let stored = |e: &Emitter<'_>, value| e.stored(value).unwrap_or(NONE);
        let mut params = vec![
            ("x", e.at(x)?.into()),
            ("cols", (cols as u32).into()),
            ("gate_width", (gate_width as u32).into()),
            ("activated", stored(e, act.activated).into()),
            ("gated", stored(e, gate.y()).into()),
            ("normed", norm.as_ref().map_or(NONE, |norm| stored(e, norm.y)).into()),
            ("norm_place", norm_place.into()),
            ("norm", e.small(weight)?.into()),
            ("norm_step", rms_norm::weight_step(e, weight, cols / heads.max(1)).into()),
            ("eps", norm.as_ref().map_or(0.0, |norm| norm.eps).into()),
        ];
        params.extend(part_names!("gate").into_iter().zip(part_values(e, gate_part.as_ref(), act.gate)?));
        params.extend(activation_params(Some(act.activation)));
        let sizes = [("HEADS", heads as u32), ("HEAD_LANES", (LANES / heads).max(1) as u32)];
        let to = Target { bound: None, add: add.as_ref(), rows_each: ROWS };
        matmul_residual::emit(e, "gated_matmul", &sizes, params, p, to)
    }
}
