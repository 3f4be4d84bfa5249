// Slice: of each head of `width` elements those from `start` on, `len` of them.
#include "common/prelude.cuh"

// x [·, width], y [·, len], n elements of y. Grid: ceil(n / threads).
extern "C" __global__ void slice(aptr<const float> x, aptr<float> y, int n, int width, int start, int len) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i / len * width + start + i % len];
}
KERNEL(slice)
