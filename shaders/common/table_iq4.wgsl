// The 16 values of IQ4_NL and IQ4_XS, signed 8-bit, four to a word, for the nibble in each byte's low half.
fn iq4_value(n: u32) -> u32 {
    let low = select(0xbfad9881u, 0xf6eaddcfu, (n & 4u) != 0u);
    let high = select(0x26190d01u, 0x71594535u, (n & 4u) != 0u);
    return (select(low, high, (n & 8u) != 0u) >> (8u * (n & 3u))) & 0xffu;
}

fn iq4_values(nibbles: u32) -> u32 {
    return iq4_value(nibbles & 15u) | (iq4_value((nibbles >> 8u) & 15u) << 8u)
        | (iq4_value((nibbles >> 16u) & 15u) << 16u) | (iq4_value((nibbles >> 24u) & 15u) << 24u);
}
