// What every kernel includes first: integer names, checked-pointer aliases, declarations, conversions, warp sums.
//
// The same source is compiled by NVRTC for a GPU and, with host/host.h force-included, by g++ for the CPU. So kernels
// use `gptr<T>` / `sptr<T>` for pointers, `SHARED(T, name, elems)` for shared arrays, `cast<T>(p)` between pointer
// types, and end in `KERNEL(name)`. On the device all of these are the plain thing.
#pragma once

#ifdef __CUDACC_RTC__
#define MOE_DEVICE 1
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

template <typename T> using gptr = T *__restrict__; // weights: no kernel writes them, so a load may be moved anywhere
template <typename T> using aptr = T *;             // global memory that kernels write: loads stay behind wait_for_previous
template <typename T> using sptr = T *;             // shared memory
template <typename T, typename U> __device__ __forceinline__ T *cast(U *p) { return reinterpret_cast<T *>(p); }

#define KERNEL(name)
#define KERNEL_THREADS(name, threads)
#define SHARED(T, name, elems) __shared__ __align__(16) T name[elems]
#define SHARED_DYNAMIC(T, name)                                                                                        \
    extern __shared__ uint4 moe_dynamic_shared[];                                                                      \
    T *name = reinterpret_cast<T *>(moe_dynamic_shared)
#else
template <typename T> using gptr = moe_host::Checked<T>;
template <typename T> using aptr = moe_host::Checked<T>;
template <typename T> using sptr = moe_host::Checked<T>;
template <typename T, typename U> inline moe_host::Checked<T> cast(moe_host::Checked<U> p) {
    return p.template cast<T>();
}
#endif

#define DEVICE __device__ __forceinline__
#define FULL_WARP 0xffffffffu

// Blocks that a multiprocessor is to hold at once, for __launch_bounds__ where ptxas left to itself goes for one more and
// spills: on chips before compute capability 9.0, of 9.x, and later.
#if __CUDA_ARCH__ >= 1000
#define BLOCKS_AT_ONCE(before_9, of_9, later) later
#elif __CUDA_ARCH__ >= 900
#define BLOCKS_AT_ONCE(before_9, of_9, later) of_9
#else
#define BLOCKS_AT_ONCE(before_9, of_9, later) before_9
#endif

// ---- launches ----------------------------------------------------------------------------------------------------------

// First thing in every kernel: lets the next launch begin its own preparation, and returns once the launch in front has
// ended and what it wrote can be read. Before it a kernel may only fetch what no kernel writes. Without effect before
// compute capability 9.0, where launches do not overlap.
DEVICE void wait_for_previous() {
#if defined(MOE_DEVICE) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Asks for the 128 bytes around an address to be brought into the L2 cache; nothing waits for it.
DEVICE void prefetch_line(gptr<const uint8_t> p) {
#ifdef MOE_DEVICE
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
    if (p[0] == p[0] + 1) moe_host::fail("a byte changed"); // reads: the address is checked
#endif
}

// One warp, `bytes` from `p` on.
DEVICE void warp_prefetch(gptr<const uint8_t> p, unsigned long long bytes) {
    for (unsigned long long i = 128 * (threadIdx.x & 31); i < bytes; i += 32 * 128) prefetch_line(p + i);
}

// ---- numbers ---------------------------------------------------------------------------------------------------------

DEVICE float quiet_nan() { return __uint_as_float(0x7fc00000u); }
DEVICE float infinity() { return __uint_as_float(0x7f800000u); }
// By bits: no compiler setting can assume it away.
DEVICE bool is_nan(float v) { return (__float_as_uint(v) & 0x7fffffffu) > 0x7f800000u; }
DEVICE bool is_finite(float v) { return (__float_as_uint(v) & 0x7f800000u) != 0x7f800000u; }

// IEEE half to float, exact.
DEVICE float half_to_float(uint16_t h) {
#ifdef MOE_DEVICE
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
#else
    uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1fu, mantissa = h & 0x3ffu;
    if (exponent == 0x1f) return __uint_as_float(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return __uint_as_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
    float v = float(mantissa) * (1.0f / 16777216.0f); // subnormal: mantissa · 2⁻²⁴
    return sign ? -v : v;
#endif
}

// Float to IEEE half, to nearest, ties to even; too large becomes infinity.
DEVICE uint16_t float_to_half(float f) {
#ifdef MOE_DEVICE
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
#else
    uint32_t u = __float_as_uint(f), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return uint16_t(sign | 0x7e00u);
    if (a >= 0x477ff000u) return uint16_t(sign | 0x7c00u); // 65520 and above
    if (a < 0x38800000u) {                                // below 2⁻¹⁴: a multiple of 2⁻²⁴
        float scaled = __uint_as_float(a) * 16777216.0f;
        return uint16_t(sign | uint32_t(lrintf(scaled)));
    }
    uint32_t r = a + 0xfffu + ((a >> 13) & 1u);
    return uint16_t(sign | ((r - 0x38000000u) >> 13));
#endif
}

DEVICE float bf16_to_float(uint16_t b) { return __uint_as_float(uint32_t(b) << 16); }

// A fast exponential would round differently on host and device versions; expf is within 2 ulp on both.
DEVICE float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }

// ---- bytes -----------------------------------------------------------------------------------------------------------

// 32 bits from an address that is a multiple of 2 (most blocks of GGUF formats are no better aligned than that).
DEVICE uint32_t load_u32_by_halves(aptr<const uint8_t> p) {
    aptr<const uint16_t> h = cast<const uint16_t>(p);
    return uint32_t(h[0]) | (uint32_t(h[1]) << 16);
}
DEVICE uint32_t load_u32_by_bytes(aptr<const uint8_t> p) {
    return uint32_t(p[0]) | (uint32_t(p[1]) << 8) | (uint32_t(p[2]) << 16) | (uint32_t(p[3]) << 24);
}
DEVICE float load_half(aptr<const uint8_t> p) { return half_to_float(*cast<const uint16_t>(p)); }

// Word i (0…3) of a vector; i is a constant after unrolling.
DEVICE uint32_t word_of(uint4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// KEPT: a number that the compiler keeps in a register rather than makes again wherever it is used.
template <bool KEPT> DEVICE uint32_t keep_if(uint32_t v) {
#ifdef MOE_DEVICE
    if (KEPT) asm("" : "+r"(v));
#endif
    return v;
}

// Of the eight bytes of x and y those that the four nibbles of SELECTOR number (0…7): 0xff where one's highest bit is set, else 0.
template <int SELECTOR> DEVICE uint32_t sign_bytes(uint32_t x, uint32_t y) {
#ifdef MOE_DEVICE
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(x), "r"(y), "n"(SELECTOR | 0x8888));
    return r;
#else
    return ((__byte_perm(x, y, SELECTOR) >> 7) & 0x01010101u) * 0xffu;
#endif
}

// __byte_perm by nibbles whose highest bits are clear, as they are for the compiler's own, which clears them.
DEVICE uint32_t byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
#ifdef MOE_DEVICE
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(x), "r"(y), "r"(selector));
    return r;
#else
    return __byte_perm(x, y, selector);
#endif
}

// Four bytes minus a constant each; every byte of v is below 128 and k at most 64.
DEVICE int subtract_each(uint32_t v, uint32_t k) { return int(((v | 0x80808080u) - k * 0x01010101u) ^ 0x80808080u); }

// Byte i of a packed word as a signed number.
DEVICE int byte_of(int v, int i) { return int(int8_t(uint32_t(v) >> (8 * i))); }

// c + Σⱼ aⱼ·bⱼ over the four signed bytes of a and b.
DEVICE int dot4(int a, int b, int c) {
#ifdef MOE_DEVICE
    int r;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
#else
    return __dp4a(a, b, c);
#endif
}

// ---- sums in a fixed order --------------------------------------------------------------------------------------------

// Every lane gets the sum over its sub-warp of `width` lanes; the order is that of a butterfly, the same on all lanes.
DEVICE float warp_sum(float v, int width = 32) {
    for (int d = width / 2; d > 0; d >>= 1) v += __shfl_xor_sync(FULL_WARP, v, d);
    return v;
}
DEVICE float warp_max(float v, int width = 32) {
    for (int d = width / 2; d > 0; d >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, d));
    return v;
}

// The largest and the smallest of the warp's numbers, to every lane.
DEVICE uint32_t warp_max_of(uint32_t v) {
#if defined(MOE_DEVICE) && __CUDA_ARCH__ >= 800
    uint32_t r;
    asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(r) : "r"(v));
    return r;
#else
    for (int d = 16; d > 0; d >>= 1) {
        uint32_t other = __shfl_xor_sync(FULL_WARP, v, d);
        v = other > v ? other : v;
    }
    return v;
#endif
}
DEVICE uint32_t warp_min_of(uint32_t v) { return ~warp_max_of(~v); }

// Sum over the block; all threads get it. Needs every thread; begins and ends with a barrier.
DEVICE float block_sum(float v) {
    SHARED(float, partial, 32);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
    v = warp_sum(v);
    __syncthreads();
    if (lane == 0) partial[warp] = v;
    __syncthreads();
    float total = 0.0f;
    for (int w = 0; w < warps; w++) total += partial[w];
    return total;
}
