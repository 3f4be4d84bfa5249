// LayerNorm over the last axis: y = (x − mean) / sqrt(variance + eps) · w (+ b); x, y [rows, n], w, b [n].
#include "common/prelude.cuh"

// b may be null. Grid: rows.
extern "C" __global__ void layer_norm(aptr<const float> x, aptr<const float> w, aptr<const float> b, aptr<float> y,
                                      float eps, int n) {
    wait_for_previous();
    aptr<const float> row = x + blockIdx.x * n;
    aptr<float> out = y + blockIdx.x * n;
    float sum = 0.0f, squares = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += row[i];
    float mean = block_sum(sum) / float(n);
    for (int i = threadIdx.x; i < n; i += blockDim.x) squares += (row[i] - mean) * (row[i] - mean);
    float inverse = 1.0f / sqrtf(block_sum(squares) / float(n) + eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float v = (row[i] - mean) * inverse * w[i];
        out[i] = b != nullptr ? v + b[i] : v;
    }
}
KERNEL(layer_norm)
