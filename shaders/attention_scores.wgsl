// AttentionScores, for looking at: scale · q·kᵀ with the soft cap → [H, T, S], 0 after the query's position. One lane a
// score; grid (S / LANES, T, H).
#include numbers
#include arena
#include visible
#include kv key

struct Params {
    q: u32,
    positions: u32,
    y: u32,
    num_key_value_heads: u32,
    window: u32,
    chunk: u32,
    soft_cap: f32,
    scale: f32,
    // Of keys: position p is in row p modulo so many.
    rows: u32,
}

@group(1) @binding(0) var<storage, read> key: array<key_word>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let cached = wg.x * LANES + lane;
    if (cached >= now.cached || wg.y >= now.tokens) {
        return;
    }
    let heads = p.num_key_value_heads * GROUP;
    let key_width = p.num_key_value_heads * HEAD_DIM;
    let position = arena[p.positions + wg.y];
    var score = 0.0;
    if (visible(cached, position, p.window, p.chunk)) {
        let q = p.q + (wg.y * heads + wg.z) * HEAD_DIM;
        let key_row = cached % p.rows * key_row_words(key_width);
        for (var pair = 0u; pair < HEAD_DIM / 2u; pair++) {
            let k = key_pair(key_row, key_width, wg.z / GROUP * (HEAD_DIM / 2u) + pair);
            score += load(q + 2u * pair) * k.x;
            score += load(q + 2u * pair + 1u) * k.y;
        }
        score *= p.scale;
        if (p.soft_cap != 0.0) {
            score = p.soft_cap * tanh(score / p.soft_cap);
        }
    }
    store(p.y + (wg.z * now.tokens + wg.y) * now.cached + cached, score);
}
