// Twice the 16 values of E2M1, signed 8-bit, four to a word, for the nibble in each byte's low half.
fn mxfp4_value(n: u32) -> u32 {
    let low = select(0x03020100u, 0x0c080604u, (n & 4u) != 0u);
    let high = select(0xfdfeff00u, 0xf4f8fafcu, (n & 4u) != 0u);
    return (select(low, high, (n & 8u) != 0u) >> (8u * (n & 3u))) & 0xffu;
}

fn mxfp4_values(nibbles: u32) -> u32 {
    return mxfp4_value(nibbles & 15u) | (mxfp4_value((nibbles >> 8u) & 15u) << 8u)
        | (mxfp4_value((nibbles >> 16u) & 15u) << 16u) | (mxfp4_value((nibbles >> 24u) & 15u) << 24u);
}
