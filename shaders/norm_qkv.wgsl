// RmsNorm and two or three matmuls that read it in one launch, for a few tokens: every workgroup norms the row for itself and
// computes ROWS outputs, four at a time of one matrix. Grid (fours of all matrices · 4 / ROWS, T).
#include numbers
#include arena
#include lanes
#include packed
#include quantize_block
#include decode query
#include decode key
#include decode value
#include activations
#include staged
#include dot query
#include dot key
#include dot value
#include rows query
#include rows key
#include rows value

struct Params {
    x: u32,
    norm: u32,
    eps: f32,
    cols: u32,
    // The normed row, where somebody reads it; or NONE.
    normed: u32,
    query_y: u32,
    key_y: u32,
    value_y: u32,
    query_rows: u32,
    key_rows: u32,
    value_rows: u32,
    // The first row of each in its tensor.
    query_first: u32,
    key_first: u32,
    value_first: u32,
    // In `smalls`, or NONE.
    query_bias: u32,
    key_bias: u32,
    value_bias: u32,
    query_scale: f32,
    key_scale: f32,
    value_scale: f32,
    query_row_words: u32,
    query_blocks: u32,
    key_row_words: u32,
    key_blocks: u32,
    value_row_words: u32,
    value_blocks: u32,
}

@group(0) @binding(4) var<storage, read> query: array<u32>;
@group(0) @binding(5) var<storage, read> key: array<u32>;
@group(0) @binding(6) var<storage, read> value: array<u32>;

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
    let query_fours = (p.query_rows + 3u) / 4u;
    let key_fours = (p.key_rows + 3u) / 4u;
    let all_fours = query_fours + key_fours + (p.value_rows + 3u) / 4u;
    for (var i = 0u; i < ROWS / 4u; i++) {
        let four = wg.x * (ROWS / 4u) + i;
        if (four >= all_fours) {
            break;
        }
        var sums: vec4<f32>;
        var row: u32;
        var rows: u32;
        var y: u32;
        var bias: u32;
        var scale: f32;
        if (four < query_fours) {
            row = four * 4u;
            rows = p.query_rows;
            sums = query_four_rows(lane, p.query_first + row, p.query_first + rows - 1u, p.cols);
            y = p.query_y;
            bias = p.query_bias;
            scale = p.query_scale;
        } else if (four < query_fours + key_fours) {
            row = (four - query_fours) * 4u;
            rows = p.key_rows;
            sums = key_four_rows(lane, p.key_first + row, p.key_first + rows - 1u, p.cols);
            y = p.key_y;
            bias = p.key_bias;
            scale = p.key_scale;
        } else {
            row = (four - query_fours - key_fours) * 4u;
            rows = p.value_rows;
            sums = value_four_rows(lane, p.value_first + row, p.value_first + rows - 1u, p.cols);
            y = p.value_y;
            bias = p.value_bias;
            scale = p.value_scale;
        }
        let out = row + lane.index;
        if (lane.index < 4u && out < rows) {
            var sum = sums[lane.index] * scale;
            if (bias != NONE) {
                sum += small(bias + out);
            }
            store(y + wg.y * rows + out, sum);
        }
    }
}
