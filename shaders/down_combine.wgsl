// The down ExpertMatMul, ExpertCombine and what is added behind it in one launch, for a few tokens: the shared expert, with `fused` its down matmul too, times
// scale · sigmoid(logit) where it has a gate, the sum times a factor, and the residual stream. A workgroup computes ROWS elements,
// LANES / EXPERT_SLOTS lanes to each chosen expert. Grid (rows / ROWS, T).
#include numbers
#include arena
#include lanes
#include packed
#include quantize_block
#include decode weight
#if fused
#include decode shared_w
#endif
#include activations
#include staged
#include dot weight
#if fused
#include dot shared_w
#endif

struct Params {
    x: u32,
    ids: u32,
    weights: u32,
    // The shared expert's output, or with `fused` what its down matmul reads, and its gate's logit, or NONE.
    shared_x: u32,
#if fused
    shared_cols: u32,
    shared_first: u32,
    // The product, where somebody reads it; or NONE.
    shared_y: u32,
    shared_down_scale: f32,
    shared_w_row_words: u32,
    shared_w_blocks: u32,
#endif
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
#if fused
@group(0) @binding(5) var<storage, read> shared_w: array<u32>;
#endif

// The chosen experts' rows lie side by side: one row of K · cols; the shared expert's stands behind it.
var<private> input_at: u32;
var<private> shared_at: u32;

fn input_value(at: u32) -> f32 {
#if fused
    let routed = p.cols * p.experts_per_token;
    if (at >= routed) {
        return load(shared_at + at - routed);
    }
#endif
    return load(input_at + at);
}

const EXPERT_LANES: u32 = LANES / EXPERT_SLOTS;

var<workgroup> expert_sums: array<vec4<f32>, LANES>;

// What the shared expert, whose output is x, adds to an output; the lane of row 0 writes down the token's gate.
fn shared_part(token: u32, row: u32, out: u32, x: f32) -> f32 {
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
    input_at = p.x + first * p.cols;
    var elems = p.cols * p.experts_per_token;
#if fused
    shared_at = p.shared_x + wg.y * p.shared_cols;
    elems += p.shared_cols;
#endif
    stage(lane, elems);
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
                let a = staged(chosen * groups + group, elems);
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
#if fused
        let shared0 = (p.shared_first + row) * p.shared_w_row_words;
        let shared1 = (p.shared_first + min(row + 1u, last)) * p.shared_w_row_words;
        let shared2 = (p.shared_first + min(row + 2u, last)) * p.shared_w_row_words;
        let shared3 = (p.shared_first + min(row + 3u, last)) * p.shared_w_row_words;
        var products = vec4<f32>(0.0);
        for (var group = lane.index; group < (p.shared_cols + 15u) / 16u; group += LANES) {
            let a = staged(groups * p.experts_per_token + group, elems);
            products += vec4<f32>(shared_w_dot(shared0, group, a), shared_w_dot(shared1, group, a), shared_w_dot(shared2, group, a),
                shared_w_dot(shared3, group, a));
        }
        products = sum_lanes4(lane, products) * p.shared_down_scale;
#endif
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
#if fused
                let x = products[lane.index];
                if (p.shared_y != NONE) {
                    store(p.shared_y + out, x);
                }
#else
                let x = load(p.shared_x + out);
#endif
                combined += shared_part(wg.y, row + lane.index, out, x);
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
