// A norm, or none, the gate and up matmuls and GatedAct in one launch, for a few tokens: the first half of a dense layer or of a
// shared expert. Every workgroup prepares the row for itself and computes ROWS outputs. Grid (rows / ROWS, T).
#include numbers
#include arena
#include lanes
#include packed
#include quantize_block
#include activate
#include gated
#include gated_pair
#include decode gate
#include decode up
#include activations
#include normed_input
#include staged
#include staged_row
#include dot gate
#include dot up
#include rows gate
#include rows up

struct Params {
#include normed_params
#include gated_pair_params
}

@group(0) @binding(4) var<storage, read> gate: array<u32>;
@group(0) @binding(5) var<storage, read> up: array<u32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.y >= now.tokens) {
        return;
    }
    stage_row(lane, wg.y, wg.x == 0u);
    for (var i = 0u; i < ROWS; i += 4u) {
        let row = wg.x * ROWS + i;
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
