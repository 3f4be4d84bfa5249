//! HeadMatMul: each head through its matrix as through an expert's; transposed, a sum of the matrix's rows.

use crate::emit::{Emitter, Extent, Grid, NONE, Rows};
use moe_run_graph::ir::{Node, WeightSlice};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;

pub(super) fn emit(
    e: &mut Emitter<'_>,
    node: &Node,
    weight: &WeightSlice,
    transposed: bool,
) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let tensor = e.matrix(node, weight)?;
    let shape = &e.plan.graph.weight(weight.tensor).shape;
    let heads = weight.experts.clone().unwrap_or(0..shape[0]);
    let format = tensor.layout.format();
    let input = e.input_kind(format);
    let x = match transposed {
        true => e.at(node.inputs[0])?,
        false => e.activations_of_heads(node.inputs[0], input, heads.len())?,
    };
    let y = e.output(value);
    let tokens = Extent::Rows { rows: Rows::of(e.shape(value)), times: 1, over: 1 };
    let (cols, rows) = (tensor.layout.cols() as u32, weight.rows.len() as u32);
    for (i, part) in tensor.parts.iter().enumerate() {
        let mut params = vec![
            ("x", x.into()),
            ("y", y.into()),
            ("cols", cols.into()),
            ("rows", rows.into()),
            ("first_row", ((heads.start * shape[1] + weight.rows.start) as u32).into()),
            ("row_begin", (part.start as u32).into()),
            ("row_end", (part.end as u32).into()),
            ("row_words", (tensor.layout.row_words as u32).into()),
            ("weight_blocks", (tensor.layout.blocks as u32).into()),
        ];
        let (variant, groups) = if transposed {
            params.extend([
                ("head_rows", (shape[1] as u32).into()),
                ("heads", (heads.len() as u32).into()),
                ("adds", u32::from(i > 0).into()),
            ]);
            let variant = e.variant("head_matmul_transposed", &[("LANES", LANES)]);
            (variant.weight("weight", format), cols.div_ceil(16).div_ceil(LANES))
        } else {
            params.extend([
                ("ids", NONE.into()),
                ("experts_per_token", (heads.len() as u32).into()),
                ("input_per_expert", 1u32.into()),
                ("expert_rows", (shape[1] as u32).into()),
                ("num_experts", (heads.len() as u32).into()),
                ("bias", NONE.into()),
            ]);
            let variant = e.variant("expert_matmul", &[("LANES", LANES)]);
            (variant.weight("weight", format).input(input), rows.div_ceil(4))
        };
        e.push(variant, Grid::new(Extent::Fixed(groups), Extent::Fixed(heads.len() as u32), tokens), &params);
        e.bind_part(weight, i);
    }
    Ok(())
}
