// Groups the step's (token, choice) pairs by expert for the tiled ExpertMatMul: ids [T, K] →
// `sorted` [T·K], the pairs (token · K + choice) expert by expert, in ascending order within one, and
// `tiles`: their number, then for each tile (expert, first place in `sorted`, pairs), at most TILE_TOKENS pairs.
// One workgroup; each lane owns the experts lane, lane + LANES, … so that the order never depends on timing.
#include numbers
#include arena

struct Params {
    ids: u32,
    sorted: u32,
    tiles: u32,
    experts_per_token: u32,
    num_experts: u32,
}

var<workgroup> counts: array<u32, EXPERTS>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
    let pairs = now.tokens * p.experts_per_token;
    for (var expert = lane; expert < p.num_experts; expert += LANES) {
        var count = 0u;
        for (var i = 0u; i < pairs; i++) {
            count += select(0u, 1u, min(arena[p.ids + i], p.num_experts - 1u) == expert);
        }
        counts[expert] = count;
    }
    workgroupBarrier();
    for (var expert = lane; expert < p.num_experts; expert += LANES) {
        var first = 0u;
        var tile = 0u;
        for (var before = 0u; before < expert; before++) {
            first += counts[before];
            tile += (counts[before] + TILE_TOKENS - 1u) / TILE_TOKENS;
        }
        let count = counts[expert];
        for (var begin = 0u; begin < count; begin += TILE_TOKENS) {
            let at = p.tiles + 1u + tile * 3u;
            arena[at] = expert;
            arena[at + 1u] = first + begin;
            arena[at + 2u] = min(TILE_TOKENS, count - begin);
            tile += 1u;
        }
        if (expert == p.num_experts - 1u) {
            arena[p.tiles] = tile;
        }
        var place = p.sorted + first;
        for (var i = 0u; i < pairs && place < p.sorted + first + count; i++) {
            if (min(arena[p.ids + i], p.num_experts - 1u) == expert) {
                arena[place] = i;
                place += 1u;
            }
        }
    }
}
