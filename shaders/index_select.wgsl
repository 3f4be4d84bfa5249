// IndexSelect: scores [T, S] → 1 at the top_k positions up to the token's own whose scores are largest, 0 elsewhere: [T, S]. Ties go
// to the earlier position, NaN ranks last. One workgroup a token. The key of the last that is chosen is found bit by bit: it is
// the largest that at least top_k keys reach, 0 where there are fewer. Of those that equal it the earliest are taken, lane by lane. Of `every` positions only
// the last counts.
#include numbers
#include arena
#include order_key

struct Params {
    x: u32,
    positions: u32,
    y: u32,
    top_k: u32,
    every: u32,
}

var<workgroup> counts: array<u32, LANES>;

// Every lane gets the sum of all lanes' counts.
fn sum_counts(lane: u32, count: u32) -> u32 {
    counts[lane] = count;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            counts[lane] += counts[lane + half];
        }
        workgroupBarrier();
    }
    let total = counts[0];
    workgroupBarrier();
    return total;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if (wg.x >= now.tokens) {
        return;
    }
    let x = p.x + wg.x * now.cached;
    let y = p.y + wg.x * now.cached;
    let seen = (arena[p.positions + wg.x] + 1u) / p.every;
    for (var i = seen * p.every + lane; i < now.cached; i += LANES) {
        store(y + i, 0.0);
    }
    // Each lane has a run of positions of its own, so that those before it are the earlier ones.
    let each = (seen + LANES - 1u) / LANES;
    let first = min(lane * each, seen);
    let end = min(first + each, seen);
    var last = 0u;
    for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
        let reached = last | bit;
        var count = 0u;
        for (var i = first; i < end; i++) {
            count += select(0u, 1u, order_key(arena[x + (i + 1u) * p.every - 1u]) >= reached);
        }
        if (sum_counts(lane, count) >= p.top_k) {
            last = reached;
        }
    }
    var above = 0u;
    var equal = 0u;
    for (var i = first; i < end; i++) {
        let key = order_key(arena[x + (i + 1u) * p.every - 1u]);
        above += select(0u, 1u, key > last);
        equal += select(0u, 1u, key == last);
    }
    var left = p.top_k - sum_counts(lane, above);
    counts[lane] = equal;
    workgroupBarrier();
    for (var before = 0u; before < lane; before++) {
        left -= min(left, counts[before]);
    }
    for (var i = first; i < end; i++) {
        let key = order_key(arena[x + (i + 1u) * p.every - 1u]);
        let is_equal = key == last;
        let is_taken = key > last || (is_equal && left > 0u);
        for (var j = i * p.every; j + 1u < (i + 1u) * p.every; j++) {
            store(y + j, 0.0);
        }
        store(y + (i + 1u) * p.every - 1u, select(0.0, 1.0, is_taken));
        left -= min(left, select(0u, 1u, is_equal));
    }
}
