// Decode of the weight formats, each once; those that grouped launches do not read are in more_formats.cuh.
//
// The block formats share one shape: 32 consecutive elements of a row as signed 8-bit codes with a scale and
// a minimum per half of 16, value = scale[h]·code − minimum[h], h = element / 16 (formats whose sub-blocks are 32 long
// repeat the pair). Products of stored scales are formed in the order of the scalar decode (graph/src/quant), so
// scale·code − minimum rounds as it does there; a compiler that fuses the two rounds once less.
//
// A row of n elements is the file's own bytes, `row + block · BYTES`, but for Q4_K, Q5_K, Q6_K, Q8_0 and MXFP4: they are
// sorted into planes at load (backends/cuda/src/planes.rs), so that codes are read 16 bytes at a time, and the six-bit scales
// and minima of Q4_K and Q5_K are bytes there. Rows of planes are aligned to 16. Group g is elements 32g … 32g+31.
//
// These five, the formats of large models, are also read in chunks of 32 elements that one lane loads without a neighbour
// loading the same bytes: a chunk is two sixteens of the row, not always neighbours. Eight lanes take the eight chunks of 256
// elements: k is one number for each lane, and what follows from it (`Lane`) is computed once. `at` is where the chunk of block b
// lies, `load` asks for that of the block `ahead` of it; `x` reads the activations that it meets, `dot` multiplies them.
// common/dot.cuh keeps several in flight.
#pragma once
#include "prelude.cuh"

// Format codes, as graph/src/quant numbers them for launch parameters.
enum FormatCode : int {
    FORMAT_F32 = 0, FORMAT_F16, FORMAT_BF16, FORMAT_Q4_0, FORMAT_Q4_1, FORMAT_Q5_0, FORMAT_Q5_1, FORMAT_Q8_0,
    FORMAT_Q2_K, FORMAT_Q3_K, FORMAT_Q4_K, FORMAT_Q5_K, FORMAT_Q6_K, FORMAT_IQ4_NL, FORMAT_IQ4_XS, FORMAT_MXFP4,
    // more_formats.cuh
    FORMAT_IQ2_XXS, FORMAT_IQ2_XS, FORMAT_IQ2_S, FORMAT_IQ3_XXS, FORMAT_IQ3_S, FORMAT_IQ1_S, FORMAT_IQ1_M, FORMAT_TQ1_0,
    FORMAT_TQ2_0, FORMAT_NVFP4, FORMAT_Q1_0, FORMAT_Q2_0,
};

struct Group32 {
    int code[8];      // element 4i + j is byte j of code[i]
    float scale[2];   // of elements 0…15 and 16…31
    float minimum[2]; // subtracted; 0 where the format has none
};

// What a chunk's two sixteens meet: 8-bit activations, their scales, and the sums of the steps where the format needs them.
struct Sixteens {
    int4 q[2];
    float scale[2], sum[2];
};

DEVICE void set_scales(Group32 &g, float scale, float minimum) {
    g.scale[0] = g.scale[1] = scale;
    g.minimum[0] = g.minimum[1] = minimum;
}

// Sixteen signed bytes T[0…15], looked up by the low and by the high nibbles of four bytes: byte i of low and of high is T of
// byte i's. A byte_perm looks four nibbles up among eight bytes; the fourth bits choose between two of them.
struct Levels {
    uint32_t t[4];
};
DEVICE void lookup_nibbles(uint32_t v, const Levels &l, int &low, int &high) {
    uint32_t index = v & 0x77777777u, up = v << 4;
    uint32_t in_back0 = sign_bytes<0x5140>(up, v), in_back1 = sign_bytes<0x7362>(up, v);
    uint32_t a = (byte_perm(l.t[0], l.t[1], index) & ~in_back0) | (byte_perm(l.t[2], l.t[3], index) & in_back0);
    index >>= 16;
    uint32_t b = (byte_perm(l.t[0], l.t[1], index) & ~in_back1) | (byte_perm(l.t[2], l.t[3], index) & in_back1);
    low = int(__byte_perm(a, b, 0x6420u));
    high = int(__byte_perm(a, b, 0x7531u));
}
// {−127 −104 −83 −65, −49 −35 −22 −10, 1 13 25 38, 53 69 89 113}: the non-linear 4-bit levels of IQ4_NL and IQ4_XS.
DEVICE void lookup_iq4(uint32_t v, int &low, int &high) {
    lookup_nibbles(v, Levels{{0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u}}, low, high);
}
// {0 1 2 3, 4 6 8 12} and their negatives: twice the values of a 4-bit float with two exponent bits and one of mantissa.
DEVICE Levels mxfp4_levels() { return Levels{{0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu}}; }
DEVICE void lookup_mxfp4(uint32_t v, int &low, int &high) { lookup_nibbles(v, mxfp4_levels(), low, high); }

#define LOW_NIBBLES(v) ((v) & 0x0f0f0f0fu)
#define HIGH_NIBBLES(v) (((v) >> 4) & 0x0f0f0f0fu)

// Bits 0…3 of v to bit 4 of bytes 0…3.
DEVICE uint32_t spread_fifth_bits(uint32_t v) {
    v &= 0xfu;
    return ((v | (v << 7) | (v << 14) | (v << 21)) & 0x01010101u) << 4;
}

// Sums of products that end as floats begin with this: 1.5 · 2²³ as a float, whose last bits then count up and down.
constexpr int TO_FLOAT = 0x4b400000;
// The float of a sum that began with it, exact below 2²².
DEVICE float to_float(int sum) { return __uint_as_float(uint32_t(sum)) - 12582912.0f; }
// Bytes of a word as floats: the last bits of 2²³. KEPT: the selectors stay in registers.
struct ByteFloats {
    uint32_t base, selector[4];
};
template <bool KEPT> DEVICE ByteFloats byte_floats() {
    ByteFloats f;
    f.base = keep_if<KEPT>(0x4b000000u);
#pragma unroll
    for (int i = 0; i < 4; i++) f.selector[i] = keep_if<KEPT>(0x7440u + i);
    return f;
}
DEVICE float byte_to_float(uint32_t word, uint32_t base, uint32_t selector) {
    return __uint_as_float(__byte_perm(word, base, selector)) - 8388608.0f;
}

DEVICE int dot16(const int (&code)[4], int4 q, int from) {
    return dot4(code[0], q.x, dot4(code[1], q.y, dot4(code[2], q.z, dot4(code[3], q.w, from))));
}

// The activations of two neighbouring sixteens under one scale: elements 32c … of the row that begins at sixteen `first`.
template <class A> DEVICE Sixteens group_x(const A &a, int first, int c) {
    Sixteens x;
    int place = a.place(first + 2 * c);
    x.q[0] = a.at(place);
    x.q[1] = a.at(place ^ 1);
    x.scale[0] = a.scale[(first >> 1) + c];
    return x;
}

// {half d; nibbles[16]}: element j is low nibble j, element 16 + j is high nibble j; value d · (n − 8).
struct Q4_0 {
    static constexpr int ELEMS = 32, BYTES = 18;
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int g) {
        gptr<const uint8_t> b = row + g * BYTES;
        Group32 r;
        for (int i = 0; i < 4; i++) {
            uint32_t v = load_u32_by_halves(b + 2 + 4 * i);
            r.code[i] = subtract_each(LOW_NIBBLES(v), 8);
            r.code[4 + i] = subtract_each(HIGH_NIBBLES(v), 8);
        }
        set_scales(r, load_half(b), 0.0f);
        return r;
    }
};

// {half d, m; nibbles[16]}: value d · n + m.
struct Q4_1 {
    static constexpr int ELEMS = 32, BYTES = 20;
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int g) {
        gptr<const uint8_t> b = row + g * BYTES;
        Group32 r;
        for (int i = 0; i < 4; i++) {
            uint32_t v = load_u32_by_halves(b + 4 + 4 * i);
            r.code[i] = int(LOW_NIBBLES(v));
            r.code[4 + i] = int(HIGH_NIBBLES(v));
        }
        set_scales(r, load_half(b), -load_half(b + 2));
        return r;
    }
};

// {half d; u32 fifth bits; nibbles[16]}: value d · (n − 16), bit e of the word is element e's fifth.
struct Q5_0 {
    static constexpr int ELEMS = 32, BYTES = 22;
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int g) {
        gptr<const uint8_t> b = row + g * BYTES;
        uint32_t fifth = load_u32_by_halves(b + 2);
        Group32 r;
        for (int i = 0; i < 4; i++) {
            uint32_t v = load_u32_by_halves(b + 6 + 4 * i);
            r.code[i] = subtract_each(LOW_NIBBLES(v) | spread_fifth_bits(fifth >> (4 * i)), 16);
            r.code[4 + i] = subtract_each(HIGH_NIBBLES(v) | spread_fifth_bits(fifth >> (16 + 4 * i)), 16);
        }
        set_scales(r, load_half(b), 0.0f);
        return r;
    }
};

// {half d, m; u32 fifth bits; nibbles[16]}: value d · n + m.
struct Q5_1 {
    static constexpr int ELEMS = 32, BYTES = 24;
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int g) {
        gptr<const uint8_t> b = row + g * BYTES;
        uint32_t fifth = load_u32_by_halves(b + 4);
        Group32 r;
        for (int i = 0; i < 4; i++) {
            uint32_t v = load_u32_by_halves(b + 8 + 4 * i);
            r.code[i] = int(LOW_NIBBLES(v) | spread_fifth_bits(fifth >> (4 * i)));
            r.code[4 + i] = int(HIGH_NIBBLES(v) | spread_fifth_bits(fifth >> (16 + 4 * i)));
        }
        set_scales(r, load_half(b), -load_half(b + 2));
        return r;
    }
};

// {half d; int8 q[32]}: value d · q. Planes of a row: q [n], d [n / 32].
struct Q8_0 {
    struct Raw {
        uint4 a, b;
        float d;
    };
    struct Lane {
        int k;
    };
    template <int R, bool SAME, class A> static DEVICE Lane lane(const A &a, int k) { return Lane{k}; }
    struct At {
        gptr<const uint4> q;
        gptr<const uint16_t> d;
    };
    static DEVICE At at(gptr<const uint8_t> row, int n, int b, int k) {
        return At{cast<const uint4>(row) + (16 * b + 2 * k), cast<const uint16_t>(row + n) + (8 * b + k)};
    }
    static DEVICE Raw load(const At &p, int ahead) {
        return Raw{p.q[16 * ahead], p.q[16 * ahead + 1], half_to_float(p.d[8 * ahead])};
    }
    template <class A> static DEVICE Sixteens x(const A &a, int first, int b, int ahead, const Lane &l) {
        return group_x(a, first, 8 * (b + ahead) + l.k);
    }
    static DEVICE float dot(const Raw &raw, const Sixteens &x, const Lane &l) {
        int a[4] = {int(raw.a.x), int(raw.a.y), int(raw.a.z), int(raw.a.w)};
        int b[4] = {int(raw.b.x), int(raw.b.y), int(raw.b.z), int(raw.b.w)};
        return raw.d * to_float(dot16(b, x.q[1], dot16(a, x.q[0], TO_FLOAT))) * x.scale[0];
    }
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int g) {
        gptr<const uint4> q = cast<const uint4>(row) + 2 * g;
        uint4 a = q[0], b = q[1];
        Group32 r;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            r.code[i] = int(word_of(a, i));
            r.code[4 + i] = int(word_of(b, i));
        }
        set_scales(r, half_to_float(cast<const uint16_t>(row + n)[g]), 0.0f);
        return r;
    }
};

// 256 elements: {u8 scales[16]; u8 codes[64]; half d, dmin}. Sub-block s of 16: value d·(scales[s] & 15)·n −
// dmin·(scales[s] >> 4), n two bits: group g = 4h + j is bits 2j, 2j+1 of bytes 32h … 32h+31.
struct Q2_K {
    static constexpr int ELEMS = 256, BYTES = 84;
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int group) {
        gptr<const uint8_t> b = row + (group >> 3) * BYTES;
        int g = group & 7;
        gptr<const uint8_t> q = b + 16 + (g >> 2) * 32;
        Group32 r;
        for (int i = 0; i < 8; i++)
            r.code[i] = int((load_u32_by_halves(q + 4 * i) >> (2 * (g & 3))) & 0x03030303u);
        float d = load_half(b + 80), dmin = load_half(b + 82);
        for (int h = 0; h < 2; h++) {
            uint32_t s = b[2 * g + h];
            r.scale[h] = d * float(s & 15u);
            r.minimum[h] = dmin * float(s >> 4);
        }
        return r;
    }
};

// 256 elements: {u8 third bits[32]; u8 codes[64]; u8 scales[12]; half d}. Value d·(s − 32)·(n − 4), n two bits as in
// Q2_K plus bit g of third[e mod 32]; s six bits: low four in nibbles of bytes 0…7, high two in bytes 8…11.
struct Q3_K {
    static constexpr int ELEMS = 256, BYTES = 110;
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int group) {
        gptr<const uint8_t> b = row + (group >> 3) * BYTES;
        int g = group & 7;
        gptr<const uint8_t> q = b + 32 + (g >> 2) * 32;
        Group32 r;
        for (int i = 0; i < 8; i++) {
            uint32_t n = (load_u32_by_halves(q + 4 * i) >> (2 * (g & 3))) & 0x03030303u;
            uint32_t third = (load_u32_by_halves(b + 4 * i) >> g) & 0x01010101u;
            r.code[i] = subtract_each(n | (third << 2), 4);
        }
        float d = load_half(b + 108);
        for (int h = 0; h < 2; h++) {
            int s = 2 * g + h;
            uint32_t low = s < 8 ? b[96 + s] & 15u : uint32_t(b[96 + s - 8]) >> 4;
            uint32_t high = (uint32_t(b[104 + (s & 3)]) >> (2 * (s >> 2))) & 3u;
            r.scale[h] = d * float(int(low | (high << 4)) - 32);
            r.minimum[h] = 0.0f;
        }
        return r;
    }
};

// What Q4_K and Q5_K have beside codes. Planes of a row of nb blocks, `pairs` bytes behind its first: scale and minimum of each
// group, a byte each [nb, 8, 2]; d and dmin, halves [nb, 2].
DEVICE void set_pair(Group32 &r, gptr<const uint8_t> row, int nb, int pairs, int group) {
    uint32_t pair = cast<const uint16_t>(row + nb * pairs)[group], d = cast<const uint32_t>(row + nb * (pairs + 16))[group >> 3];
    set_scales(r, half_to_float(uint16_t(d)) * float(pair & 255u), half_to_float(uint16_t(d >> 16)) * float(pair >> 8));
}

// Chunk k of a Q4_K or Q5_K block is bytes 16k … of its nibbles: half h = k mod 2 of groups 2p (low nibbles) and 2p + 1 (high
// ones), p = k / 2. Its sixteens are 4p + h and 4p + 2 + h.
struct NibblesLane {
    int p, q[2], sum;
    ByteFloats bytes;
};
template <bool KEPT, bool BYTES_KEPT, class A> DEVICE NibblesLane nibbles_lane(const A &a, int k) {
    NibblesLane l;
    int h = k & 1;
    l.p = k >> 1;
#pragma unroll
    for (int m = 0; m < 2; m++) l.q[m] = int(keep_if<KEPT>(a.place(4 * l.p + 2 * m + h)));
    l.sum = int(keep_if<KEPT>(4 * l.p + a.sum_step(h)));
    l.bytes = byte_floats<BYTES_KEPT>();
    return l;
}
template <class A> DEVICE Sixteens nibbles_x(const A &a, int first, int b, int ahead, const NibblesLane &l) {
    Sixteens x;
    int block = first + 16 * b;
#pragma unroll
    for (int m = 0; m < 2; m++) x.q[m] = a.at(block + l.q[m] + 16 * ahead);
    float2 scale = (cast<const float2>(a.scale) + ((first >> 2) + 4 * b + l.p))[4 * ahead];
    x.scale[0] = scale.x;
    x.scale[1] = scale.y;
    a.sums(block + l.sum, 16 * ahead, x);
    return x;
}

// Σ over such a chunk: pair holds scale and minimum of both groups, d the halves.
DEVICE float nibbles_dot(const int (&low)[4], const int (&high)[4], uint32_t pair, uint32_t d, const Sixteens &x,
                         const ByteFloats &f) {
    float scale = half_to_float(uint16_t(d)), minimum = half_to_float(uint16_t(d >> 16)), v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = byte_to_float(pair, f.base, f.selector[i]);
    float a = scale * v[0] * to_float(dot16(low, x.q[0], TO_FLOAT)) - minimum * v[1] * x.sum[0];
    float b = scale * v[2] * to_float(dot16(high, x.q[1], TO_FLOAT)) - minimum * v[3] * x.sum[1];
    return a * x.scale[0] + b * x.scale[1];
}

// 256 elements {half d, dmin; u8 scales[12]; nibbles[128]}: value d·s·n − dmin·m; groups 2p and 2p+1 are the low and
// high nibbles of bytes 32p … 32p+31. Planes of a row of nb blocks: nibbles [nb, 128], then as in set_pair.
struct Q4_K {
    static constexpr int PAIRS = 128;
    struct Raw {
        uint4 data;
        uint32_t pair, d;
    };
    using Lane = NibblesLane;
    template <int R, bool SAME, class A> static DEVICE Lane lane(const A &a, int k) { return nibbles_lane<SAME, SAME>(a, k); }
    struct At {
        gptr<const uint4> data;
        gptr<const uint32_t> pair, d;
    };
    static DEVICE At at(gptr<const uint8_t> row, int n, int b, int k) {
        int nb = n >> 8;
        return At{cast<const uint4>(row) + (8 * b + k), cast<const uint32_t>(row + nb * PAIRS) + (4 * b + (k >> 1)),
                  cast<const uint32_t>(row + nb * (PAIRS + 16)) + b};
    }
    static DEVICE Raw load(const At &p, int ahead) { return Raw{p.data[8 * ahead], p.pair[4 * ahead], p.d[ahead]}; }
    template <class A> static DEVICE Sixteens x(const A &a, int first, int b, int ahead, const Lane &l) {
        return nibbles_x(a, first, b, ahead, l);
    }
    static DEVICE float dot(const Raw &raw, const Sixteens &x, const Lane &l) {
        int low[4], high[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            low[i] = int(LOW_NIBBLES(word_of(raw.data, i)));
            high[i] = int(HIGH_NIBBLES(word_of(raw.data, i)));
        }
        return nibbles_dot(low, high, raw.pair, raw.d, x, l.bytes);
    }
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int group) {
        Group32 r;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint4 v = cast<const uint4>(row)[2 * (group >> 1) + h];
#pragma unroll
            for (int i = 0; i < 4; i++) r.code[4 * h + i] = int((word_of(v, i) >> (4 * (group & 1))) & 0x0f0f0f0fu);
        }
        set_pair(r, row, n >> 8, PAIRS, group);
        return r;
    }
};

// 256 elements {half d, dmin; u8 scales[12]; u8 fifth bits[32]; nibbles[128]}: as Q4_K, with bit g of fifth[e mod 32].
// Planes of a row of nb blocks: nibbles [nb, 128], fifth bits [nb, 32], then as in set_pair.
struct Q5_K {
    static constexpr int PAIRS = 160;
    struct Raw {
        uint4 data, fifth;
        uint32_t pair, d;
    };
    using Lane = NibblesLane;
    // Two rows' loads leave no registers for what can be made again.
    template <int R, bool SAME, class A> static DEVICE Lane lane(const A &a, int k) { return nibbles_lane<R == 1, false>(a, k); }
    struct At {
        gptr<const uint4> data, fifth;
        gptr<const uint32_t> pair, d;
    };
    static DEVICE At at(gptr<const uint8_t> row, int n, int b, int k) {
        int nb = n >> 8;
        return At{cast<const uint4>(row) + (8 * b + k), cast<const uint4>(row + nb * 128) + (2 * b + (k & 1)),
                  cast<const uint32_t>(row + nb * PAIRS) + (4 * b + (k >> 1)),
                  cast<const uint32_t>(row + nb * (PAIRS + 16)) + b};
    }
    static DEVICE Raw load(const At &p, int ahead) {
        return Raw{p.data[8 * ahead], p.fifth[2 * ahead], p.pair[4 * ahead], p.d[ahead]};
    }
    template <class A> static DEVICE Sixteens x(const A &a, int first, int b, int ahead, const Lane &l) {
        return nibbles_x(a, first, b, ahead, l);
    }
    static DEVICE float dot(const Raw &raw, const Sixteens &x, const Lane &l) {
        int low[4], high[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t fifth = word_of(raw.fifth, i) >> (2 * l.p);
            low[i] = int(LOW_NIBBLES(word_of(raw.data, i)) + (fifth & 0x01010101u) * 16u);
            high[i] = int(HIGH_NIBBLES(word_of(raw.data, i)) + (fifth & 0x02020202u) * 8u);
        }
        return nibbles_dot(low, high, raw.pair, raw.d, x, l.bytes);
    }
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int group) {
        int nb = n >> 8, g = group & 7;
        Group32 r;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint4 v = cast<const uint4>(row)[2 * (group >> 1) + h], fifth = cast<const uint4>(row + nb * 128)[2 * (group >> 3) + h];
#pragma unroll
            for (int i = 0; i < 4; i++)
                r.code[4 * h + i] = int(((word_of(v, i) >> (4 * (g & 1))) & 0x0f0f0f0fu) |
                                        (((word_of(fifth, i) >> g) & 0x01010101u) << 4));
        }
        set_pair(r, row, nb, PAIRS, group);
        return r;
    }
};

// 256 elements: {u8 low[128]; u8 high[64]; int8 scales[16]; half d}: value d·s·(n − 32), s per 16. Group g = 4h + j:
// nibble j/2 of bytes 64h + 32(j mod 2) … and bits 2j, 2j+1 of high bytes 32h … 32h+31.
//
// Planes of a row of nb blocks: low [nb, 128], high [nb, 64], scales [nb, 16], d [nb].
struct Q6_K {
    struct Raw {
        uint4 low, high;
        uint2 scales; // of the chunk's half of the block
        float d;
    };
    // Chunk k of a block: bytes 16k … of low, so sixteen elements of group g = 4h + j (low nibbles) and of group g + 2 (high
    // ones), h = k / 4, j = k / 2 mod 2. Its sixteens are 2g + k mod 2 and the fourth behind that.
    struct Lane {
        int unit, q[2], sum[2], shift;
        uint32_t base, selector;
    };
    template <int R, bool SAME, class A> static DEVICE Lane lane(const A &a, int k) {
        Lane l;
        l.unit = 8 * (k >> 2) + (k & 3);
#pragma unroll
        for (int m = 0; m < 2; m++) {
            l.q[m] = int(keep_if<R == 1>(a.place(l.unit + 4 * m)));
            l.sum[m] = int(keep_if<R == 1>(a.sum_place(l.unit + 4 * m)));
        }
        l.shift = k & 2;
        l.base = 0x4b000000u;
        l.selector = 0x7440u + (k & 3);
        return l;
    }
    struct At {
        gptr<const uint4> low, high;
        gptr<const uint2> scales;
        gptr<const uint16_t> d;
    };
    static DEVICE At at(gptr<const uint8_t> row, int n, int b, int k) {
        int nb = n >> 8, h = k >> 2;
        return At{cast<const uint4>(row) + (8 * b + k), cast<const uint4>(row + nb * 128) + (4 * b + 2 * h + (k & 1)),
                  cast<const uint2>(row + nb * 192) + (2 * b + h), cast<const uint16_t>(row + nb * 208) + b};
    }
    static DEVICE Raw load(const At &p, int ahead) {
        return Raw{p.low[8 * ahead], p.high[4 * ahead], p.scales[2 * ahead], half_to_float(p.d[ahead])};
    }
    template <class A> static DEVICE Sixteens x(const A &a, int first, int b, int ahead, const Lane &l) {
        Sixteens x;
        int block = first + 16 * b;
#pragma unroll
        for (int m = 0; m < 2; m++) {
            x.q[m] = a.at(block + l.q[m] + 16 * ahead);
            x.scale[m] = (a.scale + ((block >> 1) + (l.unit >> 1)))[2 * m + 8 * ahead];
            x.sum[m] = a.sum(block + l.sum[m], 16 * ahead, x.q[m]);
        }
        return x;
    }
    // n − 32 is taken as n, and 32 times the steps' sum off: whole numbers, exact as floats.
    static DEVICE float dot(const Raw &raw, const Sixteens &x, const Lane &l) {
        int low[4], high[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t top = word_of(raw.high, i) >> l.shift;
            low[i] = int(LOW_NIBBLES(word_of(raw.low, i)) + (top & 0x03030303u) * 16u);
            high[i] = int(HIGH_NIBBLES(word_of(raw.low, i)) | (top & 0x30303030u));
        }
        float a = to_float(dot16(low, x.q[0], TO_FLOAT)) - 32.0f * x.sum[0];
        float b = to_float(dot16(high, x.q[1], TO_FLOAT)) - 32.0f * x.sum[1];
        float scale_a = byte_to_float(raw.scales.x ^ 0x80808080u, l.base, l.selector) - 128.0f;
        float scale_b = byte_to_float(raw.scales.y ^ 0x80808080u, l.base, l.selector) - 128.0f;
        return raw.d * scale_a * a * x.scale[0] + raw.d * scale_b * b * x.scale[1];
    }
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int group) {
        int nb = n >> 8, b = group >> 3, g = group & 7, h = g >> 2, j = g & 3;
        Group32 r;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            uint4 low = cast<const uint4>(row)[8 * b + 4 * h + 2 * (j & 1) + k];
            uint4 high = cast<const uint4>(row + nb * 128)[4 * b + 2 * h + k];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t v = (word_of(low, i) >> (4 * (j >> 1))) & 0x0f0f0f0fu;
                uint32_t top = (word_of(high, i) >> (2 * j)) & 0x03030303u;
                r.code[4 * k + i] = subtract_each(v | (top << 4), 32);
            }
        }
        float d = half_to_float(cast<const uint16_t>(row + nb * 208)[b]);
        for (int k = 0; k < 2; k++) {
            r.scale[k] = d * float(int(int8_t(row[nb * 192 + 16 * b + 2 * g + k])));
            r.minimum[k] = 0.0f;
        }
        return r;
    }
};

// {half d; nibbles[16]}: as Q4_0, with the nibble an index into sixteen non-linear levels.
struct IQ4_NL {
    static constexpr int ELEMS = 32, BYTES = 18;
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int g) {
        gptr<const uint8_t> b = row + g * BYTES;
        Group32 r;
        for (int i = 0; i < 4; i++) {
            uint32_t v = load_u32_by_halves(b + 2 + 4 * i);
            lookup_iq4(v, r.code[i], r.code[4 + i]);
        }
        set_scales(r, load_half(b), 0.0f);
        return r;
    }
};

// 256 elements: {half d; u16 scales high; u8 scales low[4]; nibbles[128]}: value d·(s − 32)·level, s six bits; group g
// is bytes 16g … 16g+15, low nibbles first.
struct IQ4_XS {
    static constexpr int ELEMS = 256, BYTES = 136;
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int group) {
        gptr<const uint8_t> b = row + (group >> 3) * BYTES;
        int g = group & 7;
        Group32 r;
        for (int i = 0; i < 4; i++) {
            uint32_t v = load_u32_by_halves(b + 8 + 16 * g + 4 * i);
            lookup_iq4(v, r.code[i], r.code[4 + i]);
        }
        uint32_t high = *cast<const uint16_t>(b + 2);
        uint32_t s = ((uint32_t(b[4 + (g >> 1)]) >> (4 * (g & 1))) & 15u) | (((high >> (2 * g)) & 3u) << 4);
        set_scales(r, load_half(b) * float(int(s) - 32), 0.0f);
        return r;
    }
};

// {u8 exponent; nibbles[16]}: 4-bit floats times 2^(exponent − 127); codes are twice the float, so the scale is half.
// Planes of a row: nibbles [n / 32, 16], exponents [n / 32].
struct MXFP4 {
    struct Raw {
        uint4 v;
        uint32_t exponent;
    };
    // 2^(e − 128); the two smallest are subnormal floats.
    static DEVICE float power(uint32_t e) { return __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23); }
    struct Lane {
        int k;
        Levels levels;
    };
    template <int R, bool SAME, class A> static DEVICE Lane lane(const A &a, int k) {
        Lane l{k, mxfp4_levels()};
#pragma unroll
        for (int i = 0; i < 4; i++) l.levels.t[i] = keep_if<SAME>(l.levels.t[i]);
        return l;
    }
    struct At {
        gptr<const uint4> v;
        gptr<const uint8_t> exponent;
    };
    static DEVICE At at(gptr<const uint8_t> row, int n, int b, int k) {
        return At{cast<const uint4>(row) + (8 * b + k), row + (n / 2 + 8 * b + k)};
    }
    static DEVICE Raw load(const At &p, int ahead) { return Raw{p.v[8 * ahead], p.exponent[8 * ahead]}; }
    template <class A> static DEVICE Sixteens x(const A &a, int first, int b, int ahead, const Lane &l) {
        return group_x(a, first, 8 * (b + ahead) + l.k);
    }
    static DEVICE float dot(const Raw &raw, const Sixteens &x, const Lane &l) {
        int low[4], high[4];
#pragma unroll
        for (int i = 0; i < 4; i++) lookup_nibbles(word_of(raw.v, i), l.levels, low[i], high[i]);
        return power(raw.exponent) * to_float(dot16(high, x.q[1], dot16(low, x.q[0], TO_FLOAT))) * x.scale[0];
    }
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int g) {
        uint4 v = cast<const uint4>(row)[g];
        Group32 r;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            lookup_mxfp4(word_of(v, i), r.code[i], r.code[4 + i]);
        }
        set_scales(r, power(row[n / 2 + g]), 0.0f);
        return r;
    }
};

// The three float formats: one element at a time.
struct F32 {
    static constexpr int BYTES = 4;
    static DEVICE float at(gptr<const uint8_t> row, int i) { return cast<const float>(row)[i]; }
};
struct F16 {
    static constexpr int BYTES = 2;
    static DEVICE float at(gptr<const uint8_t> row, int i) { return half_to_float(cast<const uint16_t>(row)[i]); }
};
struct BF16 {
    static constexpr int BYTES = 2;
    static DEVICE float at(gptr<const uint8_t> row, int i) { return bf16_to_float(cast<const uint16_t>(row)[i]); }
};

// staged.cuh, which grouped launches begin with, leaves these out: they would be in every one of their kernels. The host
// compiles many kernels as one source.
#if !defined(GROUPED_LAUNCH) || !defined(MOE_DEVICE)
#define MORE_FORMATS 1
#include "more_formats.cuh"
#endif

// The group of any block format; the branch is the same for all threads of a launch. The code after it is then there
// once for all formats; a kernel that is to be fast for one format calls F::group itself.
DEVICE Group32 decode_group(int format, gptr<const uint8_t> row, int n, int g) {
#ifdef MORE_FORMATS
    if (format > FORMAT_MXFP4) return more_groups(format, row, g);
#endif
    switch (format) {
    case FORMAT_Q4_0: return Q4_0::group(row, n, g);
    case FORMAT_Q4_1: return Q4_1::group(row, n, g);
    case FORMAT_Q5_0: return Q5_0::group(row, n, g);
    case FORMAT_Q5_1: return Q5_1::group(row, n, g);
    case FORMAT_Q8_0: return Q8_0::group(row, n, g);
    case FORMAT_Q2_K: return Q2_K::group(row, n, g);
    case FORMAT_Q3_K: return Q3_K::group(row, n, g);
    case FORMAT_Q4_K: return Q4_K::group(row, n, g);
    case FORMAT_Q5_K: return Q5_K::group(row, n, g);
    case FORMAT_Q6_K: return Q6_K::group(row, n, g);
    case FORMAT_IQ4_NL: return IQ4_NL::group(row, n, g);
    case FORMAT_IQ4_XS: return IQ4_XS::group(row, n, g);
    default: return MXFP4::group(row, n, g);
    }
}

// Element i of a row of a float format.
DEVICE float decode_float(int format, gptr<const uint8_t> row, int i) {
    if (format == FORMAT_F32) return F32::at(row, i);
    return format == FORMAT_F16 ? F16::at(row, i) : BF16::at(row, i);
}
