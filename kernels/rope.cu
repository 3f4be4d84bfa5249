// Rope: turns pairs (a, b) of each head to (a·cos − b·sin, b·cos + a·sin); the first `dims` of d elements, the rest pass.
// cos and sin come from a table [positions, dims/2, 2] that the host computed in f64.
#include "common/rotate.cuh"

// x, y [T, heads · d]. Grid: (heads, T).
extern "C" __global__ void rope(aptr<const float> x, aptr<const int> positions, aptr<const float> table, aptr<float> y,
                                int d, int dims, int interleaved, int table_rows) {
    wait_for_previous();
    int head = blockIdx.y * gridDim.x + blockIdx.x;
    aptr<const float> a = x + head * d;
    aptr<float> b = y + head * d;
    int position = positions[blockIdx.y];
    for (int i = threadIdx.x; i < d; i += blockDim.x) b[i] = rotated(a, i, position, table, dims, interleaved, table_rows);
}
KERNEL(rope)
