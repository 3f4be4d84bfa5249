// HyperConnect: x [T, n·D], y [T, D], post [T, n], comb [T, n·n] → x'_k = post_k·y + Σ_j comb_jk·x_j: [T, n·D].
#include "common/prelude.cuh"

// One thread an element of a stream. Grid: (ceil(D / threads), T, n).
extern "C" __global__ void hyper_connect(aptr<const float> x, aptr<const float> y, aptr<const float> post,
                                         aptr<const float> comb, aptr<float> out, int width) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y, k = blockIdx.z, n = gridDim.z;
    if (i >= width) return;
    long long row = static_cast<long long>(t) * n * width;
    float sum = post[t * n + k] * y[static_cast<long long>(t) * width + i];
    for (int j = 0; j < n; j++) sum = fmaf(comb[(t * n + j) * n + k], x[row + j * width + i], sum);
    out[row + k * width + i] = sum;
}
KERNEL(hyper_connect)
