//! An op's attributes by name, as every dump shows them. Weights, states and slices are listed elsewhere.

use crate::ir::{
    ActivationFn, AttentionAttrs, CausalConvAttrs, CompressAttrs, CompressedAttentionAttrs, DecayOf,
    DeltaRuleAttrs, ExpertGroups, GivenExpertsAttrs, Graph, HyperGatesAttrs, IndexScoresAttrs, Op,
    PointwiseFn, PositionScaleAttrs, RopeScaling, RopeSpec, RouterAttrs, SsmScanAttrs, WeightSlice,
};
use serde_json::{Map, Value, json};

/// The attributes of an op; those that stand at "none" are left out.
pub(super) fn attributes(graph: &Graph, op: &Op) -> Map<String, Value> {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| {
        if !value.is_null() {
            map.insert(key.to_owned(), value);
        }
    };
    match op {
        Op::RmsNorm { weight, eps, heads } => {
            put("without_weight", if weight.is_none() { true.into() } else { Value::Null });
            if *heads != 1 {
                put("heads", json!(heads));
            }
            put("eps", float(*eps));
        }
        Op::MatMul { weight: _, scale, bias } => {
            put("scale", scale.map_or(Value::Null, float));
            put("bias", bias.map_or(Value::Null, |_| true.into()));
        }
        Op::Rope { table, pairing, heads } => {
            let RopeSpec { theta, dims, scaling, divisors, behind, back } = &graph.rope_tables[table.index()];
            put("heads", json!(heads));
            put("dims", json!(dims));
            put("pairing", json!(pairing));
            put("theta", json!(theta));
            match scaling {
                RopeScaling::None => {}
                RopeScaling::Linear { factor } => put("linear_scaling", json!(factor)),
                RopeScaling::Yarn {
                    factor,
                    original_max_position_embeddings,
                    beta_fast,
                    beta_slow,
                    attention_factor,
                    truncate,
                } => {
                    put("yarn_scaling", json!(factor));
                    put("original_max_position_embeddings", json!(original_max_position_embeddings));
                    put("beta_fast", json!(beta_fast));
                    put("beta_slow", json!(beta_slow));
                    put("attention_factor", json!(attention_factor));
                    put("truncate", json!(truncate));
                }
            }
            if !divisors.is_empty() {
                put("divisors", true.into());
            }
            if *behind > 0 {
                put("behind", json!(behind));
            }
            put("back", if *back { true.into() } else { Value::Null });
        }
        Op::Attention(a) | Op::AttentionScores(a) | Op::AttentionSoftmax(a) => attention(a, &mut put),
        Op::Router(r) => {
            let RouterAttrs {
                num_experts,
                num_experts_per_tok,
                gate,
                norm_topk_prob,
                scale,
                selection_bias,
                groups,
                expert_scale,
            } = r;
            put("num_experts", json!(num_experts));
            put("num_experts_per_tok", json!(num_experts_per_tok));
            put("gate", json!(gate));
            put("norm_topk_prob", json!(norm_topk_prob));
            if *scale != 1.0 {
                put("scale", float(*scale));
            }
            put("selection_bias", selection_bias.map_or(Value::Null, |_| true.into()));
            put("expert_scale", expert_scale.map_or(Value::Null, |_| true.into()));
            if let Some(ExpertGroups { n_group, topk_group, score }) = groups {
                put("n_group", json!(n_group));
                put("topk_group", json!(topk_group));
                put("group_score", json!(score));
            }
        }
        Op::IndexScores(IndexScoresAttrs { num_heads, head_dim }) => {
            put("num_heads", json!(num_heads));
            put("head_dim", json!(head_dim));
        }
        Op::IndexSelect { top_k, every } => {
            put("top_k", json!(top_k));
            if *every != 1 {
                put("every", json!(every));
            }
        }
        Op::GivenExperts(g) => {
            let GivenExpertsAttrs {
                num_experts,
                num_experts_per_tok,
                gate,
                norm_topk_prob,
                scale,
                divisor,
                table,
            } = g;
            put("num_experts", json!(num_experts));
            put("num_experts_per_tok", json!(num_experts_per_tok));
            put("gate", json!(gate));
            put("norm_topk_prob", json!(norm_topk_prob));
            if *scale != 1.0 {
                put("scale", float(*scale));
            }
            put("divisor", json!(divisor));
            put("table", table.map_or(Value::Null, |_| true.into()));
        }
        Op::ExpertMatMul { weight: _, bias } => put("bias", bias.map_or(Value::Null, |_| true.into())),
        Op::GatedAct { activation } => function(*activation, &mut put),
        Op::CausalConv(c) => {
            let CausalConvAttrs { weight: _, bias, activation, state } = c;
            put("kernel", json!(graph.state(*state).width + 1));
            put("bias", bias.map_or(Value::Null, |_| true.into()));
            if let Some(activation) = activation {
                function(*activation, &mut put);
            }
        }
        Op::DeltaRule(d) => {
            let DeltaRuleAttrs {
                num_key_heads,
                num_value_heads,
                key_head_dim,
                value_head_dim,
                head_map,
                eps,
                scale,
                state: _,
            } = d;
            put("num_key_heads", json!(num_key_heads));
            put("num_value_heads", json!(num_value_heads));
            put("key_head_dim", json!(key_head_dim));
            put("value_head_dim", json!(value_head_dim));
            put("head_map", json!(head_map));
            put("eps", float(*eps));
            put("scale", float(*scale));
        }
        Op::SsmScan(s) => {
            let SsmScanAttrs {
                num_heads,
                head_dim,
                state_size,
                n_groups,
                decay_of,
                a: _,
                d: _,
                dt_bias: _,
                state: _,
            } = s;
            match decay_of {
                DecayOf::Head => {}
                DecayOf::Element => put("decay_of", json!(decay_of)),
            }
            put("num_heads", json!(num_heads));
            put("head_dim", json!(head_dim));
            put("state_size", json!(state_size));
            put("n_groups", json!(n_groups));
        }
        Op::Embed { table: _, scale } => {
            if let Some(scale) = scale {
                put("scale", float(*scale));
            }
        }
        Op::LayerNorm { weight: _, bias, eps } => {
            put("bias", bias.map_or(Value::Null, |_| true.into()));
            put("eps", float(*eps));
        }
        Op::PositionScale(PositionScaleAttrs { scale, length, offset }) => {
            put("scale", float(*scale));
            put("length", json!(length));
            put("offset", json!(offset));
        }
        Op::HeadMatMul { weight: _, transposed } => {
            put("transposed", if *transposed { true.into() } else { Value::Null });
        }
        Op::Pointwise { function } => match function {
            PointwiseFn::Scale(factor) => put("scale", float(*factor)),
            PointwiseFn::SoftCap(cap) => put("soft_cap", float(*cap)),
            PointwiseFn::Clamp(limit) => put("clamp", float(*limit)),
            PointwiseFn::ReluSquared => put("function", json!("relu_squared")),
        },
        Op::Concat { heads } => put("heads", json!(heads)),
        Op::DeltaGates { a: _, dt_bias: _, bound } => {
            if let Some(bound) = bound {
                put("bound", float(*bound));
            }
        }
        Op::Slice { heads, start, len } => {
            put("heads", json!(heads));
            put("start", json!(start));
            put("len", json!(len));
        }
        Op::HyperGates(HyperGatesAttrs { streams, iterations, eps, scale: _, base: _ }) => {
            put("streams", json!(streams));
            put("iterations", json!(iterations));
            put("eps", float(*eps));
        }
        Op::HyperConnect { streams } => put("streams", json!(streams)),
        Op::Compress(CompressAttrs { ratio, overlap, bias: _, state: _ }) => {
            put("ratio", json!(ratio));
            put("overlap", if *overlap { true.into() } else { Value::Null });
        }
        Op::CompressedAttention(a) => {
            let CompressedAttentionAttrs {
                num_attention_heads,
                head_dim,
                scale,
                window,
                ratio,
                sinks,
                masked,
            } = a;
            put("num_attention_heads", json!(num_attention_heads));
            put("head_dim", json!(head_dim));
            put("scale", float(*scale));
            put("window", json!(window));
            put("ratio", json!(ratio));
            put("sinks", sinks.map_or(Value::Null, |_| true.into()));
            put("masked", if *masked { true.into() } else { Value::Null });
        }
        Op::KvWrite { key: _, value: _ }
        | Op::ExpertCombine
        | Op::Add
        | Op::Mul
        | Op::MulHeads
        | Op::GetRows
        | Op::Tap { stage: _ } => {}
    }
    if let Some(slice) = op.weight_slice() {
        part(graph, slice, &mut put);
    }
    map
}

fn function(activation: ActivationFn, put: &mut impl FnMut(&str, Value)) {
    match activation {
        ActivationFn::Silu => put("activation", json!("silu")),
        ActivationFn::ClampedSwiglu { alpha, limit } => {
            put("activation", json!("clamped_swiglu"));
            put("alpha", float(alpha));
            put("limit", float(limit));
        }
        ActivationFn::GeluTanh => put("activation", json!("gelu_tanh")),
        ActivationFn::Relu => put("activation", json!("relu")),
        ActivationFn::Softplus => put("activation", json!("softplus")),
        ActivationFn::LimitedSwiglu { limit } => {
            put("activation", json!("limited_swiglu"));
            put("limit", float(limit));
        }
        ActivationFn::BoundedSwiglu { limit } => {
            put("activation", json!("bounded_swiglu"));
            put("limit", float(limit));
        }
        ActivationFn::Sigmoid => put("activation", json!("sigmoid")),
    }
}

fn attention(a: &AttentionAttrs, put: &mut impl FnMut(&str, Value)) {
    let AttentionAttrs {
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        value_head_dim,
        scale,
        window,
        chunk,
        soft_cap,
        sinks,
        value_in_key,
        masked,
    } = a;
    put("num_attention_heads", json!(num_attention_heads));
    put("num_key_value_heads", json!(num_key_value_heads));
    put("head_dim", json!(head_dim));
    if value_head_dim != head_dim {
        put("value_head_dim", json!(value_head_dim));
    }
    put("scale", float(*scale));
    put("window", json!(window));
    put("chunk", json!(chunk));
    put("soft_cap", soft_cap.map_or(Value::Null, float));
    put("sinks", sinks.map_or(Value::Null, |_| true.into()));
    put("value_in_key", if *value_in_key { true.into() } else { Value::Null });
    put("masked", if *masked { true.into() } else { Value::Null });
}

/// Rows and experts, where the op reads less than the whole tensor.
fn part(graph: &Graph, slice: &WeightSlice, put: &mut impl FnMut(&str, Value)) {
    let shape = &graph.weight(slice.tensor).shape;
    if let Some(rows) = shape.iter().rev().nth(1)
        && slice.rows != (0..*rows)
    {
        put("rows", json!([slice.rows.start, slice.rows.end]));
    }
    if let (Some(experts), Some(all)) = (&slice.experts, shape.first())
        && *experts != (0..*all)
    {
        put("experts", json!([experts.start, experts.end]));
    }
}

/// An f32 with the digits of an f32: 1e-6, not 9.999999974752427e-7.
fn float(x: f32) -> Value {
    x.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// The attributes as one short line, with the usual letters for the usual dimensions.
pub(super) fn line(attributes: &Map<String, Value>) -> String {
    let mut parts = Vec::new();
    for (key, value) in attributes {
        let text = match value {
            Value::String(s) => s.clone(),
            Value::Number(n) => n.as_f64().map_or_else(|| n.to_string(), short),
            Value::Array(pair) if pair.len() == 2 => format!("{}..{}", pair[0], pair[1]),
            other => other.to_string(),
        };
        parts.push(match (key.as_str(), value) {
            ("num_experts", _) => format!("E {text}"),
            ("num_experts_per_tok", _) => format!("K {text}"),
            ("num_attention_heads", _) => format!("H {text}"),
            ("num_key_value_heads", _) => format!("G {text}"),
            ("head_dim", _) => format!("d {text}"),
            ("norm_topk_prob", Value::Bool(true)) => "renormalised".into(),
            ("norm_topk_prob", Value::Bool(false)) => "not renormalised".into(),
            ("gate" | "activation" | "pairing", _) => text,
            (key, Value::Bool(true)) => key.to_owned(),
            (key, _) => format!("{key} {text}"),
        });
    }
    parts.join(", ")
}

/// At most five significant digits, without an exponent where there is a plain form.
fn short(x: f64) -> String {
    if x == 0.0 || (x.fract() == 0.0 && x.abs() < 1e6) {
        return format!("{x}");
    }
    if x.abs() < 1e-3 || x.abs() >= 1e6 {
        return format!("{x:e}");
    }
    let rounded = format!("{x:.5}");
    rounded.trim_end_matches('0').trim_end_matches('.').to_owned()
}
