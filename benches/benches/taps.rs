//! What looking costs: a prompt of 512 tokens with no taps, with the taps of `moe-run trace` and with all of them, with
//! and without somebody who takes their statistics:
//! `cargo bench -p moe-run-benches --bench taps -- [--backend cpu] [--threads N] [FILE]`.
//!
//! Without a file, four layers of Qwen3-Coder-30B-A3B with random weights are made in memory. The ways take turns, so
//! that a machine's moods meet all of them; each is compared with the plain pass of its own turn.

use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{CompileOptions, Observer};
use moe_run_benches::{Arguments, Outcome, median};
use moe_run_graph::Model;
use moe_run_graph::gguf::GgufFile;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::Stage;
use moe_run_graph::passes::TapSelection;
use moe_run_graph::synth::{Preset, Random, Synth, SynthOptions};
use moe_run_inspect::taps::Fanout;
use moe_run_inspect::taps::routing::RoutingSink;
use moe_run_inspect::taps::stats::{Positions, StatsSink};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::time::Instant;

const PROMPT_TOKENS: usize = 512;
const RUNS: usize = 9;

/// The stages that `moe-run trace` looks at unless asked for more.
const TRACE: &[Stage] = &[
    Stage::Embedding,
    Stage::AttnNorm,
    Stage::QkvMatmul,
    Stage::AttnOut,
    Stage::FfnNorm,
    Stage::MoeTopkIds,
    Stage::MoeRouter,
    Stage::MoeFfnOut,
    Stage::PostFfnResidual,
    Stage::FinalNorm,
    Stage::LmHead,
];

/// Who looks at a pass.
#[derive(Clone, Copy)]
enum Look {
    /// Nobody: the launches run as one job.
    Away,
    /// Somebody who does nothing: the launches are held one from another.
    Held,
    /// Statistics of the last position, as `moe-run trace` takes them.
    Last,
    /// Statistics of every position.
    All,
}

struct Nothing;

impl Observer for Nothing {}

fn model(path: &str) -> Outcome<Model> {
    if !path.is_empty() {
        return Ok(Model::open(std::path::Path::new(path))?);
    }
    let preset = Preset::by_name("qwen3-coder-30b-a3b").ok_or("the preset is gone")?;
    let options =
        SynthOptions { preset, num_hidden_layers: Some(4), seed: 0, vocabulary: None, format: None };
    let threads = std::thread::available_parallelism()?;
    let bytes = Synth::new(&options)?.write(Vec::new(), threads, |_| ControlFlow::Continue(()))?;
    Ok(Model::from_file(GgufFile::from_bytes("four layers", bytes)?)?)
}

/// Seconds of one prompt.
fn pass(session: &mut Session, tokens: &[TokenId], look: Look) -> Outcome<f64> {
    session.truncate(0)?;
    let start = Instant::now();
    let positions = match look {
        Look::All => Positions::All,
        _ => Positions::Only(tokens.len() as u32 - 1),
    };
    let (mut stats, mut routing, mut nothing) = (StatsSink::new(positions), RoutingSink::default(), Nothing);
    let mut both = Fanout { sinks: vec![&mut stats, &mut routing] };
    let observer: Option<&mut dyn Observer> = match look {
        Look::Away => None,
        Look::Held => Some(&mut nothing),
        Look::Last | Look::All => Some(&mut both),
    };
    session.feed(tokens, LogitsRows::Last, observer, |_, _| Ok(()))?;
    session.argmax()?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(first) = stats.first_non_finite() {
        return Err(format!("{} is not finite", first.stage.path(first.layer)).into());
    }
    Ok(seconds)
}

fn main() -> Outcome<()> {
    let Arguments { backend, threads, filter } = Arguments::parse()?;
    let model = model(&filter)?;
    let trace: TapSelection = model
        .graph
        .taps()
        .filter(|(_, stage)| TRACE.contains(stage))
        .map(|(node, stage)| (stage, node.layer.map(|l| l.index())))
        .collect();
    let compile = |taps: TapSelection| -> Outcome<Session> {
        let options = CompileOptions {
            threads: threads.map(NonZeroUsize::get),
            ctx_size: PROMPT_TOKENS,
            taps,
            ..CompileOptions::default()
        };
        Ok(Session::new(backend.compile(&model.graph, model.file.clone(), &options)?)?)
    };
    // One compiled graph for each selection of taps; the ways share them.
    let mut sessions = [compile(TapSelection::None)?, compile(trace)?, compile(TapSelection::All)?];
    let ways = [
        ("no taps", 0, Look::Away),
        ("no taps, again", 0, Look::Away),
        ("no taps, held between launches", 0, Look::Held),
        ("taps of trace, nobody looks", 1, Look::Away),
        ("taps of trace, statistics of the last position", 1, Look::Last),
        ("taps of trace, statistics of all positions", 1, Look::All),
        ("all taps, nobody looks", 2, Look::Away),
        ("all taps, held between launches", 2, Look::Held),
        ("all taps, statistics of the last position", 2, Look::Last),
        ("all taps, statistics of all positions", 2, Look::All),
    ];
    let mut random = Random::new(&[3]);
    let vocab = model.config.vocab_size as u64;
    let mut seconds = vec![Vec::new(); ways.len()];
    let mut over = vec![Vec::new(); ways.len()];
    for run in 0..=RUNS {
        let tokens: Vec<TokenId> =
            (0..PROMPT_TOKENS).map(|_| TokenId((random.next_u64() % vocab) as u32)).collect();
        let mut plain = 0.0;
        for (i, (_, session, look)) in ways.iter().enumerate() {
            let took = pass(&mut sessions[*session], &tokens, *look)?;
            if i == 0 {
                plain = took;
            }
            // The first turn warms up.
            if run > 0 {
                seconds[i].push(took);
                over[i].push(100.0 * (took / plain - 1.0));
            }
        }
    }
    let info = sessions[0].info();
    println!(
        "backend {} on {}, {} threads, activations {}",
        info.backend, info.device, info.threads, info.activations
    );
    println!(
        "{:48} {:>10} {:>10} {:>19}",
        "prompt of 512 tokens", "tokens/s", "over plain", "smallest .. largest"
    );
    for (i, (name, ..)) in ways.iter().enumerate() {
        let tokens_per_second = PROMPT_TOKENS as f64 / median(&mut seconds[i]);
        let middle = median(&mut over[i]);
        let (least, most) = (over[i][0], over[i][RUNS - 1]);
        println!("{name:48} {tokens_per_second:>10.1} {middle:>8.1} % {least:>8.1} .. {most:>6.1} %");
    }
    Ok(())
}
