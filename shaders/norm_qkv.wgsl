// A norm and two to four matmuls that read it in one launch, for a few tokens: every workgroup norms the row for itself and
// computes ROWS outputs, four at a time of one matrix. Grid (fours of all matrices · 4 / ROWS, T).
#include numbers
#include arena
#include lanes
#include packed
#include quantize_block
#include decode first
#include decode second
#include decode third
#include decode fourth
#include activations
#include normed_input
#include staged
#include staged_row
#include dot first
#include dot second
#include dot third
#include dot fourth
#include rows first
#include rows second
#include rows third
#include rows fourth
#include bounded

struct Params {
#include normed_params
    // Of each matrix: where its outputs go, its rows and the first of them in its tensor; bias in `smalls`, or NONE; factor;
    // bounds, 0: none; where outputs go in front of the bounds, or NONE.
    first_y: u32,
    first_rows: u32,
    first_first: u32,
    first_bias: u32,
    first_scale: f32,
    first_bound: f32,
    first_product: u32,
    first_row_words: u32,
    first_blocks: u32,
    second_y: u32,
    second_rows: u32,
    second_first: u32,
    second_bias: u32,
    second_scale: f32,
    second_bound: f32,
    second_product: u32,
    second_row_words: u32,
    second_blocks: u32,
    third_y: u32,
    third_rows: u32,
    third_first: u32,
    third_bias: u32,
    third_scale: f32,
    third_bound: f32,
    third_product: u32,
    third_row_words: u32,
    third_blocks: u32,
    fourth_y: u32,
    fourth_rows: u32,
    fourth_first: u32,
    fourth_bias: u32,
    fourth_scale: f32,
    fourth_bound: f32,
    fourth_product: u32,
    fourth_row_words: u32,
    fourth_blocks: u32,
}

@group(0) @binding(4) var<storage, read> first: array<u32>;
@group(0) @binding(5) var<storage, read> second: array<u32>;
@group(0) @binding(6) var<storage, read> third: array<u32>;
@group(0) @binding(7) var<storage, read> fourth: array<u32>;

// Where a matrix' outputs go, and what becomes of them.
struct Projection {
    y: u32,
    bias: u32,
    product: u32,
    bound: f32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.y >= now.tokens) {
        return;
    }
    stage_row(lane, wg.y, wg.x == 0u);
    // The fours up to the end of each matrix.
    var fours: vec4<u32>;
    fours.x = (p.first_rows + 3u) / 4u;
    fours.y = fours.x + (p.second_rows + 3u) / 4u;
    fours.z = fours.y + (p.third_rows + 3u) / 4u;
    fours.w = fours.z + (p.fourth_rows + 3u) / 4u;
    for (var i = 0u; i < ROWS / 4u; i++) {
        let four = wg.x * (ROWS / 4u) + i;
        if (four >= fours.w) {
            break;
        }
        var sums: vec4<f32>;
        var row: u32;
        var rows: u32;
        var to: Projection;
        if (four < fours.x) {
            row = four * 4u;
            rows = p.first_rows;
            sums = first_four_rows(lane, p.first_first + row, p.first_first + rows - 1u, p.cols) * p.first_scale;
            to = Projection(p.first_y, p.first_bias, p.first_product, p.first_bound);
        } else if (four < fours.y) {
            row = (four - fours.x) * 4u;
            rows = p.second_rows;
            sums = second_four_rows(lane, p.second_first + row, p.second_first + rows - 1u, p.cols) * p.second_scale;
            to = Projection(p.second_y, p.second_bias, p.second_product, p.second_bound);
        } else if (four < fours.z) {
            row = (four - fours.y) * 4u;
            rows = p.third_rows;
            sums = third_four_rows(lane, p.third_first + row, p.third_first + rows - 1u, p.cols) * p.third_scale;
            to = Projection(p.third_y, p.third_bias, p.third_product, p.third_bound);
        } else {
            row = (four - fours.z) * 4u;
            rows = p.fourth_rows;
            sums = fourth_four_rows(lane, p.fourth_first + row, p.fourth_first + rows - 1u, p.cols) * p.fourth_scale;
            to = Projection(p.fourth_y, p.fourth_bias, p.fourth_product, p.fourth_bound);
        }
        let out = row + lane.index;
        if (lane.index < 4u && out < rows) {
            var sum = sums[lane.index];
            if (to.bias != NONE) {
                sum += small(to.bias + out);
            }
            let at = wg.y * rows + out;
            if (to.product != NONE) {
                store(to.product + at, sum);
            }
            store(to.y + at, bounded(sum, to.bound));
        }
    }
}
