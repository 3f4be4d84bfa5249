// What every kernel binds: its parameters, the step's sizes, the arena that holds all activations, and the small f32
// weights (norms, biases, sinks). The arena is one read-write binding, so that a kernel's inputs and outputs count once
// against the limit of eight storage buffers. Its words are u32; floats go through bitcast, which no driver may flush.

struct Step {
    // T, the tokens of the step.
    tokens: u32,
    // R, the rows whose logits are asked for.
    logits_rows: u32,
    // S, the cached positions, this step's included.
    cached: u32,
    // Over how many workgroups the attention of one head splits the cache, and the positions each takes.
    splits: u32,
    split_positions: u32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<uniform> now: Step;
@group(0) @binding(2) var<storage, read_write> arena: array<u32>;
@group(0) @binding(3) var<storage, read> smalls: array<u32>;

// An offset that stands for "there is none".
const NONE: u32 = 0xffffffffu;

// The axis that a value's rows lie along: the step's tokens, its rows of logits, or neither.
const AXIS_TOKENS: u32 = 1u;
const AXIS_LOGITS_ROWS: u32 = 2u;

// Rows along the axis, each holding `each` further ones.
fn axis_rows(axis: u32, each: u32) -> u32 {
    if (axis == AXIS_TOKENS) {
        return now.tokens * each;
    }
    return select(1u, now.logits_rows, axis == AXIS_LOGITS_ROWS) * each;
}

fn load(at: u32) -> f32 {
    return bitcast<f32>(arena[at]);
}

fn store(at: u32, value: f32) {
    arena[at] = bitcast<u32>(value);
}

fn small(at: u32) -> f32 {
    return bitcast<f32>(smalls[at]);
}
