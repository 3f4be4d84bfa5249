// 8-bit activations for the matmuls: x [rows, n] f32 → q [rows, n] int8, scale [rows, n / 32] f32; n % 32 = 0.
#include "common/activation.cuh"

// Grid: ceil(blocks / warps); one warp a block of 32. blocks = rows · n / 32.
extern "C" __global__ void quantize_q8(aptr<const float> x, aptr<int8_t> q, aptr<float> scale, int blocks) {
    wait_for_previous();
    int b = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (b >= blocks) return;
    float s;
    int v = quantize_lane_q8(x[b * 32 + lane], s);
    q[b * 32 + lane] = int8_t(v);
    if (lane == 0) scale[b] = s;
}
KERNEL(quantize_q8)

// x [n] rounded to half and back: the f16 activation setting.
extern "C" __global__ void round_f16(aptr<const float> x, aptr<float> y, int n) {
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = half_to_float(float_to_half(x[i]));
}
KERNEL(round_f16)
