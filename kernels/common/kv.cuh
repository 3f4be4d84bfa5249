// The KV cache: rows [row, heads, width] as f32, f16, or q8_0 (blocks {half d; int8 q[32]} of 34 bytes, quantized as
// 8-bit activations are, d the scale rounded to half).
//
// Pointers may alias: a kernel that writes the current token's row reads it back through the same cache.
#pragma once
#include "activation.cuh"

// Where positions lie in a cache: position p is in row p modulo `rows`. `begin` ≤ p < begin + 2 · rows, begin a multiple of rows.
struct CacheRows {
    int begin, rows;
};
// For positions from `from` on, fewer than `rows` of them.
DEVICE CacheRows rows_from(int from, int rows) {
    CacheRows r;
    r.begin = from - from % rows;
    r.rows = rows;
    return r;
}
DEVICE int row_of(const CacheRows &r, int position) {
    int at = position - r.begin;
    return at < r.rows ? at : at - r.rows;
}

enum KvType : int { KV_F16 = 0, KV_F32 = 1, KV_Q8_0 = 2 };

// Elements i … i + 3 of a cache (counted from its start), i % 4 = 0.
template <int KV> DEVICE float4 kv_load4(aptr<const uint8_t> cache, long long i) {
    if (KV == KV_F32) return cast<const float4>(cache)[i >> 2];
    if (KV == KV_F16) {
        uint2 v = cast<const uint2>(cache)[i >> 2];
        return make_float4(half_to_float(uint16_t(v.x)), half_to_float(uint16_t(v.x >> 16)),
                           half_to_float(uint16_t(v.y)), half_to_float(uint16_t(v.y >> 16)));
    }
    aptr<const uint8_t> block = cache + (i >> 5) * 34;
    float d = load_half(block);
    int q = int(load_u32_by_halves(block + 2 + (i & 31)));
    return make_float4(d * float(byte_of(q, 0)), d * float(byte_of(q, 1)), d * float(byte_of(q, 2)),
                       d * float(byte_of(q, 3)));
}
// Element i.
template <int KV> DEVICE float kv_load(aptr<const uint8_t> cache, long long i) {
    if (KV == KV_F32) return cast<const float>(cache)[i];
    if (KV == KV_F16) return half_to_float(cast<const uint16_t>(cache)[i]);
    aptr<const uint8_t> block = cache + (i >> 5) * 34;
    return load_half(block) * float(int(int8_t(block[2 + (i & 31)])));
}

// Stores element i; for q8_0 the 32 lanes of a warp hold the 32 elements of one block, so all lanes must come together.
template <int KV> DEVICE void kv_store(aptr<uint8_t> cache, long long i, float x) {
    if (KV == KV_F32) {
        cast<float>(cache)[i] = x;
    } else if (KV == KV_F16) {
        cast<uint16_t>(cache)[i] = float_to_half(x);
    } else {
        float scale;
        int q = quantize_lane_q8(x, scale);
        aptr<uint8_t> block = cache + (i >> 5) * 34;
        block[2 + (i & 31)] = uint8_t(int8_t(q));
        if ((i & 31) == 0) *cast<uint16_t>(block) = float_to_half(scale);
    }
}
