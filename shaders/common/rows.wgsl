// Four rows of `$W`, from row `row` on, times the staged activations; behind row `last` it is read again. Every lane gets the
// sums.
fn $W_four_rows(lane: Lane, row: u32, last: u32, cols: u32) -> vec4<f32> {
    let row0 = row * p.$W_row_words;
    let row1 = min(row + 1u, last) * p.$W_row_words;
    let row2 = min(row + 2u, last) * p.$W_row_words;
    let row3 = min(row + 3u, last) * p.$W_row_words;
    var sums = vec4<f32>(0.0);
    for (var group = lane.index; group < (cols + 15u) / 16u; group += LANES) {
        let a = staged(group, cols);
        sums += vec4<f32>($W_dot(row0, group, a), $W_dot(row1, group, a), $W_dot(row2, group, a), $W_dot(row3, group, a));
    }
    return sum_lanes4(lane, sums);
}
