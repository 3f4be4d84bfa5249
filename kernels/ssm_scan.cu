// SsmScan: the scans of mamba2 and mamba1, token by token. For each head, with δ = softplus(dt + dt_bias): S ← e^(a·δ) · S + δ·x ⊗ B;
// out = S·C + d·x, S [P, N] of the sequence, 0 before position 0.
//
// A warp has ROWS rows of a head's S in its registers for the whole step, a lane N / 32 elements of each; what the next token
// brings is loaded while this one is summed.
#include "common/gate.cuh"

// One token's B and C of the lane's elements, x of the warp's rows (lane r has row r) and dt of the head.
template <int EACH> struct SsmToken {
    float b[EACH], c[EACH], x, dt;
};

template <int ROWS, int EACH>
DEVICE SsmToken<EACH> ssm_token(aptr<const float> row, float dt, int heads, int head, int p0, int rows, int size,
                                int groups) {
    int lane = threadIdx.x & 31;
    aptr<const float> b = row + heads * rows + head / (heads / groups) * size;
    aptr<const float> c = b + groups * size;
    SsmToken<EACH> t;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        bool inside = lane + 32 * e < size;
        t.b[e] = inside ? b[lane + 32 * e] : 0.0f;
        t.c[e] = inside ? c[lane + 32 * e] : 0.0f;
    }
    t.x = lane < ROWS && p0 + lane < rows ? row[head * rows + p0 + lane] : 0.0f;
    t.dt = dt;
    return t;
}

template <int ROWS, int EACH>
DEVICE void scan(aptr<const float> xbc, aptr<const float> dt, aptr<const int> positions, aptr<const float> a,
                 aptr<const float> d, aptr<const float> dt_bias, aptr<float> state, aptr<float> y, int tokens, int rows,
                 int size, int groups) {
    wait_for_previous();
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    int head = blockIdx.y, heads = gridDim.y, p0 = (blockIdx.x * warps + warp) * ROWS;
    int width = heads * rows + 2 * groups * size;
    if (p0 >= rows || tokens == 0) return;
    bool fresh = positions[0] == 0;
    aptr<float> held = state + (head * rows + p0) * size;
    float s[ROWS][EACH];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            bool inside = !fresh && p0 + r < rows && lane + 32 * e < size;
            s[r][e] = inside ? held[r * size + lane + 32 * e] : 0.0f;
        }
    float of_a = a[head], of_d = d[head], bias = dt_bias[head];
    SsmToken<EACH> next = ssm_token<ROWS, EACH>(xbc, dt[head], heads, head, p0, rows, size, groups);
    for (int t = 0; t < tokens; t++) {
        SsmToken<EACH> now = next;
        int ahead = t + 1 < tokens ? t + 1 : t;
        next = ssm_token<ROWS, EACH>(xbc + static_cast<long long>(ahead) * width, dt[ahead * heads + head], heads, head,
                                     p0, rows, size, groups);
        float delta = softplus(now.dt + bias), decay = expf(of_a * delta), mine = 0.0f;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float x = __shfl_sync(FULL_WARP, now.x, r), sum = 0.0f;
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                s[r][e] = decay * s[r][e] + delta * x * now.b[e];
                sum += s[r][e] * now.c[e];
            }
            sum = warp_sum(sum);
            if (lane == r) mine = sum + of_d * x;
        }
        if (lane < ROWS && p0 + lane < rows) y[(static_cast<long long>(t) * heads + head) * rows + p0 + lane] = mine;
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int e = 0; e < EACH; e++)
            if (p0 + r < rows && lane + 32 * e < size) held[r * size + lane + 32 * e] = s[r][e];
}

// xbc [T, heads·rows + 2·groups·size], dt [T, heads], state [heads, rows, size] → y [T, heads·rows]; a, d, dt_bias [heads].
// warp for `per_warp` rows. Grid: (ceil(rows / (warps · per_warp)), heads).
#define SSM_SCAN(name, ROWS, EACH)                                                                                     \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        name(aptr<const float> xbc, aptr<const float> dt, aptr<const int> positions, aptr<const float> a,              \
             aptr<const float> d, aptr<const float> dt_bias, aptr<float> state, aptr<float> y, int tokens, int rows,   \
             int size, int groups) {                                                                                   \
        scan<ROWS, EACH>(xbc, dt, positions, a, d, dt_bias, state, y, tokens, rows, size, groups);                     \
    }                                                                                                                  \
    KERNEL(name)

SSM_SCAN(ssm_scan_n128, 8, 4) // 8 rows a warp, size ≤ 128
SSM_SCAN(ssm_scan_n256, 4, 8) // 4 rows a warp, size ≤ 256

// Where each element decays by itself, mamba1: xbc [T, channels + 2·size], dt [T, channels], state [channels, size] →
// y [T, channels]; a [channels, size]; d, dt_bias [channels]. 16 lanes a channel, EACH elements of its row to each.
// Grid: ceil(channels / (2 · warps)).
template <int EACH>
DEVICE void scan_channels(aptr<const float> xbc, aptr<const float> dt, aptr<const int> positions, aptr<const float> a,
                          aptr<const float> d, aptr<const float> dt_bias, aptr<float> state, aptr<float> y, int tokens,
                          int channels, int size) {
    wait_for_previous();
    int part = threadIdx.x & 15, channel = blockIdx.x * (blockDim.x >> 4) + (threadIdx.x >> 4);
    if (tokens == 0) return;
    // Both halves of a warp take part in its sums.
    bool mine = channel < channels;
    int at = mine ? channel : 0, width = channels + 2 * size;
    bool fresh = positions[0] == 0;
    float s[EACH], of_a[EACH];
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        bool inside = part + 16 * e < size;
        s[e] = inside && !fresh ? state[at * size + part + 16 * e] : 0.0f;
        of_a[e] = inside ? a[at * size + part + 16 * e] : 0.0f;
    }
    float of_d = d[at], bias = dt_bias[at];
    for (int t = 0; t < tokens; t++) {
        aptr<const float> row = xbc + static_cast<long long>(t) * width;
        aptr<const float> b = row + channels;
        float x = row[at], delta = softplus(dt[static_cast<long long>(t) * channels + at] + bias), sum = 0.0f;
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            int i = part + 16 * e;
            if (i < size) {
                s[e] = expf(of_a[e] * delta) * s[e] + delta * x * b[i];
                sum += s[e] * b[size + i];
            }
        }
#pragma unroll
        for (int half = 8; half > 0; half >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, half);
        if (mine && part == 0) y[static_cast<long long>(t) * channels + at] = sum + of_d * x;
    }
#pragma unroll
    for (int e = 0; e < EACH; e++)
        if (mine && part + 16 * e < size) state[at * size + part + 16 * e] = s[e];
}

#define SSM_SCAN_CHANNELS(name, EACH)                                                                                  \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        name(aptr<const float> xbc, aptr<const float> dt, aptr<const int> positions, aptr<const float> a,              \
             aptr<const float> d, aptr<const float> dt_bias, aptr<float> state, aptr<float> y, int tokens,             \
             int channels, int size) {                                                                                 \
        scan_channels<EACH>(xbc, dt, positions, a, d, dt_bias, state, y, tokens, channels, size);                      \
    }                                                                                                                  \
    KERNEL(name)

SSM_SCAN_CHANNELS(ssm_scan_channels_n16, 1)   // size ≤ 16
SSM_SCAN_CHANNELS(ssm_scan_channels_n256, 16) // size ≤ 256
