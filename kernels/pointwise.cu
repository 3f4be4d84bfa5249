// Pointwise: a function of each element.
#include "common/prelude.cuh"

// As backends/cuda/src/ops/pointwise.rs numbers them: factor · x; factor · tanh(x / factor); min(max(x, -factor), factor);
// max(x, 0)². NaN stays NaN.
enum Function : int { SCALE = 0, SOFT_CAP = 1, CLAMP = 2, RELU_SQUARED = 3 };

// Grid: ceil(n / threads).
extern "C" __global__ void pointwise(aptr<const float> x, aptr<float> y, int n, int function, float factor) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    if (function == SCALE) {
        v = factor * v;
    } else if (function == SOFT_CAP) {
        v = factor * tanhf(v / factor);
    } else if (function == RELU_SQUARED) {
        v = v < 0.0f ? 0.0f : v * v;
    } else {
        v = v > factor ? factor : v;
        v = v < -factor ? -factor : v;
    }
    y[i] = v;
}
KERNEL(pointwise)
