// GivenExperts: logits [T, E], ids [T, n] → ids [T, K], the first K of n, each divided, and the weights of their logits [T, K].
#include "common/top_k.cuh"

// One warp a token, a lane an expert. Grid: ceil(T / warps). K ≤ 32; gate: softmax over all experts, or sigmoid. ids and weights
// may be null.
extern "C" __global__ void given_experts(aptr<const float> logits, aptr<const int> given, aptr<int> ids,
                                         aptr<float> weights, int tokens, int experts, int given_per_token,
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
    int id = mine ? given[t * given_per_token + lane] / divisor : 0;
    float weight = 0.0f;
    if (mine) weight = gate == GATE_SIGMOID ? sigmoid(row[id]) : expf(row[id] - top) / total;
    if (renormalise) weight = weight / warp_sum(weight);
    if (mine && ids != nullptr) ids[t * experts_per_token + lane] = id;
    if (mine && weights != nullptr) weights[t * experts_per_token + lane] = weight * scale;
}
KERNEL(given_experts)
