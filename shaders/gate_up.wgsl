// RmsNorm, or none, the gate and up matmuls and GatedAct in one launch, for a few tokens: the first half of a dense layer or of
// a shared expert. Every workgroup prepares the row for itself and computes ROWS outputs. Grid (rows / ROWS, T).
#include numbers
#include arena
#include lanes
#include packed
#include quantize_block
#include activate
#include gated
#include decode gate
#include decode up
#include activations
#include staged
#include dot gate
#include dot up
#include rows gate
#include rows up

struct Params {
    x: u32,
    // In `smalls`, or NONE.
    norm: u32,
    eps: f32,
    cols: u32,
    // The normed row, where somebody reads it; or NONE.
    normed: u32,
    rows: u32,
    // The first row of each in its tensor.
    gate_first: u32,
    up_first: u32,
    activation: u32,
    alpha: f32,
    limit: f32,
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
        if (row >= p.rows) {
            break;
        }
        let gates = gate_four_rows(lane, p.gate_first + row, p.gate_first + p.rows - 1u, p.cols);
        let ups = up_four_rows(lane, p.up_first + row, p.up_first + p.rows - 1u, p.cols);
        let out = row + lane.index;
        if (lane.index < 4u && out < p.rows) {
            let at = wg.y * p.rows + out;
            let activated = activate(gates[lane.index]);
            if (p.gate_y != NONE) {
                store(p.gate_y + at, gates[lane.index]);
            }
            if (p.up_y != NONE) {
                store(p.up_y + at, ups[lane.index]);
            }
            if (p.activated != NONE) {
                store(p.activated + at, activated);
            }
            store(p.y + at, gated(activated, ups[lane.index]));
        }
    }
}
