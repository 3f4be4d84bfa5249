// ExpertMatMul for many tokens, grouped by expert (group_tokens.wgsl): each workgroup multiplies one tile of the pairs
// that chose an expert with TILE_ROWS of its rows. Grid (out / TILE_ROWS, the largest possible number of tiles).
#include numbers
#include arena
#include packed
#include decode weight
#include activations
#include tile weight

struct Params {
    x: u32,
    y: u32,
    sorted: u32,
    tiles: u32,
    cols: u32,
    rows: u32,
    experts_per_token: u32,
    input_per_expert: u32,
    // Rows of an expert in the tensor, and the number of the first expert's first row.
    expert_rows: u32,
    first_row: u32,
    row_begin: u32,
    row_end: u32,
    row_words: u32,
    weight_blocks: u32,
    bias: u32,
}

@group(0) @binding(4) var<storage, read> weight: array<u32>;

var<workgroup> tile_entry: vec4<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if (lane == 0u) {
        let at = p.tiles + 1u + wg.y * 3u;
        if (wg.y < arena[p.tiles]) {
            tile_entry = vec4<u32>(arena[at], arena[at + 1u], arena[at + 2u], 1u);
        } else {
            tile_entry = vec4<u32>(0u);
        }
    }
    let entry = workgroupUniformLoad(&tile_entry);
    let first_row = wg.x * TILE_ROWS;
    let through = p.first_row + entry.x * p.expert_rows + first_row;
    if (entry.w == 0u || through + TILE_ROWS <= p.row_begin || through >= p.row_end) {
        return;
    }
    let pair = arena[p.sorted + entry.y + min(loaded_token(lane), entry.z - 1u)];
    let x = select(pair / p.experts_per_token, pair, p.input_per_expert == 1u);
    let x_row = p.x + x * activation_row_words(p.cols);
    let w = clamp(through + loaded_row(lane), p.row_begin, p.row_end - 1u) - p.row_begin;
    multiply_tile(lane, w * p.row_words, x_row, p.cols);
    for (var j = 0u; j < LANE_TOKENS; j++) {
        for (var i = 0u; i < LANE_ROWS; i++) {
            let out = first_row + tile_row(lane, i);
            let t = tile_token(lane, j);
            let global = through + tile_row(lane, i);
            if (out < p.rows && t < entry.z && global >= p.row_begin && global < p.row_end) {
                var value = tile_sums[j * LANE_ROWS + i];
                if (p.bias != NONE) {
                    value += small(p.bias + entry.x * p.rows + out);
                }
                store(p.y + arena[p.sorted + entry.y + t] * p.rows + out, value);
            }
        }
    }
}
