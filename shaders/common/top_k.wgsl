// Taking the largest of KEYS keys again and again; the lower index wins a tie. Every lane keeps the best of its own keys
// (those at lane + n · LANES), and every group of lanes the best of theirs: taking a key moves only its owner's and its group's.
#include order_key

const GROUP_LANES: u32 = 16u;
const GROUPS: u32 = LANES / GROUP_LANES;

var<workgroup> keys: array<u32, KEYS>;
// Key and index.
var<workgroup> lane_best: array<vec2<u32>, LANES>;
var<workgroup> group_best: array<vec2<u32>, GROUPS>;

fn better(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x > b.x || (a.x == b.x && a.y < b.y);
}

fn find_lane_best(lane: u32, count: u32) {
    var best = vec2<u32>(0u, NONE);
    for (var i = lane; i < count; i += LANES) {
        if (keys[i] > best.x) {
            best = vec2<u32>(keys[i], i);
        }
    }
    lane_best[lane] = best;
}

fn find_group_best(group: u32) {
    var best = lane_best[group * GROUP_LANES];
    for (var i = 1u; i < GROUP_LANES; i++) {
        let other = lane_best[group * GROUP_LANES + i];
        if (better(other, best)) {
            best = other;
        }
    }
    group_best[group] = best;
}

// Once every lane has written its own keys.
fn begin_best(lane: u32, count: u32) {
    find_lane_best(lane, count);
    workgroupBarrier();
    if (lane < GROUPS) {
        find_group_best(lane);
    }
    workgroupBarrier();
}

// The index of the largest key, for every lane. The lane that owns it, index % LANES, is to change the key and to call
// find_lane_best; then all lanes call end_best.
fn best_index(count: u32) -> u32 {
    var best = group_best[0];
    for (var i = 1u; i < GROUPS; i++) {
        if (better(group_best[i], best)) {
            best = group_best[i];
        }
    }
    return min(best.y, count - 1u);
}

fn end_best(lane: u32, index: u32) {
    workgroupBarrier();
    if (lane == index % LANES / GROUP_LANES) {
        find_group_best(lane);
    }
    workgroupBarrier();
}
