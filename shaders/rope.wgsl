// Rope: turns each pair (a, b) of a head by its position's angle: (a·cos − b·sin, b·cos + a·sin). cos and sin come from
// the host's table, for the step's positions: [T, pairs] of (cos, sin) at `table`. Elements beyond the turned ones are
// copied. One lane a pair; grid (elements / 2 / LANES, T).
#include numbers
#include arena

struct Params {
    x: u32,
    y: u32,
    // cos and sin of the step's positions.
    table: u32,
    heads: u32,
    head_dim: u32,
    // Pairs that are turned, of head_dim / 2.
    pairs: u32,
    // 1: a pair is (2i, 2i + 1); 0: (i, i + pairs).
    interleaved: u32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let per_head = p.head_dim / 2u;
    let index = wg.x * LANES + lane;
    if (index >= p.heads * per_head || wg.y >= now.tokens) {
        return;
    }
    let i = index % per_head;
    let head = (wg.y * p.heads + index / per_head) * p.head_dim;
    var first = 2u * i;
    var second = 2u * i + 1u;
    if (i < p.pairs) {
        if (p.interleaved == 0u) {
            first = i;
            second = i + p.pairs;
        }
        let angle = p.table + (wg.y * p.pairs + i) * 2u;
        let c = load(angle);
        let s = load(angle + 1u);
        let a = load(p.x + head + first);
        let b = load(p.x + head + second);
        store(p.y + head + first, a * c - b * s);
        store(p.y + head + second, b * c + a * s);
    } else {
        arena[p.y + head + first] = arena[p.x + head + first];
        arena[p.y + head + second] = arena[p.x + head + second];
    }
}
