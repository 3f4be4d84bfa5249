// min(max(value, −bound), bound); bound 0: the value. What is no number stays so.
fn bounded(value: f32, bound: f32) -> f32 {
    if (bound == 0.0) {
        return value;
    }
    let below = select(value, bound, value > bound);
    return select(below, -bound, below < -bound);
}
