//! Every variant composes and passes naga's validator, with the features it names and no other.

use super::*;
use crate::ops::MAX_ROUTED_EXPERTS;
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// One of each op, format, activation kind and cache type, at sizes that models have.
fn variants(features: Features) -> Vec<Variant> {
    let lanes = |op, lanes| Variant::new(op, features, &[("LANES", lanes)]);
    let mut all = vec![
        lanes("rms_norm", 64),
        lanes("rms_norm", 256),
        lanes("quantize_q8", 64),
        lanes("rope", 64),
        lanes("attention_merge", 64),
        lanes("attention_softmax", 64),
        lanes("gated_act", 256),
        lanes("expert_combine", 64),
        lanes("add", 256),
        lanes("mul", 256),
        lanes("mul_heads", 256),
        lanes("position_scale", 256),
        lanes("layer_norm", 64),
        lanes("layer_norm", 256),
        lanes("norms_residual", 256),
        lanes("get_rows", 64),
        lanes("slice", 256),
        lanes("delta_gates", 256),
        Variant::new("delta_rule", features, &[("LANES", 256), ("KEY_DIM", 128)]),
        Variant::new("delta_rule", features, &[("LANES", 256), ("KEY_DIM", 512)]),
        Variant::new("delta_rule", features, &[("LANES", 256), ("KEY_DIM", 512)]).fused(),
        Variant::new("ssm_scan", features, &[("LANES", 256), ("STATE_SIZE", 128)]),
        Variant::new("ssm_scan", features, &[("LANES", 256), ("STATE_SIZE", 1024)]),
        Variant::new("ssm_scan_channels", features, &[("LANES", 256), ("STATE_SIZE", 16)]),
        Variant::new("ssm_scan_channels", features, &[("LANES", 256), ("STATE_SIZE", 1024)]),
        lanes("given_experts", 64),
        lanes("compress", 64),
        lanes("hyper_connect", 64),
        Variant::new("hyper_gates", features, &[("LANES", 64), ("STREAMS", 4)]),
        lanes("index_select", 256),
        lanes("concat", 256),
        lanes("pointwise", 256),
        Variant::new(
            "router",
            features,
            &[("LANES", 64), ("KEYS", MAX_ROUTED_EXPERTS as u32), ("GROUPS", 1)],
        ),
        Variant::new("router", features, &[("LANES", 64), ("KEYS", 256), ("GROUPS", 8)]),
        Variant::new("causal_conv", features, &[("LANES", 256), ("CHANNELS", 32)]),
        Variant::new("top_candidates", features, &[("LANES", 256), ("KEYS", 1024)]),
        Variant::new("group_tokens", features, &[("LANES", 128), ("EXPERTS", 128), ("TILE_TOKENS", 16)]),
    ];
    let tile = [("TILE_ROWS", 64), ("TILE_TOKENS", 64), ("LANE_ROWS", 4), ("LANE_TOKENS", 4)];
    let expert_tile = [("TILE_ROWS", 64), ("TILE_TOKENS", 16), ("LANE_ROWS", 4), ("LANE_TOKENS", 1)];
    let latent_sizes = [("LANES", 64), ("ROWS", 64), ("HEAD", 192), ("NOPE", 128), ("PE", 64), ("RANK", 512)];
    for format in Format::ALL {
        all.push(lanes("embed", 64).weight("weight", format));
        all.push(lanes("head_matmul_transposed", 64).weight("weight", format));
        let inputs: &[Input] =
            if format.is_quantized() { &[Input::F32, Input::F16, Input::Q8] } else { &[Input::F32] };
        for &input in inputs {
            let norm = Variant::new("norm_matmul", features, &[("LANES", 64), ("ROWS", 4), ("COLS", 4096)]);
            all.push(norm.weight("weight", format).input(input));
            let sizes = [("LANES", 128), ("ROWS", 16), ("COLS", 2048)];
            let mixed = if format.is_quantized() { Format::Q6K } else { Format::F16 };
            let qkv =
                Variant::new("norm_qkv", features, &sizes).weight("first", format).weight("second", format);
            all.push(qkv.weight("third", mixed).weight("fourth", format).input(input));
            for (heads, head_lanes) in [(1, 64), (48, 1)] {
                let sizes = [
                    ("LANES", 64),
                    ("ROWS", 8),
                    ("COLS", 6144),
                    ("HEADS", heads),
                    ("HEAD_LANES", head_lanes),
                ];
                let gated = Variant::new("gated_matmul", features, &sizes).weight("weight", format);
                all.push(gated.input(input));
            }
            let gate_up = Variant::new("gate_up", features, &sizes).weight("gate", format);
            all.push(gate_up.weight("up", mixed).input(input));
            let router = Variant::new("router_gate_up", features, &sizes).weight("first", format);
            let router = router.weight("second", mixed).weight("gate", format).weight("up", mixed);
            all.push(router.input(input));
            let floats = Variant::new("router_gate_up", features, &sizes).weight("first", Format::F32);
            let floats = floats.weight("second", Format::F16).weight("gate", format).weight("up", mixed);
            all.push(floats.input(input));
            let latent = Variant::new("latent_heads", features, &latent_sizes).kv(KvType::F16).input(input);
            all.push(latent.clone().weight("key_w", format));
            let mut latent = latent.weight("query", mixed).weight("key_w", format).fused();
            latent.sizes.insert("COLS", 1536);
            all.push(latent.clone());
            latent.weights = vec![("query", format), ("key_w", Format::F16)];
            all.push(latent);
            let sizes = [("LANES", 128), ("ROWS", 16), ("COLS", 2048), ("KEYS", 128), ("GROUPS", 1)];
            let experts = Variant::new("route_gate_up", features, &sizes).weight("gate", format);
            all.push(experts.weight("up", mixed).input(input));
            let sizes = [("LANES", 128), ("ROWS", 8), ("COLS", 6144), ("EXPERT_SLOTS", 8)];
            let combine = Variant::new("down_combine", features, &sizes).weight("weight", format);
            all.push(combine.clone().input(input));
            all.push(combine.weight("shared_w", mixed).input(input).fused());
            for op in ["matmul", "expert_matmul"] {
                all.push(lanes(op, 64).weight("weight", format).input(input));
            }
            all.push(Variant::new("matmul_tile", features, &tile).weight("weight", format).input(input));
            all.push(
                Variant::new("expert_matmul_tile", features, &expert_tile)
                    .weight("weight", format)
                    .input(input),
            );
        }
    }
    for &kv_type in KvType::ALL {
        all.push(lanes("kv_write", 64).kv(kv_type));
        // DeepSeek-V3.2's indexer.
        let sizes = [("LANES", 64), ("HEAD_DIM", 128)];
        all.push(Variant::new("index_scores", features, &sizes).kv(kv_type));
        // DeepSeek-V4's attention.
        let sizes = [("LANES", 64), ("HEAD_DIM", 512)];
        all.push(Variant::new("compressed_attention", features, &sizes).kv(kv_type));
        let latent = Variant::new("latent_heads", features, &latent_sizes).kv(kv_type);
        all.push(latent.weight("key_w", Format::F16));
        // Latent attention.
        let sizes = [
            ("LANES", 256),
            ("HEAD_DIM", 576),
            ("VALUE_DIM", 512),
            ("VALUE_STRIDE", 576),
            ("GROUP", 16),
            ("QUERY_ROWS", 3),
        ];
        all.push(Variant::new("attention", features, &sizes).kv(kv_type));
        for (head_dim, group) in [(64, 4), (128, 8), (128, 1), (256, 16)] {
            let sizes = [
                ("LANES", 128),
                ("HEAD_DIM", head_dim),
                ("VALUE_DIM", head_dim),
                ("VALUE_STRIDE", head_dim),
                ("GROUP", group),
            ];
            let rows = (2048 / head_dim).min(16);
            let mut attention = Variant::new("attention", features, &sizes).kv(kv_type);
            attention.sizes.insert("QUERY_ROWS", rows);
            if rows >= group {
                let mut fused = attention.clone().fused();
                fused.sizes.insert("QUERY_ROWS", group);
                all.push(fused);
            }
            all.push(attention);
            let sizes = [("LANES", 64), ("HEAD_DIM", head_dim), ("GROUP", group)];
            all.push(Variant::new("attention_scores", features, &sizes).kv(kv_type));
        }
    }
    all
}

fn capabilities(features: Features) -> Capabilities {
    let mut capabilities = Capabilities::default();
    capabilities.set(Capabilities::SUBGROUP | Capabilities::SUBGROUP_BARRIER, features.subgroups);
    capabilities.set(Capabilities::SHADER_FLOAT16, features.f16);
    capabilities
}

#[test]
fn every_variant_is_valid_wgsl() {
    let mut count = 0;
    for features in Features::combinations() {
        for variant in variants(features) {
            let text = compose(&variant).unwrap_or_else(|e| panic!("{e}"));
            let module = naga::front::wgsl::parse_str(&text)
                .unwrap_or_else(|e| panic!("{variant}: {}", e.emit_to_string(&text)));
            let mut validator = Validator::new(ValidationFlags::all(), capabilities(features));
            validator.validate(&module).unwrap_or_else(|e| panic!("{variant}: {}", e.emit_to_string(&text)));
            count += 1;
        }
    }
    assert!(count > 1000, "{count} variants");
}

/// What Metal and DX12 get is made of the same text by naga, in languages that devices with the features have: MSL 2.0 and
/// shader model 5.1 for the plain path, MSL 2.1 and shader model 6.2 with all. naga itself hardly looks at the version, and
/// a Mac's or Windows' compiler has not seen the result.
#[test]
fn every_variant_is_translated_for_metal_and_dx12() {
    use naga::back::{hlsl, msl};
    let all = Features { subgroups: true, f16: true, dot4: true };
    for features in [Features::default(), all] {
        let plain = features == Features::default();
        let metal =
            msl::Options { lang_version: if plain { (2, 0) } else { (2, 1) }, ..msl::Options::default() };
        let shader_model = if plain { hlsl::ShaderModel::V5_1 } else { hlsl::ShaderModel::V6_2 };
        let dx12 = hlsl::Options { shader_model, ..hlsl::Options::default() };
        for variant in variants(features) {
            let text = compose(&variant).unwrap();
            let module = naga::front::wgsl::parse_str(&text).unwrap();
            let mut validator = Validator::new(ValidationFlags::all(), capabilities(features));
            let info = validator.validate(&module).unwrap();
            let pipeline = msl::PipelineOptions::default();
            let (found, _) = msl::write_string(&module, &info, &metal, &pipeline)
                .unwrap_or_else(|e| panic!("{variant} for Metal: {e}"));
            assert!(found.contains("kernel void main_("), "{variant}");
            assert_eq!(found.contains("simd_sum("), text.contains("subgroupAdd("), "{variant}");
            let mut found = String::new();
            let pipeline = hlsl::PipelineOptions::default();
            hlsl::Writer::new(&mut found, &dx12, &pipeline)
                .write(&module, &info, None)
                .unwrap_or_else(|e| panic!("{variant} for DX12: {e}"));
            assert!(found.contains("[numthreads("), "{variant}");
            assert_eq!(found.contains("WaveActiveSum("), text.contains("subgroupAdd("), "{variant}");
        }
    }
}

/// The default limits of WebGPU: 8 storage buffers a stage, 16 KiB of workgroup memory, 256 lanes.
#[test]
fn every_variant_keeps_to_the_default_limits() {
    for variant in variants(Features::default()) {
        let text = compose(&variant).unwrap();
        let module = naga::front::wgsl::parse_str(&text).unwrap();
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let size = |space: fn(&naga::AddressSpace) -> bool| -> (u32, u32) {
            let matching = module.global_variables.iter().filter(|(_, g)| space(&g.space));
            matching.fold((0, 0), |(n, bytes), (_, g)| (n + 1, bytes + layouter[g.ty].size))
        };
        let (storage, _) = size(|s| matches!(s, naga::AddressSpace::Storage { .. }));
        let (_, workgroup_bytes) = size(|s| *s == naga::AddressSpace::WorkGroup);
        let lanes: u32 = module.entry_points[0].workgroup_size.iter().product();
        assert!(storage <= 8, "{variant}: {storage} storage buffers");
        assert!(workgroup_bytes <= 16384, "{variant}: {workgroup_bytes} bytes of workgroup memory");
        assert!(lanes <= 256, "{variant}: {lanes} lanes");
    }
}

#[test]
fn a_variant_names_its_features_and_no_others() {
    for features in Features::combinations() {
        let text = compose(&Variant::new("rms_norm", features, &[("LANES", 64)])).unwrap();
        assert_eq!(text.contains("subgroupAdd"), features.subgroups);
        assert_eq!(text.contains("enable f16"), features.f16);
        let matmul =
            Variant::new("matmul", features, &[("LANES", 64)]).weight("weight", Format::Q4K).input(Input::Q8);
        assert_eq!(compose(&matmul).unwrap().contains("dot4I8Packed"), features.dot4);
    }
}

#[test]
fn every_source_is_used_by_some_variant() {
    let mut used = std::collections::BTreeSet::new();
    for variant in variants(Features::default()) {
        let mut composer = Composer { variant: &variant, text: String::new(), included: Vec::new() };
        composer.file(variant.op, "").unwrap();
        used.insert(variant.op.to_owned());
        used.extend(composer.included.into_iter().map(|(part, _)| part));
    }
    let unused: Vec<_> = sources::STEMS.iter().filter(|s| !used.contains(**s)).collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn unknown_parts_and_bindings_are_named() {
    let error = compose(&Variant::new("no_such_op", Features::default(), &[])).unwrap_err();
    assert!(error.to_string().contains("no_such_op"), "{error}");
    let error = compose(&Variant::new("matmul", Features::default(), &[("LANES", 64)])).unwrap_err();
    assert!(error.to_string().contains("no weight binding weight"), "{error}");
}
