// MatMul for a few tokens: x [rows, in] · Wᵀ → [rows, out]. A workgroup computes four outputs of one token, its lanes
// sharing the row; grid (out / 4, tokens, overflow of x). A tensor split by rows takes one dispatch a part.
#include numbers
#include arena
#include lanes
#include packed
#include decode weight
#include activations
#include dot weight

struct Params {
    x: u32,
    y: u32,
    cols: u32,
    // Words from one token's outputs to the next.
    y_stride: u32,
    // The rows of W that this dispatch multiplies, and where they are written in a token's outputs.
    rows: u32,
    y_begin: u32,
    row_words: u32,
    weight_blocks: u32,
    axis: u32,
    rows_each: u32,
    // The place in this part of the first row.
    first_row: u32,
    // [out] in `smalls`, or NONE.
    bias: u32,
    scale: f32,
    // Added to the product, laid out as y; or NONE.
    residual: u32,
}

@group(0) @binding(4) var<storage, read> weight: array<u32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    let row = (wg.z * grid.x + wg.x) * 4u;
    if (row >= p.rows || wg.y >= axis_rows(p.axis, p.rows_each)) {
        return;
    }
    let x = p.x + wg.y * activation_row_words(p.cols);
    let last = p.rows - 1u;
    let row0 = (p.first_row + row) * p.row_words;
    let row1 = (p.first_row + min(row + 1u, last)) * p.row_words;
    let row2 = (p.first_row + min(row + 2u, last)) * p.row_words;
    let row3 = (p.first_row + min(row + 3u, last)) * p.row_words;
    var sums = vec4<f32>(0.0);
    let groups = (p.cols + 15u) / 16u;
    for (var group = lane.index; group < groups; group += LANES) {
        let a = load_activations(x, group, p.cols);
        sums += vec4<f32>(weight_dot(row0, group, a), weight_dot(row1, group, a), weight_dot(row2, group, a),
            weight_dot(row3, group, a));
    }
    let total = sum_lanes4(lane, sums);
    let out = row + lane.index;
    if (lane.index < 4u && out < p.rows) {
        var value = total[lane.index] * p.scale;
        if (p.bias != NONE) {
            value += small(p.bias + p.y_begin + out);
        }
        let at = wg.y * p.y_stride + p.y_begin + out;
        if (p.residual != NONE) {
            value += load(p.residual + at);
        }
        store(p.y + at, value);
    }
}
