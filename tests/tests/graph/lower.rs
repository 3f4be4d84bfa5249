//! Metadata and tensors → configuration and graph: what lowers, and each file that is refused.

use crate::common::{Blueprint, one_layer};
use moe_run_graph::architectures::{ARCHITECTURES, LowerError};
use moe_run_graph::config::{AttentionConfig, ConfigError, FfnConfig, RopeConfig};
use moe_run_graph::gguf::{GgufFile, MetaArray, MetaValue as V};
use moe_run_graph::ir::{GateKind, Op, RopeScaling, Stage};
use moe_run_graph::quant::Format;
use moe_run_graph::{Model, ModelError};
use moe_run_tests::fixtures;
use std::path::PathBuf;

fn rope(attention: &AttentionConfig) -> &RopeConfig {
    attention.rope.as_ref().expect("rotated")
}

fn refused(blueprint: &Blueprint) -> LowerError {
    blueprint.try_lower().expect_err("the blueprint is broken")
}

/// The key, what was found and what was wanted.
fn refused_value(key: &str, value: V) -> (String, String) {
    let mut blueprint = one_layer();
    blueprint.set(key, value);
    match refused(&blueprint) {
        LowerError::Config(ConfigError::Value { key: named, found, wanted }) if named == key => {
            (found, wanted)
        }
        other => panic!("{key}: {other}"),
    }
}

#[test]
fn every_model_file_here_lowers_with_all_its_stages() {
    let mut paths: Vec<PathBuf> = fixtures::micro_models().into_iter().map(|(_, model, _)| model).collect();
    paths.push(fixtures::tiny_q4_k_m());
    for path in paths {
        let model = Model::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let layers = model.config.num_hidden_layers;
        assert_eq!(model.graph.num_layers, layers, "{}", path.display());
        assert_eq!(model.graph.states.len(), 2 * layers, "{}", path.display());
        let taps = model.graph.taps().count();
        let per_layer = match model.config.layers[0].ffn {
            FfnConfig::Moe(_) => 22,
            FfnConfig::Dense { .. } => 18,
            FfnConfig::Absent => unreachable!("every layer has one"),
        };
        assert_eq!(taps, 3 + per_layer * layers, "{}", path.display());
    }
}

#[test]
fn an_unlisted_architecture_is_refused_with_what_is_near_it() {
    let near_of = |name: &str| {
        let mut blueprint = one_layer();
        blueprint.set("general.architecture", V::String(name.into()));
        let LowerError::Config(error @ ConfigError::Architecture { .. }) = refused(&blueprint) else {
            panic!("another error");
        };
        let said = error.to_string();
        let ConfigError::Architecture { found, near, known } = error else { unreachable!() };
        assert_eq!((found.as_str(), known), (name, ARCHITECTURES.len()));
        assert!(said.contains(name.get(..8).unwrap_or(name)) && said.contains("docs/models.md"), "{said}");
        near
    };
    assert_eq!(near_of("qwen3moe2")[0], "qwen3moe");
    assert!(near_of("Qwen3").contains(&"qwen3"));
    assert_eq!(near_of("gptoss"), ["gpt-oss"]);
    assert_eq!(near_of("t5encoder"), Vec::<&str>::new());
    assert_eq!(near_of(""), Vec::<&str>::new());
    assert!(near_of(&"qwen".repeat(100_000)).len() <= 4);
}

#[test]
fn a_missing_tensor_is_named_with_its_shape() {
    for name in
        ["token_embd.weight", "output_norm.weight", "blk.0.attn_k.weight", "blk.0.ffn_down_exps.weight"]
    {
        let mut blueprint = one_layer();
        let (shape, _) = blueprint.tensors.remove(name).unwrap();
        let LowerError::MissingTensor { name: missing, wanted } = refused(&blueprint) else {
            panic!("{name}: another error");
        };
        assert_eq!(missing, name);
        // The vocabulary is only known from the table itself.
        if name != "token_embd.weight" {
            assert_eq!(wanted, shape);
        }
    }
}

#[test]
fn a_tensor_of_another_shape_is_refused() {
    let mut blueprint = one_layer();
    let name = "blk.0.attn_q.weight";
    blueprint.tensors.insert(name.into(), (vec![256, 512], Format::Q4K.into()));
    let LowerError::TensorShape { name: named, found, wanted } = refused(&blueprint) else {
        panic!("another error");
    };
    assert_eq!((named.as_str(), found, wanted), (name, vec![256, 512], vec![256, 256]));
}

#[test]
fn a_norm_that_is_not_f32_is_refused() {
    let mut blueprint = one_layer();
    blueprint.tensors.insert("blk.0.attn_norm.weight".into(), (vec![256], Format::F16.into()));
    let error = refused(&blueprint);
    assert!(
        matches!(&error, LowerError::TensorFormat { name, found: Format::F16 } if name == "blk.0.attn_norm.weight"),
        "{error}"
    );
}

#[test]
fn a_tensor_without_a_place_is_refused() {
    let mut blueprint = one_layer();
    blueprint.tensors.insert("blk.0.attn_q.bias".into(), (vec![256], Format::F32.into()));
    let LowerError::UnusedTensors { architecture, names } = refused(&blueprint) else {
        panic!("another error")
    };
    assert_eq!((architecture.as_str(), names), ("qwen3moe", vec!["blk.0.attn_q.bias".to_owned()]));
}

#[test]
fn without_an_lm_head_the_embedding_table_serves() {
    let mut blueprint = one_layer();
    blueprint.tensors.remove("output.weight").unwrap();
    let (_, graph) = blueprint.lower();
    let slice = |name: &str| {
        let node = graph.nodes.iter().find(|n| n.name == name).unwrap();
        node.op.weight_slice().unwrap().tensor
    };
    assert_eq!(slice("lm_head"), slice("embed_tokens"));
}

#[test]
fn theta_and_widths_come_from_the_file_or_the_architectures_row() {
    let (config, _) = one_layer().lower();
    let attention = &config.layers[0].attention;
    // 256 / 4 heads is 64 too; the file's word counts, as the next model shows.
    assert_eq!((attention.head_dim, rope(attention).theta, rope(attention).dims), (64, 1e7, 64));

    let mut blueprint = one_layer();
    blueprint.unset("qwen3moe.rope.freq_base");
    blueprint.unset("qwen3moe.attention.value_length");
    blueprint.set("qwen3moe.attention.key_length", V::U32(32));
    let attention = blueprint.config().unwrap().layers[0].attention.clone();
    assert_eq!(rope(&attention).theta, 1e6, "the row's default");
    assert_eq!((attention.head_dim, attention.value_head_dim, rope(&attention).dims), (32, 32, 32));

    blueprint.unset("qwen3moe.attention.key_length");
    let attention = blueprint.config().unwrap().layers[0].attention.clone();
    assert_eq!(attention.head_dim, 64, "hidden_size / num_attention_heads where the file does not say");

    blueprint.set("qwen3moe.rope.scaling.type", V::String("linear".into()));
    blueprint.set("qwen3moe.rope.scaling.factor", V::F32(4.0));
    let attention = blueprint.config().unwrap().layers[0].attention.clone();
    assert_eq!(rope(&attention).scaling, RopeScaling::Linear { factor: 4.0 });
}

#[test]
fn head_counts_may_differ_by_layer() {
    let mut blueprint = one_layer();
    let array = |numbers: &[u32]| V::Array(MetaArray::U32(numbers.to_vec()));
    blueprint.set("qwen3moe.block_count", V::U32(3));
    blueprint.set("qwen3moe.attention.head_count", array(&[4, 8, 4]));
    blueprint.set("qwen3moe.attention.head_count_kv", array(&[2, 4, 1]));
    let config = blueprint.config().unwrap();
    let heads: Vec<(usize, usize)> = config
        .layers
        .iter()
        .map(|l| (l.attention.num_attention_heads, l.attention.num_key_value_heads))
        .collect();
    assert_eq!(heads, [(4, 2), (8, 4), (4, 1)]);

    blueprint.set("qwen3moe.attention.head_count_kv", array(&[2, 4]));
    let error = blueprint.config().expect_err("too short");
    assert!(error.to_string().contains("one a layer: 3"), "{error}");
    blueprint.set("qwen3moe.attention.head_count_kv", array(&[2, 4, 0]));
    let error = blueprint.config().expect_err("no heads");
    assert!(matches!(error, ConfigError::Value { .. }), "{error}");
}

#[test]
fn the_router_follows_the_file() {
    let mut blueprint = one_layer();
    blueprint.set("qwen3moe.expert_gating_func", V::U32(2));
    blueprint.set("qwen3moe.expert_weights_norm", V::Bool(false));
    blueprint.set("qwen3moe.expert_weights_scale", V::F32(2.5));
    let (_, graph) = blueprint.lower();
    let Some(Op::Router(attrs)) = graph.nodes.iter().map(|n| &n.op).find(|op| op.stem() == "router") else {
        panic!("no router");
    };
    assert_eq!((attrs.gate, attrs.norm_topk_prob, attrs.scale), (GateKind::Sigmoid, false, 2.5));
}

#[test]
fn values_that_no_model_can_have_are_refused() {
    let u = |n: u32| V::U32(n);
    for (key, value, wanted) in [
        ("qwen3moe.block_count", u(0), "1 to"),
        ("qwen3moe.block_count", u(5000), "1 to 4096"),
        ("qwen3moe.embedding_length", u(0), "1 to"),
        ("qwen3moe.embedding_length", u(u32::MAX), "1 to"),
        ("qwen3moe.attention.layer_norm_rms_epsilon", V::F32(0.0), "positive"),
        ("qwen3moe.attention.layer_norm_rms_epsilon", V::F32(f32::NAN), "positive"),
        ("qwen3moe.attention.head_count_kv", u(3), "a divisor of 4"),
        ("qwen3moe.rope.dimension_count", u(63), "an even number"),
        ("qwen3moe.rope.dimension_count", u(66), "up to head_dim 64"),
        ("qwen3moe.rope.freq_base", V::F32(-1.0), "positive"),
        ("qwen3moe.rope.scaling.type", V::String("longrope".into()), "none, linear or yarn"),
        ("qwen3moe.expert_used_count", u(9), "at most 8 experts"),
        ("qwen3moe.expert_gating_func", u(7), "0 to 4"),
        ("qwen3moe.expert_weights_scale", V::F32(f32::INFINITY), "finite"),
    ] {
        let (_, said) = refused_value(key, value);
        assert!(said.contains(wanted), "{key}: {said:?} lacks {wanted:?}");
    }
}

#[test]
fn a_missing_key_is_named() {
    for key in ["qwen3moe.block_count", "qwen3moe.expert_count", "qwen3moe.attention.layer_norm_rms_epsilon"]
    {
        let mut blueprint = one_layer();
        blueprint.unset(key);
        let error = refused(&blueprint);
        assert!(matches!(error, LowerError::Config(ConfigError::Metadata(_))), "{error}");
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[test]
fn a_file_that_does_not_lower_is_named() {
    let blueprint = one_layer();
    let bytes = moe_run_graph::gguf::writer::to_vec(&blueprint.metadata(), &[], |_| unreachable!()).unwrap();
    let error = Model::from_file(GgufFile::from_bytes("empty.gguf", bytes).unwrap()).expect_err("no tensors");
    assert!(matches!(&error, ModelError::Lower { file, .. } if file == "empty.gguf"), "{error}");
}

#[test]
fn stages_stand_in_execution_order() {
    let glm = fixtures::find("arch/glm4moe/air.gguf").expect("carried");
    for graph in [one_layer().lower().1, Model::open(&glm).unwrap().graph] {
        for layer in (0..graph.num_layers).map(Some).chain([None]) {
            let of_layer = graph.taps().filter(|(node, _)| node.layer.map(|l| l.index()) == layer);
            let stages: Vec<Stage> = of_layer.map(|(_, stage)| stage).collect();
            let mut sorted = stages.clone();
            sorted.sort();
            // The scores are recomputed beside attention; all others stand where they are computed.
            assert_eq!(stages, sorted);
        }
    }
}
