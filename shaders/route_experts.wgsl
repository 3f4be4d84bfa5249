// Router, the gate and up ExpertMatMul and GatedAct in one launch, for a few tokens: every workgroup chooses the experts for
// itself and computes ROWS rows of one chosen expert. Grid (rows / ROWS, K, T); the number of rows is a multiple of ROWS.
#include numbers
#include arena
#include lanes
#include packed
#include quantize_block
#include order_key
#include route
#include decode gate
#include decode up
#include activations
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
    x: u32,
    cols: u32,
    rows: u32,
    // gate, up and act(gate), where somebody reads them; or NONE.
    gate_y: u32,
    up_y: u32,
    activated: u32,
    y: u32,
    gate_row_words: u32,
    gate_blocks: u32,
    up_row_words: u32,
    up_blocks: u32,
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
            store(p.weights + first + k, route_weights[k]);
        }
    }
    stage(lane, p.x + wg.z * p.cols, p.cols, NONE, 0.0);
    let expert = route_ids[wg.y] * p.rows;
    for (var i = 0u; i < ROWS; i += 4u) {
        let row = wg.x * ROWS + i;
        let gates = gate_four_rows(lane, expert + row, p.cols);
        let ups = up_four_rows(lane, expert + row, p.cols);
        if (lane.index < 4u) {
            let at = (first + wg.y) * p.rows + row + lane.index;
            let g = gates[lane.index];
            let activated = g / (1.0 + exp(-g));
            if (p.gate_y != NONE) {
                store(p.gate_y + at, g);
            }
            if (p.up_y != NONE) {
                store(p.up_y + at, ups[lane.index]);
            }
            if (p.activated != NONE) {
                store(p.activated + at, activated);
            }
            store(p.y + at, activated * ups[lane.index]);
        }
    }
}
