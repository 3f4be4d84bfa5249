// Router: logits [T, E] → ids [T, K], best first, and their weights [T, K]. Ties go to the lower id, NaN ranks last, ids are
// distinct and below E. GATE: 0 softmax over all experts, 1 sigmoid, 2 softmax over the chosen. One workgroup a token.
#include numbers
#include arena
#include lanes
#include top_k

struct Params {
    x: u32,
    ids: u32,
    weights: u32,
    num_experts: u32,
    experts_per_token: u32,
    gate: u32,
    // 1: divide the weights by their sum.
    normalise: u32,
    scale: f32,
    // [E] in `smalls`, added for the choice only; or NONE.
    selection_bias: u32,
}

var<workgroup> gates: array<f32, KEYS>;
var<workgroup> lane_maxima: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.x >= now.tokens) {
        return;
    }
    let logits = p.x + wg.x * p.num_experts;
    var largest = -3.4e38;
    for (var i = lane.index; i < p.num_experts; i += LANES) {
        let bits = arena[logits + i];
        if (!is_nan(bits)) {
            largest = max(largest, bitcast<f32>(bits));
        }
    }
    lane_maxima[lane.index] = largest;
    workgroupBarrier();
    for (var i = 0u; i < LANES; i++) {
        largest = max(largest, lane_maxima[i]);
    }
    var partial = 0.0;
    for (var i = lane.index; i < p.num_experts; i += LANES) {
        let logit = load(logits + i);
        if (p.gate == 0u) {
            gates[i] = exp(logit - largest);
            partial += gates[i];
        } else if (p.gate == 1u) {
            gates[i] = 1.0 / (1.0 + exp(-logit));
        } else {
            gates[i] = logit;
        }
    }
    let all = sum_lanes(lane, partial);
    for (var i = lane.index; i < p.num_experts; i += LANES) {
        if (p.gate == 0u) {
            gates[i] /= all;
        }
        var choice = gates[i];
        if (p.selection_bias != NONE) {
            choice += small(p.selection_bias + i);
        }
        // Softmax keeps the order of the logits, and the logits tell apart what its rounding may not; a NaN logit makes
        // every softmax weight NaN, but the order is still that of the logits.
        if (p.gate == 0u && p.selection_bias == NONE) {
            choice = load(logits + i);
        }
        keys[i] = order_key(select(bitcast<u32>(choice), QUIET_NAN_BITS, is_nan(arena[logits + i])));
    }
    workgroupBarrier();
    let first = wg.x * p.experts_per_token;
    for (var k = 0u; k < p.experts_per_token; k++) {
        let id = take_best(lane.index, p.num_experts);
        if (lane.index == 0u) {
            arena[p.ids + first + k] = id;
            lane_chosen[k] = id;
        }
    }
    if (lane.index != 0u) {
        return;
    }
    let best = gates[lane_chosen[0]];
    var sum = 0.0;
    for (var k = 0u; k < p.experts_per_token; k++) {
        var weight = gates[lane_chosen[k]];
        if (p.gate == 2u) {
            weight = exp(weight - best);
        }
        sum += weight;
    }
    for (var k = 0u; k < p.experts_per_token; k++) {
        var weight = gates[lane_chosen[k]];
        if (p.gate == 2u) {
            weight = exp(weight - best) / sum;
        } else if (p.normalise == 1u) {
            weight /= sum;
        }
        store(p.weights + first + k, weight * p.scale);
    }
}

var<workgroup> lane_chosen: array<u32, KEYS>;
