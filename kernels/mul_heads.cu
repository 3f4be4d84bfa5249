// MulHeads: each head of x [T, heads · d] times its factor [T, heads].
#include "common/prelude.cuh"

// n elements of x. Grid: ceil(n / threads).
extern "C" __global__ void mul_heads(aptr<const float> x, aptr<const float> factors, aptr<float> y, int n, int d) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * factors[i / d];
}
KERNEL(mul_heads)
