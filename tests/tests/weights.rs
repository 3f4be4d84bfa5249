//! Weights apart from plans, on every backend: executables of one load give the bits that they give alone, the weights live
//! as long as anybody reads them, and a graph with others is refused.

use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{BackendError, CompileOptions, Executable, KvType, WeightSource};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{Op, WeightId};
use moe_run_graph::passes::TapSelection;
use moe_run_graph::quant::Format;
use moe_run_tests::{Subject, every_subject, fixtures};
use std::sync::Arc;

const TOKENS: [u32; 8] = [3070, 303, 198, 354, 294, 220, 17, 10];

/// A small context, and a larger one with every tap, another cache and steps of another size.
fn options(subject: &Subject) -> [CompileOptions; 2] {
    let small = CompileOptions { device: subject.device.clone(), ctx_size: 32, ..CompileOptions::default() };
    let large = CompileOptions {
        ctx_size: 300,
        kv_type: KvType::F32,
        micro_batch: Some(3),
        taps: TapSelection::All,
        ..small.clone()
    };
    [small, large]
}

/// The bits of the logits behind a prompt and behind each token that follows it, one step of each session in turn.
fn logits(executables: Vec<Box<dyn Executable>>) -> Vec<Vec<u32>> {
    let mut sessions: Vec<Session> = executables.into_iter().map(|e| Session::new(e).unwrap()).collect();
    let mut all = vec![Vec::new(); sessions.len()];
    let (prompt, rest) = TOKENS.split_at(5);
    for part in std::iter::once(prompt).chain(rest.chunks(1)) {
        let tokens: Vec<TokenId> = part.iter().copied().map(TokenId).collect();
        for session in &mut sessions {
            session.feed(&tokens, LogitsRows::Last, None, |_, _| Ok(())).unwrap();
        }
        // Both steps are on their way before either is read.
        for (session, bits) in sessions.iter_mut().zip(&mut all) {
            let mut row = Vec::new();
            session.logits(&mut row).unwrap();
            bits.extend(row.iter().map(|x| x.to_bits()));
        }
    }
    all
}

#[test]
fn executables_of_one_load_give_the_bits_that_they_give_alone() {
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let source: Arc<dyn WeightSource> = model.file.clone();
    for subject in every_subject() {
        let backend = subject.backend.as_ref();
        let options = options(&subject);
        let alone: Vec<Vec<u32>> = options
            .iter()
            .flat_map(|o| logits(vec![backend.compile(&model.graph, Arc::clone(&source), o).unwrap()]))
            .collect();
        let weights = backend.load(&model.graph, Arc::clone(&source), &options[0]).unwrap();
        let together = options.iter().map(|o| weights.compile(&model.graph, o).unwrap()).collect();
        // The executables hold what they read.
        drop(weights);
        let together = logits(together);
        assert!(together == alone, "{}", backend.name());
        assert!(
            alone[0] != alone[1],
            "{}: the two contexts differ in their caches' rounding",
            backend.name()
        );
    }
}

/// The same tensors under other ids, for another graph: found by name.
#[test]
fn another_graph_of_the_same_weights_is_compiled() {
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let source: Arc<dyn WeightSource> = model.file.clone();
    let mut graph = model.graph.clone();
    let last = graph.weights.len() as u32 - 1;
    graph.weights.reverse();
    let turned = |id: &mut WeightId| id.0 = last - id.0;
    graph.weights.iter_mut().for_each(|decl| turned(&mut decl.id));
    for node in &mut graph.nodes {
        match &mut node.op {
            Op::Embed { table, scale: _ } => turned(&mut table.tensor),
            Op::RmsNorm { weight, .. } => weight.iter_mut().for_each(turned),
            Op::MatMul { weight, bias, .. } | Op::ExpertMatMul { weight, bias } => {
                turned(&mut weight.tensor);
                bias.iter_mut().for_each(turned);
            }
            Op::Router(attrs) => {
                attrs.selection_bias.iter_mut().for_each(turned);
            }
            _ => {}
        }
    }
    for subject in every_subject() {
        let backend = subject.backend.as_ref();
        let [small, _] = options(&subject);
        let weights = backend.load(&model.graph, Arc::clone(&source), &small).unwrap();
        let executables = [&model.graph, &graph].map(|graph| weights.compile(graph, &small).unwrap());
        let [one, other] = &logits(executables.into())[..] else { unreachable!() };
        assert!(one == other, "{}", backend.name());
    }
}

#[test]
fn a_graph_with_other_weights_is_refused() {
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let source: Arc<dyn WeightSource> = model.file.clone();
    let matrix = model.graph.weights.iter().position(|d| d.name == "blk.1.attn_q.weight").unwrap();
    let mut renamed = model.graph.clone();
    renamed.weights[matrix].name = "blk.9.attn_q.weight".into();
    let mut reformatted = model.graph.clone();
    reformatted.weights[matrix].format = Format::Q8_0;
    let mut reshaped = model.graph.clone();
    reshaped.weights[matrix].shape[0] += 16;
    for subject in every_subject() {
        let backend = subject.backend.as_ref();
        let [small, _] = options(&subject);
        let weights = backend.load(&model.graph, Arc::clone(&source), &small).unwrap();
        for (graph, tensor) in [
            (&renamed, "blk.9.attn_q.weight"),
            (&reformatted, "blk.1.attn_q.weight"),
            (&reshaped, "blk.1.attn_q.weight"),
        ] {
            let error = weights.compile(graph, &small).err().unwrap();
            let BackendError::NotLoaded { name, wanted, found } = &error else { panic!("{error}") };
            assert_eq!(name, tensor, "{}", backend.name());
            assert_ne!(wanted, found, "{}", backend.name());
        }
        weights.compile(&model.graph, &small).unwrap();
    }
}
