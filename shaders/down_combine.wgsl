// The down ExpertMatMul, ExpertCombine and what is added behind it in one launch, for a few tokens: the shared expert, times
// scale · sigmoid(logit) where it has a gate, the sum times a factor, and the residual stream. A workgroup computes ROWS elements,
// LANES / EXPERT_SLOTS lanes to each chosen expert. Grid (rows / ROWS, T).
#include numbers
#include arena
#include lanes
#include packed
#include quantize_block
#include decode weight
#include activations
#include plain_input
#include staged
#include dot weight

struct Params {
    x: u32,
    ids: u32,
    weights: u32,
    // The shared expert's output and its gate's logit, or NONE.
    shared_x: u32,
    shared_logit: u32,
    shared_scale: f32,
    // The gate's choice and weight, the output times that, the sum with it, where somebody reads them; or NONE.
    factor_id: u32,
    factor: u32,
    gated: u32,
    with_shared: u32,
    // What multiplies that, and where it goes then, if somebody reads it; or NONE.
    sum_scale: f32,
    scaled: u32,
    // Or NONE.
    residual: u32,
    y: u32,
    // Each expert's output and their sum, where somebody reads them; or NONE.
    expert_y: u32,
    combined: u32,
    cols: u32,
    rows: u32,
    // The first row in an expert of the tensor, and that expert's rows.
    first_row: u32,
    expert_rows: u32,
    // [E, rows] in `smalls`, or NONE.
    bias: u32,
    num_experts: u32,
    experts_per_token: u32,
    weight_row_words: u32,
    weight_blocks: u32,
}

@group(0) @binding(4) var<storage, read> weight: array<u32>;

const EXPERT_LANES: u32 = LANES / EXPERT_SLOTS;

var<workgroup> expert_sums: array<vec4<f32>, LANES>;

// What the shared expert adds to an output; the lane of row 0 writes down the token's gate.
fn shared_part(token: u32, row: u32, out: u32) -> f32 {
    let x = load(p.shared_x + out);
    if (p.shared_logit == NONE) {
        return x;
    }
    let factor = 1.0 / (1.0 + exp(-load(p.shared_logit + token))) * p.shared_scale;
    if (row == 0u && p.factor_id != NONE) {
        arena[p.factor_id + token] = 0u;
    }
    if (row == 0u && p.factor != NONE) {
        store(p.factor + token, factor);
    }
    if (p.gated != NONE) {
        store(p.gated + out, x * factor);
    }
    return x * factor;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.y >= now.tokens) {
        return;
    }
    let first = wg.y * p.experts_per_token;
    // The chosen experts' rows lie side by side: one row of K · cols.
    input_at = p.x + first * p.cols;
    stage(lane, p.cols * p.experts_per_token);
    let slot = lane.index / EXPERT_LANES;
    let in_slot = lane.index % EXPERT_LANES;
    let chosen = min(slot, p.experts_per_token - 1u);
    let expert = min(arena[p.ids + first + chosen], p.num_experts - 1u) * p.expert_rows + p.first_row;
    let groups = p.cols / 16u;
    let stride = p.weight_row_words;
    for (var i = 0u; i < ROWS; i += 4u) {
        let row = wg.x * ROWS + i;
        if (row >= p.rows) {
            break;
        }
        let last = p.rows - 1u;
        let row0 = (expert + row) * stride;
        let row1 = (expert + min(row + 1u, last)) * stride;
        let row2 = (expert + min(row + 2u, last)) * stride;
        let row3 = (expert + min(row + 3u, last)) * stride;
        var sums = vec4<f32>(0.0);
        if (slot < p.experts_per_token) {
            for (var group = in_slot; group < groups; group += EXPERT_LANES) {
                let a = staged(chosen * groups + group, p.cols * p.experts_per_token);
                sums += vec4<f32>(weight_dot(row0, group, a), weight_dot(row1, group, a), weight_dot(row2, group, a),
                    weight_dot(row3, group, a));
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
        if (lane.index < 4u && row + lane.index < p.rows) {
            let out = wg.y * p.rows + row + lane.index;
            var combined = 0.0;
            for (var k = 0u; k < p.experts_per_token; k++) {
                var sum = expert_sums[k * EXPERT_LANES][lane.index];
                if (p.bias != NONE) {
                    let id = min(arena[p.ids + first + k], p.num_experts - 1u);
                    sum += small(p.bias + id * p.rows + row + lane.index);
                }
                if (p.expert_y != NONE) {
                    store(p.expert_y + (first + k) * p.rows + row + lane.index, sum);
                }
                combined += load(p.weights + first + k) * sum;
            }
            if (p.combined != NONE) {
                store(p.combined + out, combined);
            }
            if (p.shared_x != NONE) {
                combined += shared_part(wg.y, row + lane.index, out);
                if (p.with_shared != NONE) {
                    store(p.with_shared + out, combined);
                }
                combined *= p.sum_scale;
                if (p.scaled != NONE) {
                    store(p.scaled + out, combined);
                }
            }
            if (p.residual != NONE) {
                combined += load(p.residual + out);
            }
            store(p.y + out, combined);
        }
        workgroupBarrier();
    }
}
