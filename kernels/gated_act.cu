// GatedAct: activated = act(gate), y = activated times what it lets through of up (common/gated.cuh), elementwise.
#include "common/gated.cuh"

// Either output may be null. Grid: ceil(n / threads).
extern "C" __global__ void gated_act(aptr<const float> gate, aptr<const float> up, aptr<float> activated, aptr<float> y,
                                     int n, int activation, float alpha, float limit) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float a = activate(activation, gate[i], alpha, limit);
    if (activated != nullptr) activated[i] = a;
    if (y != nullptr) y[i] = a * let_through(activation, up[i], limit);
}
KERNEL(gated_act)
