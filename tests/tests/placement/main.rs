//! A model on several devices is the model on one: the same bits where the devices are alike, the backends' tolerances where they
//! are not; taps, faults, states and sequences go through.

mod cli;
mod contract;
mod experts;
mod layers;
mod parity;

use moe_run_backends::executable::Executable;
use moe_run_backends::placed::{Part, Placed};
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Backend, BackendError, CompileOptions, registry};
use moe_run_graph::Model;
use moe_run_graph::gguf::GgufFile;
use moe_run_graph::ids::TokenId;
use moe_run_graph::passes::cuts;
use moe_run_graph::synth::Random;
use moe_run_tests::{CudaHarness, fixtures};
use std::path::Path;
use std::sync::Arc;

fn model(path: &Path) -> Model {
    Model::from_file(GgufFile::open(path).unwrap()).unwrap()
}

/// A backend of this build; CUDA's on the host harness.
fn backend(name: &str) -> Arc<dyn Backend> {
    if name == "cuda" { Arc::new(CudaHarness) } else { Arc::from(registry::by_name(name).unwrap()) }
}

/// The named backends, each with the layers up to the next border.
fn placed(backends: &[&str], borders: &[usize], num_layers: usize) -> Placed {
    let starts = std::iter::once(0).chain(borders.iter().copied());
    let ends = borders.iter().copied().chain([num_layers]);
    let parts = backends.iter().zip(starts.zip(ends)).map(|(name, (start, end))| Part {
        backend: backend(name),
        device: None,
        label: (*name).to_owned(),
        layers: start..end,
    });
    Placed::new(parts.collect()).unwrap()
}

/// The layers in front of which the model may be cut.
fn borders(model: &Model) -> Vec<usize> {
    let cuts = cuts(&model.graph);
    (1..cuts.len()).filter(|layer| cuts[*layer]).collect()
}

fn text(model: &Model, number: u64, tokens: usize) -> Vec<TokenId> {
    let mut random = Random::new(&[71, number]);
    let below = model.config.vocab_size as u64;
    (0..tokens).map(|_| TokenId((random.next_u64() % below) as u32)).collect()
}

fn options() -> CompileOptions {
    CompileOptions {
        ctx_size: 64,
        micro_batch: Some(8),
        max_logits_rows: 8,
        threads: Some(1),
        ..CompileOptions::default()
    }
}

fn compile(backend: &dyn Backend, model: &Model, options: &CompileOptions) -> Box<dyn Executable> {
    backend.compile(&model.graph, model.file.clone(), options).unwrap()
}

/// The bits of all logits: a prompt in two steps, then tokens one by one.
fn logits(executable: Box<dyn Executable>, tokens: &[TokenId], decoded: usize) -> Vec<u32> {
    let mut session = Session::new(executable).unwrap();
    let (prompt, rest) = tokens.split_at(tokens.len() - decoded);
    let (mut all, mut row) = (Vec::new(), Vec::new());
    let mut keep = |executable: &mut dyn Executable, rows: usize| -> Result<(), BackendError> {
        for i in 0..rows {
            executable.logits(i, &mut row)?;
            all.extend(row.iter().map(|x| x.to_bits()));
        }
        Ok(())
    };
    session.feed(prompt, LogitsRows::All, None, |executable, range| keep(executable, range.len())).unwrap();
    for token in rest {
        session.decode(*token, None).unwrap();
        keep(session.executable(), 1).unwrap();
    }
    all
}

/// One small model of each kind of layer, with what is particular to it.
fn kinds() -> Vec<(&'static str, Model)> {
    const STEMS: &[&str] = &[
        "micro/mixed-q4_k_m",              // attention, experts
        "micro/dense-qwen3-q4_k",          // no experts
        "micro/tied-q8_0",                 // one table is embedding and lm_head
        "micro/zoo-bf16",                  // plain floats
        "arch/deepseek2/v3",               // latent attention, groups of experts, a dense first layer
        "arch/gpt-oss/mxfp4",              // sinks, windows
        "arch/qwen3next/small-fused-q8_0", // delta rule, shared experts
        "arch/granitehybrid/small-f16",    // mamba2
        "arch/jamba/tiny",                 // mamba1
        "arch/lfm2moe/small-f16",          // convolutions
        "arch/gemma4/e2b-dense",           // layers that read another's cache, embeddings of each layer
        "arch/glm-dsa/tiny",               // indexers
        "arch/llama4/scout",               // chunks
        "arch/grovemoe/main",              // chunk experts
    ];
    let open =
        |stem: &&'static str| fixtures::find(&format!("{stem}.gguf")).map(|path| (*stem, model(&path)));
    STEMS.iter().filter_map(open).collect()
}
