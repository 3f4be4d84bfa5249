//! Prefill and decode of a model of real shapes, two layers of Qwen3-Coder-30B-A3B with a small vocabulary and random
//! weights, made in memory: `cargo bench -p moe-run-benches --bench model -- [--backend cpu] [--threads N]`.
//!
//! For files, and for other numbers of tokens, there is `moe-run bench`; this needs none, and shows the layers alone.

use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{CompileOptions, bandwidth};
use moe_run_benches::{Arguments, Outcome, median};
use moe_run_graph::Model;
use moe_run_graph::cost::step_cost;
use moe_run_graph::gguf::GgufFile;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::StepSizes;
use moe_run_graph::synth::{Preset, Random, Synth, SynthOptions};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::time::Instant;

const VOCAB: usize = 8192;
const PROMPT_TOKENS: usize = 512;
const GENERATED_TOKENS: usize = 64;
const RUNS: usize = 7;

fn model() -> Outcome<Model> {
    let real = Preset::by_name("qwen3-coder-30b-a3b").ok_or("the preset is gone")?;
    let preset = Box::leak(Box::new(Preset { vocab_size: VOCAB, ..*real }));
    let options =
        SynthOptions { preset, num_hidden_layers: Some(2), seed: 0, vocabulary: None, format: None };
    let threads = std::thread::available_parallelism()?;
    let bytes = Synth::new(&options)?.write(Vec::new(), threads, |_| ControlFlow::Continue(()))?;
    Ok(Model::from_file(GgufFile::from_bytes("two layers", bytes)?)?)
}

fn main() -> Outcome<()> {
    let Arguments { backend, threads, .. } = Arguments::parse()?;
    let model = model()?;
    let options = CompileOptions {
        threads: threads.map(NonZeroUsize::get),
        ctx_size: PROMPT_TOKENS,
        ..CompileOptions::default()
    };
    let mut session = Session::new(backend.compile(&model.graph, model.file.clone(), &options)?)?;
    let mut random = Random::new(&[2]);
    let mut ids = |count: usize| -> Vec<TokenId> {
        (0..count).map(|_| TokenId((random.next_u64() % VOCAB as u64) as u32)).collect()
    };
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for run in 0..=RUNS {
        session.truncate(0)?;
        let tokens = ids(PROMPT_TOKENS);
        let start = Instant::now();
        session.feed(&tokens, LogitsRows::Last, None, |_, _| Ok(()))?;
        session.argmax()?;
        let prompt_seconds = start.elapsed().as_secs_f64();
        session.truncate(0)?;
        let tokens = ids(GENERATED_TOKENS);
        let start = Instant::now();
        for token in tokens {
            session.decode(token, None)?;
            session.argmax()?; // waits for a device; fails on a NaN
        }
        // The first warms up.
        if run > 0 {
            prefill.push(prompt_seconds);
            decode.push(start.elapsed().as_secs_f64());
        }
    }
    let sizes = StepSizes { tokens: 1, logits_rows: 1, cached: GENERATED_TOKENS / 2 };
    let plan = session.executable().plan(1);
    let step_bytes = step_cost(plan, sizes, &|elems| options.kv_type.row_bytes(elems)).streamed_bytes();
    let counted = NonZeroUsize::new(session.info().threads).unwrap_or(NonZeroUsize::MIN);
    let read = bandwidth::read_bytes_per_second(counted) / 1e9;
    let decode_each = median(&mut decode) / GENERATED_TOKENS as f64;
    let gb_per_second = step_bytes as f64 / decode_each / 1e9;
    println!("backend {}, {counted} threads; a read loop gets {read:.1} GB/s", session.info().backend);
    println!(
        "prefill of {PROMPT_TOKENS} tokens: {:.1} tokens/s",
        PROMPT_TOKENS as f64 / median(&mut prefill)
    );
    println!(
        "decode of {GENERATED_TOKENS} tokens: {:.1} tokens/s, {gb_per_second:.1} GB/s, {:.0} % of the read loop",
        1.0 / decode_each,
        100.0 * gb_per_second / read
    );
    Ok(())
}
