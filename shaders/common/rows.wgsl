// Four rows of `$W`, from row `row` on, times the staged activations; every lane gets the sums.
fn $W_four_rows(lane: Lane, row: u32, cols: u32) -> vec4<f32> {
    let stride = p.$W_row_words;
    let first = row * stride;
    var sums = vec4<f32>(0.0);
    for (var group = lane.index; group < (cols + 15u) / 16u; group += LANES) {
        let a = staged(group, cols);
        sums += vec4<f32>($W_dot(first, group, a), $W_dot(first + stride, group, a),
            $W_dot(first + 2u * stride, group, a), $W_dot(first + 3u * stride, group, a));
    }
    return sum_lanes4(lane, sums);
}
