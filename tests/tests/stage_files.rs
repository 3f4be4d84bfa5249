//! Every stage of every stage file, on every backend of this build, against float64 values.

use moe_run_backends::reference::Reference;
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Activations, Backend, CompileOptions, KvType, WeightSource};
use moe_run_graph::Model;
use moe_run_graph::architectures::{lower, tensor_table};
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{Graph, Node, Op, Stage};
use moe_run_tests::collect::all_taps;
use moe_run_tests::stages::StageFile;
use moe_run_tests::{backends, fixtures, relative_l2};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// f32 activations and KV against float64. The reference sums in f64, but for attention, and rounds to f32 once; the fast
/// backends sum in f32, over up to 512 products a row here.
fn tolerance(backend: &str) -> f64 {
    if backend == "reference" { 1e-4 } else { 1e-3 }
}

/// Of how many positions an indexer's choice has one, where a stage shows such.
fn every(graph: &Graph, path: &str) -> Option<usize> {
    let choice = |node: &Node| match node.op {
        Op::IndexSelect { top_k: _, every } => Some((node.layer?.index(), every)),
        _ => None,
    };
    let shows = |layer: usize| {
        [Stage::IndexScores, Stage::IndexSelected].iter().any(|stage| stage.path(Some(layer)) == path)
    };
    graph.nodes.iter().filter_map(choice).find(|(layer, _)| shows(*layer)).map(|(_, every)| every)
}

/// The largest relative L2 of a stage; expert ids must be equal. `full`: a file with more than two stages has them all.
fn check(backend: &dyn Backend, stem: &str, model: &Path, stages: &Path, full: bool) -> f64 {
    let model = Model::open(model).unwrap();
    let wanted = StageFile::read(stages);
    let options = CompileOptions {
        activations: Some(Activations::F32),
        kv_type: KvType::F32,
        ..CompileOptions::default()
    };
    let found = all_taps(backend, &model, &options, &wanted.tokens).unwrap();
    let mut worst = 0.0f64;
    for (path, (shape, values)) in &wanted.values {
        let tensor = found.values.get(path).or_else(|| found.states.get(path));
        let tensor = tensor.unwrap_or_else(|| panic!("{stem}: no tap {path}"));
        // Scores of one head stand in files without that axis, and those of entries without the positions between them.
        let one_head = path.contains("/index_") && tensor.shape.first() == Some(&1);
        let mut found_shape = tensor.shape[usize::from(one_head)..].to_vec();
        let mut data = tensor.data.to_f32();
        if let Some(every) = every(&model.graph, path).filter(|every| *every > 1) {
            let cached = found_shape[1];
            let row = |row: &[f32]| row.iter().skip(every - 1).step_by(every).copied().collect::<Vec<_>>();
            data = data.chunks_exact(cached).flat_map(row).collect();
            found_shape[1] = cached / every;
        }
        assert_eq!(&found_shape, shape, "{stem}: shape of {path}");
        if ["moe_topk_ids", "chunk_ids", "index_selected"].iter().any(|name| path.ends_with(name)) {
            assert_eq!(&data, values, "{}, {stem}: {path}", backend.name());
        } else {
            let distance = relative_l2(&data, values);
            assert!(
                distance <= tolerance(backend.name()),
                "{}, {stem}: {path}: relative L2 {distance:.3e}",
                backend.name()
            );
            worst = worst.max(distance);
        }
    }
    if wanted.values.len() > 2 {
        // A state that the stage file lacks would not be compared.
        for path in found.states.keys() {
            assert!(wanted.values.contains_key(path), "{stem}: {path} is not in the stage file");
        }
    }
    if full && wanted.values.len() > 2 {
        // A full stage file: every tap of the graph has its value in it.
        for path in found.values.keys() {
            assert!(wanted.values.contains_key(path), "{stem}: {path} is not in the stage file");
        }
    }
    worst
}

#[test]
fn micro_models_match_their_stage_files() {
    for backend in backends() {
        for (stem, model, stages) in fixtures::micro_models() {
            let worst = check(backend.as_ref(), stem, &model, &stages, true);
            println!("{:10} {stem:20} worst stage {worst:.2e}", backend.name());
        }
    }
}

#[test]
fn tiny_models_match_their_stage_files() {
    for backend in backends() {
        for (stem, model, stages) in fixtures::tiny_models() {
            let worst = check(backend.as_ref(), stem, &model, &stages, true);
            println!("{:10} {stem:20} worst stage {worst:.2e}", backend.name());
        }
    }
}

#[test]
fn architectures_match_their_stage_files() {
    for backend in backends() {
        for (stem, model, stages) in fixtures::architecture_models() {
            let worst = check(backend.as_ref(), stem, &model, &stages, false);
            println!("{:10} {stem:24} worst stage {worst:.2e}", backend.name());
        }
    }
}

/// Old files of Qwen3-Next have q, k, v and the gate of delta nets in one tensor, key head by key head: the same logits.
#[test]
fn fused_delta_nets_are_the_split_ones() {
    let Some(path) = fixtures::find("arch/qwen3next/small-f16.gguf") else {
        return eprintln!(
            "SKIPPED: arch/qwen3next/small-f16.gguf is among the fixtures of MOE_FIXTURES only"
        );
    };
    let model = Model::open(&path).unwrap();
    let file = &model.file;
    let mut table = tensor_table(file);
    let mut weights: HashMap<String, Vec<u8>> =
        file.tensors().iter().map(|t| (t.name.clone(), file.data(t).to_vec())).collect();
    let (heads, keys, values) = (2, 16, 32);
    for layer in 0..2 {
        let name = |rest: &str| format!("blk.{layer}.{rest}.weight");
        let (_, ggml_type) = table.remove(&name("attn_qkv")).unwrap();
        let hidden_size = table.remove(&name("attn_gate")).unwrap().0[1];
        let (qkv, z) =
            (weights.remove(&name("attn_qkv")).unwrap(), weights.remove(&name("attn_gate")).unwrap());
        let row_bytes = qkv.len() / (heads * (2 * keys + values));
        let mut fused = Vec::new();
        for head in 0..heads {
            let rows = |from: &[u8], first: usize, len: usize| {
                from[(first + head * len) * row_bytes..][..len * row_bytes].to_vec()
            };
            fused.extend(rows(&qkv, 0, keys));
            fused.extend(rows(&qkv, heads * keys, keys));
            fused.extend(rows(&qkv, 2 * heads * keys, values));
            fused.extend(rows(&z, 0, values));
        }
        table.insert(name("ssm_in"), (vec![heads * (2 * keys + 2 * values), hidden_size], ggml_type));
        weights.insert(name("ssm_in"), fused);
    }
    let (_, graph) = lower(file.metadata(), &table, &|_| None).unwrap();
    let options = CompileOptions { ctx_size: 20, ..CompileOptions::default() };
    let logits = |graph: &Graph, weights: Arc<dyn WeightSource>| {
        let executable = Reference.compile(graph, weights, &options).unwrap();
        let mut session = Session::new(executable).unwrap();
        let tokens: Vec<TokenId> = (0..20).map(|i| TokenId(i * 11 % 256)).collect();
        session.feed(&tokens, LogitsRows::Last, None, |_, _| Ok(())).unwrap();
        let mut row = Vec::new();
        session.logits(&mut row).unwrap();
        row
    };
    assert_eq!(logits(&graph, Arc::new(weights)), logits(&model.graph, model.file.clone()));
}

/// Token by token, without taps: the launches that hold several operations.
#[test]
fn architectures_decode_to_their_logits() {
    for backend in backends() {
        for (stem, model, stages) in fixtures::architecture_models() {
            let model = Model::open(&model).unwrap();
            let wanted = StageFile::read(&stages);
            let options = CompileOptions {
                activations: Some(Activations::F32),
                kv_type: KvType::F32,
                micro_batch: Some(1),
                max_logits_rows: 1,
                ctx_size: wanted.tokens.len(),
                ..CompileOptions::default()
            };
            let executable = backend.compile(&model.graph, model.file.clone(), &options).unwrap();
            let mut session = Session::new(executable).unwrap();
            let mut logits = Vec::new();
            for token in &wanted.tokens {
                session.feed(&[*token], LogitsRows::Last, None, |_, _| Ok(())).unwrap();
                let mut row = Vec::new();
                session.logits(&mut row).unwrap();
                logits.extend(row);
            }
            let (shape, values) = &wanted.values["lm_head"];
            assert_eq!(logits.len(), shape.iter().product::<usize>(), "{stem}");
            let distance = relative_l2(&logits, values);
            println!("{:10} {stem:24} logits {distance:.2e}", backend.name());
            assert!(
                distance <= tolerance(backend.name()),
                "{}, {stem}: relative L2 {distance:.3e}",
                backend.name()
            );
        }
    }
}
