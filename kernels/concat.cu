// Concat: of each head its elements of a, then those of b.
#include "common/prelude.cuh"

// a [·, from_a], b [·, from_b], y [·, from_a + from_b], n elements of y. Grid: ceil(n / threads).
extern "C" __global__ void concat(aptr<const float> a, aptr<const float> b, aptr<float> y, int n, int from_a,
                                  int from_b) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int head = i / (from_a + from_b), j = i % (from_a + from_b);
    y[i] = j < from_a ? a[head * from_a + j] : b[head * from_b + j - from_a];
}
KERNEL(concat)
