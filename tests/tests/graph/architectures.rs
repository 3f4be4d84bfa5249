//! Architectures: what their files leave out, what they refuse, and the list that the documentation gives.

use crate::common::{Dumped, one_layer};
use moe_run_graph::Model;
use moe_run_graph::architectures::{ARCHITECTURES, LowerError};
use moe_run_graph::config::{ConfigError, FfnConfig, LatentConfig, ModelConfig};
use moe_run_graph::dump::{self, Subject};
use moe_run_graph::gguf::{GgufFile, MetaArray, MetaValue as V, Metadata};
use moe_run_graph::ir::{
    Dim, ExpertGroups, GateKind, GroupScore, Op, RopePairing, RopeScaling, RopeSpec, RowAxis, StateRole,
};
use moe_run_graph::passes::{TapSelection, drop_unrequested_taps};
use moe_run_graph::quant::Format;
use moe_run_tests::fixtures::{self, crate_dir};
use std::path::PathBuf;

fn fixture(stem: &str) -> PathBuf {
    fixtures::find(&format!("arch/{stem}.gguf")).expect("carried")
}

/// A fixture with other metadata.
fn changed(stem: &str, change: impl Fn(&str, &V) -> Option<V>) -> Result<Model, LowerError> {
    let file = GgufFile::open(fixture(stem)).unwrap();
    let pairs =
        file.metadata().iter().map(|(k, v)| (k.to_owned(), change(k, v).unwrap_or_else(|| v.clone())));
    let metadata = Metadata::from_pairs(stem, pairs.collect::<Vec<_>>()).unwrap();
    let table = moe_run_graph::architectures::tensor_table(&file);
    let (config, graph) = moe_run_graph::architectures::lower(&metadata, &table, &|_| None)?;
    Ok(Model { config, graph, file: file.into() })
}

/// The error for one key with another value.
fn refused(stem: &str, key: &str, value: V) -> String {
    let model = changed(stem, |k, _| (k == key).then(|| value.clone()));
    match model {
        Err(LowerError::Config(error @ ConfigError::Value { .. })) => error.to_string(),
        Err(other) => panic!("{key}: {other}"),
        Ok(_) => panic!("{key}: lowered"),
    }
}

#[test]
fn no_key_of_a_file_is_passed_over() {
    for (stem, model, _) in fixtures::architecture_models() {
        let model = Model::open(&model).unwrap();
        assert_eq!(model.config.unused_keys, Vec::<String>::new(), "{stem}");
    }
}

#[test]
fn every_tap_has_its_rows_where_its_stage_says() {
    for (stem, model, _) in fixtures::architecture_models() {
        let graph = Model::open(&model).unwrap().graph;
        for (node, stage) in graph.taps() {
            for value in &node.inputs {
                let dims = &graph.value(*value).shape.0;
                let found = match (dims.first(), dims.last()) {
                    (_, Some(Dim::Cached)) => RowAxis::HeadsTokensCached,
                    (Some(Dim::LogitsRows), _) => RowAxis::LogitsRows,
                    (Some(Dim::Tokens), _) => RowAxis::Tokens,
                    _ => panic!("{stem} {stage}: {dims:?}"),
                };
                assert_eq!(RowAxis::of(stage), found, "{stem} {stage}: {dims:?}");
            }
        }
    }
}

/// What a part of a graph numbers anew is all that an operation names.
#[test]
fn every_weight_and_state_of_an_operation_is_shown() {
    for (stem, model, _) in fixtures::architecture_models() {
        for node in &Model::open(&model).unwrap().graph.nodes {
            let (mut op, mut weights, mut states) = (node.op.clone(), Vec::new(), Vec::new());
            op.for_each_id(&mut |weight| weights.push(*weight), &mut |state| states.push(*state));
            if matches!(op, Op::AttentionScores(_)) {
                // Scores come before the sinks that their attributes name.
                weights.clear();
            }
            assert_eq!((weights, states), (op.weights(), op.written_states()), "{stem} {}", node.path());
        }
    }
}

#[test]
fn a_key_that_nobody_knows_is_listed() {
    let mut blueprint = one_layer();
    blueprint.set("qwen3moe.attention.wobble", V::F32(0.5));
    let (config, _) = blueprint.lower();
    assert_eq!(config.unused_keys, ["qwen3moe.attention.wobble"]);
}

#[test]
fn a_key_that_changes_the_results_and_is_not_looked_at_is_refused() {
    for (key, neutral, other) in [
        ("attention.sliding_window", V::U32(0), V::U32(128)),
        ("expert_group_count", V::U32(1), V::U32(8)),
        ("final_logit_softcapping", V::F32(0.0), V::F32(30.0)),
        ("expert_shared_count", V::U32(0), V::U32(1)),
        ("attention.sliding_window", V::U32(0), V::Array(MetaArray::U32(vec![0]))),
    ] {
        let key = format!("qwen3moe.{key}");
        let mut blueprint = one_layer();
        blueprint.set(&key, neutral);
        assert_eq!(blueprint.lower().0.unused_keys, Vec::<String>::new(), "{key}");
        blueprint.set(&key, other);
        let error = blueprint.try_lower().expect_err("it would change the results");
        assert!(
            matches!(&error, LowerError::Config(ConfigError::Value { key: named, .. }) if *named == key),
            "{error}"
        );
    }
}

#[test]
fn layers_for_drafting_are_left_out_by_name() {
    let model = Model::open(&fixture("glm4moe/air")).unwrap();
    assert_eq!((model.config.num_hidden_layers, model.config.num_nextn_predict_layers), (3, 1));
    let [left_out] = &model.graph.left_out[..] else { panic!("{:?}", model.graph.left_out) };
    let behind = model.file.tensors().iter().filter(|t| t.name.starts_with("blk.3."));
    let bytes: u64 = behind.clone().map(|t| t.len_bytes().unwrap() as u64).sum();
    assert_eq!(
        (left_out.prefix.as_str(), left_out.tensors, left_out.bytes),
        ("blk.3.", behind.count(), bytes)
    );
    assert!(left_out.reason.contains("drafting"), "{}", left_out.reason);

    let dump = Dumped::new(Subject::Lowered).dump(&(model.config.clone(), model.graph.clone()));
    let (text, json) = (dump::text(&dump), serde_json::to_value(&dump).unwrap());
    assert!(text.contains("left out: 23 tensors of blk.3."), "{text}");
    assert_eq!(json["model"]["left_out"][0]["prefix"], "blk.3.");

    // Without the key the layer is one like the others, and its further tensors have no place.
    let error = changed("glm4moe/air", |key, _| (key == "glm4moe.nextn_predict_layers").then_some(V::U32(0)));
    let error = error.expect_err("a draft's tensors");
    assert!(
        matches!(&error, LowerError::UnusedTensors { names, .. } if names[0].starts_with("blk.3.nextn.")),
        "{error}"
    );
    assert!(
        refused("glm4moe/air", "glm4moe.nextn_predict_layers", V::U32(4)).contains("fewer than the 4 layers")
    );
}

#[test]
fn layers_may_be_dense_or_routed_by_key_or_by_tensor() {
    let dense = |stem: &str| -> Vec<bool> {
        let layers = Model::open(&fixture(stem)).unwrap().config.layers;
        layers.iter().map(|l| matches!(l.ffn, FfnConfig::Dense { .. })).collect()
    };
    assert_eq!(dense("glm4moe/air"), [true, false, false]);
    assert_eq!(dense("hy_v3/hy3")[..2], [true, false]);
    assert_eq!(dense("mimo2/flash"), [true, false, false]);
    // Every second layer, counted from 1.
    let between =
        changed("ernie4_5-moe/main", |key, _| (key.ends_with("moe_layer_step")).then_some(V::U32(2)));
    assert!(
        matches!(between, Err(LowerError::MissingTensor { name, .. }) if name == "blk.2.ffn_gate.weight")
    );
}

#[test]
fn groups_of_experts_are_refused() {
    let text = refused("glm4moe/air", "glm4moe.expert_group_count", V::U32(4));
    assert!(text.contains("wanted 0 or 1 or no such key in architecture glm4moe"), "{text}");
}

#[test]
fn groups_of_experts_are_read_where_some_are_left_out() {
    let groups_of = |change: &dyn Fn(&str) -> Option<V>| {
        let model = changed("bailingmoe2/main", |key, _| change(key)).unwrap();
        model.config.layers.iter().find_map(|layer| match &layer.ffn {
            FfnConfig::Moe(moe) => moe.groups,
            FfnConfig::Dense { .. } | FfnConfig::Absent => None,
        })
    };
    let some = ExpertGroups { n_group: 4, topk_group: 2, score: GroupScore::BestTwo };
    assert_eq!(groups_of(&|_| None), Some(some));
    let used = |n: u32| move |key: &str| key.ends_with("expert_group_used_count").then_some(V::U32(n));
    assert_eq!(groups_of(&used(4)), None, "all of them");
    assert_eq!(groups_of(&|key| key.ends_with("expert_group_count").then_some(V::U32(1))), None);
    for n in [0, 5] {
        let text = refused("bailingmoe2/main", "bailingmoe2.expert_group_used_count", V::U32(n));
        assert!(text.contains("wanted 1 to 4 groups"), "{text}");
    }
    let odd = changed("bailingmoe2/main", |key, _| key.ends_with("expert_group_count").then_some(V::U32(5)));
    let error = odd.expect_err("12 experts in 5 groups").to_string();
    assert!(error.contains("12 experts in equal groups"), "{error}");
}

/// No fixture has it: its attention is qwen2moe's, its feed-forward part qwen3's, and both of those have reference values.
#[test]
fn dense_qwen2_is_biased_attention_and_one_swiglu() {
    let mut blueprint = one_layer();
    blueprint.pairs.retain(|(key, _)| !key.contains("expert") && !key.ends_with("freq_base"));
    for (key, value) in &mut blueprint.pairs {
        *key = key.replace("qwen3moe.", "qwen2.");
        if key == "general.architecture" {
            *value = V::String("qwen2".into());
        }
    }
    blueprint.set("qwen2.feed_forward_length", V::U32(512));
    blueprint.tensors.retain(|name, _| {
        ![".ffn_gate_inp", "_exps", "_q_norm", "_k_norm"].iter().any(|part| name.contains(part))
    });
    let mut put = |name: &str, shape: &[usize], format: Format| {
        blueprint.tensors.insert(format!("blk.0.{name}"), (shape.to_vec(), format.into()));
    };
    for (name, width) in [("attn_q.bias", 256), ("attn_k.bias", 128), ("attn_v.bias", 128)] {
        put(name, &[width], Format::F32);
    }
    put("ffn_gate.weight", &[512, 256], Format::Q4K);
    put("ffn_up.weight", &[512, 256], Format::Q4K);
    put("ffn_down.weight", &[256, 512], Format::Q6K);

    let (config, graph) = blueprint.lower();
    assert_eq!(config.unused_keys, Vec::<String>::new());
    assert_eq!(config.layers[0].ffn, FfnConfig::Dense { intermediate_size: 512 });
    let rope = config.layers[0].attention.rope.clone().unwrap();
    assert_eq!((rope.theta, rope.dims, rope.pairing), (1e4, 64, RopePairing::Half));
    for name in ["q_proj", "k_proj", "v_proj"] {
        let node = graph.nodes.iter().find(|n| n.name == name).unwrap();
        assert!(matches!(node.op, Op::MatMul { bias: Some(_), .. }), "{name} has no bias");
    }
    blueprint.tensors.remove("blk.0.attn_k.bias");
    let error = blueprint.try_lower().expect_err("a bias is missing");
    assert!(
        matches!(&error, LowerError::MissingTensor { name, .. } if name == "blk.0.attn_k.bias"),
        "{error}"
    );
}

#[test]
fn a_joined_bias_is_three_parts_of_one_vector() {
    let model = Model::open(&fixture("qwen2moe/fused-qkv")).unwrap();
    let parts: Vec<_> = ["q_proj", "k_proj", "v_proj"]
        .into_iter()
        .map(|name| {
            let node = model.graph.nodes.iter().find(|n| n.name == name).unwrap();
            let Op::MatMul { bias: Some(bias), .. } = node.op else { panic!("{name} has no bias") };
            let decl = model.graph.weight(bias);
            assert_eq!(decl.name, "blk.0.attn_qkv.bias");
            decl.part.clone().unwrap()
        })
        .collect();
    assert_eq!(parts, [0..64, 64..80, 80..96]);
    let bytes: Vec<u8> = (0..96u32).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let key_bias = model.graph.weights.iter().find(|w| w.part == Some(64..80)).unwrap();
    assert_eq!(key_bias.bytes_in(&bytes), Some(&bytes[256..320]));
    assert_eq!(key_bias.bytes_in(&bytes[..300]), None);
}

#[test]
fn a_required_tensor_is_missed_and_one_that_has_no_place_is_refused() {
    let mut blueprint = one_layer();
    blueprint.tensors.remove("blk.0.attn_k_norm.weight").unwrap();
    let error = blueprint.try_lower().expect_err("a norm less");
    assert!(
        matches!(&error, LowerError::MissingTensor { name, .. } if name == "blk.0.attn_k_norm.weight"),
        "{error}"
    );

    let mut blueprint = one_layer();
    blueprint.tensors.insert("blk.0.exp_probs_b.bias".into(), (vec![8], Format::F32.into()));
    assert!(matches!(blueprint.try_lower(), Err(LowerError::UnusedTensors { .. })));
}

#[test]
fn rope_that_needs_a_tensors_values_asks_for_them() {
    let Some(path) = fixtures::find("arch/llama-moe/llama3.gguf") else { return };
    let file = GgufFile::open(&path).unwrap();
    let table = moe_run_graph::architectures::tensor_table(&file);
    let lower = |vectors: &dyn Fn(&str) -> Option<Vec<f32>>| {
        moe_run_graph::architectures::lower(file.metadata(), &table, vectors)
    };
    let (_, graph) = lower(&|_| Some((1..=16).map(|i| i as f32).collect())).unwrap();
    assert_eq!(graph.rope_tables[0].divisors.len(), 16);
    for damaged in [None, Some(vec![1.0; 15]), Some(vec![0.0; 16]), Some(vec![f32::NAN; 16])] {
        let error = lower(&|_| damaged.clone()).expect_err("no divisors");
        assert!(matches!(&error, LowerError::Values { wanted: 16, .. }), "{error}");
    }
}

#[test]
fn yarn_is_read_with_its_defaults() {
    let model = Model::open(&fixture("qwen3moe/yarn")).unwrap();
    let rope = model.config.layers[0].attention.rope.clone().unwrap();
    let RopeScaling::Yarn {
        factor,
        original_max_position_embeddings,
        beta_fast,
        beta_slow,
        attention_factor,
        truncate,
    } = rope.scaling
    else {
        panic!("{:?}", rope.scaling)
    };
    assert_eq!((factor, original_max_position_embeddings, beta_fast, beta_slow), (4.0, 512, 32.0, 1.0));
    assert!((attention_factor - (1.0 + 0.1 * 4f64.ln())).abs() < 1e-12 && truncate);
}

#[test]
fn the_documentation_lists_every_architecture() {
    let table = std::fs::read_to_string(crate_dir().join("../docs/models.md")).unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let listed: Vec<&str> = rows.map(|(name, _)| name).collect();
    let known: Vec<&str> = ARCHITECTURES.iter().map(|row| row.name).collect();
    assert_eq!(listed, known);
}

#[test]
fn windows_of_gpt_oss_come_by_turns_unless_the_file_says_how() {
    let stem = "gpt-oss/mxfp4";
    let windowed = |value: Option<V>| -> Vec<bool> {
        let file = GgufFile::open(fixture(stem)).unwrap();
        let mut pairs: Vec<_> = file.metadata().iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
        let key = "gpt-oss.attention.sliding_window_pattern";
        pairs.retain(|(k, _)| k != key);
        pairs.extend(value.map(|value| (key.to_owned(), value)));
        let metadata = Metadata::from_pairs(stem, pairs).unwrap();
        let table = moe_run_graph::architectures::tensor_table(&file);
        let (config, _) = moe_run_graph::architectures::lower(&metadata, &table, &|_| None).unwrap();
        config.layers.iter().map(|l| l.attention.sliding_window.is_some()).collect()
    };
    assert_eq!(windowed(None), [true, false, true]);
    assert_eq!(windowed(Some(V::U32(2))), [true, false, true]);
    assert_eq!(windowed(Some(V::U32(3))), [true, true, false]);
    assert_eq!(windowed(Some(V::U32(1))), [false; 3]);
    let array = V::Array(MetaArray::Bool(vec![false, true, true]));
    assert_eq!(windowed(Some(array)), [false, true, true]);
}

#[test]
fn the_ramp_of_gpt_oss_does_not_end_at_whole_pairs() {
    let model = Model::open(&fixture("gpt-oss/mxfp4")).unwrap();
    let rope = model.config.layers[0].attention.rope.clone().unwrap();
    assert!(matches!(rope.scaling, RopeScaling::Yarn { truncate: false, .. }), "{:?}", rope.scaling);

    // The released models' numbers: the ramp goes from pair 8.09 to 17.40.
    let angle = |pair: usize, truncate| {
        let scaling = RopeScaling::Yarn {
            factor: 32.0,
            original_max_position_embeddings: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
            truncate,
        };
        let spec =
            RopeSpec { theta: 150_000.0, dims: 64, scaling, divisors: Vec::new(), behind: 0, back: false };
        let mut row = vec![0.0; 64];
        spec.fill_row(1, &mut row);
        f64::from(row[2 * pair + 1]).asin() * 150_000f64.powf(pair as f64 / 32.0)
    };
    for (pair, ends, truncate) in
        [(13, (8.093, 17.398), false), (13, (8.0, 18.0), true), (17, (8.0, 18.0), true)]
    {
        let ramp = (pair as f64 - ends.0) / (ends.1 - ends.0);
        let want = 1.0 - ramp + ramp / 32.0;
        assert!((angle(pair, truncate) - want).abs() < 1e-3, "{pair} {truncate}: {}", angle(pair, truncate));
    }
    assert!((angle(8, false) - 1.0).abs() < 1e-5 && (angle(18, false) - 1.0 / 32.0).abs() < 1e-5);
}

#[test]
fn a_residual_scale_is_in_what_flows_and_not_in_what_taps_show() {
    let model = Model::open(&fixture("granitemoe/shared")).unwrap();
    let scale_of = |name: &str| {
        let node = model.graph.nodes.iter().find(|n| n.name == name).unwrap_or_else(|| panic!("{name}"));
        match &node.op {
            Op::MatMul { scale, .. } | Op::Embed { scale, .. } => *scale,
            Op::Router(attrs) => Some(attrs.scale),
            other => panic!("{other:?}"),
        }
    };
    let metadata = model.file.metadata();
    let stated = |key: &str| metadata.f32(&format!("granitemoe.{key}")).unwrap();
    let residual = Some(stated("residual_scale"));
    assert_eq!(scale_of("embed_tokens"), Some(stated("embedding_scale")));
    assert_eq!(scale_of("lm_head"), Some(1.0 / stated("logit_scale")));
    for scaled in ["o_proj", "router_topk", "shared_expert_down_proj"] {
        assert_eq!(scale_of(scaled), residual, "{scaled}");
    }
    assert_eq!(model.config.layers[0].attention.scale, stated("attention.scale"));
    // What feeds only taps: gone where nobody looks.
    let unscaled =
        ["o_proj_unscaled", "router_topk_unscaled", "combine_unscaled", "add_shared_expert_unscaled"];
    let quiet = drop_unrequested_taps(&model.graph, &TapSelection::None);
    for name in unscaled {
        assert!(model.graph.nodes.iter().any(|n| n.name == name), "{name}");
        assert!(quiet.nodes.iter().all(|n| n.name != name), "{name}");
    }
    // The logits' factor divides, and has to be there.
    let text = refused("granitemoe/shared", "granitemoe.logit_scale", V::F32(0.0));
    assert!(text.contains("wanted a positive number"), "{text}");
}

/// The dimensions of a fixture without some of its keys.
fn configured_without(stem: &str, keys: &[&str]) -> ModelConfig {
    let file = GgufFile::open(fixture(stem)).unwrap();
    let kept = file.metadata().iter().filter(|(key, _)| !keys.iter().any(|rest| key.ends_with(rest)));
    let pairs: Vec<_> = kept.map(|(key, value)| (key.to_owned(), value.clone())).collect();
    let metadata = Metadata::from_pairs(stem, pairs).unwrap();
    ModelConfig::read(&metadata, &moe_run_graph::architectures::tensor_table(&file)).unwrap()
}

#[test]
fn latent_attention_keeps_one_row_and_stretches_its_scores() {
    let model = Model::open(&fixture("deepseek2/v3")).unwrap();
    let rows: Vec<_> = model.graph.states.iter().map(|s| (s.role, s.heads, s.width)).collect();
    assert_eq!(rows, [(StateRole::Key, 1, 32 + 16); 3], "rank and rotated elements, once a layer");
    let latent = LatentConfig {
        q_lora_rank: Some(32),
        kv_lora_rank: 32,
        qk_nope_head_dim: 32,
        qk_rope_head_dim: 16,
        v_head_dim: 32,
        norm_eps: None,
    };
    let attention_factor = |config: &ModelConfig| {
        let attention = &config.layers[1].attention;
        assert_eq!(attention.latent, Some(latent));
        match &attention.rope.as_ref().unwrap().scaling {
            RopeScaling::Yarn { attention_factor, .. } => (*attention_factor, attention.scale),
            other => panic!("{other:?}"),
        }
    };
    let stretch = 1.0 + 0.1 * 40f64.ln();
    let (cosines, scale) = attention_factor(&model.config);
    assert_eq!(cosines, 1.0);
    assert!((f64::from(scale) - stretch * stretch / 48f64.sqrt()).abs() < 1e-7);
    // A model without that stretch has YaRN's own, of the angles.
    let (cosines, scale) = attention_factor(&configured_without("deepseek2/v3", &["yarn_log_multiplier"]));
    assert!((cosines - stretch).abs() < 1e-12 && (f64::from(scale) - 1.0 / 48f64.sqrt()).abs() < 1e-7);

    // The files of before April 2025: other keys, one tensor, no latent of the queries.
    let old = Model::open(&fixture("deepseek2/v2-lite-kvb")).unwrap().config;
    assert_eq!(old.layers[0].attention.latent, Some(LatentConfig { q_lora_rank: None, ..latent }));
    let gate = |config: &ModelConfig| match &config.layers[1].ffn {
        FfnConfig::Moe(moe) => (moe.gate, moe.norm_topk_prob, moe.groups.is_some()),
        FfnConfig::Dense { .. } | FfnConfig::Absent => panic!("no experts"),
    };
    assert_eq!(gate(&old), (GateKind::Softmax, false, false));
    assert_eq!(gate(&model.config), (GateKind::Sigmoid, true, true));
    let silent = ["expert_gating_func", "expert_weights_norm", "expert_group_count"];
    assert_eq!(gate(&configured_without("deepseek2/v3", &silent)), (GateKind::Softmax, false, false));
}

#[test]
fn gemma_layers_read_earlier_caches_and_cap_their_logits() {
    let config = configured_without("gemma4/e2b-dense", &["final_logit_softcapping"]);
    let read: Vec<_> = config.layers.iter().map(|layer| layer.attention.kv_layer).collect();
    assert_eq!(read, [None, None, Some(0), Some(1)], "the last earlier layer of the same kind");
    assert_eq!((config.logits_soft_cap, config.per_layer_input_size), (Some(30.0), Some(32)));
    let model = Model::open(&fixture("gemma4/e2b-dense")).unwrap();
    assert_eq!(model.graph.states.len(), 4, "keys and values of two layers");
    let error = refused("gemma4/e2b-dense", "gemma4.attention.shared_kv_layers", V::U32(4));
    assert!(error.contains("an earlier layer of each kind"), "{error}");
}

#[test]
fn windows_chunks_and_limits_are_of_their_layers() {
    let of = |stem: &str| Model::open(&fixture(stem)).unwrap().config.layers;
    let windows = |stem: &str| -> Vec<bool> {
        of(stem).iter().map(|layer| layer.attention.sliding_window.is_some()).collect()
    };
    assert_eq!(windows("laguna/xs"), [false, true, true, true], "the first of four sees everything");
    assert_eq!(windows("afmoe/trinity"), [true, true, true, false], "the last of four does");
    let chunks: Vec<_> = of("llama4/scout").iter().map(|layer| layer.attention.chunk).collect();
    assert_eq!(chunks, [Some(8192), Some(8192), Some(8192), None]);
    let limits: Vec<_> = of("step35/flash").iter().map(|layer| (layer.expert_limit, layer.limit)).collect();
    assert_eq!(limits, [(None, None), (Some(0.75), None), (None, Some(0.5))]);
    let refused = refused("llama4/scout", "llama4.expert_used_count", V::U32(2));
    assert!(refused.contains("wanted 1"), "{refused}");
}
