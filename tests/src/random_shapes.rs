//! Random shapes of every op on a backend against the reference: so many an op, spread over the formats, the kinds of
//! activations and the types of cache. `MOE_OP=matmul` runs one op alone.

use moe_run_backends::reference::Reference;
use moe_run_backends::{Activations, Backend, CompileOptions, HostTensor, KvType};
use moe_run_graph::quant::Format;
use moe_run_inspect::cases::{self, OPS, TOLERANCE};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Enough of every op that all edges of its shapes are met.
pub const ALL: usize = 300;

/// A backend as it is to run a shape, and what to call it in a failure.
pub type Variant<'a> = (String, &'a dyn Backend);

/// What shape `i` of an op runs under.
fn options(op: &str, i: usize) -> CompileOptions {
    let reads_weights = matches!(op, "matmul" | "expert_matmul");
    let activations = if reads_weights {
        [Activations::Q8, Activations::F32, Activations::F16]
    } else {
        [Activations::F32; 3]
    };
    let kv_types = if op.starts_with("attention") || op == "kv_write" { KvType::ALL } else { &[KvType::F32] };
    CompileOptions {
        // Another step than the formats' 16, so that all pairs meet.
        activations: Some(activations[i / 16 % 3]),
        kv_type: kv_types[i % kv_types.len()],
        ..CompileOptions::default()
    }
}

/// Runs shape `i` of an op on every variant: the shape's name, and the worst distance.
fn check(op: &str, i: usize, variants: Vec<Variant<'_>>) -> (String, f64) {
    let format = if cases::takes_formats(op) { Format::ALL[i % Format::ALL.len()] } else { Format::F32 };
    let case = cases::case(op, format, 10_000 + i as u64).expect("a known op").expect("a case");
    let options = options(op, i);
    let typical = cases::typical(&case);
    let mut wanted: Option<Vec<HostTensor>> = None;
    let mut worst: f64 = 0.0;
    for (variant, backend) in variants {
        let failed = |e| -> ! { panic!("{} on {variant}: {e}", case.name) };
        let mut executable = match cases::compile(&case, backend, &options) {
            Ok(executable) => executable,
            Err(error) if cases::is_refusal(&error) => continue,
            Err(error) => failed(error),
        };
        let found = cases::run_steps(&case, executable.as_mut()).unwrap_or_else(|e| failed(e));
        let same = cases::same_definition(executable.info());
        let wanted =
            wanted.get_or_insert_with(|| cases::run(&case, &Reference, &same).expect("runs any case"));
        assert_eq!(found.len(), wanted.len(), "{}", case.name);
        for (result, (found, wanted)) in found.iter().zip(wanted).enumerate() {
            let distance = cases::distance_of_typical(found, wanted, typical);
            assert!(
                distance <= TOLERANCE,
                "{} on {variant}, activations {:?}, kv {}: result {result}: relative L2 {distance:.3e}",
                case.name,
                options.activations,
                options.kv_type
            );
            worst = worst.max(distance);
        }
    }
    (case.name, worst)
}

/// Runs `shapes` shapes of every op, shape `i` on `variants(i)`.
///
/// # Panics
/// Where a result is further from the reference than the tolerance; and where [`ALL`] shapes miss an edge.
pub fn every_op<'a>(shapes: usize, variants: &(dyn Fn(usize) -> Vec<Variant<'a>> + Sync)) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let one = std::env::var("MOE_OP").ok();
    for op in OPS.iter().filter(|op| one.as_deref().is_none_or(|one| one == **op)) {
        let start = Instant::now();
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= shapes {
                            return;
                        }
                        let result = check(op, i, variants(i));
                        done.lock().expect("no panic").push(result);
                    }
                });
            }
        });
        let done = done.into_inner().expect("no panic");
        assert_eq!(done.len(), shapes);
        let worst = done.iter().map(|(_, worst)| *worst).fold(0.0, f64::max);
        println!("{op}: {shapes} shapes, worst {worst:.1e}, {:.1} s", start.elapsed().as_secs_f64());
        if shapes >= ALL {
            let edges: &[&str] = match *op {
                "matmul" | "embed" => &[" T=1 ", " T=257 "],
                "expert_matmul" => &[" T=1 ", " T=257 ", " E=1 ", " E=128 ", " K=1 ", " K=8 "],
                "attention" => &[" T=31+", " T=32+", " T=33+", " T=127+", " T=129+", " T=257+"],
                _ => &[],
            };
            for edge in edges {
                assert!(done.iter().any(|(name, _)| name.contains(edge)), "{op}: no shape has{edge}");
            }
        }
    }
}
