// IndexScores: q [T, H · d], w [T, H], key cache of one head → Σ_h w_h · max(q_h·k, 0) for each position up to the token's own, 0
// behind it: [T, S]. One lane a position; grid (S / LANES, T).
#include numbers
#include arena
#include kv key

struct Params {
    q: u32,
    w: u32,
    positions: u32,
    y: u32,
    heads: u32,
}

@group(1) @binding(0) var<storage, read> key: array<key_word>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let cached = wg.x * LANES + lane;
    if (cached >= now.cached || wg.y >= now.tokens) {
        return;
    }
    var score = 0.0;
    if (cached <= arena[p.positions + wg.y]) {
        let key_row = cached * key_row_words(HEAD_DIM);
        for (var head = 0u; head < p.heads; head++) {
            let q = p.q + (wg.y * p.heads + head) * HEAD_DIM;
            var product = 0.0;
            for (var pair = 0u; pair < HEAD_DIM / 2u; pair++) {
                let k = key_pair(key_row, HEAD_DIM, pair);
                product += load(q + 2u * pair) * k.x;
                product += load(q + 2u * pair + 1u) * k.y;
            }
            // Not max: a NaN stays one.
            let positive = select(product, 0.0, product < 0.0);
            score += load(p.w + wg.y * p.heads + head) * positive;
        }
    }
    store(p.y + wg.y * now.cached + cached, score);
}
