// The matrix units behind one wrapper: one warp multiplies tiles whose elements its 32 lanes hold. Lane l is g = l / 4,
// t = l mod 4; the layouts are those of PTX `mma.sync`:
//   s8, 16×8×K (K = 16 or 32): a[0] row g, columns 4t … 4t+3; a[1] row g + 8; a[2], a[3] the same, columns + 16.
//     b[0] column g, rows 4t … 4t+3; b[1] rows + 16.
//   f16, 16×8×16: a[0] row g, columns 2t, 2t+1; a[1] row g + 8; a[2], a[3] the same, columns + 8. b[0] column g, rows 2t,
//     2t+1; b[1] rows + 8.
//   c[0], c[1] row g, columns 2t, 2t+1; c[2], c[3] row g + 8.
// The host's definition is the same sum from the lanes' registers. Below compute capability 8.0 there is none: the
// backend launches no kernel that gets here.
#pragma once
#include "prelude.cuh"

#ifndef MOE_DEVICE
// The registers of all lanes, two at a time.
struct HostFragments {
    uint32_t a[32][4], b[32][2];
};
inline void host_fragments(HostFragments &f, const uint32_t *a, int na, const uint32_t *b, int nb) {
    uint32_t mine[6] = {};
    for (int i = 0; i < na; i++) mine[i] = a[i];
    for (int i = 0; i < nb; i++) mine[4 + i] = b[i];
    for (int i = 0; i < 6; i += 2) {
        const uint64_t *all = moe_host::warp_exchange(FULL_WARP, mine[i] | uint64_t(mine[i + 1]) << 32, 7);
        for (int l = 0; l < 32; l++)
            for (int j = 0; j < 2; j++) {
                uint32_t v = uint32_t(all[l] >> (32 * j));
                if (i < 4) f.a[l][i + j] = v;
                else f.b[l][j] = v;
            }
    }
}
inline int host_byte(uint32_t v, int i) { return int(int8_t(v >> (8 * i))); }
inline float host_half(uint32_t v, int i) { return half_to_float(uint16_t(v >> (16 * i))); }
#endif

// c += a · b, 8-bit integers, exact.
DEVICE void mma_s8_k32(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef MOE_DEVICE
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile("trap;");
#endif
#else
    HostFragments f;
    host_fragments(f, a, 4, b, 2);
    int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
    for (int i = 0; i < 4; i++) {
        int row = i >> 1, column = 2 * t + (i & 1);
        for (int k = 0; k < 32; k++) {
            int lane = (k & 15) >> 2, part = k >> 4;
            c[i] += host_byte(f.a[4 * g + lane][row + 2 * part], k & 3) * host_byte(f.b[4 * column + lane][part], k & 3);
        }
    }
#endif
}

DEVICE void mma_s8_k16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
#ifdef MOE_DEVICE
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
#else
    asm volatile("trap;");
#endif
#else
    HostFragments f;
    uint32_t a[2] = {a0, a1}, b[1] = {b0};
    host_fragments(f, a, 2, b, 1);
    int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++)
            c[i] += host_byte(f.a[4 * g + (k >> 2)][i >> 1], k & 3) * host_byte(f.b[4 * (2 * t + (i & 1)) + (k >> 2)][0], k & 3);
#endif
}

// c += a · b, halves, f32 sums.
DEVICE void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef MOE_DEVICE
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile("trap;");
#endif
#else
    HostFragments f;
    uint32_t b[2] = {b0, b1};
    host_fragments(f, a, 4, b, 2);
    int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
    for (int i = 0; i < 4; i++) {
        int row = i >> 1, column = 2 * t + (i & 1);
        for (int k = 0; k < 16; k++) {
            int lane = (k & 7) >> 1, part = k >> 3;
            c[i] += host_half(f.a[4 * g + lane][row + 2 * part], k & 1) * host_half(f.b[4 * column + lane][part], k & 1);
        }
    }
#endif
}
