// Host side of the kernels: what nvcc's built-ins mean when g++ compiles a kernel for the CPU.
//
// Every kernels/*.cu is compiled unchanged with this header force-included (-include host/host.h). One launch runs
// its blocks one after another; the threads of a block are fibers on one operating-system thread, so a schedule is
// a property of the launch and not of luck. Checked here, because no GPU would say it so clearly:
//   - a __syncthreads or a warp collective that not every thread reaches,
//   - a global access outside the allocation that the launch was given, or misaligned for its type,
//   - a shared access outside its array,
//   - more shared memory than a block may have.
// Deliberately absent: time, caches, independent progress of blocks (a kernel that spins on another block would
// hang on a small GPU and is refused here), partial warp masks.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

namespace moe_host {

struct Dim3 {
    unsigned x, y, z;
};

// One launch parameter as the driver passes it. For a pointer, [lo, hi) is the allocation that holds it.
struct Param {
    uint32_t kind; // Kind
    uint32_t reserved;
    uint64_t bits;
    uint64_t lo, hi;
};

enum Kind : uint32_t { KIND_POINTER = 0, KIND_I32 = 1, KIND_U32 = 2, KIND_F32 = 3, KIND_U64 = 4 };

// The current thread's coordinates; set by the scheduler at every switch.
struct Thread {
    Dim3 thread_idx, block_idx, block_dim, grid_dim;
};
extern __thread const Thread *current;

[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

void block_barrier(int line);
// Deposits `value` for the calling lane and returns the 32 lanes' values once all have arrived.
const uint64_t *warp_exchange(unsigned mask, uint64_t value, int operation);
// The block's memory for one `__shared__` declaration (`key` is unique to it).
void *shared_memory(const void *key, size_t bytes);
void *dynamic_shared_memory(size_t *bytes);

[[noreturn]] void bad_access(uint64_t address, size_t bytes, size_t align, uint64_t lo, uint64_t hi);

// A pointer that knows its allocation. Arithmetic is free, every dereference is checked.
template <typename T> struct Checked {
    uint64_t address, lo, hi;

    Checked() : address(0), lo(0), hi(0) {}
    Checked(decltype(nullptr)) : address(0), lo(0), hi(0) {}
    Checked(uint64_t a, uint64_t l, uint64_t h) : address(a), lo(l), hi(h) {}
    // Pointer to T from pointer to non-const T.
    template <typename U, typename = decltype(static_cast<T *>(static_cast<U *>(nullptr)))>
    Checked(const Checked<U> &o) : address(o.address), lo(o.lo), hi(o.hi) {}

    T &at(uint64_t a) const {
        if (__builtin_expect(a < lo || a + sizeof(T) > hi || (a & (alignof(T) - 1)) != 0, 0))
            bad_access(a, sizeof(T), alignof(T), lo, hi);
        return *reinterpret_cast<T *>(a);
    }
    T &operator[](ptrdiff_t i) const { return at(address + uint64_t(i) * sizeof(T)); }
    T &operator*() const { return at(address); }
    T *operator->() const { return &at(address); }
    Checked operator+(ptrdiff_t i) const { return Checked(address + uint64_t(i) * sizeof(T), lo, hi); }
    Checked operator-(ptrdiff_t i) const { return Checked(address - uint64_t(i) * sizeof(T), lo, hi); }
    Checked &operator+=(ptrdiff_t i) {
        address += uint64_t(i) * sizeof(T);
        return *this;
    }
    explicit operator bool() const { return address != 0; }
    bool operator==(decltype(nullptr)) const { return address == 0; }
    bool operator!=(decltype(nullptr)) const { return address != 0; }
    template <typename U> Checked<U> cast() const { return Checked<U>(address, lo, hi); }
};

// Launch parameters to a kernel's C++ arguments.
template <typename T> struct Argument;
template <typename T> struct Argument<Checked<T>> {
    static constexpr Kind kind = KIND_POINTER;
    static Checked<T> get(const Param &p) { return Checked<T>(p.bits, p.lo, p.hi); }
};
template <> struct Argument<int> {
    static constexpr Kind kind = KIND_I32;
    static int get(const Param &p) { return int(uint32_t(p.bits)); }
};
template <> struct Argument<unsigned> {
    static constexpr Kind kind = KIND_U32;
    static unsigned get(const Param &p) { return unsigned(p.bits); }
};
template <> struct Argument<float> {
    static constexpr Kind kind = KIND_F32;
    static float get(const Param &p) {
        uint32_t bits = uint32_t(p.bits);
        float v;
        memcpy(&v, &bits, 4);
        return v;
    }
};
template <> struct Argument<unsigned long long> {
    static constexpr Kind kind = KIND_U64;
    static unsigned long long get(const Param &p) { return p.bits; }
};

template <size_t... I> struct Indices {};
template <size_t N, size_t... I> struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <size_t... I> struct MakeIndices<0, I...> {
    using type = Indices<I...>;
};

// A kernel by name. Nodes link themselves into a list before main; no allocation, no C++ runtime library.
struct Kernel {
    const char *name;
    const uint32_t *kinds;
    size_t count;
    void (*run)(const Param *);
    int max_threads;
    Kernel *next;
    Kernel(const char *n, const uint32_t *k, size_t c, void (*r)(const Param *), int threads);
};

template <typename F> struct Signature;
template <typename... A> struct Signature<void (*)(A...)> {
    static constexpr size_t count = sizeof...(A);
    static const uint32_t *kinds() {
        static constexpr uint32_t values[sizeof...(A) + 1] = {Argument<A>::kind..., 0};
        return values;
    }
    template <void (*F)(A...), size_t... I> static void call(const Param *p, Indices<I...>) {
        F(Argument<A>::get(p[I])...);
    }
    template <void (*F)(A...)> static void run(const Param *p) {
        call<F>(p, typename MakeIndices<sizeof...(A)>::type());
    }
};

inline uint64_t to_bits(int v) { return uint32_t(v); }
inline uint64_t to_bits(unsigned v) { return v; }
inline uint64_t to_bits(float v) {
    uint32_t b;
    memcpy(&b, &v, 4);
    return b;
}
inline uint64_t to_bits(unsigned long long v) { return v; }
inline void from_bits(uint64_t b, int &v) { v = int(uint32_t(b)); }
inline void from_bits(uint64_t b, unsigned &v) { v = unsigned(b); }
inline void from_bits(uint64_t b, float &v) {
    uint32_t w = uint32_t(b);
    memcpy(&v, &w, 4);
}
inline void from_bits(uint64_t b, unsigned long long &v) { v = b; }

} // namespace moe_host

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (moe_host::current->thread_idx)
#define blockIdx (moe_host::current->block_idx)
#define blockDim (moe_host::current->block_dim)
#define gridDim (moe_host::current->grid_dim)

inline void __syncthreads() { moe_host::block_barrier(0); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { moe_host::warp_exchange(mask, 0, 1); }
inline void __threadfence() {}

#define MOE_LANE int((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31u)

template <typename T> inline T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
    int lane = MOE_LANE;
    const uint64_t *s = moe_host::warp_exchange(mask, moe_host::to_bits(v), 2);
    T r;
    moe_host::from_bits(s[(lane & ~(width - 1)) + (source & (width - 1))], r);
    return r;
}
template <typename T> inline T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32) {
    int lane = MOE_LANE;
    const uint64_t *s = moe_host::warp_exchange(mask, moe_host::to_bits(v), 3);
    int from = lane ^ lane_mask;
    // A source beyond the sub-warp of `width` lanes leaves the lane's own value.
    if (from >= (lane & ~(width - 1)) + width) from = lane;
    T r;
    moe_host::from_bits(s[from & 31], r);
    return r;
}
template <typename T> inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    int lane = MOE_LANE;
    const uint64_t *s = moe_host::warp_exchange(mask, moe_host::to_bits(v), 4);
    int from = lane - int(delta);
    if (from < (lane & ~(width - 1))) from = lane;
    T r;
    moe_host::from_bits(s[from], r);
    return r;
}
template <typename T> inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    int lane = MOE_LANE;
    const uint64_t *s = moe_host::warp_exchange(mask, moe_host::to_bits(v), 5);
    int from = lane + int(delta);
    if (from >= (lane & ~(width - 1)) + width) from = lane;
    T r;
    moe_host::from_bits(s[from], r);
    return r;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const uint64_t *s = moe_host::warp_exchange(mask, predicate != 0, 6);
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= unsigned(s[i]) << i;
    return r;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }

// Signed 4 x 8-bit dot product with accumulation.
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += int(int8_t(unsigned(a) >> (8 * i))) * int(int8_t(unsigned(b) >> (8 * i)));
    return c;
}
// Picks four bytes of {y, x} by the low three bits of each of the selector's four nibbles.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    uint64_t both = (uint64_t(y) << 32) | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) r |= unsigned((both >> (8 * ((selector >> (4 * i)) & 7))) & 0xff) << (8 * i);
    return r;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline float __uint_as_float(unsigned v) {
    float f;
    memcpy(&f, &v, 4);
    return f;
}
inline unsigned __float_as_uint(float v) {
    unsigned u;
    memcpy(&u, &v, 4);
    return u;
}
inline int __float2int_rn(float v) { return int(lrintf(v)); }
inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
template <typename T> inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> inline T max(T a, T b) { return a < b ? b : a; }

// Blocks run one after another on one thread, so an atomic is the plain operation.
template <typename T> inline T atomicAdd(T *p, T v) {
    T old = *p;
    *p = old + v;
    return old;
}

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }
inline float2 make_float2(float x, float y) { return float2{x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return uint4{x, y, z, w}; }

// Kernel and shared-array declarations, see common/prelude.cuh for the device's side.
#define KERNEL(name) KERNEL_THREADS(name, 1024)
#define KERNEL_THREADS(name, threads)                                                                                  \
    static moe_host::Kernel moe_host_kernel_##name(                                                                    \
        #name, moe_host::Signature<decltype(&name)>::kinds(), moe_host::Signature<decltype(&name)>::count,             \
        &moe_host::Signature<decltype(&name)>::run<&name>, threads);
#define SHARED(T, name, elems)                                                                                         \
    static const char moe_key_##name = 0;                                                                              \
    moe_host::Checked<T> name = moe_host::shared_array<T>(&moe_key_##name, (elems))
#define SHARED_DYNAMIC(T, name) moe_host::Checked<T> name = moe_host::dynamic_shared_array<T>()

namespace moe_host {
template <typename T> inline Checked<T> shared_array(const void *key, size_t elems) {
    uint64_t p = reinterpret_cast<uint64_t>(shared_memory(key, elems * sizeof(T)));
    return Checked<T>(p, p, p + elems * sizeof(T));
}
template <typename T> inline Checked<T> dynamic_shared_array() {
    size_t bytes = 0;
    uint64_t p = reinterpret_cast<uint64_t>(dynamic_shared_memory(&bytes));
    return Checked<T>(p, p, p + bytes);
}
} // namespace moe_host

// One symbol per translation unit, so that the linker keeps the unit and its kernels register themselves.
#ifdef MOE_HOST_UNIT
#define MOE_HOST_JOIN2(a, b) a##b
#define MOE_HOST_JOIN(a, b) MOE_HOST_JOIN2(a, b)
extern "C" void MOE_HOST_JOIN(moe_host_unit_, MOE_HOST_UNIT)() {}
#endif
