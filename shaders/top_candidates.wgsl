// The best `count` of a row of logits, best first, the lower id winning a tie; NaN is counted and never chosen before a
// number. Two launches: the first takes each chunk of KEYS logits to its own best `count` (grid: chunks), the second,
// one workgroup, takes the chunks' candidates to the row's. Argmax is count = 1, and may write its id as the next step's token.
#include numbers
#include arena
#include top_k

struct Params {
    // FIRST: the row of logits. Else the candidates of the first launch.
    x: u32,
    // Elements at x: logits, or chunks · count candidates.
    elements: u32,
    // Candidates as pairs (id, bits of the logit), `count` of them a chunk.
    y: u32,
    count: u32,
    // 1: the first launch.
    first: u32,
    // Where the best id goes as the next token, or NONE.
    next_token: u32,
    // [chunks] NaN counts; the second launch adds them up behind its candidates.
    nan_counts: u32,
    chunks: u32,
}

var<workgroup> lane_nans: array<u32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if (p.first == 1u) {
        let begin = wg.x * KEYS;
        let elements = min(KEYS, p.elements - min(begin, p.elements));
        var nans = 0u;
        for (var i = lane; i < elements; i += LANES) {
            let bits = arena[p.x + begin + i];
            keys[i] = order_key(bits);
            nans += select(0u, 1u, is_nan(bits));
        }
        lane_nans[lane] = nans;
        workgroupBarrier();
        if (lane == 0u) {
            var total = 0u;
            for (var i = 0u; i < LANES; i++) {
                total += lane_nans[i];
            }
            arena[p.nan_counts + wg.x] = total;
        }
        for (var k = 0u; k < p.count; k++) {
            let at = p.y + (wg.x * p.count + k) * 2u;
            if (k < elements) {
                let best = take_best(lane, elements);
                if (lane == 0u) {
                    arena[at] = begin + best;
                    arena[at + 1u] = arena[p.x + begin + best];
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
        keys[i] = order_key(arena[p.x + i * p.count * 2u + 1u]);
        taken[i] = 0u;
    }
    workgroupBarrier();
    for (var k = 0u; k < p.count; k++) {
        let chunk = take_best(lane, p.chunks);
        if (lane == 0u) {
            let source = p.x + (chunk * p.count + taken[chunk]) * 2u;
            arena[p.y + k * 2u] = arena[source];
            arena[p.y + k * 2u + 1u] = arena[source + 1u];
            if (k == 0u && p.next_token != NONE) {
                arena[p.next_token] = arena[source];
            }
            taken[chunk] += 1u;
            keys[chunk] = 0u;
            if (taken[chunk] < p.count && arena[source + 2u] != NONE) {
                keys[chunk] = order_key(arena[source + 3u]);
            }
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        var total = 0u;
        for (var i = 0u; i < p.chunks; i++) {
            total += arena[p.nan_counts + i];
        }
        arena[p.y + p.count * 2u] = total;
    }
}

var<workgroup> taken: array<u32, KEYS>;
