// Taking the largest of KEYS keys again and again; the lower index wins a tie.
#include order_key

var<workgroup> keys: array<u32, KEYS>;
var<workgroup> lane_best: array<vec2<u32>, LANES>;

// The index of the largest key; every lane gets it, and it is taken (its key becomes 0).
fn take_best(lane: u32, count: u32) -> u32 {
    var best = vec2<u32>(0u, NONE);
    for (var i = lane; i < count; i += LANES) {
        if (keys[i] > best.x) {
            best = vec2<u32>(keys[i], i);
        }
    }
    lane_best[lane] = best;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane < half) {
            let other = lane_best[lane + half];
            let mine = lane_best[lane];
            if (other.x > mine.x || (other.x == mine.x && other.y < mine.y)) {
                lane_best[lane] = other;
            }
        }
        workgroupBarrier();
    }
    let index = min(lane_best[0].y, count - 1u);
    workgroupBarrier();
    if (lane == 0u) {
        keys[index] = 0u;
    }
    workgroupBarrier();
    return index;
}
