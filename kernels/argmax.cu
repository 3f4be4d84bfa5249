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

// The best `count` of x [n] in two steps, for samplers. top_part: each block its own stretch → best [parts, count, 2] (rank, id),
// best first; past the end rank 0. Dynamic shared memory: a word for each element of the stretch.
extern "C" __global__ void __launch_bounds__(256) top_part(aptr<const float> x, aptr<int> best, int n, int count) {
    SHARED_DYNAMIC(uint32_t, left);
    wait_for_previous();
    int each = (n + gridDim.x - 1) / gridDim.x, from = blockIdx.x * each, to = min(from + each, n);
    // A thread's own elements are every blockDim.x-th; it remembers the best that is left of them.
    uint32_t mine = 0;
    int mine_id = 0x7fffffff;
    for (int i = from + threadIdx.x; i < to; i += blockDim.x) {
        float v = x[i];
        left[i - from] = is_nan(v) ? RANK_NAN : rank_of(v);
        better(mine, mine_id, left[i - from], i);
    }
    for (int k = 0; k < count; k++) {
        uint32_t rank = mine;
        int id = mine_id;
        block_best(rank, id);
        if (threadIdx.x == 0) {
            best[2 * (blockIdx.x * count + k)] = int(rank);
            best[2 * (blockIdx.x * count + k) + 1] = id;
        }
        if (id == mine_id && rank != 0) {
            left[id - from] = 0;
            mine = 0;
            mine_id = 0x7fffffff;
            for (int i = from + threadIdx.x; i < to; i += blockDim.x)
                if (left[i - from] != 0) better(mine, mine_id, left[i - from], i);
        }
        __syncthreads();
    }
}
KERNEL(top_part)

// One block of 64 threads merges the parts' lists (parts ≤ 64): chosen [count, 2] (rank, id), best first.
extern "C" __global__ void __launch_bounds__(64) top_final(aptr<const int> best, aptr<int> chosen, int parts, int count) {
    wait_for_previous();
    int next = 0, list = threadIdx.x * count;
    for (int k = 0; k < count; k++) {
        bool any = int(threadIdx.x) < parts && next < count;
        uint32_t mine = any ? uint32_t(best[2 * (list + next)]) : 0, rank = mine;
        int mine_id = any ? best[2 * (list + next) + 1] : 0x7fffffff, id = mine_id;
        block_best(rank, id);
        if (threadIdx.x == 0) {
            chosen[2 * k] = int(rank);
            chosen[2 * k + 1] = id;
        }
        if (any && id == mine_id) next++;
        __syncthreads();
    }
}
KERNEL(top_final)
