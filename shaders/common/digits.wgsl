// Digits of two or three bits, one to a byte.

// The four pairs of bits of a byte.
fn spread_pairs(x: u32) -> u32 {
    let y = (x | (x << 12u)) & 0x000f000fu;
    return (y | (y << 6u)) & 0x03030303u;
}

// The four threes of bits of twelve.
fn spread_threes(x: u32) -> u32 {
    return (x & 7u) | ((x & 0x38u) << 5u) | ((x & 0x1c0u) << 10u) | ((x & 0xe00u) << 15u);
}
