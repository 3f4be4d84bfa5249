// DeltaGates: beta = sigmoid(b), decay = e^(a · softplus(dt + dt_bias)), a of its head; with a bound (below 0)
// decay = e^(bound · sigmoid(a · (dt + dt_bias))).
#include "common/gate.cuh"

// b, beta [T, heads]; dt, decay [T, heads · of_head]; a [heads], dt_bias [heads · of_head]; n elements of dt. Grid:
// ceil(n / threads).
extern "C" __global__ void delta_gates(aptr<const float> b, aptr<const float> dt, aptr<const float> a,
                                       aptr<const float> dt_bias, aptr<float> beta, aptr<float> decay, int n,
                                       int heads, int of_head, float bound) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int head = i / of_head % heads;
    float x = dt[i] + dt_bias[i % (heads * of_head)];
    decay[i] = expf(bound < 0.0f ? bound * sigmoid(a[head] * x) : a[head] * softplus(x));
    if (i % of_head == 0) beta[i / of_head] = sigmoid(b[i / of_head]);
}
KERNEL(delta_gates)
