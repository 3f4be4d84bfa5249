// PositionScale: y = x · (1 + scale · ln(1 + ⌊(position + offset) / length⌋)); x, y [T, n], positions [T].
#include "common/prelude.cuh"

// elems = T · n. Grid: ceil(elems / threads).
extern "C" __global__ void position_scale(aptr<const float> x, aptr<const int> positions, aptr<float> y, int elems, int n,
                                          float scale, int length, int offset) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < elems) y[i] = x[i] * (1.0f + scale * log1pf(float((positions[i / n] + offset) / length)));
}
KERNEL(position_scale)
