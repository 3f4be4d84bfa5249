// The choice of experts: logits [E] in the arena → in workgroup memory the K best ids, best first, and their weights.
// Ties go to the lower id, NaN ranks last, ids are distinct and below E. Each logit counts those that go before it, so the
// whole order takes one pass and three barriers. Gates: 0 softmax over all experts, 1 sigmoid, 2 softmax over the chosen.

var<workgroup> route_gates: array<f32, KEYS>;
var<workgroup> route_keys: array<u32, KEYS>;
var<workgroup> route_maxima: array<f32, LANES>;
var<workgroup> route_ids: array<u32, KEYS>;
var<workgroup> route_weights: array<f32, KEYS>;

fn choose_experts(lane: Lane, logits: u32) {
    var largest = -3.4e38;
    for (var i = lane.index; i < p.num_experts; i += LANES) {
        let bits = arena[logits + i];
        if (!is_nan(bits)) {
            largest = max(largest, bitcast<f32>(bits));
        }
    }
    route_maxima[lane.index] = largest;
    workgroupBarrier();
    for (var i = 0u; i < LANES; i++) {
        largest = max(largest, route_maxima[i]);
    }
    var partial = 0.0;
    for (var i = lane.index; i < p.num_experts; i += LANES) {
        let logit = load(logits + i);
        if (p.gate == 0u) {
            route_gates[i] = exp(logit - largest);
            partial += route_gates[i];
        } else if (p.gate == 1u) {
            route_gates[i] = 1.0 / (1.0 + exp(-logit));
        } else {
            route_gates[i] = logit;
        }
    }
    let all = sum_lanes(lane, partial);
    for (var i = lane.index; i < p.num_experts; i += LANES) {
        if (p.gate == 0u) {
            route_gates[i] /= all;
        }
        // Without a bias the gates keep the order of the logits, which tell apart what their rounding may not.
        var bits = arena[logits + i];
        if (p.selection_bias != NONE && !is_nan(bits)) {
            bits = bitcast<u32>(route_gates[i] + small(p.selection_bias + i));
        }
        route_keys[i] = order_key(bits);
    }
    workgroupBarrier();
    for (var i = lane.index; i < p.num_experts; i += LANES) {
        let key = route_keys[i];
        var before = 0u;
        for (var j = 0u; j < p.num_experts; j++) {
            before += select(0u, 1u, route_keys[j] > key || (route_keys[j] == key && j < i));
        }
        if (before < p.experts_per_token) {
            route_ids[before] = i;
        }
    }
    workgroupBarrier();
    if (lane.index == 0u) {
        let best = route_gates[route_ids[0]];
        var sum = 0.0;
        for (var k = 0u; k < p.experts_per_token; k++) {
            let gate = route_gates[route_ids[k]];
            route_weights[k] = select(gate, exp(gate - best), p.gate == 2u);
            sum += route_weights[k];
        }
        let divisor = select(1.0, sum, p.gate == 2u || p.normalise == 1u);
        for (var k = 0u; k < p.experts_per_token; k++) {
            route_weights[k] = route_weights[k] / divisor * p.scale;
        }
    }
    workgroupBarrier();
}
