// The row that products read, as it is.

var<private> input_at: u32;

fn input_value(at: u32) -> f32 {
    return load(input_at + at);
}
