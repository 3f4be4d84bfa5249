// The formats that only the launches of single operations decode: those whose codes are rows of a grid (IQ1 to IQ3), the
// ternary ones, NVFP4, and those of one and two bits. One function of its own in a kernel's module, not one copy in each
// kernel: what is read there is looked up, and a call costs little beside that.
//
// Rows with a grid lie on the device with 8 bytes in front: how far behind the row's first byte its tensor's grid lies
// (backends/cuda/src/planes.rs): 16 bits a row of it, eight digits of two bits or four of three (graph/src/quant/grids.rs).
#pragma once

struct GridRow {
    gptr<const uint8_t> blocks;
    gptr<const uint16_t> digits;
};
DEVICE GridRow with_grid(gptr<const uint8_t> row) {
    unsigned long long distance = *cast<const unsigned long long>(row);
    return GridRow{row + 8, cast<const uint16_t>(row + (long long)distance)};
}

// The four pairs of bits of a byte, and the four threes of bits of twelve, one to a byte.
DEVICE uint32_t spread_pairs(uint32_t x) {
    uint32_t y = (x | (x << 12)) & 0x000f000fu;
    return (y | (y << 6)) & 0x03030303u;
}
DEVICE uint32_t spread_threes(uint32_t x) {
    return (x & 7u) | ((x & 0x38u) << 5) | ((x & 0x1c0u) << 10) | ((x & 0xe00u) << 15);
}
DEVICE uint32_t spread_ones(uint32_t x) { return ((x & 15u) * 0x00204081u) & 0x01010101u; }

// Bytes with signs, a set bit a minus. No byte is 0, so nothing carries.
DEVICE int with_signs(uint32_t bytes, uint32_t signs) {
    uint32_t minus = spread_ones(signs);
    return int((bytes ^ (minus * 0xffu)) + minus);
}
// Eight signs from seven: an even number is set.
DEVICE uint32_t even_signs(uint32_t x) {
    x &= 127u;
    uint32_t sum = x ^ (x >> 4);
    sum ^= sum >> 2;
    sum ^= sum >> 1;
    return x | ((sum & 1u) << 7);
}

// Row k of a group of an IQ2 format: digits 0, 1, 2 are 8, 25, 43.
DEVICE uint32_t iq2_bytes(uint32_t digits) {
    uint32_t p = spread_pairs(digits & 0xffu);
    return 0x08080808u + 17u * p + ((p >> 1) & 0x01010101u);
}
DEVICE void set_iq2(Group32 &r, int k, uint32_t digits, uint32_t signs) {
    r.code[2 * k] = with_signs(iq2_bytes(digits), signs);
    r.code[2 * k + 1] = with_signs(iq2_bytes(digits >> 8), signs >> 4);
}
// Row k of a group of an IQ1 format: 8 · (digit − 1), and 1 more or, where `down` is 1, less.
DEVICE void set_iq1(Group32 &r, int k, uint32_t digits, uint32_t down) {
    r.code[2 * k] = subtract_each(8u * spread_pairs(digits & 0xffu), 7 + 2 * down);
    r.code[2 * k + 1] = subtract_each(8u * spread_pairs(digits >> 8), 7 + 2 * down);
}
// Scales of the two halves from the nibbles of a byte.
DEVICE void set_nibble_scales(Group32 &r, float d, uint32_t nibbles) {
    set_scales(r, d * float(2 * (nibbles & 15u) + 1), 0.0f);
    r.scale[1] = d * float(2 * (nibbles >> 4) + 1);
}

// 256 elements: {half d; for each 32: u8 rows[4], u32 four times seven signs and a scale}: d/8·(2s + 1)·±grid.
DEVICE Group32 iq2_xxs_group(GridRow row, int group) {
    gptr<const uint8_t> b = row.blocks + (group >> 3) * 66, q = b + 2 + 8 * (group & 7);
    uint32_t rows = load_u32_by_halves(q), bits = load_u32_by_halves(q + 4);
    Group32 r;
#pragma unroll
    for (int k = 0; k < 4; k++) set_iq2(r, k, row.digits[(rows >> (8 * k)) & 0xffu], even_signs(bits >> (7 * k)));
    set_scales(r, load_half(b) * 0.125f * float(2 * (bits >> 28) + 1), 0.0f);
    return r;
}

// 256 elements: {half d; u16 rows[32], seven signs above nine bits; u8 scales[8]}: d/8·(2s + 1)·±grid, s a nibble for 16.
DEVICE Group32 iq2_xs_group(GridRow row, int group) {
    gptr<const uint8_t> b = row.blocks + (group >> 3) * 74;
    int g = group & 7;
    gptr<const uint16_t> q = cast<const uint16_t>(b + 2 + 8 * g);
    Group32 r;
#pragma unroll
    for (int k = 0; k < 4; k++) set_iq2(r, k, row.digits[q[k] & 511u], even_signs(uint32_t(q[k]) >> 9));
    set_nibble_scales(r, load_half(b) * 0.125f, b[66 + g]);
    return r;
}

// 256 elements: {half d; u8 rows[32], signs[32], high pairs[8], scales[8]}: as IQ2_XS.
DEVICE Group32 iq2_s_group(GridRow row, int group) {
    gptr<const uint8_t> b = row.blocks + (group >> 3) * 82;
    int g = group & 7;
    uint32_t high = b[66 + g];
    Group32 r;
#pragma unroll
    for (int k = 0; k < 4; k++)
        set_iq2(r, k, row.digits[uint32_t(b[2 + 4 * g + k]) | (((high >> (2 * k)) & 3u) << 8)], b[34 + 4 * g + k]);
    set_nibble_scales(r, load_half(b) * 0.125f, b[74 + g]);
    return r;
}

// 256 elements: {half d; u8 rows[64]; u32[8]: four times seven signs and a scale}: d/4·(2s + 1)·±grid.
DEVICE Group32 iq3_xxs_group(GridRow row, int group) {
    gptr<const uint8_t> b = row.blocks + (group >> 3) * 98;
    int g = group & 7;
    uint32_t bits = load_u32_by_halves(b + 66 + 4 * g);
    Group32 r;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint32_t p = spread_threes(row.digits[b[2 + 8 * g + i]]);
        // 8 · digit + 4, and 62 for the last.
        uint32_t v = 8u * p + 0x04040404u + 2u * (p & (p >> 1) & (p >> 2) & 0x01010101u);
        r.code[i] = with_signs(v, even_signs(bits >> (7 * (i >> 1))) >> (4 * (i & 1)));
    }
    set_scales(r, load_half(b) * 0.25f * float(2 * (bits >> 28) + 1), 0.0f);
    return r;
}

// 256 elements: {half d; u8 rows[64], ninth bits[8], signs[32], scales[4]}: d·(2s + 1)·±grid, s a nibble for 32.
DEVICE Group32 iq3_s_group(GridRow row, int group) {
    gptr<const uint8_t> b = row.blocks + (group >> 3) * 110;
    int g = group & 7;
    uint32_t ninth = b[66 + g], scale = (uint32_t(b[106 + (g >> 1)]) >> (4 * (g & 1))) & 15u;
    Group32 r;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint32_t p = spread_threes(row.digits[uint32_t(b[2 + 8 * g + i]) | (((ninth >> i) & 1u) << 8)]);
        r.code[i] = with_signs(2u * p + 0x01010101u, uint32_t(b[74 + 4 * g + (i >> 1)]) >> (4 * (i & 1)));
    }
    set_scales(r, load_half(b) * float(2 * scale + 1), 0.0f);
    return r;
}

// 256 elements: {half d; u8 rows[32]; u16[8]: four times three high bits, a scale, a sign}: d/8·(2s + 1)·(8·grid ± 1).
DEVICE Group32 iq1_s_group(GridRow row, int group) {
    gptr<const uint8_t> b = row.blocks + (group >> 3) * 50;
    int g = group & 7;
    uint32_t bits = *cast<const uint16_t>(b + 34 + 2 * g);
    Group32 r;
#pragma unroll
    for (int k = 0; k < 4; k++)
        set_iq1(r, k, row.digits[uint32_t(b[2 + 4 * g + k]) | (((bits >> (3 * k)) & 7u) << 8)], bits >> 15);
    set_scales(r, load_half(b) * 0.125f * float(2 * ((bits >> 12) & 7u) + 1), 0.0f);
    return r;
}

// 256 elements: {u8 rows[32]; nibbles[16]: three high bits and a sign a row; u16[4]: four scales and a quarter of half d}.
DEVICE Group32 iq1_m_group(GridRow row, int group) {
    gptr<const uint8_t> b = row.blocks + (group >> 3) * 56;
    int g = group & 7;
    uint32_t bits = *cast<const uint16_t>(b + 32 + 2 * g);
    Group32 r;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint32_t n = bits >> (4 * k);
        set_iq1(r, k, row.digits[uint32_t(b[4 * g + k]) | ((n & 7u) << 8)], (n >> 3) & 1u);
    }
    gptr<const uint16_t> s = cast<const uint16_t>(b + 48);
    uint32_t half = (s[0] >> 12) | ((s[1] >> 8) & 0xf0u) | ((s[2] >> 4) & 0xf00u) | (s[3] & 0xf000u);
    uint32_t scales = uint32_t(s[g >> 1]) >> (6 * (g & 1));
    float d = half_to_float(uint16_t(half)) * 0.125f;
    set_scales(r, d * float(2 * (scales & 7u) + 1), 0.0f);
    r.scale[1] = d * float(2 * ((scales >> 3) & 7u) + 1);
    return r;
}

// Digit n of each byte of TQ1_0 less 1; `power` is 3ⁿ. A byte is a fraction of 256 in base three.
DEVICE int ternary(uint32_t bytes, uint32_t power) {
    uint32_t even = (((bytes & 0x00ff00ffu) * power) & 0x00ff00ffu) * 3u;
    uint32_t odd = ((((bytes >> 8) & 0x00ff00ffu) * power) & 0x00ff00ffu) * 3u;
    return subtract_each(((even >> 8) & 0x00ff00ffu) | (odd & 0xff00ff00u), 1);
}
DEVICE uint32_t power_of_3(int n) { return n == 0 ? 1u : n == 1 ? 3u : n == 2 ? 9u : n == 3 ? 27u : 81u; }

// 256 elements: {u8 five digits[48]; u8 four digits[4]; half d}: digit n of the first 32 bytes is group n, digits of the
// other 16 are halves of the next groups, and the last half is digit n of byte j at 4n + j.
DEVICE Group32 tq1_0_group(gptr<const uint8_t> row, int group) {
    gptr<const uint8_t> b = row + (group >> 3) * 54;
    int g = group & 7;
    Group32 r;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int n = 2 * (g - 5) + (i >> 2); // of the sixteen bytes
        if (g < 5) r.code[i] = ternary(load_u32_by_halves(b + 4 * i), power_of_3(g));
        else if (n < 5) r.code[i] = ternary(load_u32_by_halves(b + 32 + 4 * (i & 3)), power_of_3(n));
        else r.code[i] = ternary(load_u32_by_halves(b + 48), power_of_3(i & 3));
    }
    set_scales(r, load_half(b + 52), 0.0f);
    return r;
}

// 256 elements: {u8 codes[64]; half d}: d·(n − 1), n two bits as in Q2_K.
DEVICE Group32 tq2_0_group(gptr<const uint8_t> row, int group) {
    gptr<const uint8_t> b = row + (group >> 3) * 66;
    int g = group & 7;
    Group32 r;
#pragma unroll
    for (int i = 0; i < 8; i++)
        r.code[i] = subtract_each((load_u32_by_halves(b + (g >> 2) * 32 + 4 * i) >> (2 * (g & 3))) & 0x03030303u, 1);
    set_scales(r, load_half(b + 64), 0.0f);
    return r;
}

// Half of an 8-bit float with four bits of exponent and three of mantissa; the NaN is 0.
DEVICE float half_of_e4m3(uint32_t bits) {
    uint32_t e = (bits >> 3) & 15u, m = (bits & 7u) + (e == 0 ? 0u : 8u);
    if (bits == 0x7fu) return 0.0f;
    return float(m) * __uint_as_float(((e == 0 ? 1u : e) + 116u) << 23); // m · 2^(e − 11)
}

// 64 elements: {u8 scales[4]; nibbles[32], eight bytes a sixteen, low ones first}: scale / 2 · twice a 4-bit float.
DEVICE Group32 nvfp4_group(gptr<const uint8_t> row, int group) {
    gptr<const uint8_t> b = row + (group >> 1) * 36;
    Group32 r;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int s = 2 * (group & 1) + h;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t v = load_u32_by_halves(b + 4 + 8 * s + 4 * i);
            lookup_mxfp4(v, r.code[4 * h + i], r.code[4 * h + 2 + i]);
        }
        r.scale[h] = half_of_e4m3(b[s]);
        r.minimum[h] = 0.0f;
    }
    return r;
}

// 128 elements: {half d; bits[16]}: d where the bit is set, else −d.
DEVICE Group32 q1_0_group(gptr<const uint8_t> row, int group) {
    gptr<const uint8_t> b = row + (group >> 2) * 18;
    uint32_t bits = load_u32_by_halves(b + 2 + 4 * (group & 3));
    Group32 r;
#pragma unroll
    for (int i = 0; i < 8; i++) r.code[i] = subtract_each(2u * spread_ones(bits >> (4 * i)), 1);
    set_scales(r, load_half(b), 0.0f);
    return r;
}

// 64 elements: {half d; codes[16]}: d·(n − 1), n two bits, in order.
DEVICE Group32 q2_0_group(gptr<const uint8_t> row, int group) {
    gptr<const uint8_t> b = row + (group >> 1) * 18;
    Group32 r;
#pragma unroll
    for (int i = 0; i < 8; i++) r.code[i] = subtract_each(spread_pairs(b[2 + 8 * (group & 1) + i]), 1);
    set_scales(r, load_half(b), 0.0f);
    return r;
}

#ifdef MOE_DEVICE
static __device__ __noinline__
#else
inline
#endif
Group32 more_groups(int format, gptr<const uint8_t> row, int g) {
    switch (format) {
    case FORMAT_IQ2_XXS: return iq2_xxs_group(with_grid(row), g);
    case FORMAT_IQ2_XS: return iq2_xs_group(with_grid(row), g);
    case FORMAT_IQ2_S: return iq2_s_group(with_grid(row), g);
    case FORMAT_IQ3_XXS: return iq3_xxs_group(with_grid(row), g);
    case FORMAT_IQ3_S: return iq3_s_group(with_grid(row), g);
    case FORMAT_IQ1_S: return iq1_s_group(with_grid(row), g);
    case FORMAT_IQ1_M: return iq1_m_group(with_grid(row), g);
    case FORMAT_TQ1_0: return tq1_0_group(row, g);
    case FORMAT_TQ2_0: return tq2_0_group(row, g);
    case FORMAT_NVFP4: return nvfp4_group(row, g);
    case FORMAT_Q1_0: return q1_0_group(row, g);
    default: return q2_0_group(row, g);
    }
}
