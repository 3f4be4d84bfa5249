// CompressedAttention: softmax(scale · q·kᵀ)·k over the keys of the last `window` positions and, of what lies before, the entries at
// positions up to the token's own of which the number behind is a multiple of `ratio`: q [T, H·d], one head of keys → [T, H·d].
// One workgroup a token and head, a lane a key, then two elements of the result; one pass with a running maximum. Grid (T, H).
#include numbers
#include arena
#include visible
#include kv key
#include kv entry

struct Params {
    q: u32,
    positions: u32,
    y: u32,
    heads: u32,
    window: u32,
    ratio: u32,
    scale: f32,
    // [H] in `smalls`, or NONE.
    sinks: u32,
    // [T, S], 0 at entries that are not seen; or NONE.
    mask: u32,
}

@group(1) @binding(0) var<storage, read> key: array<key_word>;
@group(1) @binding(1) var<storage, read> entry: array<entry_word>;

const PAIRS: u32 = HEAD_DIM / 2u;
// Pairs of the result that a lane has.
const OWN_PAIRS: u32 = (PAIRS + LANES - 1u) / LANES;
const HIDDEN: u32 = 0xffffffffu;

var<workgroup> query: array<f32, HEAD_DIM>;
var<workgroup> scores: array<f32, LANES>;
var<workgroup> shares: array<f32, LANES>;
// The position that a lane's key stands at, or HIDDEN.
var<workgroup> places: array<u32, LANES>;
var<private> result: array<vec2<f32>, OWN_PAIRS>;

fn pair_of(is_near: bool, place: u32, pair: u32) -> vec2<f32> {
    if (is_near) {
        return key_pair(place * key_row_words(HEAD_DIM), HEAD_DIM, pair);
    }
    return entry_pair(place * entry_row_words(HEAD_DIM), HEAD_DIM, pair);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if (wg.x >= now.tokens) {
        return;
    }
    let head = (wg.x * p.heads + wg.y) * HEAD_DIM;
    for (var i = lane; i < HEAD_DIM; i += LANES) {
        query[i] = load(p.q + head + i);
    }
    let position = arena[p.positions + wg.x];
    let near = min(position + 1u, p.window);
    let count = near + (position + 1u) / p.ratio;
    var largest = MASKED;
    var total = 0.0;
    workgroupBarrier();
    // Bounds that all lanes know to be the same; lanes beyond this token's keys see nothing.
    let bound = min(p.window, now.cached) + now.cached / p.ratio;
    for (var first = 0u; first < bound; first += LANES) {
        let i = first + lane;
        var place = HIDDEN;
        if (i < near) {
            place = position + 1u - near + i;
        } else if (i < count) {
            let at = (i - near + 1u) * p.ratio - 1u;
            place = select(HIDDEN, at, is_chosen(p.mask, wg.x, at));
        }
        var score = MASKED;
        if (place != HIDDEN) {
            var product = 0.0;
            for (var pair = 0u; pair < PAIRS; pair++) {
                let k = pair_of(i < near, place, pair);
                product += query[2u * pair] * k.x;
                product += query[2u * pair + 1u] * k.y;
            }
            score = p.scale * product;
        }
        scores[lane] = score;
        places[lane] = place;
        workgroupBarrier();
        var higher = largest;
        for (var k = 0u; k < LANES; k++) {
            higher = max(higher, scores[k]);
        }
        let shrink = exp(largest - higher);
        largest = higher;
        shares[lane] = select(0.0, exp(score - higher), place != HIDDEN);
        workgroupBarrier();
        total *= shrink;
        for (var k = 0u; k < LANES; k++) {
            total += shares[k];
        }
        for (var own = 0u; own < OWN_PAIRS; own++) {
            let pair = own * LANES + lane;
            if (pair >= PAIRS) {
                continue;
            }
            var sum = result[own] * shrink;
            for (var k = 0u; k < LANES; k++) {
                if (places[k] != HIDDEN) {
                    sum += shares[k] * pair_of(first + k < near, places[k], pair);
                }
            }
            result[own] = sum;
        }
        workgroupBarrier();
    }
    var factor = 1.0;
    if (p.sinks != NONE) {
        let sink = small(p.sinks + wg.y);
        let higher = max(largest, sink);
        factor = exp(largest - higher);
        total = total * factor + exp(sink - higher);
    }
    for (var own = 0u; own < OWN_PAIRS; own++) {
        let pair = own * LANES + lane;
        if (pair < PAIRS) {
            store(p.y + head + 2u * pair, result[own].x * factor / total);
            store(p.y + head + 2u * pair + 1u, result[own].y * factor / total);
        }
    }
}
