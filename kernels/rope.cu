// Rope: rotates pairs of the first `dims` of each head's d elements by angle position · frequency; the rest passes.
//   half pairing: (i, i + dims/2); interleaved: (2i, 2i + 1), i < dims/2.
// cos and sin come from a table [positions, dims/2] that the host computed in f64.
#include "common/prelude.cuh"

// Grid: (heads, T). x_stride, y_stride: elements from one token to the next. A position outside the table gives NaN.
extern "C" __global__ void rope(gptr<const float> x, gptr<const int> positions, gptr<const float> cos_table,
                                gptr<const float> sin_table, gptr<float> y, int d, int dims, int interleaved,
                                int table_rows, int x_stride, int y_stride) {
    int position = positions[blockIdx.y], half = dims / 2;
    gptr<const float> a = x + blockIdx.y * x_stride + blockIdx.x * d;
    gptr<float> b = y + blockIdx.y * y_stride + blockIdx.x * d;
    bool inside = position >= 0 && position < table_rows;
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        float c = inside ? cos_table[position * half + i] : quiet_nan();
        float s = inside ? sin_table[position * half + i] : quiet_nan();
        int p = interleaved ? 2 * i : i, q = interleaved ? 2 * i + 1 : i + half;
        float u = a[p], v = a[q];
        b[p] = u * c - v * s;
        b[q] = u * s + v * c;
    }
    for (int i = dims + threadIdx.x; i < d; i += blockDim.x) b[i] = a[i];
}
KERNEL(rope)
