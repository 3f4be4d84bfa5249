// The down ExpertMatMul, ExpertCombine and Add in one launch, for a few tokens: a workgroup computes ROWS elements of the
// residual stream, LANES / EXPERT_SLOTS lanes to each chosen expert. Grid (rows / ROWS, T); the number of rows is a multiple
// of ROWS.
#include numbers
#include arena
#include lanes
#include packed
#include quantize_block
#include decode weight
#include activations
#include staged
#include dot weight

struct Params {
    x: u32,
    ids: u32,
    weights: u32,
    residual: u32,
    y: u32,
    // Each expert's output and their sum, where somebody reads them; or NONE.
    expert_y: u32,
    combined: u32,
    cols: u32,
    rows: u32,
    num_experts: u32,
    experts_per_token: u32,
    weight_row_words: u32,
    weight_blocks: u32,
}

@group(0) @binding(4) var<storage, read> weight: array<u32>;

const EXPERT_LANES: u32 = LANES / EXPERT_SLOTS;

var<workgroup> expert_sums: array<vec4<f32>, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.y >= now.tokens) {
        return;
    }
    let first = wg.y * p.experts_per_token;
    // The chosen experts' rows lie side by side: one row of K · cols.
    stage(lane, p.x + first * p.cols, p.cols * p.experts_per_token, NONE, 0.0);
    let slot = lane.index / EXPERT_LANES;
    let in_slot = lane.index % EXPERT_LANES;
    let chosen = min(slot, p.experts_per_token - 1u);
    let expert = min(arena[p.ids + first + chosen], p.num_experts - 1u) * p.rows;
    let groups = p.cols / 16u;
    let stride = p.weight_row_words;
    for (var i = 0u; i < ROWS; i += 4u) {
        let row = wg.x * ROWS + i;
        let at = (expert + row) * stride;
        var sums = vec4<f32>(0.0);
        if (slot < p.experts_per_token) {
            for (var group = in_slot; group < groups; group += EXPERT_LANES) {
                let a = staged(chosen * groups + group, p.cols * p.experts_per_token);
                sums += vec4<f32>(weight_dot(at, group, a), weight_dot(at + stride, group, a),
                    weight_dot(at + 2u * stride, group, a), weight_dot(at + 3u * stride, group, a));
            }
        }
        expert_sums[lane.index] = sums;
        workgroupBarrier();
        for (var half = EXPERT_LANES / 2u; half > 0u; half /= 2u) {
            if (in_slot < half) {
                expert_sums[lane.index] += expert_sums[lane.index + half];
            }
            workgroupBarrier();
        }
        if (lane.index < 4u) {
            let out = wg.y * p.rows + row + lane.index;
            var combined = 0.0;
            for (var k = 0u; k < p.experts_per_token; k++) {
                let sum = expert_sums[k * EXPERT_LANES][lane.index];
                if (p.expert_y != NONE) {
                    store(p.expert_y + (first + k) * p.rows + row + lane.index, sum);
                }
                combined += load(p.weights + first + k) * sum;
            }
            if (p.combined != NONE) {
                store(p.combined + out, combined);
            }
            store(p.y + out, load(p.residual + out) + combined);
        }
        workgroupBarrier();
    }
}
