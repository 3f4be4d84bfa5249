// HeadMatMul, transposed: y[t, h, i] = Σ_o x[t, h, o] · W[h, o, i]; x [T, H, rows], y [T, H, cols], W [H, stored, cols]. One lane a
// group of 16 columns; grid (groups / LANES, H, T). The rows of all heads are numbered through; of a tensor split by rows each
// part's dispatch adds the rows that it holds.
#include numbers
#include arena
#include packed
#include decode weight

struct Params {
    x: u32,
    y: u32,
    cols: u32,
    // Rows that are read of a head, those that the tensor has of one, and the number of the first head's first row.
    rows: u32,
    head_rows: u32,
    first_row: u32,
    heads: u32,
    row_begin: u32,
    row_end: u32,
    row_words: u32,
    weight_blocks: u32,
    // 1: behind the first part.
    adds: u32,
}

@group(0) @binding(4) var<storage, read> weight: array<u32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane_index: u32) {
    let group = wg.x * LANES + lane_index;
    if (group * 16u >= p.cols || wg.z >= now.tokens) {
        return;
    }
    let of_head = wg.z * p.heads + wg.y;
    let first = p.first_row + wg.y * p.head_rows;
    var sums = mat4x4<f32>();
    for (var o = 0u; o < p.rows; o++) {
        let row = first + o;
        if (row >= p.row_begin && row < p.row_end) {
            sums += load(p.x + of_head * p.rows + o) * weight_values((row - p.row_begin) * p.row_words, group);
        }
    }
    let at = p.y + of_head * p.cols + group * 16u;
    let count = min(16u, p.cols - group * 16u);
    for (var i = 0u; i < count; i++) {
        var value = sums[i >> 2u][i & 3u];
        if (p.adds == 1u) {
            value += load(at + i);
        }
        store(at + i, value);
    }
}
