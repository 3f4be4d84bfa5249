// The router's choice, by one warp: the best K of E, ties to the lower id, NaN last, ids distinct.
#pragma once
#include "prelude.cuh"

enum Gate : int {
    GATE_SOFTMAX = 0,
    GATE_SIGMOID = 1,
    GATE_SOFTMAX_AFTER_TOP_K = 2,
    GATE_SPARSE_MIXER = 3,
    GATE_SQRT_SOFTPLUS = 4
};

constexpr int MAX_EXPERTS = 1024;         // 32 a lane: one bit each in a register
constexpr int MAX_EXPERTS_PER_TOKEN = 32; // one a lane

// Unsigned order = float order; NaN below everything, −0 ties with 0.
DEVICE uint32_t rank_of(float v) {
    if (is_nan(v)) return 0;
    uint32_t u = __float_as_uint(v == 0.0f ? 0.0f : v);
    return (u & 0x80000000u) ? ~u : (u | 0x80000000u);
}

// √ln(1 + e^v). NaN stays NaN.
DEVICE float sqrt_softplus(float v) { return sqrtf(fmaxf(v, 0.0f) + log1pf(expf(-fabsf(v)))); }

// The gate's value of a logit; top and total are the softmax's. Of the gates over the chosen it is the logit itself.
DEVICE float gate_value(float v, int gate, float top, float total) {
    return gate == GATE_SOFTMAX         ? expf(v - top) / total
           : gate == GATE_SIGMOID       ? sigmoid(v)
           : gate == GATE_SQRT_SOFTPLUS ? sqrt_softplus(v)
                                        : v;
}

struct Route {
    int id;
    float weight;
};

// What the choice goes by: the gate's value with the selection bias; top and total are the softmax's.
template <class L>
DEVICE float choice_value(L logits, aptr<const float> bias, int e, int gate, float top, float total) {
    float v = gate_value(logits[e], gate, top, total);
    return bias != nullptr ? v + bias[e] : v;
}

// One warp: the share of expert `id` in a softmax over those that do not stand before it and whose logit is near its own
// (GateKind::is_near in graph/src/ir/op.rs).
template <class L> DEVICE float warp_mixer_share(L logits, int experts, int id) {
    float best = logits[id], total = 0.0f;
    uint32_t rank = rank_of(best);
    for (int e = threadIdx.x & 31; e < experts; e += 32) {
        float v = logits[e];
        bool before = rank_of(v) > rank || (rank_of(v) == rank && e < id);
        if (!before && best - v <= 0.02f * fmaxf(fabsf(v), best)) total += expf(v - best);
    }
    return 1.0f / warp_sum(total);
}

// The best topk_group of n_group ≤ 32 equal runs of experts, a bit each: ranked by their best value, or by the sum of their
// best two. Ties go to the lower group; NaN ranks last.
template <class L>
DEVICE uint32_t warp_open_groups(L logits, aptr<const float> bias, int experts, int gate, float top, float total,
                                 int n_group, int topk_group, int best_two) {
    int lane = threadIdx.x & 31, size = experts / n_group;
    uint32_t key = 0; // of group `lane`
    for (int g = 0; g < n_group; g++) {
        float first = quiet_nan(), second = quiet_nan();
        for (int i = lane; i < size; i += 32) {
            float v = choice_value(logits, bias, g * size + i, gate, top, total);
            if (rank_of(v) > rank_of(first)) {
                second = first;
                first = v;
            } else if (rank_of(v) > rank_of(second)) {
                second = v;
            }
        }
        for (int d = 16; d > 0; d >>= 1) {
            float a = __shfl_xor_sync(FULL_WARP, first, d), b = __shfl_xor_sync(FULL_WARP, second, d);
            bool behind = rank_of(a) > rank_of(first);
            float next = behind ? (rank_of(first) > rank_of(b) ? first : b) : (rank_of(a) > rank_of(second) ? a : second);
            first = behind ? a : first;
            second = next;
        }
        if (g == lane) key = !best_two ? rank_of(first) : is_nan(second) ? 0 : rank_of(first + second);
    }
    int before = 0;
    for (int g = 0; g < n_group; g++) {
        uint32_t other = __shfl_sync(FULL_WARP, key, g);
        before += other > key || (other == key && g < lane);
    }
    return __ballot_sync(FULL_WARP, lane < n_group && before < topk_group);
}

// logits [E] in any memory. Lane k < K gets the k-th best expert and its weight.
//   softmax: weight = softmax over all E.   sigmoid, sqrt-softplus: of each.   softmax after top-k: over the K chosen logits.
//   sparse mixer: warp_mixer_share of each.
// The choice is by logit (the gates are monotonic), or by gate value + bias where there is a selection bias; with more than
// one group, among the experts of the best.
template <class L>
DEVICE Route warp_route(L logits, aptr<const float> bias, int experts, int experts_per_token, int gate, int renormalise,
                        float scale, int n_group, int topk_group, int best_two) {
    int lane = threadIdx.x & 31;
    float top = -infinity(), total = 0.0f;
    for (int e = lane; e < experts; e += 32) top = fmaxf(top, logits[e]);
    top = warp_max(top);
    if (gate == GATE_SOFTMAX) {
        for (int e = lane; e < experts; e += 32) total += expf(logits[e] - top);
        total = warp_sum(total);
    }
    uint32_t taken = 0; // bit j: expert lane + 32 j is chosen, or not to be
    if (n_group > 1) {
        uint32_t open = warp_open_groups(logits, bias, experts, gate, top, total, n_group, topk_group, best_two);
        int size = experts / n_group;
        for (int e = lane, j = 0; e < experts; e += 32, j++)
            if (!(open >> (e / size) & 1u)) taken |= 1u << j;
    }
    Route mine;
    mine.id = 0;
    mine.weight = 0.0f;
    for (int k = 0; k < experts_per_token; k++) {
        uint32_t best = 0;
        int best_id = MAX_EXPERTS;
        for (int e = lane, j = 0; e < experts; e += 32, j++) {
            if (taken >> j & 1u) continue;
            float v = bias != nullptr ? choice_value(logits, bias, e, gate, top, total) : logits[e];
            uint32_t r = rank_of(v);
            if (best_id == MAX_EXPERTS || r > best) { // ids ascend within a lane: a tie keeps the lower
                best = r;
                best_id = e;
            }
        }
        for (int d = 16; d > 0; d >>= 1) {
            uint32_t other = __shfl_xor_sync(FULL_WARP, best, d);
            int other_id = __shfl_xor_sync(FULL_WARP, best_id, d);
            bool mine_empty = best_id == MAX_EXPERTS, other_empty = other_id == MAX_EXPERTS;
            if (!other_empty && (mine_empty || other > best || (other == best && other_id < best_id))) {
                best = other;
                best_id = other_id;
            }
        }
        if ((best_id & 31) == lane) taken |= 1u << (best_id >> 5);
        float share = gate == GATE_SPARSE_MIXER ? warp_mixer_share(logits, experts, best_id) : 0.0f;
        if (k == lane) {
            mine.id = best_id;
            mine.weight = gate == GATE_SPARSE_MIXER ? share : gate_value(logits[best_id], gate, top, total);
        }
    }
    bool chosen = lane < experts_per_token;
    if (gate == GATE_SOFTMAX_AFTER_TOP_K) {
        float m = warp_max(chosen ? mine.weight : -infinity());
        float p = chosen ? expf(mine.weight - m) : 0.0f;
        mine.weight = p / warp_sum(p);
    }
    if (renormalise) {
        float sum = warp_sum(chosen ? mine.weight : 0.0f);
        mine.weight = mine.weight / sum;
    }
    mine.weight *= scale;
    return mine;
}

// chosen[k] = the k-th best by rank, ties to the lower id, of ranks above 0 [32 J] of which each lane has every 32nd.
template <int J> DEVICE void warp_best(sptr<const uint32_t> ranks, int experts, int experts_per_token, sptr<int> chosen) {
    int lane = threadIdx.x & 31;
    uint32_t rank[J];
#pragma unroll
    for (int j = 0; j < J; j++) rank[j] = lane + 32 * j < experts ? ranks[lane + 32 * j] : 0;
#pragma unroll 1
    for (int k = 0; k < experts_per_token; k++) {
        uint32_t best = rank[0], id = MAX_EXPERTS;
#pragma unroll
        for (int j = 1; j < J; j++) best = rank[j] > best ? rank[j] : best;
        best = warp_max_of(best);
#pragma unroll
        for (int j = J - 1; j >= 0; j--) id = rank[j] == best ? lane + 32 * j : id;
        id = warp_min_of(id);
#pragma unroll
        for (int j = 0; j < J; j++) rank[j] = id == uint32_t(lane + 32 * j) ? 0 : rank[j];
        if (lane == 0) chosen[k] = int(id);
    }
}

// The same choice, by one warp: chosen[k] = the k-th best. A barrier must follow.
template <class L>
DEVICE void warp_choose(L logits, aptr<const float> bias, int experts, int experts_per_token, int gate, int n_group,
                        int topk_group, int best_two, sptr<int> chosen) {
    SHARED(uint32_t, ranks, MAX_EXPERTS);
    int lane = threadIdx.x & 31;
    float top = -infinity(), total = 0.0f;
    if ((bias != nullptr || n_group > 1) && gate == GATE_SOFTMAX) {
        for (int e = lane; e < experts; e += 32) top = fmaxf(top, logits[e]);
        top = warp_max(top);
        for (int e = lane; e < experts; e += 32) total += expf(logits[e] - top);
        total = warp_sum(total);
    }
    uint32_t open = ~0u;
    int size = experts / n_group;
    if (n_group > 1) open = warp_open_groups(logits, bias, experts, gate, top, total, n_group, topk_group, best_two);
    // Each lane writes and reads those of its own experts: 1 in a group that is not open, 2 a NaN.
#pragma unroll 1
    for (int e = lane; e < experts; e += 32) {
        float v = bias != nullptr ? choice_value(logits, bias, e, gate, top, total) : logits[e];
        ranks[e] = n_group > 1 && !(open >> (e / size) & 1u) ? 1 : 2 + rank_of(v);
    }
    if (experts <= 128) warp_best<4>(ranks, experts, experts_per_token, chosen);
    else if (experts <= 256) warp_best<8>(ranks, experts, experts_per_token, chosen);
    else warp_best<32>(ranks, experts, experts_per_token, chosen);
}

// One warp: lane k < K gets the weight of expert chosen[k], as warp_route forms it.
template <class L>
DEVICE float warp_weights(L logits, sptr<const int> chosen, int experts, int experts_per_token, int gate, int renormalise,
                          float scale) {
    int lane = threadIdx.x & 31;
    bool mine = lane < experts_per_token;
    float top = -infinity(), total = 0.0f, weight = 0.0f;
    if (gate == GATE_SOFTMAX) {
        for (int e = lane; e < experts; e += 32) top = fmaxf(top, logits[e]);
        top = warp_max(top);
        for (int e = lane; e < experts; e += 32) total += expf(logits[e] - top);
        total = warp_sum(total);
    }
    if (mine) {
        weight = gate_value(logits[chosen[lane]], gate, top, total);
    }
    if (gate == GATE_SPARSE_MIXER)
        for (int k = 0; k < experts_per_token; k++) {
            float share = warp_mixer_share(logits, experts, chosen[k]);
            if (k == lane) weight = share;
        }
    if (gate == GATE_SOFTMAX_AFTER_TOP_K) {
        float m = warp_max(mine ? weight : -infinity());
        float p = mine ? expf(weight - m) : 0.0f;
        weight = p / warp_sum(p);
    }
    if (renormalise) weight = weight / warp_sum(mine ? weight : 0.0f);
    return weight * scale;
}
