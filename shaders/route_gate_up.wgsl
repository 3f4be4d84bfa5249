// Router, the gate and up ExpertMatMul and GatedAct in one launch, for a few tokens: every workgroup chooses the experts for
// itself and computes ROWS rows of one chosen expert. Grid (rows / ROWS, K, T).
#include numbers
#include arena
#include lanes
#include packed
#include quantize_block
#include order_key
#include softplus
#include route
#include activate
#include gated
#include gated_pair
#include decode gate
#include decode up
#include activations
#include plain_input
#include staged
#include dot gate
#include dot up
#include rows gate
#include rows up

struct Params {
    logits: u32,
    ids: u32,
    weights: u32,
    num_experts: u32,
    experts_per_token: u32,
    gate: u32,
    normalise: u32,
    scale: f32,
    selection_bias: u32,
    topk_group: u32,
    best_two: u32,
    // [E] in `smalls`, or NONE.
    expert_scale: u32,
    x: u32,
    cols: u32,
    // The rows of an expert in each tensor.
    gate_expert_rows: u32,
    up_expert_rows: u32,
    // [E, rows] in `smalls`, or NONE.
    gate_bias: u32,
    up_bias: u32,
#include gated_pair_params
}

@group(0) @binding(4) var<storage, read> gate: array<u32>;
@group(0) @binding(5) var<storage, read> up: array<u32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.z >= now.tokens) {
        return;
    }
    choose_experts(lane, p.logits + wg.z * p.num_experts);
    let first = wg.z * p.experts_per_token;
    if (wg.x == 0u && wg.y == 0u) {
        for (var k = lane.index; k < p.experts_per_token; k += LANES) {
            arena[p.ids + first + k] = route_ids[k];
            var weight = route_weights[k];
            if (p.expert_scale != NONE) {
                weight *= small(p.expert_scale + route_ids[k]);
            }
            store(p.weights + first + k, weight);
        }
    }
    input_at = p.x + wg.z * p.cols;
    stage(lane, p.cols);
    let expert = route_ids[wg.y];
    let gate_first = expert * p.gate_expert_rows + p.gate_first;
    let up_first = expert * p.up_expert_rows + p.up_first;
    for (var i = 0u; i < ROWS; i += 4u) {
        let row = wg.x * ROWS + i;
        if (row >= p.rows) {
            break;
        }
        let gates = gate_four_rows(lane, gate_first + row, gate_first + p.rows - 1u, p.cols);
        let ups = up_four_rows(lane, up_first + row, up_first + p.rows - 1u, p.cols);
        let out = row + lane.index;
        if (lane.index < 4u && out < p.rows) {
            let at = (first + wg.y) * p.rows + out;
            var g = gates[lane.index];
            var u = ups[lane.index];
            if (p.gate_bias != NONE) {
                g += small(p.gate_bias + expert * p.rows + out);
            }
            if (p.up_bias != NONE) {
                u += small(p.up_bias + expert * p.rows + out);
            }
            store_gated(at, g, u);
        }
    }
}
