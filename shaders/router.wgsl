// Router: logits [T, E] → ids [T, K], best first, and their weights [T, K]. One workgroup a token.
#include numbers
#include arena
#include lanes
#include order_key
#include softplus
#include route

struct Params {
    x: u32,
    ids: u32,
    weights: u32,
    num_experts: u32,
    experts_per_token: u32,
    gate: u32,
    // 1: divide the weights by their sum.
    normalise: u32,
    scale: f32,
    // [E] in `smalls`, added for the choice only; or NONE.
    selection_bias: u32,
    // Groups that are chosen from; 1: a group is ranked by the sum of its best two, 0: by its best.
    topk_group: u32,
    best_two: u32,
    // [E] in `smalls`, of the weights; or NONE.
    expert_scale: u32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wg: vec3<u32>, $LANE_PARAMS) {
    let lane = $LANE;
    if (wg.x >= now.tokens) {
        return;
    }
    choose_experts(lane, p.x + wg.x * p.num_experts);
    let first = wg.x * p.experts_per_token;
    for (var k = lane.index; k < p.experts_per_token; k += LANES) {
        arena[p.ids + first + k] = route_ids[k];
        var weight = route_weights[k];
        if (p.expert_scale != NONE) {
            weight *= small(p.expert_scale + route_ids[k]);
        }
        store(p.weights + first + k, weight);
    }
}
