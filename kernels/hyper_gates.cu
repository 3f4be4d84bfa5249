// HyperGates: w [T, (2 + n)·n] → pre [T, n], post [T, n], comb [T, n·n]; without mixing w [T, n] → pre. pre = sigmoid(w·scale₀ + base)
// + ε; post = 2·sigmoid(w·scale₁ + base); comb = softmax over k of (w·scale₂ + base)_jk, + ε, whose columns are then divided by
// their sums + ε, and iterations − 1 times its rows and its columns.
#include "common/prelude.cuh"

constexpr int MAX_STREAMS = 8;

// Divides a line of n elements, `step` apart, by its sum + ε.
DEVICE void divide_line(float *m, int n, int step, float eps) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++) sum += m[i * step];
    for (int i = 0; i < n; i++) m[i * step] = m[i * step] / (sum + eps);
}

// One thread a row. Grid: ceil(rows / threads). iterations 0: without mixing. n ≤ MAX_STREAMS; outputs may be null.
extern "C" __global__ void hyper_gates(aptr<const float> w, aptr<const float> scale, aptr<const float> base, aptr<float> pre,
                                       aptr<float> post, aptr<float> comb, int rows, int n, int iterations, float eps) {
    wait_for_previous();
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    aptr<const float> of_row = w + row * (iterations > 0 ? (2 + n) * n : n);
    if (pre != nullptr)
        for (int i = 0; i < n; i++) pre[row * n + i] = sigmoid(fmaf(of_row[i], scale[0], base[i])) + eps;
    if (iterations == 0) return;
    if (post != nullptr)
        for (int i = 0; i < n; i++) post[row * n + i] = 2.0f * sigmoid(fmaf(of_row[n + i], scale[1], base[n + i]));
    if (comb == nullptr) return;
    float m[MAX_STREAMS * MAX_STREAMS];
    for (int j = 0; j < n; j++) {
        float top = -infinity(), total = 0.0f;
        for (int k = 0; k < n; k++) {
            int at = 2 * n + j * n + k;
            m[j * n + k] = fmaf(of_row[at], scale[2], base[at]);
            top = fmaxf(top, m[j * n + k]);
        }
        for (int k = 0; k < n; k++) {
            m[j * n + k] = expf(m[j * n + k] - top);
            total += m[j * n + k];
        }
        for (int k = 0; k < n; k++) m[j * n + k] = m[j * n + k] / total + eps;
    }
    for (int k = 0; k < n; k++) divide_line(m + k, n, n, eps);
    for (int i = 1; i < iterations; i++) {
        for (int j = 0; j < n; j++) divide_line(m + j * n, n, 1, eps);
        for (int k = 0; k < n; k++) divide_line(m + k, n, n, eps);
    }
    for (int i = 0; i < n * n; i++) comb[row * n * n + i] = m[i];
}
KERNEL(hyper_gates)
