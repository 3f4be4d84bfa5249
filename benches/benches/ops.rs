//! Single ops with a real model's shapes, on weights and caches that come from memory:
//! `cargo bench -p moe-run-benches --bench ops -- [--backend cpu] [--threads N] [FILTER]`.
//!
//! GB/s are weights and KV rows; the share is of what a plain read loop gets with as many threads. The shapes are
//! Qwen3-Coder-30B-A3B's: hidden 2048, 32 query and 4 KV heads of 128, 128 experts of 768, 8 a token.

use moe_run_backends::{KvType, bandwidth};
use moe_run_benches::{Arguments, OpBench, Outcome};
use moe_run_graph::quant::Format;
use std::num::NonZeroUsize;

/// An op to bench.
struct Case {
    name: String,
    tokens: usize,
    depth: usize,
    build: Box<dyn Fn(u64) -> Outcome<OpBench>>,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for tokens in [1, 512] {
        let shapes = [
            ("q_proj", 4096, 2048, Format::Q4K),
            ("v_proj", 512, 2048, Format::Q6K),
            ("o_proj", 2048, 4096, Format::Q4K),
            ("router", 128, 2048, Format::F32),
        ];
        // One shape in every format: the table of formats.
        let formats = Format::ALL.map(|format| ("dense", 2048, 2048, format));
        for (what, out, inner, format) in shapes.into_iter().chain(formats) {
            cases.push(Case {
                name: format!("matmul {what} {} [{out}, {inner}]", format.name()),
                tokens,
                depth: 0,
                build: Box::new(move |beyond| OpBench::matmuls(out, inner, format, beyond)),
            });
        }
        for (what, out, inner, own_rows, format) in [
            ("gate", 768, 2048, false, Format::Q4K),
            ("down", 2048, 768, true, Format::Q4K),
            ("down", 2048, 768, true, Format::Q6K),
        ] {
            cases.push(Case {
                name: format!("expert_matmul {what} {} [128, {out}, {inner}]", format.name()),
                tokens,
                depth: 0,
                // Some copies hold all experts in memory; a prompt reads them all.
                build: Box::new(move |beyond| {
                    let beyond = if tokens == 1 { beyond / 8 } else { beyond / 16 };
                    OpBench::expert_matmuls((128, 8), (out, inner), own_rows, format, beyond)
                }),
            });
        }
        for depth in [512, 4096] {
            cases.push(Case {
                name: format!("attention depth {depth}"),
                tokens,
                depth,
                build: Box::new(move |beyond| {
                    // A prompt's attention is bound by its arithmetic: a few copies are enough.
                    let beyond = if tokens == 1 { beyond } else { 0 };
                    OpBench::attentions((32, 4, 128), depth, |n| KvType::F16.row_bytes(n), beyond)
                }),
            });
        }
    }
    cases
}

fn main() -> Outcome<()> {
    let Arguments { backend, threads, filter } = Arguments::parse()?;
    let counted = threads.unwrap_or(std::thread::available_parallelism()?);
    let read = bandwidth::read_bytes_per_second(counted) / 1e9;
    println!("backend {}, {counted} threads; a read loop gets {read:.1} GB/s", backend.name());
    println!("| op | tokens | µs | GB/s | share | GFLOP/s |\n|---|---:|---:|---:|---:|---:|");
    for case in cases().into_iter().filter(|c| c.name.contains(&filter)) {
        let bench = (case.build)(bandwidth::beyond_cache_bytes())?;
        let timing = bench.time(backend.as_ref(), threads.map(NonZeroUsize::get), case.tokens, case.depth)?;
        println!(
            "| {} | {} | {:.1} | {:.1} | {:.0} % | {:.1} |",
            case.name,
            case.tokens,
            timing.each.as_secs_f64() * 1e6,
            timing.gb_per_second(),
            100.0 * timing.gb_per_second() / read,
            timing.gflops(),
        );
    }
    Ok(())
}
