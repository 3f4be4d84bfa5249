// The best `count` of a row of logits, best first, the lower id winning a tie, and the first NaN's id. NaN is never chosen
// before a number. Two launches: the first takes each chunk of KEYS logits to its own best `count` (grid: chunks), the
// second, one workgroup, takes the chunks' candidates to the row's. Argmax is count = 1; the best id may become the next
// step's token.
#include numbers
#include arena
#include top_k

struct Params {
    // The row of logits.
    x: u32,
    // Candidates wanted.
    count: u32,
    // Logits of the row.
    elements: u32,
    // 1: the first launch.
    first: u32,
    // The result: the first NaN's id or NONE, then `count` pairs (id or NONE, bits).
    y: u32,
    // [chunks]: the first NaN's id or NONE.
    chunk_nans: u32,
    // [chunks, count] pairs (id or NONE, bits).
    chunk_best: u32,
    chunks: u32,
    // Where the best id goes as the next token, or NONE.
    next_token: u32,
}

var<workgroup> lane_nan: array<u32, LANES>;
var<workgroup> group_nan: array<u32, GROUPS>;
// How many of its candidates a chunk has given.
var<workgroup> taken: array<u32, KEYS>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var first_nan = NONE;
    if (p.first == 1u) {
        let begin = wg.x * KEYS;
        let elements = min(KEYS, p.elements - min(begin, p.elements));
        for (var i = lane; i < elements; i += LANES) {
            let bits = arena[p.x + begin + i];
            keys[i] = order_key(bits);
            first_nan = min(first_nan, select(NONE, begin + i, is_nan(bits)));
        }
        first_nan = least(lane, first_nan);
        if (lane == 0u) {
            arena[p.chunk_nans + wg.x] = first_nan;
        }
        begin_best(lane, elements);
        for (var k = 0u; k < p.count; k++) {
            let at = p.chunk_best + (wg.x * p.count + k) * 2u;
            if (k < elements) {
                let best = best_index(elements);
                if (lane == best % LANES) {
                    arena[at] = begin + best;
                    arena[at + 1u] = arena[p.x + begin + best];
                    keys[best] = 0u;
                    find_lane_best(lane, elements);
                }
                if (k + 1u < p.count) {
                    end_best(lane, best);
                }
            } else if (lane == 0u) {
                arena[at] = NONE;
                arena[at + 1u] = QUIET_NAN_BITS;
            }
        }
        return;
    }
    // Chunks are sorted and in order of id: the keys are the best that is left of each.
    for (var i = lane; i < p.chunks; i += LANES) {
        keys[i] = order_key(arena[p.chunk_best + i * p.count * 2u + 1u]);
        taken[i] = 0u;
        first_nan = min(first_nan, arena[p.chunk_nans + i]);
    }
    first_nan = least(lane, first_nan);
    if (lane == 0u) {
        arena[p.y] = first_nan;
    }
    begin_best(lane, p.chunks);
    for (var k = 0u; k < p.count; k++) {
        let chunk = best_index(p.chunks);
        if (lane == chunk % LANES) {
            let source = p.chunk_best + (chunk * p.count + taken[chunk]) * 2u;
            let at = p.y + 1u + k * 2u;
            arena[at] = arena[source];
            arena[at + 1u] = arena[source + 1u];
            if (k == 0u && p.next_token != NONE) {
                arena[p.next_token] = arena[source];
            }
            taken[chunk] += 1u;
            keys[chunk] = 0u;
            if (taken[chunk] < p.count && arena[source + 2u] != NONE) {
                keys[chunk] = order_key(arena[source + 3u]);
            }
            find_lane_best(lane, p.chunks);
        }
        if (k + 1u < p.count) {
            end_best(lane, chunk);
        }
    }
}

// The least of the lanes' values, for all of them.
fn least(lane: u32, value: u32) -> u32 {
    lane_nan[lane] = value;
    workgroupBarrier();
    if (lane < GROUPS) {
        var group = NONE;
        for (var i = 0u; i < GROUP_LANES; i++) {
            group = min(group, lane_nan[lane * GROUP_LANES + i]);
        }
        group_nan[lane] = group;
    }
    workgroupBarrier();
    var all = NONE;
    for (var i = 0u; i < GROUPS; i++) {
        all = min(all, group_nan[i]);
    }
    return all;
}
