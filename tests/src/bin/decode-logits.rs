//! Logits of the tiny model on the CUDA backend, as hashes of their bits, one line a row: of a prompt in one step, then of
//! tokens one by one, whose steps are recorded and replayed. For comparing two devices.
//!
//! `decode-logits ACTIVATIONS [DEVICE]`

use moe_run_backends::cuda::Cuda;
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Activations, Backend, CompileOptions};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_tests::fixtures;
use std::hash::{DefaultHasher, Hash, Hasher};

const PROMPT: [u32; 15] = [3070, 303, 198, 354, 294, 220, 17, 10, 17, 30, 3071, 198, 3070, 304, 198];
const STEPS: usize = 6;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let activations = match args[1].as_str() {
        "f32" => Activations::F32,
        "q8" => Activations::Q8,
        other => panic!("activations {other}"),
    };
    let model = Model::open(&fixtures::tiny_q4_k_m()).expect("carried");
    let options = CompileOptions {
        device: args.get(2).cloned(),
        activations: Some(activations),
        ctx_size: 64,
        ..CompileOptions::default()
    };
    let executable = Cuda.compile(&model.graph, model.file.clone(), &options).expect("compiles");
    let mut session = Session::new(executable).expect("memory");
    session.feed(&PROMPT.map(TokenId), LogitsRows::Last, None, |_, _| Ok(())).expect("prompt");
    let mut logits = Vec::new();
    for _ in 0..STEPS {
        session.logits(&mut logits).expect("logits");
        let mut hash = DefaultHasher::new();
        logits.iter().for_each(|l| l.to_bits().hash(&mut hash));
        let token = session.argmax().expect("a token");
        println!("{} logits {:016x}, best {}", logits.len(), hash.finish(), token.0);
        session.decode(token, None).expect("a step");
    }
}
