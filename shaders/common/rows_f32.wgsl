// Four rows of `$W`, whose numbers are floats, times the row as it is, where the other matrices of a launch take it rounded: as
// rows.wgsl. Every lane gets the sums.
#include plain_values
#include plain_dot

fn $W_four_rows(lane: Lane, row: u32, last: u32, cols: u32) -> vec4<f32> {
    let row0 = row * p.$W_row_words;
    let row1 = min(row + 1u, last) * p.$W_row_words;
    let row2 = min(row + 2u, last) * p.$W_row_words;
    let row3 = min(row + 3u, last) * p.$W_row_words;
    var sums = vec4<f32>(0.0);
    for (var group = lane.index; group < (cols + 15u) / 16u; group += LANES) {
        let x = plain_values(group, cols);
        sums += vec4<f32>($W_plain_dot(row0, group, x), $W_plain_dot(row1, group, x), $W_plain_dot(row2, group, x),
            $W_plain_dot(row3, group, x));
    }
    return sum_lanes4(lane, sums);
}
