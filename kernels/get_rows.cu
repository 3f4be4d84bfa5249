// GetRows: the rows whose logits are asked for. x [T, n], rows [R] → y [R, n].
#include "common/prelude.cuh"

// y[r, i] = x[rows[r], i]. Grid: (ceil(n / threads), rows). A row outside x gives NaN.
extern "C" __global__ void get_rows(aptr<const float> x, aptr<const int> rows, aptr<float> y, int n, int x_rows) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int row = rows[blockIdx.y];
    y[blockIdx.y * n + i] = row >= 0 && row < x_rows ? x[row * n + i] : quiet_nan();
}
KERNEL(get_rows)
