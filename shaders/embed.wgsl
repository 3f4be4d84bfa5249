// Embed: ids [T] → rows of the table [vocab, D], times scale. One lane decodes one group of 16 elements; grid (groups / LANES, T).
// A table split by rows is read by one dispatch a part, each writing the tokens whose rows it holds.
#include numbers
#include arena
#include packed
#include decode weight

struct Params {
    ids: u32,
    y: u32,
    width: u32,
    axis: u32,
    // Of the table's rows: the first one that this part holds, and the one behind its last.
    row_begin: u32,
    row_end: u32,
    row_words: u32,
    weight_blocks: u32,
    // The rows that an id may name begin at `first_row`; there are `vocabulary` of them.
    first_row: u32,
    vocabulary: u32,
    scale: f32,
}

@group(0) @binding(4) var<storage, read> weight: array<u32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane_index: u32) {
    let group = wg.x * LANES + lane_index;
    let t = wg.y;
    if (group * 16u >= p.width || t >= axis_rows(p.axis, 1u)) {
        return;
    }
    let id = arena[p.ids + t];
    let at = p.y + t * p.width + group * 16u;
    let count = min(16u, p.width - group * 16u);
    if (id >= p.vocabulary) {
        // An id beyond the table is a fault of the caller; a NaN keeps it visible.
        for (var i = 0u; i < count; i++) {
            arena[at + i] = QUIET_NAN_BITS;
        }
        return;
    }
    let row = p.first_row + id;
    if (row < p.row_begin || row >= p.row_end) {
        return;
    }
    let values = weight_values((row - p.row_begin) * p.row_words, group);
    for (var i = 0u; i < count; i++) {
        store(at + i, p.scale * values[i >> 2u][i & 3u]);
    }
}
