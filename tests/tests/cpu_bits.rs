//! What the CPU backend promises about bits: any thread count, any set of taps, held between launches or not.

use moe_run_backends::cpu::Cpu;
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Backend, BackendError, CompileOptions, KvType, Observer, TapValue};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::passes::TapSelection;
use moe_run_tests::{fixtures, relative_l2};

/// Counts taps; that it is there makes the executable run launch by launch.
#[derive(Default)]
struct Count(usize);

impl Observer for Count {
    fn tap(&mut self, _: &TapValue<'_>) -> Result<(), BackendError> {
        self.0 += 1;
        Ok(())
    }
}

/// Logits after a prompt, and after each of four more tokens.
fn logits(model: &Model, options: &CompileOptions, prompt: usize, watched: bool) -> Vec<Vec<f32>> {
    let executable = Cpu.compile(&model.graph, model.file.clone(), options).unwrap();
    let mut session = Session::new(executable).unwrap();
    let vocab = model.config.vocab_size;
    let token = |i: usize| TokenId(((i * 7919 + 13) % vocab) as u32);
    let tokens: Vec<TokenId> = (0..prompt).map(token).collect();
    let mut count = Count::default();
    let mut rows = vec![Vec::new(); 5];
    let watch: Option<&mut dyn Observer> = if watched { Some(&mut count) } else { None };
    session.feed(&tokens, LogitsRows::Last, watch, |_, _| Ok(())).unwrap();
    session.logits(&mut rows[0]).unwrap();
    for i in 1..5 {
        let watch: Option<&mut dyn Observer> = if watched { Some(&mut count) } else { None };
        session.decode(token(prompt + i), watch).unwrap();
        session.logits(&mut rows[i]).unwrap();
    }
    assert_eq!(count.0 > 0, watched && !options.taps.is_empty());
    rows
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|r| r.iter().map(|x| x.to_bits()).collect()).collect()
}

fn tiny() -> Model {
    Model::open(&fixtures::tiny_q4_k_m()).unwrap()
}

#[test]
fn any_thread_count_gives_the_same_bits() {
    let model = tiny();
    for (kv_type, prompt) in [(KvType::F16, 37), (KvType::Q8_0, 9), (KvType::F16, 1100)] {
        let options = |threads| CompileOptions {
            threads: Some(threads),
            kv_type,
            ctx_size: prompt + 8,
            ..CompileOptions::default()
        };
        let one = logits(&model, &options(1), prompt, false);
        assert!(one.iter().flatten().all(|x| x.is_finite()));
        for threads in [2, 3, 7] {
            let many = logits(&model, &options(threads), prompt, false);
            assert!(bits(&one) == bits(&many), "{threads} threads, {kv_type}, {prompt} tokens");
        }
    }
}

#[test]
fn taps_and_watching_change_no_bit() {
    let model = tiny();
    let options = CompileOptions { threads: Some(2), ctx_size: 64, ..CompileOptions::default() };
    let plain = logits(&model, &options, 21, false);
    assert!(bits(&plain) == bits(&logits(&model, &options, 21, true)), "watched");
    let tapped = CompileOptions { taps: TapSelection::All, ..options };
    assert!(bits(&plain) == bits(&logits(&model, &tapped, 21, true)), "all taps");
    assert!(bits(&plain) == bits(&logits(&model, &tapped, 21, false)), "all taps, nobody watching");
}

#[test]
fn a_prompt_in_pieces_gives_the_same_logits() {
    let model = tiny();
    let whole = CompileOptions { threads: Some(2), ctx_size: 700, ..CompileOptions::default() };
    let want = logits(&model, &whole, 650, false);
    for micro_batch in [1, 5, 64] {
        let options = CompileOptions { micro_batch: Some(micro_batch), ..whole.clone() };
        for (got, want) in logits(&model, &options, 650, false).iter().zip(&want) {
            // Other kernels and another order of sums: rounding, and what it does to the 8-bit steps behind it.
            let distance = relative_l2(got, want);
            assert!(distance < 3e-2, "micro-batch {micro_batch}: {distance:.2e}");
        }
    }
}
