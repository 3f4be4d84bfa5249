// ln(1 + e^x); what is no number stays so. Of a small u, 1 + u loses most: its logarithm is a series.
fn softplus(x: f32) -> f32 {
    let u = exp(-abs(x));
    let series = u * (1.0 - u * (0.5 - u * (1.0 / 3.0 - u * (0.25 - u * (0.2 - u / 6.0)))));
    return select(max(x, 0.0), x, is_nan(bitcast<u32>(x))) + select(log(1.0 + u), series, u < 0.05);
}
