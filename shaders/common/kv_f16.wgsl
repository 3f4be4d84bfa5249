// A state row of `width` elements in binary16, two to a word.

#if kv_native
alias $W_word = vec2<f16>;
#else
alias $W_word = u32;
#endif

fn $W_row_words(width: u32) -> u32 {
    return width / 2u;
}

// Elements 2·pair and 2·pair + 1 of the row that begins at word `row`.
fn $W_pair(row: u32, width: u32, pair: u32) -> vec2<f32> {
#if kv_native
    return vec2<f32>($W[row + pair]);
#else
    return f16_pair($W[row + pair]);
#endif
}
