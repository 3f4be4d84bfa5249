// Kernels that are wrong on purpose, to show that the harness says so. Compiled for the host alone, used by its tests.
#include "common/prelude.cuh"

// Only the threads below `reach` come to the barrier.
extern "C" __global__ void fault_barrier(gptr<float> y, int reach) {
    if (int(threadIdx.x) < reach) __syncthreads();
    y[threadIdx.x] = 1.0f;
}
KERNEL(fault_barrier)

// Only the lanes below `reach` come to the shuffle.
extern "C" __global__ void fault_collective(gptr<float> y, int reach) {
    float v = 0.0f;
    if (int(threadIdx.x) < reach) v = warp_sum(1.0f);
    y[threadIdx.x] = v;
}
KERNEL(fault_collective)

// Thread t writes element t of a shared array of `elems`.
extern "C" __global__ void fault_shared(gptr<float> y, int elems) {
    SHARED_DYNAMIC(float, s);
    if (int(threadIdx.x) <= elems) s[threadIdx.x] = 1.0f;
    __syncthreads();
    y[threadIdx.x] = s[0];
}
KERNEL(fault_shared)

// Reads a neighbour's element without a barrier between: the result hangs on who ran first.
extern "C" __global__ void fault_race(gptr<float> y) {
    SHARED(float, s, 1024);
    s[threadIdx.x] = float(threadIdx.x);
    y[threadIdx.x] = s[(threadIdx.x + 1) % blockDim.x];
}
KERNEL(fault_race)
