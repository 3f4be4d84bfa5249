// A state row of `width` elements in f32.

alias $W_word = u32;

fn $W_row_words(width: u32) -> u32 {
    return width;
}

// Elements 2·pair and 2·pair + 1 of the row that begins at word `row`.
fn $W_pair(row: u32, width: u32, pair: u32) -> vec2<f32> {
    return bitcast<vec2<f32>>(vec2<u32>($W[row + 2u * pair], $W[row + 2u * pair + 1u]));
}
