// GatedAct: activated = silu(gate) = gate · sigmoid(gate), y = activated · up, elementwise.
#include "common/gate.cuh"

// Either output may be null. Grid: ceil(n / threads).
extern "C" __global__ void gated_act(aptr<const float> gate, aptr<const float> up, aptr<float> activated, aptr<float> y,
                                     int n) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float a = silu(gate[i]);
    if (activated != nullptr) activated[i] = a;
    if (y != nullptr) y[i] = a * up[i];
}
KERNEL(gated_act)
