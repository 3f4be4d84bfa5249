// GivenExperts: logits [T, E], ids [T, n] → ids [T, K], the first K of n, each divided, and the weights of their logits [T, K].
// With a table [vocab, n]: tokens [T] in place of ids, and their first K ids best first.
#include "common/top_k.cuh"

// One warp a token, a lane an expert. Grid: ceil(T / warps). K ≤ 32; gate: softmax over all experts, sigmoid or sqrt-softplus. table,
// ids and weights may be null.
extern "C" __global__ void given_experts(aptr<const float> logits, aptr<const int> given, gptr<const int> table,
                                         aptr<int> ids, aptr<float> weights, int tokens, int experts, int given_per_token,
                                         int experts_per_token, int gate, int renormalise, float scale, int divisor) {
    wait_for_previous();
    int t = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (t >= tokens) return;
    aptr<const float> row = logits + t * experts;
    float top = -infinity(), total = 1.0f;
    if (gate == GATE_SOFTMAX) {
        for (int e = lane; e < experts; e += 32) top = fmaxf(top, row[e]);
        top = warp_max(top);
        // Where the weights are to sum to 1, the sum over all cancels.
        if (!renormalise) {
            total = 0.0f;
            for (int e = lane; e < experts; e += 32) total += expf(row[e] - top);
            total = warp_sum(total);
        }
    }
    bool mine = lane < experts_per_token;
    int id = 0;
    if (mine && table == nullptr) id = given[t * given_per_token + lane] / divisor;
    if (mine && table != nullptr) {
        // As the table says, but never beyond the last.
        int found = table[static_cast<long long>(given[t]) * given_per_token + lane] / divisor;
        id = found < 0 || found >= experts ? experts - 1 : found;
    }
    if (table != nullptr) {
        uint32_t rank = mine ? rank_of(row[id]) : 0;
        int before = 0, sorted = 0;
        for (int k = 0; k < experts_per_token; k++) {
            uint32_t other = __shfl_sync(FULL_WARP, rank, k);
            before += other > rank || (other == rank && k < lane);
        }
        for (int k = 0; k < experts_per_token; k++) {
            int place = __shfl_sync(FULL_WARP, before, k), other = __shfl_sync(FULL_WARP, id, k);
            if (place == lane) sorted = other;
        }
        id = sorted;
    }
    float weight = 0.0f;
    if (mine) weight = gate_value(row[id], gate, top, total);
    if (renormalise) weight = weight / warp_sum(weight);
    if (mine && ids != nullptr) ids[t * experts_per_token + lane] = id;
    if (mine && weights != nullptr) weights[t * experts_per_token + lane] = weight * scale;
}
KERNEL(given_experts)
