//! ExpertMatMul: for a few tokens each chosen expert by itself; for many, the tokens grouped by expert, in tiles.

use crate::emit::{Emitter, Extent, FEW_ROWS, Grid, Rows};
use moe_run_graph::ir::{Graph, Node, WeightId, WeightSlice};
use moe_run_runtime::error::BackendError;

const LANES: u32 = 64;
const GROUPING_LANES: u32 = 128;
/// The most experts whose tokens a workgroup counts.
const MAX_EXPERTS: usize = 1024;
const TILE_ROWS: u32 = 64;
const TILE_TOKENS: u32 = 16;

pub(super) fn emit(
    e: &mut Emitter<'_>,
    node: &Node,
    weight: &WeightSlice,
    bias: Option<WeightId>,
) -> Result<(), BackendError> {
    let value = node.outputs[0];
    let rows = Rows::of(e.shape(value));
    let tokens = Rows { each: 1, ..rows };
    let out = e.width(node, value)?;
    let experts_per_token = e.width(node, node.inputs[1])?;
    let tensor = e.matrix(node, weight)?;
    let shape = &e.plan.graph.weight(weight.tensor).shape;
    let experts = weight.experts.clone().unwrap_or(0..shape[0]);
    let format = tensor.layout.format();
    let input = e.input_kind(format);
    let ids = e.at(node.inputs[1])?;
    let x = e.activations(node.inputs[0], input)?;
    let y = e.output(value);
    let input_per_expert = u32::from(e.shape(node.inputs[0]).0.len() == 3);
    let pairs = rows.count(e.plan.max_sizes);
    let few = tokens.count(e.plan.max_sizes) <= FEW_ROWS;
    let max_tiles = pairs.div_ceil(TILE_TOKENS as usize) + experts.len();
    let (sorted, tiles) = if few { (0, 0) } else { (e.scratch(pairs), e.scratch(1 + 3 * max_tiles)) };
    if !few {
        let sizes =
            [("LANES", GROUPING_LANES), ("EXPERTS", experts.len() as u32), ("TILE_TOKENS", TILE_TOKENS)];
        let params = [
            ("ids", ids.into()),
            ("sorted", sorted.into()),
            ("tiles", tiles.into()),
            ("experts_per_token", experts_per_token.into()),
            ("num_experts", (experts.len() as u32).into()),
        ];
        let one = Extent::Fixed(1);
        e.push(e.variant("group_tokens", &sizes), Grid::new(one, one, one), &params);
    }
    for (i, part) in tensor.parts.iter().enumerate() {
        let mut params = vec![
            ("x", x.into()),
            ("y", y.into()),
            ("cols", (tensor.layout.cols() as u32).into()),
            ("rows", out.into()),
            ("experts_per_token", experts_per_token.into()),
            ("input_per_expert", input_per_expert.into()),
            ("expert_rows", (shape[1] as u32).into()),
            ("first_row", ((experts.start * shape[1] + weight.rows.start) as u32).into()),
            ("row_begin", (part.start as u32).into()),
            ("row_end", (part.end as u32).into()),
            ("row_words", (tensor.layout.row_words as u32).into()),
            ("weight_blocks", (tensor.layout.blocks as u32).into()),
            ("bias", e.small(bias)?.into()),
        ];
        if few {
            params.extend([("ids", ids.into()), ("num_experts", (experts.len() as u32).into())]);
            let variant =
                e.variant("expert_matmul", &[("LANES", LANES)]).weight("weight", format).input(input);
            let z = Extent::Rows { rows: tokens, times: 1, over: 1 };
            e.push(
                variant,
                Grid::new(Extent::Fixed(out.div_ceil(4)), Extent::Fixed(experts_per_token), z),
                &params,
            );
        } else {
            params.extend([("sorted", sorted.into()), ("tiles", tiles.into())]);
            let sizes = [
                ("TILE_ROWS", TILE_ROWS),
                ("TILE_TOKENS", TILE_TOKENS),
                ("LANE_ROWS", 4),
                ("LANE_TOKENS", 1),
            ];
            let variant = e.variant("expert_matmul_tile", &sizes).weight("weight", format).input(input);
            let grid = Grid::new(
                Extent::Fixed(out.div_ceil(TILE_ROWS)),
                Extent::Tiles { rows, over: TILE_TOKENS, more: experts.len() as u32 },
                Extent::Fixed(1),
            );
            e.push(variant, grid, &params);
        }
        e.bind_part(weight, i);
    }
    Ok(())
}

pub(super) fn lacking(graph: &Graph, weight: &WeightSlice) -> Option<String> {
    let experts = graph.weight(weight.tensor).shape.first().copied().unwrap_or(0);
    (experts > MAX_EXPERTS).then(|| format!("{experts} experts, wanted at most {MAX_EXPERTS}"))
}
