// The choice of experts: logits [E] in the arena → in workgroup memory the K best ids, best first, and their weights.
// Ties go to the lower id, NaN ranks last, ids are distinct and below E. Each logit counts those that go before it, so the
// whole order takes one pass and three barriers. With GROUPS > 1 only
// those of the best groups are chosen from. Gates: 0 softmax over all experts, 1 sigmoid, 2 softmax over the chosen, 3 sparse
// mixer, 4 sqrt-softplus.

var<workgroup> route_gates: array<f32, KEYS>;
var<workgroup> route_keys: array<u32, KEYS>;
var<workgroup> route_maxima: array<f32, LANES>;
var<workgroup> route_ids: array<u32, KEYS>;
var<workgroup> route_weights: array<f32, KEYS>;

// What ranks expert i among those of its group: its gate value, with the selection bias where there is one; a NaN stays one.
fn route_value(logits: u32, i: u32) -> u32 {
    let bits = arena[logits + i];
    if (is_nan(bits)) {
        return bits;
    }
    if (p.selection_bias == NONE) {
        return bitcast<u32>(route_gates[i]);
    }
    return bitcast<u32>(route_gates[i] + small(p.selection_bias + i));
}

// The key of a group: of its best value, or of the sum of its best two.
fn group_key(logits: u32, group: u32) -> u32 {
    let size = p.num_experts / GROUPS;
    var best = 0u;
    var second = 0u;
    var best_bits = 0u;
    var second_bits = 0u;
    for (var i = group * size; i < (group + 1u) * size; i++) {
        let bits = route_value(logits, i);
        let key = order_key(bits);
        if (key > best) {
            second = best;
            second_bits = best_bits;
            best = key;
            best_bits = bits;
        } else if (key > second) {
            second = key;
            second_bits = bits;
        }
    }
    // A NaN ranks last, so the second is one where any of the two is.
    if (p.best_two == 0u || is_nan(second_bits)) {
        return select(best, 1u, p.best_two == 1u);
    }
    return order_key(bitcast<u32>(bitcast<f32>(best_bits) + bitcast<f32>(second_bits)));
}

// Puts the experts of all groups but the best behind every other: their keys become 0. `route_ids` is free until later.
fn close_groups(lane: Lane, logits: u32) {
    for (var g = lane.index; g < GROUPS; g += LANES) {
        route_ids[g] = group_key(logits, g);
    }
    workgroupBarrier();
    for (var i = lane.index; i < p.num_experts; i += LANES) {
        let mine = i / (p.num_experts / GROUPS);
        let key = route_ids[mine];
        var before = 0u;
        for (var g = 0u; g < GROUPS; g++) {
            before += select(0u, 1u, route_ids[g] > key || (route_ids[g] == key && g < mine));
        }
        if (before >= p.topk_group) {
            route_keys[i] = 0u;
        }
    }
    workgroupBarrier();
}

// The share of expert `id` in a softmax over those that do not stand before it and whose logit is near its own
// (GateKind::is_near in graph/src/ir/op.rs).
fn mixer_share(logits: u32, id: u32) -> f32 {
    let best = route_gates[id];
    var total = 0.0;
    for (var i = 0u; i < p.num_experts; i++) {
        let before = route_keys[i] > route_keys[id] || (route_keys[i] == route_keys[id] && i < id);
        if (before || is_nan(arena[logits + i])) {
            continue;
        }
        if (best - route_gates[i] <= 0.02 * max(abs(route_gates[i]), best)) {
            total += exp(route_gates[i] - best);
        }
    }
    return 1.0 / total;
}

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
        } else if (p.gate == 4u) {
            route_gates[i] = sqrt(softplus(logit));
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
    if (GROUPS > 1u) {
        close_groups(lane, logits);
    }
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
    let best = route_gates[route_ids[0]];
    for (var k = lane.index; k < p.experts_per_token; k += LANES) {
        let gate = route_gates[route_ids[k]];
        route_weights[k] = select(gate, exp(gate - best), p.gate == 2u);
        if (p.gate == 3u) {
            route_weights[k] = mixer_share(logits, route_ids[k]);
        }
    }
    workgroupBarrier();
    if (lane.index == 0u) {
        var sum = 0.0;
        for (var k = 0u; k < p.experts_per_token; k++) {
            sum += route_weights[k];
        }
        let divisor = select(1.0, sum, p.gate == 2u || p.normalise == 1u);
        for (var k = 0u; k < p.experts_per_token; k++) {
            route_weights[k] = route_weights[k] / divisor * p.scale;
        }
    }
    workgroupBarrier();
}
