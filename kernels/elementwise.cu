// Add, Mul and the row gathers: the small ones.
#include "common/prelude.cuh"

// y = a + b. Grid: ceil(n / threads).
extern "C" __global__ void add(aptr<const float> a, aptr<const float> b, aptr<float> y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a[i] + b[i];
}
KERNEL(add)

// y = a · b; b repeats every b_elems elements. Grid: ceil(n / threads).
extern "C" __global__ void mul(aptr<const float> a, aptr<const float> b, aptr<float> y, int n, int b_elems) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a[i] * b[i % b_elems];
}
KERNEL(mul)

// y[r, i] = x[rows[r], i]. Grid: (ceil(n / threads), rows). A row outside x gives NaN.
extern "C" __global__ void get_rows(gptr<const float> x, gptr<const int> rows, gptr<float> y, int n, int x_rows) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int row = rows[blockIdx.y];
    y[blockIdx.y * n + i] = row >= 0 && row < x_rows ? x[row * n + i] : quiet_nan();
}
KERNEL(get_rows)

// Columns from … from + n − 1 of x [rows, x_stride] to columns to … of y [rows, y_stride]. Grid: (ceil(n / threads), rows).
extern "C" __global__ void copy_columns(gptr<const float> x, gptr<float> y, int n, int x_stride, int from, int y_stride,
                                        int to) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[blockIdx.y * y_stride + to + i] = x[blockIdx.y * x_stride + from + i];
}
KERNEL(copy_columns)
