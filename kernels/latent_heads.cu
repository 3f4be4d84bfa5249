// All between the products of latent attention and the attention itself, for one token. A query head q is its rows of a product of
// the normed latent x, or lies there; y = [q's nope part · Wₖᵀ of its head, its pe part after RoPE] times the factor of the
// position (position_scale.cu). The key is [the normed latent c, k_pe after RoPE], and goes to the cache.
//
// Blocks take a part of the rows of Wₖ of a head, and make the head's query for themselves; the last row of blocks has one that
// makes the key.
#include "common/kv.cuh"
#include "common/rotate.cuh"
#include "common/staged.cuh"

template <int KV> DEVICE void store_key(sptr<float> key, aptr<uint8_t> keys, int n, long long at) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) kv_store<KV>(keys, at + i, key[i]);
}

DEVICE aptr<float> kept(aptr<float> p, bool keeps) { return keeps ? p : aptr<float>(nullptr); }

// Grid: (parts, heads + 1), 256 threads. x [n], q_w [heads · d, n] with its norm x_w; or q_w null: x [heads · d]. nope and pe elements
// of a head's d begin at nope_from and pe_from. k_w [heads, rank, nope], heads k_head_bytes apart. length 0: no factor. dims 0: no
// RoPE. c [rank], k_pe [pe]. y [heads, rank + pe]. x_normed [n], q_out [heads · d], nope_out, pe_out, turned, absorbed, joined
// (before the factor), c_normed, k_turned, k_joined: what somebody reads on the way, or null. A slot outside the capacity is not
// written. All widths are multiples of 4; for a q8_0 cache rank + pe is one of 32. Dynamic shared memory: q_at bytes as in
// norm_matmul.cu for q_stage, then 4·d bytes, then staged_words(nope) words for STAGE_Q8 of k_stage; and at least 4 · (rank + pe).
extern "C" __global__ void __launch_bounds__(256, BLOCKS_AT_ONCE(2, 2, 2))
    latent_heads(aptr<const float> x, aptr<const float> x_w, float x_eps, aptr<float> x_normed, int n, int q_format,
                 gptr<const uint8_t> q_w, unsigned long long q_row_bytes, int q_stage, int q_at, aptr<float> q_out, int d,
                 int nope_from, int pe_from, aptr<float> nope_out, aptr<float> pe_out, aptr<float> turned, int k_format,
                 gptr<const uint8_t> k_w, unsigned long long k_row_bytes, unsigned long long k_head_bytes, int k_stage,
                 aptr<float> absorbed, aptr<float> joined, int rank, int nope, int pe, float factor_scale, int length,
                 int offset, aptr<const float> table, int dims, int interleaved, int table_rows, aptr<const int> positions,
                 aptr<float> y, aptr<const float> c, aptr<const float> c_w, float c_eps, aptr<float> c_normed,
                 aptr<const float> k_pe, aptr<float> k_turned, aptr<float> k_joined, aptr<const int> slots, aptr<uint8_t> keys,
                 int kv_type, int capacity) {
    SHARED_DYNAMIC(float, base);
    wait_for_previous();
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, head = blockIdx.y;
    bool of_key = head == int(gridDim.y) - 1, keeps = blockIdx.x == 0;
    if (of_key && !keeps) return;
    int width = rank + pe, position = positions[0];
    RowNorm norm;
    norm.w = of_key ? c_w : x_w;
    norm.b = aptr<const float>(nullptr);
    norm.eps = of_key ? c_eps : x_eps;
    norm.centred = 0;
    StagedQ8 staged = staged_q8(base, 0);
    if (of_key || q_w != nullptr)
        staged = stage_normed(of_key ? c : x, no_post_norm(), norm, of_key ? rank : n, of_key ? int(STAGE_F32) : q_stage, base,
                              of_key ? c_normed : kept(x_normed, keeps && head == 0));
    if (of_key) {
        sptr<float> key = base;
        for (int i = threadIdx.x; i < pe; i += blockDim.x) {
            float v = rotated(k_pe, i, position, table, dims, interleaved, table_rows);
            key[rank + i] = v;
            if (k_turned != nullptr) k_turned[i] = v;
        }
        __syncthreads();
        if (k_joined != nullptr)
            for (int i = threadIdx.x; i < width; i += blockDim.x) k_joined[i] = key[i];
        int slot = slots[0];
        if (slot < 0 || slot >= capacity) return;
        long long at = static_cast<long long>(slot) * width;
        if (kv_type == KV_F16) store_key<KV_F16>(key, keys, width, at);
        else if (kv_type == KV_F32) store_key<KV_F32>(key, keys, width, at);
        else store_key<KV_Q8_0>(key, keys, width, at);
        return;
    }
    sptr<float> q = base + q_at / 4;
    if (q_w == nullptr) {
        for (int i = threadIdx.x; i < d; i += blockDim.x) q[i] = x[head * d + i];
    } else {
        sptr<float> row = base;
        for (int o = warp; o < d; o += warps) {
            gptr<const uint8_t> of_row = q_w + (head * d + o) * q_row_bytes;
            float v = warp_sum(staged_part(q_format, of_row, n, row, staged, q_stage, 0, lane, 32));
            if (lane == 0) q[o] = v;
        }
    }
    __syncthreads();
    float factor = length > 0 ? 1.0f + factor_scale * log1pf(float((position + offset) / length)) : 1.0f;
    aptr<float> mine = y + head * width;
    if (keeps) {
        if (q_out != nullptr && q_w != nullptr)
            for (int i = threadIdx.x; i < d; i += blockDim.x) q_out[head * d + i] = q[i];
        if (nope_out != nullptr)
            for (int i = threadIdx.x; i < nope; i += blockDim.x) nope_out[head * nope + i] = q[nope_from + i];
        for (int i = threadIdx.x; i < pe; i += blockDim.x) {
            float v = rotated(q + pe_from, i, position, table, dims, interleaved, table_rows);
            if (pe_out != nullptr) pe_out[head * pe + i] = q[pe_from + i];
            if (turned != nullptr) turned[head * pe + i] = v;
            if (joined != nullptr) joined[head * width + rank + i] = v;
            mine[rank + i] = v * factor;
        }
    }
    StagedQ8 nope_staged = staged_q8(q + d, nope);
    if (k_stage & STAGE_Q8) {
        stage_q8(q + nope_from, nope, nope_staged);
        __syncthreads();
    }
    int each = (rank + int(gridDim.x) - 1) / int(gridDim.x), from = blockIdx.x * each;
    int to = from + each < rank ? from + each : rank;
    for (int o = from + warp; o < to; o += warps) {
        gptr<const uint8_t> of_row = k_w + (head * k_head_bytes + o * k_row_bytes);
        float v = warp_sum(staged_part(k_format, of_row, nope, q + nope_from, nope_staged, k_stage, 0, lane, 32));
        if (lane != 0) continue;
        if (absorbed != nullptr) absorbed[head * rank + o] = v;
        if (joined != nullptr) joined[head * width + o] = v;
        mine[o] = v * factor;
    }
}
KERNEL(latent_heads)
