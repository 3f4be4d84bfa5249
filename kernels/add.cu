// Add.
#include "common/prelude.cuh"

// y = a + b. Grid: ceil(n / threads).
extern "C" __global__ void add(aptr<const float> a, aptr<const float> b, aptr<float> y, int n) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a[i] + b[i];
}
KERNEL(add)
