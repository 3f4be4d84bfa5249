// One matmul with what stands before or behind it, for a few tokens: RmsNorm → MatMul (the router), or MatMul → Add (o_proj
// and the residual stream). Every workgroup prepares the row for itself and computes ROWS outputs. Grid (rows / ROWS, T).
#include numbers
#include arena
#include lanes
#include packed
#include quantize_block
#include decode weight
#include activations
#include staged
#include dot weight
#include rows weight

struct Params {
    x: u32,
    // In `smalls`, or NONE.
    norm: u32,
    eps: f32,
    cols: u32,
    // The normed row, where somebody reads it; or NONE.
    normed: u32,
    rows: u32,
    // The first row in the tensor.
    first: u32,
    // In `smalls`, or NONE.
    bias: u32,
    scale: f32,
    // The product by itself, where somebody reads it; or NONE.
    product: u32,
    // Added to the product to give y; or NONE.
    residual: u32,
    y: u32,
    weight_row_words: u32,
    weight_blocks: u32,
}

@group(0) @binding(4) var<storage, read> weight: array<u32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.y >= now.tokens) {
        return;
    }
    stage(lane, p.x + wg.y * p.cols, p.cols, p.norm, p.eps);
    if (wg.x == 0u && p.normed != NONE) {
        for (var i = lane.index; i < p.cols; i += LANES) {
            store(p.normed + wg.y * p.cols + i, staged_value(i));
        }
    }
    for (var i = 0u; i < ROWS; i += 4u) {
        let row = wg.x * ROWS + i;
        if (row >= p.rows) {
            break;
        }
        let sums = weight_four_rows(lane, p.first + row, p.first + p.rows - 1u, p.cols);
        let out = row + lane.index;
        if (lane.index < 4u && out < p.rows) {
            let at = wg.y * p.rows + out;
            var sum = sums[lane.index] * p.scale;
            if (p.bias != NONE) {
                sum += small(p.bias + out);
            }
            if (p.product != NONE) {
                store(p.product + at, sum);
            }
            if (p.residual != NONE) {
                store(p.y + at, load(p.residual + at) + sum);
            } else {
                store(p.y + at, sum);
            }
        }
    }
}
