// IndexSelect: scores [T, S] → 1 at the top_k positions up to the token's own whose scores are largest, 0 elsewhere: [T, S]. Ties go
// to the earlier position, NaN ranks last. Of `every` positions only the last counts.
#include "common/top_k.cuh"

constexpr int SELECT_THREADS = 256;

// Every thread gets the sum of all threads' counts. Begins and ends with a barrier.
DEVICE int block_count(int count, sptr<int> parts) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int half = 16; half > 0; half >>= 1) count += __shfl_xor_sync(FULL_WARP, count, half);
    __syncthreads();
    if (lane == 0) parts[warp] = count;
    __syncthreads();
    int total = 0;
    for (int i = 0; i < SELECT_THREADS / 32; i++) total += parts[i];
    __syncthreads();
    return total;
}

// The key of the last that is chosen is found bit by bit: it is the largest that at least top_k keys reach. Of those that equal it
// the earliest are taken: each thread has a run of positions of its own, behind those of the threads before it.
// Grid: T, 256 threads.
extern "C" __global__ void __launch_bounds__(SELECT_THREADS)
    index_select(aptr<const float> scores, aptr<const int> positions, aptr<float> y, int cached, int top_k, int every) {
    wait_for_previous();
    SHARED(int, parts, SELECT_THREADS);
    int t = blockIdx.x, tid = threadIdx.x, seen = (positions[t] + 1) / every;
    aptr<const float> row = scores + static_cast<long long>(t) * cached;
    aptr<float> out = y + static_cast<long long>(t) * cached;
    // Those that do not count; and all, where no more count than are chosen.
    for (int i = tid; i < cached; i += SELECT_THREADS) {
        bool counts = (i + 1) % every == 0 && i / every < seen;
        if (!counts || seen <= top_k) out[i] = counts ? 1.0f : 0.0f;
    }
    if (seen <= top_k) return;
    int each = (seen + SELECT_THREADS - 1) / SELECT_THREADS;
    int first = tid * each < seen ? tid * each : seen, end = first + each < seen ? first + each : seen;
    uint32_t last = 0;
    for (uint32_t bit = 0x80000000u; bit > 0; bit >>= 1) {
        uint32_t reached = last | bit;
        int count = 0;
        for (int i = first; i < end; i++) count += rank_of(row[(i + 1) * every - 1]) >= reached;
        if (block_count(count, parts) >= top_k) last = reached;
    }
    int above = 0, equal = 0;
    for (int i = first; i < end; i++) {
        uint32_t key = rank_of(row[(i + 1) * every - 1]);
        above += key > last;
        equal += key == last;
    }
    int left = top_k - block_count(above, parts);
    parts[tid] = equal;
    __syncthreads();
    for (int i = 0; i < tid; i++) left -= parts[i];
    for (int i = first; i < end; i++) {
        uint32_t key = rank_of(row[(i + 1) * every - 1]);
        out[(i + 1) * every - 1] = key > last || (key == last && left > 0) ? 1.0f : 0.0f;
        left -= key == last;
    }
}
KERNEL(index_select)
