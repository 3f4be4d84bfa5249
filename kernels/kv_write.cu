// KvWrite: k [T, nk], v [T, nv] f32 → rows kv_slots[t] modulo `rows` of the two caches, rounded to their type.
#include "common/kv.cuh"

template <int KV> DEVICE void write_row(aptr<const float> x, aptr<uint8_t> cache, int n, long long slot) {
    // n is a multiple of 32 for q8_0, so whole warps stay together.
    for (int i = threadIdx.x; i < n; i += blockDim.x) kv_store<KV>(cache, slot * n + i, x[i]);
}
template <int KV>
DEVICE void write_rows(aptr<const float> k, aptr<const float> v, int slot, aptr<uint8_t> keys, aptr<uint8_t> values,
                       int nk, int nv) {
    write_row<KV>(k, keys, nk, slot);
    write_row<KV>(v, values, nv, slot);
}

// Grid: T. Without a cache of values v and values are null and nv is 0. A slot outside the capacity is not written.
extern "C" __global__ void kv_write(aptr<const float> k, aptr<const float> v, aptr<const int> slots, aptr<uint8_t> keys,
                                    aptr<uint8_t> values, int kv_type, int nk, int nv, int capacity, int rows) {
    wait_for_previous();
    int t = blockIdx.x, slot = slots[t];
    if (slot < 0 || slot >= capacity) return;
    slot %= rows;
    if (kv_type == KV_F16) write_rows<KV_F16>(k + t * nk, v + t * nv, slot, keys, values, nk, nv);
    else if (kv_type == KV_F32) write_rows<KV_F32>(k + t * nk, v + t * nv, slot, keys, values, nk, nv);
    else write_rows<KV_Q8_0>(k + t * nk, v + t * nv, slot, keys, values, nk, nv);
}
KERNEL(kv_write)
