// ExpertCombine: y[t, i] = Σ_k weight[t, k] · x[t, k, i], k ascending.
#include "common/prelude.cuh"

// Grid: (ceil(n / threads), T).
extern "C" __global__ void expert_combine(aptr<const float> x, aptr<const float> weights, aptr<float> y, int n,
                                          int experts_per_token) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (i >= n) return;
    float sum = 0.0f;
    for (int k = 0; k < experts_per_token; k++) {
        int s = t * experts_per_token + k;
        sum += weights[s] * x[s * n + i];
    }
    y[t * n + i] = sum;
}
KERNEL(expert_combine)
