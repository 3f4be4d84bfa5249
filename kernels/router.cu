// Router: logits [T, E] → ids [T, K] best first, weights [T, K] as applied. See common/top_k.cuh.
#include "common/top_k.cuh"

// One warp a token. Grid: ceil(T / warps). bias [E], or null; expert_scale [E], of the weights, or null; n_group 1: all experts
// are chosen from.
extern "C" __global__ void router(aptr<const float> logits, aptr<const float> bias,
                                  aptr<const float> expert_scale, aptr<int> ids, aptr<float> weights, int tokens,
                                  int experts, int experts_per_token, int gate, int renormalise,
                                  float scale, int n_group, int topk_group, int best_two) {
    wait_for_previous();
    int t = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (t >= tokens) return;
    Route r = warp_route(logits + t * experts, bias, experts, experts_per_token, gate, renormalise, scale, n_group,
                         topk_group, best_two);
    if (lane < experts_per_token) {
        ids[t * experts_per_token + lane] = r.id;
        weights[t * experts_per_token + lane] = expert_scale != nullptr ? r.weight * expert_scale[r.id] : r.weight;
    }
}
KERNEL(router)
