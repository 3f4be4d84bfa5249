// AttentionSoftmax, for looking at: scores [H, T, S] → softmax over the visible positions [H, T, S], 0 elsewhere.
// Grid (T, H).
#include numbers
#include arena
#include lanes
#include visible

struct Params {
    x: u32,
    positions: u32,
    y: u32,
    window: u32,
    chunk: u32,
    sinks: u32,
    // [T, S], 0 at positions that are not seen; or NONE.
    mask: u32,
}

var<workgroup> lane_maxima: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.x >= now.tokens) {
        return;
    }
    let row = (wg.y * now.tokens + wg.x) * now.cached;
    let position = arena[p.positions + wg.x];
    var largest = MASKED;
    if (p.sinks != NONE) {
        largest = small(p.sinks + wg.y);
    }
    for (var i = lane.index; i < now.cached; i += LANES) {
        if (visible(i, position, p.window, p.chunk) && is_chosen(p.mask, wg.x, i)) {
            largest = max(largest, load(p.x + row + i));
        }
    }
    lane_maxima[lane.index] = largest;
    workgroupBarrier();
    for (var i = 0u; i < LANES; i++) {
        largest = max(largest, lane_maxima[i]);
    }
    var partial = 0.0;
    for (var i = lane.index; i < now.cached; i += LANES) {
        if (visible(i, position, p.window, p.chunk) && is_chosen(p.mask, wg.x, i)) {
            partial += exp(load(p.x + row + i) - largest);
        }
    }
    var sum = sum_lanes(lane, partial);
    if (p.sinks != NONE) {
        sum += exp(small(p.sinks + wg.y) - largest);
    }
    for (var i = lane.index; i < now.cached; i += LANES) {
        var weight = 0.0;
        if (visible(i, position, p.window, p.chunk) && is_chosen(p.mask, wg.x, i)) {
            weight = exp(load(p.x + row + i) - largest) / sum;
        }
        store(p.y + row + i, weight);
    }
}
