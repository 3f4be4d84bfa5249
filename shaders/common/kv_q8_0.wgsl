// A state row of `width` elements in Q8_0: width / 4 words of signed bytes, then the blocks' binary16 scales.

alias $W_word = u32;

fn $W_row_words(width: u32) -> u32 {
    return width / 4u + (width / 32u + 1u) / 2u;
}

// Elements 2·pair and 2·pair + 1 of the row that begins at word `row`.
fn $W_pair(row: u32, width: u32, pair: u32) -> vec2<f32> {
    let word = $W[row + (pair >> 1u)] >> (16u * (pair & 1u));
    let block = pair >> 4u;
    let scales = $W[row + width / 4u + (block >> 1u)];
    let d = f16_to_f32((scales >> (16u * (block & 1u))) & 0xffffu);
    return d * vec2<f32>(f32(i32(word << 24u) >> 24u), f32(i32(word << 16u) >> 24u));
}
