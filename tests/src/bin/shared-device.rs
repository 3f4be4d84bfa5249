//! Two executables of the tiny model on the CUDA backend, each loaded by itself and run on a thread of its own, one in 8 bits and
//! one in f32; what each generates, one line each. For counting what a process has of a device once.
//!
//! `shared-device [all-kernels]`: with it every kernel is loaded first.

use moe_run_backends::cuda::Cuda;
use moe_run_backends::cuda::driver::{harness, nvidia};
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Activations, Backend, CompileOptions};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_tests::fixtures;
use std::sync::Barrier;

const PROMPT: [u32; 15] = [3070, 303, 198, 354, 294, 220, 17, 10, 17, 30, 3071, 198, 3070, 304, 198];
const STEPS: usize = 6;

fn main() {
    let all = std::env::args().nth(1).is_some_and(|a| a == "all-kernels");
    let open = all.then(|| nvidia::open(0).expect("a device"));
    if let Some(driver) = &open {
        let names: Vec<&'static str> =
            harness::kernel_names().into_iter().map(|name| &*Box::leak(name.into_boxed_str())).collect();
        driver.load_kernels(&names, None);
    }
    let model = Model::open(&fixtures::tiny_q4_k_m()).expect("carried");
    let both_are_loaded = Barrier::new(2);
    let generated = &|activations| {
        let options =
            CompileOptions { activations: Some(activations), ctx_size: 64, ..CompileOptions::default() };
        let executable = Cuda.compile(&model.graph, model.file.clone(), &options).expect("compiles");
        both_are_loaded.wait();
        let mut session = Session::new(executable).expect("memory");
        session.feed(&PROMPT.map(TokenId), LogitsRows::Last, None, |_, _| Ok(())).expect("prompt");
        let step = |_| {
            let token = session.argmax().expect("a token");
            session.decode(token, None).expect("a step");
            token.0
        };
        (0..STEPS).map(step).collect::<Vec<u32>>()
    };
    let all = std::thread::scope(|scope| {
        let threads = [Activations::Q8, Activations::F32].map(|a| scope.spawn(move || generated(a)));
        threads.map(|thread| thread.join().expect("a thread"))
    });
    all.iter().for_each(|tokens| println!("{tokens:?}"));
}
