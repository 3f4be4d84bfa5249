//! The texts of `shaders/`, compiled in.

macro_rules! shader_sources {
    ($($name:literal $path:literal)*) => {
        /// The text of a file of `shaders/` or `shaders/common/` by its stem.
        pub fn source(stem: &str) -> Option<&'static str> {
            match stem {
                $($name => Some(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shaders/", $path)))),*,
                _ => None,
            }
        }

        /// Every stem, for tests.
        #[cfg(test)]
        pub const STEMS: &[&str] = &[$($name),*];
    };
}

shader_sources! {
    "add" "add.wgsl"
    "attention" "attention.wgsl"
    "attention_merge" "attention_merge.wgsl"
    "attention_scores" "attention_scores.wgsl"
    "attention_softmax" "attention_softmax.wgsl"
    "causal_conv" "causal_conv.wgsl"
    "concat" "concat.wgsl"
    "down_combine" "down_combine.wgsl"
    "embed" "embed.wgsl"
    "expert_combine" "expert_combine.wgsl"
    "expert_matmul" "expert_matmul.wgsl"
    "expert_matmul_tile" "expert_matmul_tile.wgsl"
    "gate_up" "gate_up.wgsl"
    "gated_act" "gated_act.wgsl"
    "get_rows" "get_rows.wgsl"
    "group_tokens" "group_tokens.wgsl"
    "head_matmul_transposed" "head_matmul_transposed.wgsl"
    "kv_write" "kv_write.wgsl"
    "matmul" "matmul.wgsl"
    "matmul_tile" "matmul_tile.wgsl"
    "mul" "mul.wgsl"
    "norm_matmul" "norm_matmul.wgsl"
    "norm_qkv" "norm_qkv.wgsl"
    "pointwise" "pointwise.wgsl"
    "quantize_q8" "quantize_q8.wgsl"
    "rms_norm" "rms_norm.wgsl"
    "rope" "rope.wgsl"
    "route_gate_up" "route_gate_up.wgsl"
    "router" "router.wgsl"
    "slice" "slice.wgsl"
    "top_candidates" "top_candidates.wgsl"
    "activate" "common/activate.wgsl"
    "activations" "common/activations.wgsl"
    "arena" "common/arena.wgsl"
    "decode_bf16" "common/decode_bf16.wgsl"
    "decode_f16" "common/decode_f16.wgsl"
    "decode_f32" "common/decode_f32.wgsl"
    "decode_iq4_nl" "common/decode_iq4_nl.wgsl"
    "decode_iq4_xs" "common/decode_iq4_xs.wgsl"
    "decode_mxfp4" "common/decode_mxfp4.wgsl"
    "decode_q2_k" "common/decode_q2_k.wgsl"
    "decode_q3_k" "common/decode_q3_k.wgsl"
    "decode_q4_0" "common/decode_q4_0.wgsl"
    "decode_q4_1" "common/decode_q4_1.wgsl"
    "decode_q4_k" "common/decode_q4_k.wgsl"
    "decode_q5_0" "common/decode_q5_0.wgsl"
    "decode_q5_1" "common/decode_q5_1.wgsl"
    "decode_q5_k" "common/decode_q5_k.wgsl"
    "decode_q6_k" "common/decode_q6_k.wgsl"
    "decode_q8_0" "common/decode_q8_0.wgsl"
    "gated" "common/gated.wgsl"
    "group_quantized" "common/group_quantized.wgsl"
    "kv_f16" "common/kv_f16.wgsl"
    "kv_f32" "common/kv_f32.wgsl"
    "kv_q8_0" "common/kv_q8_0.wgsl"
    "kv_write_unit" "common/kv_write_unit.wgsl"
    "lanes" "common/lanes.wgsl"
    "numbers" "common/numbers.wgsl"
    "order_key" "common/order_key.wgsl"
    "packed" "common/packed.wgsl"
    "quantize_block" "common/quantize_block.wgsl"
    "route" "common/route.wgsl"
    "row_dot" "common/row_dot.wgsl"
    "rows" "common/rows.wgsl"
    "scales_k" "common/scales_k.wgsl"
    "side_f16" "common/side_f16.wgsl"
    "staged" "common/staged.wgsl"
    "table_iq4" "common/table_iq4.wgsl"
    "tile" "common/tile.wgsl"
    "top_k" "common/top_k.wgsl"
    "turn" "common/turn.wgsl"
    "visible" "common/visible.wgsl"
}
