// A row of activations that every workgroup prepares for itself: `input_value` of plain_input.wgsl, normed_input.wgsl or
// gated_input.wgsl, with q8 made 8-bit in workgroup memory (COLS elements at most). Without q8 it is made as it is needed.

#if q8
var<workgroup> staged_q: array<vec4<u32>, COLS / 16u>;
var<workgroup> staged_scales: array<f32, COLS / 32u>;
#endif

// Behind the input's own beginning; in uniform control flow.
fn stage(lane: Lane, cols: u32) {
#if q8
    for (var block = lane.index; block < cols / 32u; block += LANES) {
        var values: array<vec4<f32>, 8>;
        for (var i = 0u; i < 8u; i++) {
            let at = block * 32u + i * 4u;
            values[i] = vec4<f32>(input_value(at), input_value(at + 1u), input_value(at + 2u),
                input_value(at + 3u));
        }
        let quantized = quantize_block(values);
        staged_q[block * 2u] = vec4<u32>(quantized.q[0], quantized.q[1], quantized.q[2], quantized.q[3]);
        staged_q[block * 2u + 1u] = vec4<u32>(quantized.q[4], quantized.q[5], quantized.q[6], quantized.q[7]);
        staged_scales[block] = bitcast<f32>(quantized.scale_bits);
    }
    workgroupBarrier();
#endif
}

#if q8
fn staged(group: u32, cols: u32) -> Activations {
    let q = staged_q[group];
    let sum = sum_bytes(q.x) + sum_bytes(q.y) + sum_bytes(q.z) + sum_bytes(q.w);
    return Activations(q, staged_scales[group >> 1u], f32(sum));
}
#else
fn staged_rounded(at: u32, cols: u32) -> f32 {
    if (at >= cols) {
        return 0.0;
    }
#if round_f16
    return f16_to_f32(f32_to_f16(input_value(at)));
#else
    return input_value(at);
#endif
}

fn staged_four(at: u32, cols: u32) -> vec4<f32> {
    return vec4<f32>(staged_rounded(at, cols), staged_rounded(at + 1u, cols), staged_rounded(at + 2u, cols),
        staged_rounded(at + 3u, cols));
}

fn staged(group: u32, cols: u32) -> Activations {
    let at = group * 16u;
    return Activations(mat4x4<f32>(staged_four(at, cols), staged_four(at + 4u, cols), staged_four(at + 8u, cols),
        staged_four(at + 12u, cols)));
}
#endif
