// MatMul for many tokens: tiles of W and x in workgroup memory. Grid (out / TILE_ROWS, tokens / TILE_TOKENS).
#include numbers
#include arena
#include packed
#include decode weight
#include activations
#include tile weight

struct Params {
    x: u32,
    y: u32,
    cols: u32,
    y_stride: u32,
    rows: u32,
    y_begin: u32,
    row_words: u32,
    weight_blocks: u32,
    axis: u32,
    rows_each: u32,
    // The place in this part of the first row.
    first_row: u32,
    bias: u32,
    scale: f32,
    residual: u32,
}

@group(0) @binding(4) var<storage, read> weight: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tokens = axis_rows(p.axis, p.rows_each);
    let first_row = wg.x * TILE_ROWS;
    let first_token = wg.y * TILE_TOKENS;
    if (first_token >= tokens) {
        return;
    }
    let w_row = (p.first_row + min(first_row + loaded_row(lane), p.rows - 1u)) * p.row_words;
    let x_row = p.x + min(first_token + loaded_token(lane), tokens - 1u) * activation_row_words(p.cols);
    multiply_tile(lane, w_row, x_row, p.cols);
    for (var j = 0u; j < LANE_TOKENS; j++) {
        for (var i = 0u; i < LANE_ROWS; i++) {
            let out = first_row + tile_row(lane, i);
            let t = first_token + tile_token(lane, j);
            if (out < p.rows && t < tokens) {
                var value = tile_sums[j * LANE_ROWS + i] * p.scale;
                if (p.bias != NONE) {
                    value += small(p.bias + p.y_begin + out);
                }
                let at = t * p.y_stride + p.y_begin + out;
                if (p.residual != NONE) {
                    value += load(p.residual + at);
                }
                store(p.y + at, value);
            }
        }
    }
}
