// GivenExperts: logits [T, E], ids [T, n] → ids [T, K], the first K of n, each divided, and the weights of their logits [T, K].
// With a table [vocab, n] in `smalls`: tokens [T] in place of ids, and their first K ids best first. One workgroup a token.
// Gates: 0 softmax over all experts, 1 sigmoid, 4 sqrt-softplus.
#include numbers
#include arena
#include lanes
#include order_key
#include softplus

struct Params {
    x: u32,
    given: u32,
    // Or NONE.
    table: u32,
    // Or NONE.
    ids: u32,
    // Or NONE.
    weights: u32,
    num_experts: u32,
    given_per_token: u32,
    experts_per_token: u32,
    gate: u32,
    // 1: divide the weights by their sum.
    normalise: u32,
    scale: f32,
    divisor: u32,
}

var<workgroup> maxima: array<f32, LANES>;
var<workgroup> looked_up: array<u32, LANES>;
var<workgroup> chosen: array<u32, LANES>;

// What weighs an expert, before any division; `largest` is that of all logits.
fn gate_of(logit: f32, largest: f32) -> f32 {
    if (p.gate == 1u) {
        return 1.0 / (1.0 + exp(-logit));
    }
    if (p.gate == 4u) {
        return sqrt(softplus(logit));
    }
    return exp(logit - largest);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.x >= now.tokens) {
        return;
    }
    let logits = p.x + wg.x * p.num_experts;
    // K is at most LANES.
    let is_mine = lane.index < p.experts_per_token;
    if (p.table == NONE) {
        if (is_mine) {
            chosen[lane.index] = arena[p.given + wg.x * p.given_per_token + lane.index] / p.divisor;
        }
    } else {
        if (is_mine) {
            // As the table says, but never beyond the last.
            let at = p.table + arena[p.given + wg.x] * p.given_per_token + lane.index;
            looked_up[lane.index] = min(smalls[at] / p.divisor, p.num_experts - 1u);
        }
        workgroupBarrier();
        if (is_mine) {
            let key = order_key(arena[logits + looked_up[lane.index]]);
            var before = 0u;
            for (var k = 0u; k < p.experts_per_token; k++) {
                let other = order_key(arena[logits + looked_up[k]]);
                before += select(0u, 1u, other > key || (other == key && k < lane.index));
            }
            chosen[before] = looked_up[lane.index];
        }
    }
    var largest = -3.4e38;
    for (var i = lane.index; i < p.num_experts; i += LANES) {
        largest = max(largest, load(logits + i));
    }
    maxima[lane.index] = largest;
    workgroupBarrier();
    for (var i = 0u; i < LANES; i++) {
        largest = max(largest, maxima[i]);
    }
    // Over those that are given where these are to sum to 1, else over all.
    var partial = 0.0;
    if (p.normalise == 1u) {
        for (var k = lane.index; k < p.experts_per_token; k += LANES) {
            partial += gate_of(load(logits + chosen[k]), largest);
        }
    } else if (p.gate == 0u) {
        for (var i = lane.index; i < p.num_experts; i += LANES) {
            partial += gate_of(load(logits + i), largest);
        }
    }
    let sum = sum_lanes(lane, partial);
    let total = select(sum, 1.0, p.normalise == 0u && p.gate != 0u);
    let first = wg.x * p.experts_per_token;
    for (var k = lane.index; k < p.experts_per_token; k += LANES) {
        let id = chosen[k];
        if (p.ids != NONE) {
            arena[p.ids + first + k] = id;
        }
        if (p.weights != NONE) {
            store(p.weights + first + k, gate_of(load(logits + id), largest) / total * p.scale);
        }
    }
}
