// Decode of the weight formats, each once; those that grouped launches do not read are in more_formats.cuh.
//
// The block formats share one shape: 32 consecutive elements of a row as signed 8-bit codes with a scale and
// a minimum per half of 16, value = scale[h]·code − minimum[h], h = element / 16 (formats whose sub-blocks are 32 long
// repeat the pair). Products of stored scales are formed in the order of the scalar decode (graph/src/quant), so
// scale·code − minimum rounds as it does there; a compiler that fuses the two rounds once less.
//
// A row of n elements is the file's own bytes, `row + block · BYTES`, but for Q6_K, Q8_0 and MXFP4, whose blocks are no
// multiple of 16 bytes: they are sorted into planes at load (backends/src/cuda/planes.rs), so that everything is read 16
// bytes at a time. Rows of planes, and of Q4_K and Q5_K, are aligned to 16. Group g is elements 32g … 32g+31.
//
// The five formats of large models are also opened in chunks of 32 elements that one lane loads without a neighbour
// loading the same bytes (`load` and `open` below); common/dot.cuh keeps several in flight.
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

// Two sixteens of a row, not always neighbours: codes 0…3 are those of elements 16·unit[0] …, codes 4…7 of 16·unit[1] ….
// The lanes that read a block's chunks together take the two in different orders where that spreads their reads of the
// activations over the banks of shared memory.
struct Chunk {
    int code[8];
    float scale[2], minimum[2];
    int unit[2];
};

DEVICE void set_scales(Group32 &g, float scale, float minimum) {
    g.scale[0] = g.scale[1] = scale;
    g.minimum[0] = g.minimum[1] = minimum;
}

// Sixteen signed bytes T[0…15], looked up by four indices (0…15), one a byte.
DEVICE int lookup_each(uint32_t index, uint32_t t0, uint32_t t1, uint32_t t2, uint32_t t3) {
    uint32_t s = index & 0x07070707u; // the indices modulo 8, gathered into one nibble each
    s = (s | (s >> 4)) & 0x00ff00ffu;
    s = (s | (s >> 8)) & 0xffffu;
    uint32_t low = __byte_perm(t0, t1, s), high = __byte_perm(t2, t3, s);
    uint32_t is_high = ((index >> 3) & 0x01010101u) * 0xffu;
    return int((low & ~is_high) | (high & is_high));
}
// {−127 −104 −83 −65, −49 −35 −22 −10, 1 13 25 38, 53 69 89 113}: the non-linear 4-bit levels of IQ4_NL and IQ4_XS.
DEVICE int lookup_iq4(uint32_t index) {
    return lookup_each(index, 0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
}
// {0 1 2 3, 4 6 8 12} and their negatives: twice the values of a 4-bit float with two exponent bits and one of mantissa.
DEVICE int lookup_mxfp4(uint32_t index) {
    return lookup_each(index, 0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
}

#define LOW_NIBBLES(v) ((v) & 0x0f0f0f0fu)
#define HIGH_NIBBLES(v) (((v) >> 4) & 0x0f0f0f0fu)

// Bits 0…3 of v to bit 4 of bytes 0…3.
DEVICE uint32_t spread_fifth_bits(uint32_t v) {
    v &= 0xfu;
    return ((v | (v << 7) | (v << 14) | (v << 21)) & 0x01010101u) << 4;
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
    static constexpr bool MINIMA = false;
    struct Raw {
        uint4 a, b;
        float d;
    };
    static DEVICE Raw load(gptr<const uint8_t> row, int n, int c) {
        gptr<const uint4> q = cast<const uint4>(row) + 2 * c;
        int swap = (c >> 2) & 1;
        return Raw{q[swap], q[1 - swap], half_to_float(cast<const uint16_t>(row + n)[c])};
    }
    static DEVICE Chunk open(const Raw &raw, gptr<const uint8_t> row, int c) {
        int swap = (c >> 2) & 1;
        Chunk r;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            r.code[i] = int(word_of(raw.a, i));
            r.code[4 + i] = int(word_of(raw.b, i));
        }
        r.scale[0] = r.scale[1] = raw.d;
        r.unit[0] = 2 * c + swap;
        r.unit[1] = 2 * c + 1 - swap;
        return r;
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

// Scale and minimum of group g from the 16 bytes that open a Q4_K or Q5_K block: halves d and dmin, then eight pairs of
// six-bit numbers in twelve bytes.
DEVICE void set_packed_scales(Group32 &r, uint4 head, int g) {
    uint32_t scale, minimum;
    if (g < 4) {
        scale = (head.y >> (8 * g)) & 63u;
        minimum = (head.z >> (8 * g)) & 63u;
    } else {
        int k = 8 * (g - 4);
        scale = ((head.w >> k) & 15u) | (((head.y >> (k + 6)) & 3u) << 4);
        minimum = ((head.w >> (k + 4)) & 15u) | (((head.z >> (k + 6)) & 3u) << 4);
    }
    set_scales(r, half_to_float(uint16_t(head.x)) * float(scale), half_to_float(uint16_t(head.x >> 16)) * float(minimum));
}

// A chunk of Q4_K or Q5_K: bytes 16c … of the nibbles, half h of groups 2p (low) and 2p + 1 (high nibbles).
DEVICE void open_nibbles(Chunk &r, uint4 data, uint4 head, int c) {
    int p = (c >> 1) & 3, h = c & 1, swap = p >> 1;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        r.code[i] = int((word_of(data, i) >> (4 * swap)) & 0x0f0f0f0fu);
        r.code[4 + i] = int((word_of(data, i) >> (4 - 4 * swap)) & 0x0f0f0f0fu);
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
        int g = 2 * p + (k ^ swap);
        Group32 s;
        set_packed_scales(s, head, g);
        r.scale[k] = s.scale[0];
        r.minimum[k] = s.minimum[0];
        r.unit[k] = 16 * (c >> 3) + 2 * g + h;
    }
}

// 256 elements: {half d, dmin; u8 scales[12]; nibbles[128]}: value d·s·n − dmin·m; groups 2p and 2p+1 are the low and
// high nibbles of bytes 32p … 32p+31.
struct Q4_K {
    static constexpr int ELEMS = 256, BYTES = 144;
    static constexpr bool MINIMA = true;
    struct Raw {
        uint4 data, head;
    };
    static DEVICE Raw load(gptr<const uint8_t> row, int n, int c) {
        gptr<const uint4> b = cast<const uint4>(row + (c >> 3) * BYTES);
        return Raw{b[1 + (c & 7)], b[0]};
    }
    static DEVICE Chunk open(const Raw &raw, gptr<const uint8_t> row, int c) {
        Chunk r;
        open_nibbles(r, raw.data, raw.head, c);
        return r;
    }
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int group) {
        gptr<const uint4> b = cast<const uint4>(row + (group >> 3) * BYTES);
        int g = group & 7;
        Group32 r;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint4 v = b[1 + 2 * (g >> 1) + h];
#pragma unroll
            for (int i = 0; i < 4; i++) r.code[4 * h + i] = int((word_of(v, i) >> (4 * (g & 1))) & 0x0f0f0f0fu);
        }
        set_packed_scales(r, b[0], g);
        return r;
    }
};

// 256 elements: {half d, dmin; u8 scales[12]; u8 fifth bits[32]; nibbles[128]}: as Q4_K, with bit g of fifth[e mod 32].
struct Q5_K {
    static constexpr int ELEMS = 256, BYTES = 176;
    static constexpr bool MINIMA = true;
    // The block's first 16 bytes are read when a chunk is opened: they lie beside the fifth bits that come ahead, and would
    // take registers that products of two rows do not have.
    struct Raw {
        uint4 data, fifth;
    };
    static DEVICE Raw load(gptr<const uint8_t> row, int n, int c) {
        gptr<const uint4> b = cast<const uint4>(row + (c >> 3) * BYTES);
        return Raw{b[3 + (c & 7)], b[1 + (c & 1)]};
    }
    static DEVICE Chunk open(const Raw &raw, gptr<const uint8_t> row, int c) {
        Chunk r;
        open_nibbles(r, raw.data, *cast<const uint4>(row + (c >> 3) * BYTES), c);
        int p = (c >> 1) & 3, swap = p >> 1;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t fifth = word_of(raw.fifth, i & 3) >> (2 * p + ((i >> 2) ^ swap));
            r.code[i] |= int((fifth & 0x01010101u) << 4);
        }
        return r;
    }
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int group) {
        gptr<const uint4> b = cast<const uint4>(row + (group >> 3) * BYTES);
        int g = group & 7;
        Group32 r;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint4 v = b[3 + 2 * (g >> 1) + h], fifth = b[1 + h];
#pragma unroll
            for (int i = 0; i < 4; i++)
                r.code[4 * h + i] = int(((word_of(v, i) >> (4 * (g & 1))) & 0x0f0f0f0fu) |
                                        (((word_of(fifth, i) >> g) & 0x01010101u) << 4));
        }
        set_packed_scales(r, b[0], g);
        return r;
    }
};

// 256 elements: {u8 low[128]; u8 high[64]; int8 scales[16]; half d}: value d·s·(n − 32), s per 16. Group g = 4h + j:
// nibble j/2 of bytes 64h + 32(j mod 2) … and bits 2j, 2j+1 of high bytes 32h … 32h+31.
//
// Planes of a row of nb blocks: low [nb, 128], high [nb, 64], scales [nb, 16], d [nb].
struct Q6_K {
    static constexpr bool MINIMA = false;
    struct Raw {
        uint4 low, high;
        uint2 scales; // of the chunk's half of the block
        float d;
    };
    // Chunk c of a block: bytes 16c … of low, so sixteen elements of group g (low nibbles) and of group g + 2 (high ones).
    static DEVICE Raw load(gptr<const uint8_t> row, int n, int c) {
        int nb = n >> 8, b = c >> 3, h = (c >> 2) & 1, k = c & 1;
        return Raw{cast<const uint4>(row)[c], cast<const uint4>(row + nb * 128)[4 * b + 2 * h + k],
                   cast<const uint2>(row + nb * 192)[2 * b + h], half_to_float(cast<const uint16_t>(row + nb * 208)[b])};
    }
    static DEVICE Chunk open(const Raw &raw, gptr<const uint8_t> row, int c) {
        int h = (c >> 2) & 1, j = (c >> 1) & 1, k = c & 1, swap = h;
        Chunk r;
#pragma unroll
        for (int m = 0; m < 2; m++) {
            int high_nibble = m ^ swap, in_half = j + 2 * high_nibble;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t v = (word_of(raw.low, i) >> (4 * high_nibble)) & 0x0f0f0f0fu;
                uint32_t top = (word_of(raw.high, i) >> (2 * in_half)) & 0x03030303u;
                r.code[4 * m + i] = subtract_each(v | (top << 4), 32);
            }
            int scale = byte_of(int(high_nibble ? raw.scales.y : raw.scales.x), 2 * j + k);
            r.scale[m] = raw.d * float(scale);
            r.unit[m] = 16 * (c >> 3) + 2 * (4 * h + in_half) + k;
        }
        return r;
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
            r.code[i] = lookup_iq4(LOW_NIBBLES(v));
            r.code[4 + i] = lookup_iq4(HIGH_NIBBLES(v));
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
            r.code[i] = lookup_iq4(LOW_NIBBLES(v));
            r.code[4 + i] = lookup_iq4(HIGH_NIBBLES(v));
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
    static constexpr bool MINIMA = false;
    struct Raw {
        uint4 v;
        uint32_t exponent;
    };
    // 2^(e − 128); the two smallest are subnormal floats.
    static DEVICE float power(uint32_t e) { return __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23); }
    static DEVICE Raw load(gptr<const uint8_t> row, int n, int c) {
        return Raw{cast<const uint4>(row)[c], row[n / 2 + c]};
    }
    static DEVICE Chunk open(const Raw &raw, gptr<const uint8_t> row, int c) {
        int swap = (c >> 2) & 1;
        Chunk r;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t v = word_of(raw.v, i);
            r.code[i] = lookup_mxfp4((v >> (4 * swap)) & 0x0f0f0f0fu);
            r.code[4 + i] = lookup_mxfp4((v >> (4 - 4 * swap)) & 0x0f0f0f0fu);
        }
        r.scale[0] = r.scale[1] = power(raw.exponent);
        r.unit[0] = 2 * c + swap;
        r.unit[1] = 2 * c + 1 - swap;
        return r;
    }
    static DEVICE Group32 group(gptr<const uint8_t> row, int n, int g) {
        uint4 v = cast<const uint4>(row)[g];
        Group32 r;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            r.code[i] = lookup_mxfp4(LOW_NIBBLES(word_of(v, i)));
            r.code[4 + i] = lookup_mxfp4(HIGH_NIBBLES(word_of(v, i)));
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
