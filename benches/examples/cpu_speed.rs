//! Prompt and generation speed of the CPU backend on one model:
//! `cargo run --release -p moe-run-benches --example cpu_speed -- MODEL [THREADS [DEPTH [profile]]]`.
//!
//! Prints tokens/s of a 512-token prompt and of 128 generated tokens behind DEPTH cached ones, medians of five; with
//! `profile`, the time of each kind of launch.

use moe_run_backends::cpu::Cpu;
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Backend, BackendError, CompileOptions, Observer, ValueAccess};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::passes::{Launch, Plan};
use std::collections::BTreeMap;
use std::error::Error;
use std::time::{Duration, Instant};

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

impl Profile {
    fn print(&self, what: &str, tokens: usize) {
        let total: Duration = self.0.values().map(|s| s.0).sum();
        println!("{what}: {:.1} us a token in launches", total.as_secs_f64() * 1e6 / tokens as f64);
        for (pattern, (time, count)) in &self.0 {
            let share = 100.0 * time.as_secs_f64() / total.as_secs_f64();
            println!(
                "  {pattern:<18} {share:5.1} %  {:9.2} us each",
                time.as_secs_f64() * 1e6 / f64::from(*count)
            );
        }
    }
}

/// Time that the calling thread has run, where the system says: other programs' share of a busy machine left out.
fn on_cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).map_or(f64::NAN, |ns| ns * 1e-9)
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("which model?")?;
    let threads = args.next().map(|a| a.parse()).transpose()?;
    let depth: usize = args.next().map(|a| a.parse()).transpose()?.unwrap_or(0);
    let mode = args.next().unwrap_or_default();
    let profile = mode == "profile";
    let model = Model::open(path.as_ref())?;
    let options = CompileOptions { threads, ctx_size: 1024.max(depth + 160), ..CompileOptions::default() };
    let mut session = Session::new(Cpu.compile(&model.graph, model.file.clone(), &options)?)?;
    println!("{path}: {:?}", session.info());
    let vocab = model.config.vocab_size as u32;
    let prompt: Vec<TokenId> = (0..512.max(depth) as u32).map(|i| TokenId((i * 7919 + 13) % vocab)).collect();
    let (mut prompts, mut decodes) = (Vec::new(), Vec::new());
    let (mut prompts_cpu, mut decodes_cpu) = (Vec::new(), Vec::new());
    for _ in 0..if mode.is_empty() || profile { 6 } else { 0 } {
        session.truncate(0)?;
        let (start, cpu) = (Instant::now(), on_cpu());
        session.feed(&prompt[..512], LogitsRows::Last, None, |_, _| Ok(()))?;
        prompts.push(512.0 / start.elapsed().as_secs_f64());
        prompts_cpu.push(512.0 / (on_cpu() - cpu));
        session.truncate(depth.min(512))?;
        if depth > 512 {
            session.feed(&prompt[512..depth], LogitsRows::Last, None, |_, _| Ok(()))?;
        }
        if depth == 0 {
            session.truncate(0)?;
        }
        let mut token = TokenId(1);
        let (start, cpu) = (Instant::now(), on_cpu());
        for _ in 0..128 {
            session.decode(token, None)?;
            token = session.argmax()?;
        }
        decodes.push(128.0 / start.elapsed().as_secs_f64());
        decodes_cpu.push(128.0 / (on_cpu() - cpu));
    }
    // The first of each warms caches and page tables.
    // For a profiler: one of the two, over and over.
    for _ in 0..if mode == "prompt" { 20 } else { 0 } {
        session.truncate(0)?;
        session.feed(&prompt[..512], LogitsRows::Last, None, |_, _| Ok(()))?;
    }
    for _ in 0..if mode == "generation" { 3000 } else { 0 } {
        session.truncate(depth)?;
        session.decode(prompt[0], None)?;
    }
    if prompts.is_empty() {
        return Ok(());
    }
    let of = |x: &[f64]| median(x[1..].to_vec());
    println!("prompt {:.0} tok/s, generation {:.1} tok/s", of(&prompts), of(&decodes));
    println!("by the first thread's own time: {:.0} and {:.1}", of(&prompts_cpu), of(&decodes_cpu));
    if profile {
        let mut sums = Profile::default();
        session.truncate(0)?;
        session.feed(&prompt[..512], LogitsRows::Last, Some(&mut sums), |_, _| Ok(()))?;
        sums.print("prompt", 512);
        session.truncate(depth)?;
        let mut sums = Profile::default();
        for i in 0..64 {
            session.decode(prompt[i], Some(&mut sums))?;
        }
        sums.print("generation", 64);
    }
    Ok(())
}
