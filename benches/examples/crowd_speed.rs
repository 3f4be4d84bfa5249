//! Generation speed of the CPU backend when several sequences share its steps:
//! `cargo run --release -p moe-run-benches --example crowd_speed -- MODEL [THREADS [DEPTH [SEQUENCES,… [profile]]]]`.
//!
//! For each number of sequences it prints tokens/s of all together behind DEPTH cached ones each, the best of five runs of 32
//! steps, the ratio to one sequence, and what the memory would give where a step's time is that of its weights' bytes: a step of N
//! tokens touches E · (1 − (1 − K/E)^N) experts of a layer. With `profile`, the time of each kind of launch.

use moe_run_backends::cpu::Cpu;
use moe_run_backends::sequences::{Feed, SequenceId, Sequences};
use moe_run_backends::{Backend, BackendError, CompileOptions, Observer, ValueAccess};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::passes::{Launch, Plan};
use std::collections::BTreeMap;
use std::error::Error;
use std::time::{Duration, Instant};

const STEPS: usize = 32;
const RUNS: usize = 5;

/// Adds up launches by pattern.
#[derive(Default)]
struct Profile(BTreeMap<&'static str, (Duration, u32)>);

impl Observer for Profile {
    fn after_launch(
        &mut self,
        _: &Plan,
        launch: &Launch,
        elapsed: Duration,
        _: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        let sum = self.0.entry(launch.pattern).or_default();
        sum.0 += elapsed;
        sum.1 += 1;
        Ok(())
    }
}

/// Some steps in which each sequence gets a token; the last tokens are carried on.
fn steps(
    sequences: &mut Sequences,
    ids: &[SequenceId],
    last: &mut [TokenId],
    count: usize,
    mut profile: Option<&mut Profile>,
) -> Result<(), BackendError> {
    for _ in 0..count {
        let feeds: Vec<Feed<'_>> = ids
            .iter()
            .zip(&*last)
            .map(|(id, token)| Feed {
                sequence: *id,
                tokens: std::slice::from_ref(token),
                wants_logits: true,
            })
            .collect();
        sequences.step(&feeds, profile.as_mut().map(|profile| &mut **profile as &mut dyn Observer))?;
        for (row, token) in last.iter_mut().enumerate() {
            *token = sequences.argmax(row)?;
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("which model?")?;
    let threads = args.next().map(|a| a.parse()).transpose()?;
    let depth: usize = args.next().map(|a| a.parse()).transpose()?.unwrap_or(128);
    let counts = args.next().unwrap_or_else(|| "1,2,4,8,16,32".into());
    let counts: Vec<usize> = counts.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let wants_profile = args.next().is_some();
    let model = Model::open(path.as_ref())?;
    let most = counts.iter().copied().max().unwrap_or(1);
    let context = depth + STEPS * (RUNS + 2) + 1;
    let options =
        CompileOptions { threads, ctx_size: context, max_logits_rows: most, ..CompileOptions::default() };
    let executable = Cpu.compile(&model.graph, model.file.clone(), &options)?;
    let mut sequences = Sequences::new(executable, most * context.next_multiple_of(64), most)?;
    println!("{path}: {:?}", sequences.info());
    let vocab = model.config.vocab_size as u32;
    let mut one = None;
    for count in counts {
        let ids = (0..count).map(|_| sequences.open()).collect::<Result<Vec<_>, _>>()?;
        for (i, id) in ids.iter().enumerate() {
            let prompt: Vec<TokenId> =
                (0..depth).map(|at| TokenId((at as u32 * 7919 + 104_729 * i as u32 + 13) % vocab)).collect();
            for tokens in prompt.chunks(64) {
                sequences.step(&[Feed { sequence: *id, tokens, wants_logits: false }], None)?;
            }
        }
        let mut last: Vec<TokenId> = (0..count).map(|i| TokenId((i as u32 * 31 + 7) % vocab)).collect();
        let mut best = Duration::MAX;
        for _ in 0..RUNS {
            let started = Instant::now();
            steps(&mut sequences, &ids, &mut last, STEPS, None)?;
            best = best.min(started.elapsed());
        }
        let speed = (count * STEPS) as f64 / best.as_secs_f64();
        let one = *one.get_or_insert(speed);
        println!(
            "{count:3} sequences: {speed:8.1} tokens/s, {:6.2} x one, {:8.0} us a step",
            speed / one,
            best.as_secs_f64() * 1e6 / STEPS as f64
        );
        if wants_profile {
            let mut profile = Profile::default();
            steps(&mut sequences, &ids, &mut last, STEPS, Some(&mut profile))?;
            for (pattern, (time, launches)) in &profile.0 {
                let micros = time.as_secs_f64() * 1e6;
                println!(
                    "      {pattern:<18} {:9.1} us a step, {:8.1} us each",
                    micros / STEPS as f64,
                    micros / f64::from(*launches)
                );
            }
        }
        ids.into_iter().for_each(|id| sequences.close(id));
    }
    Ok(())
}
