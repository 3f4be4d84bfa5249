// MatMul and ExpertMatMul of many tokens on the matrix units, every block format with 8-bit activations: the sums of matmul.cu
// and expert_matmul.cu, tile by tile.
//
// A block takes 128 weight rows and 32 tokens at a time. Of both it keeps 128 elements in shared memory: weights as 8-bit
// codes with scale and minimum of each 16, activations as they are with the sum of each 16. A warp multiplies 16 rows with the
// 32 tokens: integer sums of a group of 32 (or 16, where scales differ) are exact, and scaled into f32 sums, group after group.
#include "common/formats.cuh"
#include "common/mma.cuh"

constexpr int TILE_ROWS = 128, TILE_TOKENS = 32, TILE_K = 128;
constexpr int TILE_GROUPS = TILE_K / 32, TILE_UNITS = TILE_K / 16;
// A row's bytes in shared memory, padded so that eight rows' words fall into different banks.
constexpr int TILE_STRIDE = TILE_K + 16;

// Which formats have one scale and minimum for 32 elements.
DEVICE bool scales_of_32(int format) {
    return format != FORMAT_Q2_K && format != FORMAT_Q3_K && format != FORMAT_Q6_K && format != FORMAT_IQ2_XS &&
           format != FORMAT_IQ2_S && format != FORMAT_IQ1_M && format != FORMAT_NVFP4;
}

struct TileShared {
    sptr<uint8_t> w;               // [TILE_ROWS, TILE_STRIDE]
    sptr<float2> w_scale;          // [TILE_ROWS, TILE_UNITS]: scale, minimum
    sptr<uint8_t> x;               // [TILE_TOKENS, TILE_STRIDE]
    sptr<float2> x_scale;          // [TILE_TOKENS, TILE_UNITS]: scale, scale · Σ q
    sptr<int> x_row;               // [TILE_TOKENS]
};

// The row's share of a tile: groups past the end of the row are zeroes.
DEVICE void stage_weights(const TileShared &s, int format, gptr<const uint8_t> w, unsigned long long row_bytes, int row0,
                          int rows, int n, int group0) {
    for (int i = threadIdx.x; i < TILE_ROWS * TILE_GROUPS; i += blockDim.x) {
        int r = i / TILE_GROUPS, k = i % TILE_GROUPS;
        Group32 g;
        if (row0 + r < rows && group0 + k < n / 32) {
            g = decode_group(format, w + (row0 + r) * row_bytes, n, group0 + k);
        } else {
            for (int j = 0; j < 8; j++) g.code[j] = 0;
            set_scales(g, 0.0f, 0.0f);
        }
        sptr<int4> out = cast<int4>(s.w + r * TILE_STRIDE + k * 32);
        out[0] = int4{g.code[0], g.code[1], g.code[2], g.code[3]};
        out[1] = int4{g.code[4], g.code[5], g.code[6], g.code[7]};
        for (int h = 0; h < 2; h++) s.w_scale[r * TILE_UNITS + 2 * k + h] = make_float2(g.scale[h], g.minimum[h]);
    }
}

DEVICE void stage_tokens(const TileShared &s, aptr<const int> q, aptr<const float> q_scale, int count, int n, int group0) {
    for (int i = threadIdx.x; i < TILE_TOKENS * TILE_UNITS; i += blockDim.x) {
        int t = i / TILE_UNITS, u = i % TILE_UNITS;
        int4 v = int4{0, 0, 0, 0};
        float scale = 0.0f;
        if (t < count && group0 + u / 2 < n / 32) {
            long long row = s.x_row[t];
            v = cast<const int4>(q)[row * (n / 16) + 2 * group0 + u];
            scale = q_scale[row * (n / 32) + group0 + u / 2];
        }
        cast<int4>(s.x + t * TILE_STRIDE)[u] = v;
        int sum = dot4(0x01010101, v.x, dot4(0x01010101, v.y, dot4(0x01010101, v.z, dot4(0x01010101, v.w, 0))));
        s.x_scale[t * TILE_UNITS + u] = make_float2(scale, scale * float(sum));
    }
}

// acc[n tile][·] of the warp's 16 rows and 32 tokens over the staged elements. WHOLE: one scale for 32.
template <bool WHOLE> DEVICE void multiply(const TileShared &s, float (&acc)[4][4]) {
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, row = (threadIdx.x >> 5) * 16 + g;
    sptr<const uint32_t> w0 = cast<const uint32_t>(s.w + row * TILE_STRIDE), w1 = cast<const uint32_t>(s.w + (row + 8) * TILE_STRIDE);
#pragma unroll
    for (int k = 0; k < TILE_GROUPS; k++) {
        uint32_t a[4] = {w0[8 * k + t], w1[8 * k + t], w0[8 * k + t + 4], w1[8 * k + t + 4]};
        float2 scale[2][2]; // [half][row, row + 8]
#pragma unroll
        for (int h = 0; h < (WHOLE ? 1 : 2); h++) {
            scale[h][0] = s.w_scale[row * TILE_UNITS + 2 * k + h];
            scale[h][1] = s.w_scale[(row + 8) * TILE_UNITS + 2 * k + h];
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            sptr<const uint32_t> x = cast<const uint32_t>(s.x + (8 * j + g) * TILE_STRIDE);
            uint32_t b[2] = {x[8 * k + t], x[8 * k + t + 4]};
            float2 token[2][2]; // [half][token 2t, 2t + 1]
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int p = 0; p < 2; p++) token[h][p] = s.x_scale[(8 * j + 2 * t + p) * TILE_UNITS + 2 * k + h];
            if (WHOLE) {
                int c[4] = {0, 0, 0, 0};
                mma_s8_k32(c, a, b);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float2 w = scale[0][i >> 1], x0 = token[0][i & 1], x1 = token[1][i & 1];
                    acc[j][i] += w.x * float(c[i]) * x0.x - w.y * (x0.y + x1.y);
                }
            } else {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int c[4] = {0, 0, 0, 0};
                    mma_s8_k16(c, a[2 * h], a[2 * h + 1], b[h]);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float2 w = scale[h][i >> 1], x = token[h][i & 1];
                        acc[j][i] += w.x * float(c[i]) * x.x - w.y * x.y;
                    }
                }
            }
        }
    }
}

// Grid: (ceil(rows / 128), ceil(T / 32)) for a matmul; (ceil(rows / 128), experts) for experts, where order [pairs] are the
// pairs sorted by expert and first [E + 1] where each expert's begin (expert_order). 256 threads. q [·, n] 8 bits, q_scale
// [·, n / 32]; n % 32 = 0. Row of pair s: s / slots_per_x. y [T or pairs, rows] = scale · (x · Wᵀ) + bias.
extern "C" __global__ void __launch_bounds__(256)
    matmul_tiles(int format, gptr<const uint8_t> w, unsigned long long row_bytes, unsigned long long expert_bytes,
                 aptr<const int> q, aptr<const float> q_scale, aptr<const int> order, aptr<const int> first,
                 aptr<const float> bias, float scale, aptr<float> y, int n, int rows, int tokens, int slots_per_x) {
    SHARED(uint8_t, w_codes, TILE_ROWS *TILE_STRIDE);
    SHARED(float2, w_scales, TILE_ROWS *TILE_UNITS);
    SHARED(uint8_t, x_codes, TILE_TOKENS *TILE_STRIDE);
    SHARED(float2, x_scales, TILE_TOKENS *TILE_UNITS);
    SHARED(int, x_rows, TILE_TOKENS);
    wait_for_previous();
    TileShared s;
    s.w = w_codes;
    s.w_scale = w_scales;
    s.x = x_codes;
    s.x_scale = x_scales;
    s.x_row = x_rows;
    int row0 = blockIdx.x * TILE_ROWS, expert = order != nullptr ? blockIdx.y : 0;
    int from = order != nullptr ? first[expert] : blockIdx.y * TILE_TOKENS;
    int to = order != nullptr ? first[expert + 1] : min(from + TILE_TOKENS, tokens);
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, warp = threadIdx.x >> 5;
    bool whole = scales_of_32(format);
    w = w + expert * expert_bytes;
    for (int at = from; at < to; at += TILE_TOKENS) {
        int count = min(to - at, TILE_TOKENS);
        if (int(threadIdx.x) < count) {
            int pair = at + threadIdx.x;
            x_rows[threadIdx.x] = (order != nullptr ? order[pair] : pair) / slots_per_x;
        }
        float acc[4][4];
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[j][i] = 0.0f;
        for (int group0 = 0; group0 < n / 32; group0 += TILE_GROUPS) {
            __syncthreads();
            stage_weights(s, format, w, row_bytes, row0, rows, n, group0);
            stage_tokens(s, q, q_scale, count, n, group0);
            __syncthreads();
            if (whole) multiply<true>(s, acc);
            else multiply<false>(s, acc);
        }
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int o = row0 + warp * 16 + g + 8 * (i >> 1), k = 8 * j + 2 * t + (i & 1);
                if (o >= rows || k >= count) continue;
                int pair = order != nullptr ? order[at + k] : at + k;
                float v = scale * acc[j][i];
                if (bias != nullptr) v += bias[expert * rows + o];
                y[static_cast<long long>(pair) * rows + o] = v;
            }
        __syncthreads();
    }
}
KERNEL(matmul_tiles)

// Sorts the pairs by expert, stably. ids [pairs] → order [pairs]: pair indices, expert after expert; first [E + 1]: where each
// expert's begin. Grid: E blocks of 256 threads, each placing its own expert's pairs.
extern "C" __global__ void __launch_bounds__(256)
    expert_order(aptr<const int> ids, aptr<int> order, aptr<int> first, int pairs, int experts) {
    SHARED(int, totals, 8);
    SHARED(int, below, 8);
    wait_for_previous();
    int e = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int before = 0;
    for (int s = threadIdx.x; s < pairs; s += blockDim.x) before += ids[s] < e;
    for (int d = 16; d > 0; d >>= 1) before += __shfl_xor_sync(FULL_WARP, before, d);
    if (lane == 0) below[warp] = before;
    __syncthreads();
    int start = 0;
    for (int k = 0; k < 8; k++) start += below[k];
    if (threadIdx.x == 0) {
        first[e] = start;
        if (e == experts - 1) first[experts] = pairs;
    }
    for (int base = 0; base < pairs; base += blockDim.x) {
        int s = base + threadIdx.x;
        bool mine = s < pairs && ids[s] == e;
        uint32_t votes = __ballot_sync(FULL_WARP, mine);
        if (lane == 0) totals[warp] = __popc(votes);
        __syncthreads();
        int at = start + __popc(votes & ((1u << lane) - 1u));
        for (int k = 0; k < 8; k++) {
            if (k < warp) at += totals[k];
            start += totals[k];
        }
        if (mine) order[at] = s;
        __syncthreads();
    }
}
KERNEL(expert_order)
