// An unsigned key in the order of the numbers: NaN is 1, below every number; 0 is kept for what is taken already.
fn order_key(bits: u32) -> u32 {
    // −0 and 0 are equal.
    let normal = select(bits, 0u, bits == 0x80000000u);
    let ordered = select(normal | 0x80000000u, ~normal, (normal >> 31u) == 1u);
    return select(ordered, 1u, is_nan(bits));
}
