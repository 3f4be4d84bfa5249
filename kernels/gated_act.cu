// GatedAct: activated = silu(gate) = gate · sigmoid(gate), y = activated · up, elementwise.
#include "common/gate.cuh"

// Either output may be null. Grid: ceil(n / threads).
extern "C" __global__ void gated_act(gptr<const float> gate, gptr<const float> up, gptr<float> activated, gptr<float> y,
                                     int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float a = silu(gate[i]);
    if (activated != nullptr) activated[i] = a;
    if (y != nullptr) y[i] = a * up[i];
}
KERNEL(gated_act)
