// RmsNorm, gate and up, gated activation, for one row: the first half of a dense layer or of a shared expert. Without a norm
// (w null) the row is taken as it is.
//
// Every block norms the row for itself; its warps hold gate and up of a row together.
#include "common/gated.cuh"
#include "common/staged.cuh"

// Grid: blocks, 256 threads. x [n] → y [rows]; normed [n], gate_out, up_out, activated [rows] or null. n % 4 = 0, n ≤ 8192.
// stage and dynamic shared memory as in norm_matmul.cu.
extern "C" __global__ void __launch_bounds__(256, BLOCKS_AT_ONCE(2, 2, 2))
    gate_up(aptr<const float> x, aptr<const float> w, float eps, aptr<float> normed, int n, int stage, int gate_format,
            gptr<const uint8_t> gate_w, unsigned long long gate_row_bytes, int up_format, gptr<const uint8_t> up_w,
            unsigned long long up_row_bytes, int activation, float alpha, float limit, aptr<float> gate_out,
            aptr<float> up_out, aptr<float> activated, aptr<float> y, int rows) {
    SHARED_DYNAMIC(float, base);
    int lane = threadIdx.x & 31, warps = blockDim.x >> 5, first = blockIdx.x * warps + (threadIdx.x >> 5);
    if (first < rows) {
        warp_prefetch(gate_w + first * gate_row_bytes, gate_row_bytes);
        warp_prefetch(up_w + first * up_row_bytes, up_row_bytes);
    }
    wait_for_previous();
    RowNorm norm;
    norm.w = w;
    norm.b = aptr<const float>(nullptr);
    norm.eps = eps;
    norm.centred = 0;
    aptr<float> copy = blockIdx.x == 0 ? normed : aptr<float>(nullptr);
    StagedQ8 staged = stage_normed(x, no_post_norm(), norm, n, stage, base, copy);
    sptr<float> row = base;
    for (int o = first; o < rows; o += gridDim.x * warps) {
        gptr<const uint8_t> pair[2] = {gate_w + o * gate_row_bytes, up_w + o * up_row_bytes};
        float acc[2];
        staged_pair(gate_format, up_format, pair, n, row, staged, stage, lane, acc);
        float g = warp_sum(acc[0]), u = warp_sum(acc[1]);
        if (lane == 0) {
            float a, v = gated(activation, g, u, alpha, limit, a);
            if (gate_out != nullptr) gate_out[o] = g;
            if (up_out != nullptr) up_out[o] = u;
            if (activated != nullptr) activated[o] = a;
            y[o] = v;
        }
    }
}
KERNEL(gate_up)
