// Down projection of the chosen experts, their weighted sum, the shared expert and the residual stream, for one token:
// y = residual + sum_scale · (Σ_k weight_k · (x_k · W[id_k]ᵀ + bias[id_k]) + factor · shared), k ascending, factor = scale ·
// sigmoid(logit).
//
// The shared expert may be given as what goes into its own down projection: shared = scale · x · Wᵀ.
//
// Rows of a down projection are short: `width` lanes take one expert's, so a warp has several experts under way.
#include "common/staged.cuh"

// Experts that a part of a warp has under way.
constexpr int DOWN_ROWS = 2;

// Grid: blocks. x [K, n], ids [K], weights [K], bias [E, rows] or null; down [K, rows] and combined [rows] or null. shared
// [rows], or with shared_w the [shared_n] that its product reads, or null: none; shared_y [rows] or null: the product.
// shared_logit [1], or null: factor 1. factor_id, factor [1], gated, with_shared, scaled [rows]: what of them somebody reads, or
// null. residual [rows], or null: none. stage as in norm_matmul.cu. Dynamic shared memory: staged_words(K·n) words for STAGE_Q8,
// then staged_words(shared_n) for that of shared_stage. width: 8, 16 or 32.
extern "C" __global__ void __launch_bounds__(256, BLOCKS_AT_ONCE(2, 3, 2))
    down_combine(aptr<const float> x, aptr<const int> ids, aptr<const float> weights, int format, gptr<const uint8_t> w,
                 unsigned long long row_bytes, unsigned long long expert_bytes, aptr<const float> bias,
                 aptr<const float> shared, int shared_format, gptr<const uint8_t> shared_w,
                 unsigned long long shared_row_bytes, float shared_down_scale, int shared_n, int shared_stage,
                 aptr<float> shared_y, aptr<const float> shared_logit, float shared_scale, aptr<int> factor_id,
                 aptr<float> factor, aptr<float> gated, aptr<float> with_shared, float sum_scale, aptr<float> scaled,
                 aptr<const float> residual, aptr<float> down, aptr<float> combined, aptr<float> y, int n, int rows,
                 int experts_per_token, int stage, int width) {
    SHARED_DYNAMIC(float, base);
    SHARED(float, routed, 8);
    wait_for_previous();
    int lane = threadIdx.x & 31, warps = blockDim.x >> 5, first = blockIdx.x * warps + (threadIdx.x >> 5);
    int part = lane & (width - 1), mine = lane / width, parts = 32 / width;
    bool q8 = (stage & STAGE_Q8) && format > FORMAT_BF16;
    if (first < rows)
        for (int k = mine; k < experts_per_token; k += parts)
            for (unsigned long long i = 128 * part; i < row_bytes; i += 128 * width)
                prefetch_line(w + (ids[k] * expert_bytes + first * row_bytes + i));
    StagedQ8 staged = staged_q8(base, experts_per_token * n);
    StagedQ8 shared_staged = staged_q8(stage & STAGE_Q8 ? base + staged_words(experts_per_token * n) : base, shared_n);
    if (stage & STAGE_Q8) stage_q8(x, experts_per_token * n, staged);
    if (shared_stage & STAGE_Q8) stage_q8(shared, shared_n, shared_staged);
    if ((stage | shared_stage) & STAGE_Q8) __syncthreads();
    for (int o = first; o < rows; o += gridDim.x * warps) {
        float sum = 0.0f;
        for (int k0 = 0; k0 < experts_per_token; k0 += DOWN_ROWS * parts) {
            gptr<const uint8_t> row[DOWN_ROWS];
            int xs[DOWN_ROWS];
            float acc[DOWN_ROWS];
#pragma unroll
            for (int j = 0; j < DOWN_ROWS; j++) {
                int k = k0 + j * parts + mine; // past the end the last one again, whose sum is left aside
                xs[j] = k < experts_per_token ? k : experts_per_token - 1;
                row[j] = w + (ids[xs[j]] * expert_bytes + o * row_bytes);
                acc[j] = 0.0f;
            }
            if (q8) {
                lane_dot_rows_q8<DOWN_ROWS, false>(format, row, n, staged, xs, part, width, acc);
            } else {
#pragma unroll
                for (int j = 0; j < DOWN_ROWS; j++)
                    acc[j] = staged_part(format, row[j], n, x, staged, stage, xs[j], part, width);
            }
#pragma unroll
            for (int j = 0; j < DOWN_ROWS; j++) {
                float v = warp_sum(acc[j], width);
                for (int p = 0; p < parts; p++) {
                    int k = k0 + j * parts + p;
                    float one = __shfl_sync(FULL_WARP, v, p * width);
                    if (k >= experts_per_token) continue;
                    if (bias != nullptr) one += bias[ids[k] * rows + o];
                    if (down != nullptr && lane == 0) down[k * rows + o] = one;
                    sum += weights[k] * one;
                }
            }
        }
        // The sum waits in shared memory: the shared expert's product takes the registers.
        if (lane == 0) routed[threadIdx.x >> 5] = sum;
        float s = 0.0f;
        if (shared_w != nullptr) {
            s = warp_sum(staged_part(shared_format, shared_w + o * shared_row_bytes, shared_n, shared, shared_staged,
                                     shared_stage, 0, lane, 32));
            s *= shared_down_scale;
        }
        if (lane == 0) {
            sum = routed[threadIdx.x >> 5];
            if (combined != nullptr) combined[o] = sum;
            if (shared != nullptr) {
                if (shared_w == nullptr) s = shared[o];
                else if (shared_y != nullptr) shared_y[o] = s;
                if (shared_logit != nullptr) {
                    float f = sigmoid(shared_logit[0]) * shared_scale;
                    if (o == 0 && factor_id != nullptr) factor_id[0] = 0;
                    if (o == 0 && factor != nullptr) factor[0] = f;
                    s *= f;
                    if (gated != nullptr) gated[o] = s;
                }
                sum += s;
                if (with_shared != nullptr) with_shared[o] = sum;
                sum *= sum_scale;
                if (scaled != nullptr) scaled[o] = sum;
            }
            y[o] = residual != nullptr ? residual[o] + sum : sum;
        }
    }
}
KERNEL(down_combine)
