// A router's norm and logits, with a shared expert's gate's; gate, up and activation of the same row, under the router's norm or
// one of their own; and a further norm of it for others: in one launch, for a few tokens. A workgroup has one norm and computes
// ROWS outputs: first the fours of both logits' matrices, then gate and up's, at last the further norm alone. Grid (groups, T).
#include numbers
#include arena
#include lanes
#include packed
#include quantize_block
#include activate
#include gated
#include gated_pair
#include decode first
#include decode second
#include decode gate
#include decode up
#include activations
#include normed_input
#include staged
#if first_f32
#include rows_f32 first
#include rows_f32 second
#else
#include dot first
#include dot second
#include rows first
#include rows second
#endif
#include dot gate
#include dot up
#include rows gate
#include rows up

struct Params {
#include normed_params
    // Of gate and up's own norm, as of the router's; own 0: the router's.
    own: u32,
    own_norm: u32,
    own_norm_bias: u32,
    own_centred: u32,
    own_eps: f32,
    own_normed: u32,
    // Of the further norm; its row.
    further_norm: u32,
    further_norm_bias: u32,
    further_centred: u32,
    further_eps: f32,
    further_normed: u32,
    // Workgroups of logits, and of gate and up.
    logit_groups: u32,
    pair_groups: u32,
    // Of the logits' matrices, as in norm_qkv.wgsl.
    first_y: u32,
    first_rows: u32,
    first_first: u32,
    first_bias: u32,
    first_scale: f32,
    first_row_words: u32,
    first_blocks: u32,
    second_y: u32,
    second_rows: u32,
    second_first: u32,
    second_bias: u32,
    second_scale: f32,
    second_row_words: u32,
    second_blocks: u32,
#include gated_pair_params
}

@group(0) @binding(4) var<storage, read> first: array<u32>;
@group(0) @binding(5) var<storage, read> second: array<u32>;
@group(0) @binding(6) var<storage, read> gate: array<u32>;
@group(0) @binding(7) var<storage, read> up: array<u32>;

// Four logits, from the `four`th four of both matrices on.
fn logits(lane: Lane, token: u32, four: u32) {
    let before = (p.first_rows + 3u) / 4u;
    var sums: vec4<f32>;
    var out = four * 4u + lane.index;
    var rows = p.first_rows;
    var y = p.first_y;
    var bias = p.first_bias;
    if (four < before) {
        sums = first_four_rows(lane, p.first_first + four * 4u, p.first_first + rows - 1u, p.cols) * p.first_scale;
    } else {
        rows = p.second_rows;
        y = p.second_y;
        bias = p.second_bias;
        out -= before * 4u;
        let row0 = p.second_first + (four - before) * 4u;
        sums = second_four_rows(lane, row0, p.second_first + rows - 1u, p.cols) * p.second_scale;
    }
    if (lane.index < 4u && out < rows) {
        var sum = sums[lane.index];
        if (bias != NONE) {
            sum += small(bias + out);
        }
        store(y + token * rows + out, sum);
    }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.y >= now.tokens) {
        return;
    }
    let of_logits = wg.x < p.logit_groups;
    let of_pairs = !of_logits && wg.x < p.logit_groups + p.pair_groups;
    source = own_row();
    var keeps = wg.x == 0u;
    if (of_pairs && p.own == 1u) {
        source = NormedRow(p.x, p.cols, p.own_norm, p.own_norm_bias, p.own_centred, p.own_eps, p.own_normed);
        keeps = wg.x == p.logit_groups;
    } else if (!of_logits && !of_pairs) {
        source = NormedRow(p.x, p.cols, p.further_norm, p.further_norm_bias, p.further_centred, p.further_eps,
            p.further_normed);
        keeps = true;
    }
    find_factors(lane, wg.y);
    stage(lane, p.cols);
    if (keeps) {
        keep_row(lane, wg.y, wg.x == 0u, true);
    }
    if (of_logits) {
        let fours = (p.first_rows + 3u) / 4u + (p.second_rows + 3u) / 4u;
        for (var i = 0u; i < ROWS / 4u; i++) {
            let four = wg.x * (ROWS / 4u) + i;
            if (four >= fours) {
                break;
            }
            logits(lane, wg.y, four);
        }
        return;
    }
    if (!of_pairs) {
        return;
    }
    for (var i = 0u; i < ROWS; i += 4u) {
        let row = (wg.x - p.logit_groups) * ROWS + i;
        if (row >= p.rows) {
            break;
        }
        let gates = gate_four_rows(lane, p.gate_first + row, p.gate_first + p.rows - 1u, p.cols);
        let ups = up_four_rows(lane, p.up_first + row, p.up_first + p.rows - 1u, p.cols);
        let out = row + lane.index;
        if (lane.index < 4u && out < p.rows) {
            store_gated(wg.y * p.rows + out, gates[lane.index], ups[lane.index]);
        }
    }
}
