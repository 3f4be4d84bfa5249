// Router: logits [T, E] → ids [T, K] best first, weights [T, K].
#include "common/top_k.cuh"

// One warp a token. Grid: ceil(T / warps). bias, if not null, is added to the gate's value for the choice alone.
extern "C" __global__ void router(gptr<const float> logits, gptr<const float> bias, gptr<int> ids, gptr<float> weights,
                                  int tokens, int experts, int experts_per_token, int gate, int renormalise, float scale,
                                  int groups, int groups_kept) {
    int t = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (t >= tokens) return;
    warp_route(logits + t * experts, bias, experts, experts_per_token, gate, renormalise, scale, groups, groups_kept,
               ids + t * experts_per_token, weights + t * experts_per_token);
}
KERNEL(router)
