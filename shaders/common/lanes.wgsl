// Sums over a workgroup of LANES lanes. The plain path adds in a fixed tree through workgroup memory; with subgroups the
// lanes of one subgroup are added by the hardware and the subgroups' sums in ascending order.

struct Lane {
    index: u32,
#if subgroups
    in_subgroup: u32,
    subgroup: u32,
    subgroups: u32,
#endif
}

var<workgroup> lane_sums: array<vec4<f32>, LANES>;

// Every lane gets the sum of all lanes' `value`. Must be called in uniform control flow.
fn sum_lanes4(lane: Lane, value: vec4<f32>) -> vec4<f32> {
#if subgroups
    let partial = subgroupAdd(value);
    if (lane.in_subgroup == 0u) {
        lane_sums[lane.subgroup] = partial;
    }
    workgroupBarrier();
    var total = lane_sums[0];
    for (var i = 1u; i < lane.subgroups; i++) {
        total += lane_sums[i];
    }
    workgroupBarrier();
    return total;
#else
    lane_sums[lane.index] = value;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if (lane.index < half) {
            lane_sums[lane.index] += lane_sums[lane.index + half];
        }
        workgroupBarrier();
    }
    let total = lane_sums[0];
    workgroupBarrier();
    return total;
#endif
}

fn sum_lanes(lane: Lane, value: f32) -> f32 {
    return sum_lanes4(lane, vec4<f32>(value, 0.0, 0.0, 0.0)).x;
}
