// A gate, the MatMul of what it lets through and the Add behind it, for a few tokens, with a norm of heads in front of the gate or
// behind it. Every workgroup prepares the row for itself and computes ROWS outputs. Grid (rows / ROWS, T).
#include numbers
#include arena
#include lanes
#include packed
#include quantize_block
#include activate
#include gated
#include decode weight
#include activations
#include part gate
#include gated_input
#include staged
#include dot weight
#include rows weight
#include product_rows

struct Params {
    x: u32,
    cols: u32,
#include part_params gate
    // Elements that a number of the gate multiplies; 0: one each, and what it lets through is as GatedAct's.
    gate_width: u32,
    activation: u32,
    alpha: f32,
    limit: f32,
    // act(gate), the gated row and the normed one, where somebody reads them; or NONE.
    activated: u32,
    gated: u32,
    normed: u32,
    // 0: no norm, 1: in front of the gate, 2: behind it; its weights in `smalls`, or NONE: 1, and from those of a head to the
    // next one's.
    norm_place: u32,
    norm: u32,
    norm_step: u32,
    eps: f32,
#include product_params
}

@group(0) @binding(4) var<storage, read> weight: array<u32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.y >= now.tokens) {
        return;
    }
    stage_row(lane, wg.y, wg.x == 0u);
    product_rows(lane, wg.x * ROWS, wg.y);
}
