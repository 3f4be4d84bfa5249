// ExpertMatMul for a few tokens: x [T, in] or [T, K, in], ids [T, K] → [T, K, out], W [E, out, in]. A workgroup computes
// four outputs of one chosen expert; grid (out / 4, K, T). The rows of all experts are numbered through; a tensor split by
// rows takes one dispatch a part, each writing the outputs whose rows it holds.
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
    // NONE: expert k is a token's k-th, as HeadMatMul has it.
    ids: u32,
    cols: u32,
    // Outputs of one expert.
    rows: u32,
    experts_per_token: u32,
    // 1 where each of a token's K experts has its own input row, else 0.
    input_per_expert: u32,
    // Rows of an expert in the tensor, and the number of the first expert's first row.
    expert_rows: u32,
    first_row: u32,
    row_begin: u32,
    row_end: u32,
    row_words: u32,
    weight_blocks: u32,
    num_experts: u32,
    // [E, out] in `smalls`, or NONE.
    bias: u32,
}

@group(0) @binding(4) var<storage, read> weight: array<u32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    let row = wg.x * 4u;
    let choice = wg.z * p.experts_per_token + wg.y;
    if (wg.z >= now.tokens) {
        return;
    }
    var expert = wg.y;
    if (p.ids != NONE) {
        expert = min(arena[p.ids + choice], p.num_experts - 1u);
    }
    let x = p.x + select(wg.z, choice, p.input_per_expert == 1u) * activation_row_words(p.cols);
    let first = p.first_row + expert * p.expert_rows + row;
    let last = p.row_end - 1u;
    let row0 = (clamp(first, p.row_begin, last) - p.row_begin) * p.row_words;
    let row1 = (clamp(first + 1u, p.row_begin, last) - p.row_begin) * p.row_words;
    let row2 = (clamp(first + 2u, p.row_begin, last) - p.row_begin) * p.row_words;
    let row3 = (clamp(first + 3u, p.row_begin, last) - p.row_begin) * p.row_words;
    // A workgroup whose rows all lie in another part has nothing to add up.
    var groups = (p.cols + 15u) / 16u;
    if (first + 3u < p.row_begin || first > last) {
        groups = 0u;
    }
    var sums = vec4<f32>(0.0);
    for (var group = lane.index; group < groups; group += LANES) {
        let a = load_activations(x, group, p.cols);
        sums += vec4<f32>(weight_dot(row0, group, a), weight_dot(row1, group, a), weight_dot(row2, group, a),
            weight_dot(row3, group, a));
    }
    let total = sum_lanes4(lane, sums);
    let out = row + lane.index;
    let through = first + lane.index;
    if (lane.index < 4u && out < p.rows && through >= p.row_begin && through < p.row_end) {
        var value = total[lane.index];
        if (p.bias != NONE) {
            value += small(p.bias + expert * p.rows + out);
        }
        store(p.y + choice * p.rows + out, value);
    }
}
