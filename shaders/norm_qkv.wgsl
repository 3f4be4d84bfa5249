// RmsNorm and the matmuls of q, k and v in one launch, for a few tokens: every workgroup norms the row for itself and
// computes ROWS outputs of one of the three. Grid ((q + k + v rows) / ROWS, T); each count is a multiple of ROWS.
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
    for (var i = 0u; i < ROWS; i += 4u) {
        let row = wg.x * ROWS + i;
        var sums: vec4<f32>;
        var y: u32;
        if (row < p.query_rows) {
            sums = query_four_rows(lane, row, p.cols);
            y = p.query_y + wg.y * p.query_rows + row;
        } else if (row < p.query_rows + p.key_rows) {
            sums = key_four_rows(lane, row - p.query_rows, p.cols);
            y = p.key_y + wg.y * p.key_rows + row - p.query_rows;
        } else {
            sums = value_four_rows(lane, row - p.query_rows - p.key_rows, p.cols);
            y = p.value_y + wg.y * p.value_rows + row - p.query_rows - p.key_rows;
        }
        if (lane.index < 4u) {
            store(y + lane.index, sums[lane.index]);
        }
    }
}
