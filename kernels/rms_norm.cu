// RmsNorm over the last axis: y = x / sqrt(mean(x²) + eps) · w.  Rows are addressed [outer, heads, n] with the strides of
// both sides stated, so that a slice of a fused q/k/v row is normalised in place of a copy; heads = 1 is the plain norm.
#include "common/prelude.cuh"

// Grid: (heads, outer). x_stride, y_stride: elements from one outer row to the next.
extern "C" __global__ void rms_norm(gptr<const float> x, gptr<const float> w, gptr<float> y, float eps, int n,
                                    int x_stride, int y_stride) {
    gptr<const float> a = x + blockIdx.y * x_stride + blockIdx.x * n;
    gptr<float> b = y + blockIdx.y * y_stride + blockIdx.x * n;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) squares += a[i] * a[i];
    float inverse = 1.0f / sqrtf(block_sum(squares) / float(n) + eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) b[i] = a[i] * inverse * w[i];
}
KERNEL(rms_norm)
