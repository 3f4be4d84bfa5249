// One matmul with what stands before or behind it, for a few tokens: norm → MatMul (the router), or MatMul → Add (o_proj and the
// residual stream). Every workgroup prepares the row for itself and computes ROWS outputs. Grid (rows / ROWS, T).
#include numbers
#include arena
#include lanes
#include packed
#include quantize_block
#include decode weight
#include activations
#include normed_input
#include staged
#include staged_row
#include dot weight
#include rows weight
#include product_rows

struct Params {
#include normed_params
#include product_params
}

@group(0) @binding(4) var<storage, read> weight: array<u32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.y >= now.tokens) {
        return;
    }
    stage_row(lane, wg.y, wg.x == 0u);
    product_rows(lane, wg.x * ROWS, wg.y);
}
