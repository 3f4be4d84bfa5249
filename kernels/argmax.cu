// The best token of a row of logits, chosen on the device: the lowest id wins a tie, and −0 ties with 0.
#include "common/top_k.cuh"

// Two steps. argmax_part: grid of parts, each its own stretch of x [n] → best (rank, id) pairs [parts, 2]; a NaN gets the
// rank of a NaN that wins over everything, so that it is found and reported.
DEVICE void better(uint32_t &rank, int &id, uint32_t other, int other_id) {
    if (other > rank || (other == rank && other_id < id)) {
        rank = other;
        id = other_id;
    }
}
DEVICE void warp_best(uint32_t &rank, int &id) {
    for (int d = 16; d > 0; d >>= 1) {
        uint32_t r = __shfl_xor_sync(FULL_WARP, rank, d);
        int i = __shfl_xor_sync(FULL_WARP, id, d);
        better(rank, id, r, i);
    }
}
DEVICE void block_best(uint32_t &rank, int &id) {
    SHARED(uint32_t, ranks, 32);
    SHARED(int, ids, 32);
    warp_best(rank, id);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    if (lane == 0) {
        ranks[warp] = rank;
        ids[warp] = id;
    }
    __syncthreads();
    for (int w = 0; w < int(blockDim.x >> 5); w++) better(rank, id, ranks[w], ids[w]);
}
constexpr uint32_t RANK_NAN = 0xffffffffu;

extern "C" __global__ void argmax_part(aptr<const float> x, aptr<int> best, int n) {
    wait_for_previous();
    int each = (n + gridDim.x - 1) / gridDim.x, from = blockIdx.x * each, to = min(from + each, n);
    uint32_t rank = 0;
    int id = 0x7fffffff;
    for (int i = from + threadIdx.x; i < to; i += blockDim.x) {
        float v = x[i];
        better(rank, id, is_nan(v) ? RANK_NAN : rank_of(v), i);
    }
    block_best(rank, id);
    if (threadIdx.x == 0) {
        best[2 * blockIdx.x] = int(rank);
        best[2 * blockIdx.x + 1] = id;
    }
}
KERNEL(argmax_part)

// One block over the parts: chosen [2] = the best (rank, id), a NaN's rank and the first NaN's id if there is one; token [1] =
// the id once more, where the next step reads it.
extern "C" __global__ void argmax_final(aptr<const int> best, aptr<int> token, aptr<int> chosen, int parts) {
    wait_for_previous();
    uint32_t rank = 0;
    int id = 0x7fffffff;
    for (int i = threadIdx.x; i < parts; i += blockDim.x) better(rank, id, uint32_t(best[2 * i]), best[2 * i + 1]);
    block_best(rank, id);
    if (threadIdx.x == 0) {
        *token = id;
        chosen[0] = int(rank);
        chosen[1] = id;
    }
}
KERNEL(argmax_final)

struct Ranked {
    uint32_t rank;
    int id;
};
DEVICE bool is_before(Ranked a, Ranked b) { return a.rank > b.rank || (a.rank == b.rank && a.id < b.id); }

// The best `count` of n elements, by a block of 256 threads, count ≤ 256: out [count, 2] (rank, id), best first; past the end
// rank 0. element(i) is the i-th element's place for `at`, which gives its rank and id; both are called by any thread.
//
// The elements are dealt out to the threads in turn. At least `count` elements are as good as the count-th of the threads'
// own best; what is as good is listed (so of each of `count` threads at most its share), and finds its place by counting.
// list [count · ceil(n / 256)]. Begins with a barrier.
template <class Element, class At>
DEVICE void block_top(Element element, At at, int n, int count, sptr<uint16_t> list, aptr<int> out) {
    SHARED(uint32_t, ranks, 256);
    SHARED(int, ids, 256);
    SHARED(uint32_t, bound_rank, 1);
    SHARED(int, bound_id, 1);
    SHARED(int, listed, 1);
    __syncthreads();
    Ranked mine = {0, 0x7fffffff};
    for (int i = threadIdx.x; i < n; i += 256) {
        Ranked r = at(element(i));
        if (is_before(r, mine)) mine = r;
    }
    ranks[threadIdx.x] = mine.rank;
    ids[threadIdx.x] = mine.id;
    if (threadIdx.x == 0) {
        bound_rank[0] = 0; // where fewer threads than `count` have an element: everything is listed
        bound_id[0] = 0x7fffffff;
        listed[0] = 0;
    }
    __syncthreads();
    int place = 0;
    for (int j = 0; j < 256; j++) place += is_before(Ranked{ranks[j], ids[j]}, mine);
    if (mine.rank != 0 && place == count - 1) {
        bound_rank[0] = mine.rank;
        bound_id[0] = mine.id;
    }
    __syncthreads();
    Ranked bound = {bound_rank[0], bound_id[0]};
    for (int i = threadIdx.x; i < n; i += 256) {
        int e = element(i);
        Ranked r = at(e);
        if (r.rank != 0 && !is_before(bound, r)) list[atomicAdd(&listed[0], 1)] = uint16_t(e);
    }
    __syncthreads();
    int all = listed[0];
    for (int i = threadIdx.x; i < all; i += 256) {
        Ranked r = at(list[i]);
        int before = 0;
        for (int j = 0; j < all; j++) before += is_before(at(list[j]), r);
        if (before < count) {
            out[2 * before] = int(r.rank);
            out[2 * before + 1] = r.id;
        }
    }
    for (int k = all + threadIdx.x; k < count; k += 256) {
        out[2 * k] = 0;
        out[2 * k + 1] = 0x7fffffff;
    }
}

// The best `count` of x [n] in two steps, for samplers. top_part: each block of 256 threads its own stretch of at most 65536 →
// best [parts, count, 2] (rank, id), best first; past the end rank 0. Dynamic shared memory: a word for each element of the
// stretch, and two bytes for each of `count` threads' shares of it.
extern "C" __global__ void __launch_bounds__(256) top_part(aptr<const float> x, aptr<int> best, int n, int count) {
    SHARED_DYNAMIC(uint32_t, ranks);
    wait_for_previous();
    int each = (n + gridDim.x - 1) / gridDim.x, from = blockIdx.x * each, here = max(min(each, n - from), 0);
    for (int i = threadIdx.x; i < here; i += blockDim.x) {
        float v = x[from + i];
        ranks[i] = is_nan(v) ? RANK_NAN : rank_of(v);
    }
    auto element = [](int i) { return i; };
    auto at = [&](int e) { return Ranked{ranks[e], from + e}; };
    block_top(element, at, here, count, cast<uint16_t>(ranks + each), best + 2 * blockIdx.x * count);
}
KERNEL(top_part)

// One block of 256 threads merges the parts' lists (parts · count ≤ 65536): chosen [count, 2] (rank, id), best first. Dynamic
// shared memory: two bytes for each of `count` threads' shares of the lists.
extern "C" __global__ void __launch_bounds__(256) top_final(aptr<const int> best, aptr<int> chosen, int parts, int count) {
    SHARED_DYNAMIC(uint16_t, list);
    wait_for_previous();
    // All lists' best first, then all their second ones: so the threads' own best are the lists' first ones.
    auto element = [&](int i) { return i % parts * count + i / parts; };
    auto at = [&](int e) { return Ranked{uint32_t(best[2 * e]), best[2 * e + 1]}; };
    block_top(element, at, parts * count, count, list, chosen);
}
KERNEL(top_final)
