// A gate, the MatMul of what it lets through and the residual Add, for one row, with a norm of heads in front of the gate or
// behind it: y = residual + (scale · gated(x) · Wᵀ + bias).
//
// Every block gates the row for itself and keeps it in shared memory.
#include "common/gated.cuh"
#include "common/part.cuh"
#include "common/staged.cuh"

enum NormPlace : int { NORM_NONE = 0, NORM_IN_FRONT = 1, NORM_BEHIND = 2 };

// gate, n elements; or with gate_width > 0 a logit for each gate_width elements, whose function is a factor and nothing more. activated,
// gated [n] (activated [n / gate_width]) or null: what somebody reads of it.
struct RowGate {
    Part gate;
    int gate_width, activation;
    float alpha, limit;
    aptr<float> activated, gated;
};

// Element i of the row, v before the gate.
DEVICE float gate_element(const RowGate &g, int i, float v) {
    int at = g.gate_width > 0 ? i / g.gate_width : i;
    bool first = g.gate_width == 0 || i % g.gate_width == 0;
    float a = activate(g.activation, part_element(g.gate, at, first), g.alpha, g.limit);
    if (g.activated != nullptr && first) g.activated[at] = a;
    v = g.gate_width > 0 ? v * a : a * let_through(g.activation, v, g.limit);
    if (g.gated != nullptr) g.gated[i] = v;
    return v;
}

// Grid: blocks, 256 threads. x [n] → y [rows]. norm: a NormPlace; its w [heads · n / heads], of which head h takes part
// h % weights, or null: 1; normed [n] or null. The rest as in matmul_residual.cu. n % 4 = 0, n ≤ 8192.
// Dynamic shared memory: 4n bytes, then staged_words(n) words for STAGE_Q8.
extern "C" __global__ void __launch_bounds__(256, BLOCKS_AT_ONCE(3, 3, 2))
    gated_matmul(aptr<const float> x, aptr<const float> gate, int gate_len, int gate_step, int gate_from, aptr<float> gate_copy, int gate_width, int activation, float alpha, float limit,
                 aptr<float> activated, aptr<float> gated, int norm, aptr<const float> norm_w, float eps, int heads, int weights,
                 aptr<float> normed, int format, gptr<const uint8_t> w, unsigned long long row_bytes, aptr<const float> bias,
                 float scale, aptr<const float> residual, aptr<float> product, aptr<float> y, int n, int rows, int stage) {
    SHARED_DYNAMIC(float, row);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, first = blockIdx.x * warps + warp;
    if (first < rows) warp_prefetch(w + first * row_bytes, row_bytes);
    wait_for_previous();
    bool keeps = blockIdx.x == 0;
    RowGate g;
    g.gate = part_of(gate, gate_len, gate_step, gate_from, keeps ? gate_copy : aptr<float>(nullptr));
    g.gate_width = gate_width;
    g.activation = activation;
    g.alpha = alpha;
    g.limit = limit;
    g.activated = keeps ? activated : aptr<float>(nullptr);
    g.gated = keeps ? gated : aptr<float>(nullptr);
    for (int i = threadIdx.x; i < n; i += blockDim.x) row[i] = norm == NORM_IN_FRONT ? x[i] : gate_element(g, i, x[i]);
    __syncthreads();
    if (norm != NORM_NONE) {
        // A warp a head; or, where there are few, the block one after another.
        bool together = heads < warps;
        int d = n / heads, from = together ? int(threadIdx.x) : lane, step = together ? int(blockDim.x) : 32;
        for (int h = together ? 0 : warp; h < heads; h += together ? 1 : warps) {
            float squares = 0.0f;
            for (int i = from; i < d; i += step) squares += row[h * d + i] * row[h * d + i];
            squares = together ? block_sum(squares) : warp_sum(squares);
            float inverse = 1.0f / sqrtf(squares / float(d) + eps);
            for (int i = from; i < d; i += step) {
                float v = row[h * d + i] * inverse;
                if (norm_w != nullptr) v *= norm_w[h % weights * d + i];
                if (keeps && normed != nullptr) normed[h * d + i] = v;
                row[h * d + i] = norm == NORM_IN_FRONT ? gate_element(g, h * d + i, v) : v;
            }
        }
        __syncthreads();
    }
    StagedQ8 staged = staged_q8(row + n, n);
    if (stage & STAGE_Q8) {
        stage_q8(row, n, staged);
        __syncthreads();
    }
    matmul_rows(format, w, row_bytes, bias, scale, residual, product, y, n, rows, row, staged, stage, first,
                gridDim.x * warps);
}
KERNEL(gated_matmul)
