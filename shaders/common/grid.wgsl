// The grids of the IQ formats (graph/src/quant/grids.rs): a buffer of `$W` begins with one, two rows' digits to a word; the
// matrix's rows follow. Eight digits of two bits are a row of eight numbers, four of three bits a row of four.
#include digits

fn $W_digits(row: u32) -> u32 {
    return ($W[row >> 1u] >> (16u * (row & 1u))) & 0xffffu;
}

// Each byte with its sign: bit j of `signs` set is a minus for byte j. No byte is 0, so that nothing carries.
fn $W_signed(bytes: vec4<u32>, signs: vec4<u32>) -> vec4<u32> {
    let minus = spread_bits(signs & vec4<u32>(15u));
    return (bytes ^ (minus * 0xffu)) + minus;
}

// Eight signs from seven: an even number is set.
fn $W_even_signs(seven: u32) -> u32 {
    return (seven & 127u) | ((countOneBits(seven & 127u) & 1u) << 7u);
}

// The signs of four words from those of the first eight bytes and of the others.
fn $W_sign_words(first: u32, second: u32) -> vec4<u32> {
    return vec4<u32>(first, first >> 4u, second, second >> 4u);
}

// The digits of two rows of eight, 0 to 2.
fn $W_two_rows(first: u32, second: u32) -> vec4<u32> {
    let a = $W_digits(first);
    let b = $W_digits(second);
    return vec4<u32>(spread_pairs(a & 0xffu), spread_pairs(a >> 8u), spread_pairs(b & 0xffu), spread_pairs(b >> 8u));
}

// 8, 25 and 43 for the digits of the IQ2 grids.
fn $W_iq2_values(digits: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(0x08080808u) + digits * 17u + ((digits >> vec4<u32>(1u)) & vec4<u32>(0x01010101u));
}

// 8 · (digit − 1), and 1 more or, where `down` is 1, less: of the first row and of the second.
fn $W_iq1_values(digits: vec4<u32>, first_down: u32, second_down: u32) -> vec4<u32> {
    let first = minus_each_byte(digits * 8u, 7u + 2u * first_down);
    let second = minus_each_byte(digits * 8u, 7u + 2u * second_down);
    return vec4<u32>(first.xy, second.zw);
}

// The digits of four rows of four, 0 to 7.
fn $W_four_rows_of_four(rows: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(spread_threes($W_digits(rows.x)), spread_threes($W_digits(rows.y)),
        spread_threes($W_digits(rows.z)), spread_threes($W_digits(rows.w)));
}
