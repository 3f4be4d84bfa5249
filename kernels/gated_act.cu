// GatedAct: y = act(gate) · up, elementwise; silu(g) = g · sigmoid(g).
#include "common/gate.cuh"

// up null: the ungated form, y = act(gate). Grid: ceil(n / threads).
extern "C" __global__ void gated_act(gptr<const float> gate, gptr<const float> up, gptr<float> y, int activation,
                                     float alpha, float clamp, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    y[i] = up != nullptr ? gated(activation, alpha, clamp, gate[i], up[i]) : activate(activation, alpha, gate[i]);
}
KERNEL(gated_act)
