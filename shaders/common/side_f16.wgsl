// The plane of block scales behind the row's quants: binary16, two to a word, the first at word `$W_SIDE(row)`.
fn $W_block_scale(row: u32, block: u32) -> f32 {
    let word = $W[row + p.$W_blocks * $W_BLOCK_WORDS + (block >> 1u)];
    return f16_to_f32((word >> (16u * (block & 1u))) & 0xffffu);
}
