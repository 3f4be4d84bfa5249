// ExpertMatMul, every format: y[s, o] = Σᵢ x[s / slots_per_x, i] · W[slot_of[id[s]], o, i] + bias[id[s], o] for the T·K
// chosen (token, expert) pairs s. W [experts here, rows, n], experts expert_bytes apart; slot_of [E] maps an expert's id
// to its place in W (null: the identity). x has a row for each token (slots_per_x = K) or for each pair (slots_per_x = 1).
//
// Two forms with the same sums: by pair (few tokens), and grouped, where pairs sorted by expert on the device share a
// decoded weight row.
#include "common/dot.cuh"

DEVICE gptr<const uint8_t> expert_row(gptr<const uint8_t> w, unsigned long long row_bytes, unsigned long long expert_bytes,
                                      aptr<const int> slot_of, int id, int o) {
    int slot = slot_of != nullptr ? slot_of[id] : id;
    return w + (slot * expert_bytes + o * row_bytes);
}

DEVICE float bias_of(aptr<const float> bias, int id, int rows, int o) { return bias != nullptr ? bias[id * rows + o] : 0.0f; }

// Grid: (ceil(rows / warps), pairs).
extern "C" __global__ void __launch_bounds__(256, BLOCKS_AT_ONCE(0, 3, 0))
    expert_matmul_f32(int format, gptr<const uint8_t> w, unsigned long long row_bytes,
                      unsigned long long expert_bytes, aptr<const int> slot_of,
                      aptr<const float> x, aptr<const int> ids, aptr<const float> bias, aptr<float> y, int n, int rows,
                      int slots_per_x) {
    wait_for_previous();
    int o = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), s = blockIdx.y;
    if (o >= rows) return;
    gptr<const uint8_t> row = expert_row(w, row_bytes, expert_bytes, slot_of, ids[s], o);
    int r[1] = {s / slots_per_x};
    float acc[1];
    warp_dot_f32<1>(format, row, n, x, r, acc);
    // The bias is read behind the product, in which it would hold a register.
    if ((threadIdx.x & 31) == 0) y[s * rows + o] = bias != nullptr ? acc[0] + bias[ids[s] * rows + o] : acc[0];
}
KERNEL(expert_matmul_f32)

extern "C" __global__ void __launch_bounds__(256, BLOCKS_AT_ONCE(0, 3, 0))
    expert_matmul_q8(int format, gptr<const uint8_t> w, unsigned long long row_bytes,
                      unsigned long long expert_bytes, aptr<const int> slot_of,
                     aptr<const int> q, aptr<const float> q_scale, aptr<const int> ids, aptr<const float> bias,
                     aptr<float> y, int n, int rows, int slots_per_x) {
    wait_for_previous();
    int o = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), s = blockIdx.y;
    if (o >= rows) return;
    gptr<const uint8_t> row = expert_row(w, row_bytes, expert_bytes, slot_of, ids[s], o);
    int r[1] = {s / slots_per_x};
    float acc[1];
    warp_dot_q8<1>(format, row, n, q, q_scale, r, acc);
    // The bias is read behind the product, in which it would hold a register.
    if ((threadIdx.x & 31) == 0) y[s * rows + o] = bias != nullptr ? acc[0] + bias[ids[s] * rows + o] : acc[0];
}
KERNEL(expert_matmul_q8)

// Sorts the pairs by expert, stably, and lists tiles of at most TILE pairs of one expert.
//   order [pairs]: pair indices, expert after expert.   tiles [·, 3]: expert, first index into order, pairs.
//   tile_count [1].   One block; threads = E rounded up to a warp, at most 1024; E ≤ 1024.
constexpr int EXPERT_TILE = 8;
extern "C" __global__ void expert_sort(aptr<const int> ids, aptr<int> order, aptr<int> tiles, aptr<int> tile_count,
                                       int pairs, int experts) {
    wait_for_previous();
    SHARED(int, counts, 1024);
    int e = threadIdx.x, count = 0;
    if (e < experts)
        for (int s = 0; s < pairs; s++) count += ids[s] == e;
    counts[e] = e < experts ? count : 0;
    __syncthreads();
    if (e < experts) {
        int start = 0, tile = 0;
        for (int k = 0; k < e; k++) {
            start += counts[k];
            tile += (counts[k] + EXPERT_TILE - 1) / EXPERT_TILE;
        }
        int at = start;
        for (int s = 0; s < pairs; s++)
            if (ids[s] == e) order[at++] = s;
        for (int done = 0; done < count; done += EXPERT_TILE, tile++) {
            tiles[3 * tile] = e;
            tiles[3 * tile + 1] = start + done;
            tiles[3 * tile + 2] = count - done < EXPERT_TILE ? count - done : EXPERT_TILE;
        }
        if (e == experts - 1) *tile_count = tile;
    }
}
KERNEL(expert_sort)

// The pairs of a tile and their activation rows; past the count the last one repeats.
DEVICE void tile_rows(aptr<const int> order, int start, int count, int slots_per_x, int (&pair)[EXPERT_TILE],
                      int (&x_row)[EXPERT_TILE]) {
#pragma unroll
    for (int t = 0; t < EXPERT_TILE; t++) {
        pair[t] = order[start + (t < count ? t : count - 1)];
        x_row[t] = pair[t] / slots_per_x;
    }
}

DEVICE void store_tile(const float (&acc)[EXPERT_TILE], const int (&pair)[EXPERT_TILE], int count, float bias, bool has_bias,
                       aptr<float> y, int rows, int o) {
#pragma unroll
    for (int t = 0; t < EXPERT_TILE; t++) {
        if ((threadIdx.x & 31) == 0 && t < count) y[pair[t] * rows + o] = has_bias ? acc[t] + bias : acc[t];
    }
}

// Grid: (ceil(rows / warps), upper bound of tiles); blocks past the tile count end at once.
extern "C" __global__ void __launch_bounds__(256)
    expert_matmul_grouped_f32(int format, gptr<const uint8_t> w, unsigned long long row_bytes,
                      unsigned long long expert_bytes, aptr<const int> slot_of,
                              aptr<const float> x, aptr<const int> order, aptr<const int> tiles,
                              aptr<const int> tile_count, aptr<const float> bias, aptr<float> y, int n, int rows,
                              int slots_per_x) {
    wait_for_previous();
    int o = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), tile = blockIdx.y;
    if (o >= rows || tile >= *tile_count) return;
    int id = tiles[3 * tile], count = tiles[3 * tile + 2], pair[EXPERT_TILE], x_row[EXPERT_TILE];
    tile_rows(order, tiles[3 * tile + 1], count, slots_per_x, pair, x_row);
    gptr<const uint8_t> row = expert_row(w, row_bytes, expert_bytes, slot_of, id, o);
    float b = bias_of(bias, id, rows, o);
    float acc[EXPERT_TILE];
    warp_dot_f32<EXPERT_TILE>(format, row, n, x, x_row, acc);
    store_tile(acc, pair, count, b, bias != nullptr, y, rows, o);
}
KERNEL(expert_matmul_grouped_f32)

extern "C" __global__ void __launch_bounds__(256)
    expert_matmul_grouped_q8(int format, gptr<const uint8_t> w, unsigned long long row_bytes,
                      unsigned long long expert_bytes, aptr<const int> slot_of,
                             aptr<const int> q, aptr<const float> q_scale, aptr<const int> order, aptr<const int> tiles,
                             aptr<const int> tile_count, aptr<const float> bias, aptr<float> y, int n, int rows,
                             int slots_per_x) {
    wait_for_previous();
    int o = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), tile = blockIdx.y;
    if (o >= rows || tile >= *tile_count) return;
    int id = tiles[3 * tile], count = tiles[3 * tile + 2], pair[EXPERT_TILE], x_row[EXPERT_TILE];
    tile_rows(order, tiles[3 * tile + 1], count, slots_per_x, pair, x_row);
    gptr<const uint8_t> row = expert_row(w, row_bytes, expert_bytes, slot_of, id, o);
    float b = bias_of(bias, id, rows, o);
    float acc[EXPERT_TILE];
    warp_dot_q8<EXPERT_TILE>(format, row, n, q, q_scale, x_row, acc);
    store_tile(acc, pair, count, b, bias != nullptr, y, rows, o);
}
KERNEL(expert_matmul_grouped_q8)
