//! Whatever is compiled, weights are loaded once: shared by the unit tests of the backends that count what they upload, which
//! include this file.

use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::Op;
use moe_run_graph::passes::TapSelection;
use moe_run_inspect::parity::{Against, Comparison, ForcedRun, Options, SaveAround, Subject};
use moe_run_inspect::taps::save::{Capture, ModelIdentity, SaveOptions, SaveSink};
use moe_run_inspect::taps::tensor_file::FileFormat;
use moe_run_inspect::tolerance::Relation;
use moe_run_reference::Reference;
use moe_run_runtime::executable::{Activations, Backend, CompileOptions, Observer, WeightSource};
use moe_run_runtime::session::{LogitsRows, Session};
use std::path::Path;
use std::sync::Arc;

/// "What is 2+2?", without the template's end.
const TOKENS: [u32; 5] = [3070, 303, 198, 354, 294];

struct Nobody;
impl Observer for Nobody {}

/// An answer, a trace that saves every stage behind it, and a larger context; then parity of a wrong model, with its forced run
/// and the stages around what it finds. `uploaded` counts the bytes of matrices that went to the device so far.
pub fn check(backend: &dyn Backend, uploaded: &dyn Fn() -> u64) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/models/tiny-qwen3moe-q4_k_m.gguf");
    let model = Model::open(Path::new(path)).unwrap();
    let source: Arc<dyn WeightSource> = model.file.clone();
    let (tokens, dir) = (TOKENS.map(TokenId), tempfile::tempdir().unwrap());
    let options = |ctx_size, taps| CompileOptions {
        activations: Some(Activations::F32),
        ctx_size,
        max_logits_rows: tokens.len(),
        taps,
        ..CompileOptions::default()
    };

    let before = uploaded();
    let weights = backend.load(&model.graph, Arc::clone(&source), &options(64, TapSelection::None)).unwrap();
    let once = uploaded() - before;
    // The rest are norms.
    assert!(once > 0 && once <= weights.size_bytes() && once * 20 > weights.size_bytes() * 19);

    let session = |options| Session::new(weights.compile(&model.graph, &options).unwrap()).unwrap();
    let mut answer = session(options(64, TapSelection::None));
    answer.feed(&tokens, LogitsRows::Last, None, |_, _| Ok(())).unwrap();
    for _ in 0..3 {
        let token = answer.argmax().unwrap();
        answer.decode(token, None).unwrap();
    }
    let mut traced = session(options(64, TapSelection::All));
    let capture = Capture {
        graph: &model.graph,
        taps: &TapSelection::All,
        tokens: &tokens,
        logits_rows: LogitsRows::All,
        model: ModelIdentity::of(&model.file),
        architecture: &model.config.architecture,
        executable: traced.info(),
    };
    let place =
        |name: &str| SaveOptions { dir: dir.path().join(name), format: FileFormat::Aprt, overwrite: false };
    let mut sink = SaveSink::create(place("trace"), &capture).unwrap();
    traced.feed(&tokens, LogitsRows::All, Some(&mut sink), |_, _| Ok(())).unwrap();
    assert!(sink.finish().unwrap().join("layer-0").is_dir());
    let mut larger = session(options(256, TapSelection::None));
    larger.feed(answer.tokens(), LogitsRows::Last, None, |_, _| Ok(())).unwrap();
    assert_eq!(larger.argmax().unwrap(), answer.argmax().unwrap());
    assert_eq!(uploaded() - before, once);

    let mut wrong = model.graph.clone();
    let is_router = |op: &Op| matches!(op, Op::Router(_));
    let router = wrong.nodes.iter_mut().filter(|n| is_router(&n.op)).nth(2).unwrap();
    let Op::Router(attrs) = &mut router.op else { unreachable!() };
    attrs.norm_topk_prob = !attrs.norm_topk_prob;
    let subject = Subject { backend, graph: &wrong, weights: Arc::clone(&source), hook: None };
    let compared = Options {
        tokens: tokens.into(),
        decode_tokens: 2,
        forced: ForcedRun::Always,
        compile: options(64, TapSelection::None),
        saved_relation: Relation::Same,
        model: None,
    };
    let against = Against::Backend(&Reference, None);
    let mut comparison = Comparison::new(&model.graph, &source, subject, against, &compared).unwrap();
    let report = comparison.report().unwrap();
    assert_eq!(report.first.as_ref().map(|f| f.op.as_str()), Some("layer-2/router_topk"));
    let save = SaveAround {
        options: place("around"),
        model: ModelIdentity::of(&model.file),
        architecture: &model.config.architecture,
    };
    assert_eq!(comparison.save_around(&report, &save, &mut Nobody).unwrap().len(), 2);
    assert_eq!(uploaded() - before, 2 * once);
}
