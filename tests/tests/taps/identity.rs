//! Bit-identity: the logits with any taps, and with an observer that looks at every launch, are those without.

use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{BackendError, CompileOptions, Observer, ValueAccess, WeightSource};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::Stage;
use moe_run_graph::passes::{Launch, Plan, TapSelection};
use moe_run_tests::{Subject, fixtures};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Counts taps and adds up times, as a profile does.
#[derive(Default)]
struct Profile {
    taps: usize,
    launches: usize,
    time: Duration,
}

impl Observer for Profile {
    fn after_launch(
        &mut self,
        _plan: &Plan,
        _launch: &Launch,
        elapsed: Duration,
        _values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        self.launches += 1;
        self.time += elapsed;
        Ok(())
    }

    fn tap(&mut self, _tap: &moe_run_backends::TapValue<'_>) -> Result<(), BackendError> {
        self.taps += 1;
        Ok(())
    }
}

/// The bits of every row of logits: a prompt in one step, then two tokens one by one.
fn logits(subject: &Subject, model: &Model, taps: TapSelection, profile: Option<&mut Profile>) -> Vec<u32> {
    let tokens: Vec<TokenId> =
        (0..9u32).map(|i| TokenId((i * 7919 + 3) % model.config.vocab_size as u32)).collect();
    let options = CompileOptions {
        ctx_size: 64,
        micro_batch: Some(16),
        device: subject.device.clone(),
        max_logits_rows: 16,
        taps,
        ..CompileOptions::default()
    };
    let weights: Arc<dyn WeightSource> = model.file.clone();
    let executable = subject.backend.compile(&model.graph, weights, &options).unwrap();
    let mut session = Session::new(executable).unwrap();
    let mut nobody = Profile::default();
    let looked_at = profile.is_some();
    let observer = profile.unwrap_or(&mut nobody);
    let (mut bits, mut row) = (Vec::new(), Vec::new());
    let mut keep = |logits: &[f32]| bits.extend(logits.iter().map(|x| x.to_bits()));
    session
        .feed(
            &tokens[..7],
            LogitsRows::All,
            looked_at.then_some(&mut *observer as &mut dyn Observer),
            |executable, range| {
                for r in 0..range.len() {
                    executable.logits(r, &mut row)?;
                    keep(&row);
                }
                Ok(())
            },
        )
        .unwrap();
    for token in &tokens[7..] {
        session.decode(*token, looked_at.then_some(&mut *observer as &mut dyn Observer)).unwrap();
        session.logits(&mut row).unwrap();
        keep(&row);
    }
    bits
}

/// Which taps are looked at one at a time.
#[derive(Clone, Copy, PartialEq)]
enum Singles {
    None,
    /// Of one layer: inside groups, at their ends, and recomputed.
    Few(usize),
    All,
}

const FEW: [Stage; 5] =
    [Stage::AttnScores, Stage::QPostRope, Stage::FfnSilu, Stage::FfnOut, Stage::PostFfnResidual];

/// None against all, with and without an observer; then single ones.
fn identical(subject: &Subject, path: &Path, singles: Singles) {
    let model = Model::open(path).unwrap();
    let name = format!("{} {}", subject.backend.name(), path.display());
    let started = Instant::now();
    let plain = logits(subject, &model, TapSelection::None, None);
    let mut profile = Profile::default();
    assert!(logits(subject, &model, TapSelection::None, Some(&mut profile)) == plain, "{name}: profiled");
    assert!(profile.launches > 0 && profile.taps == 0, "{name}: the profile saw nothing");
    let mut all = Profile::default();
    assert!(logits(subject, &model, TapSelection::All, Some(&mut all)) == plain, "{name}: all taps");
    assert_eq!(all.taps, 3 * model.graph.taps().count(), "{name}: every tap in each of three steps");
    assert!(logits(subject, &model, TapSelection::All, None) == plain, "{name}: all taps, nobody looks");
    let mut count = 0;
    for (node, stage) in model.graph.taps() {
        let layer = node.layer.map(|l| l.index());
        let wanted = match singles {
            Singles::None => false,
            Singles::Few(only) => layer == Some(only) && FEW.contains(&stage),
            Singles::All => true,
        };
        if wanted {
            let mut profile = Profile::default();
            let tapped = logits(subject, &model, [(stage, layer)].into_iter().collect(), Some(&mut profile));
            assert!(tapped == plain, "{name}: tap {} changes the logits", stage.path(layer));
            assert_eq!(profile.taps, 3, "{name}: {}", stage.path(layer));
            count += 1;
        }
    }
    println!("{name}: {} logits the same with {count} single taps, {:.1?}", plain.len(), started.elapsed());
}

/// Two models of each kind: attention with experts, with sinks and post-norms, recurrent layers, latent attention.
const KINDS: [&str; 8] = [
    "glm4moe/air",
    "qwen2moe/fused-qkv",
    "gpt-oss/mxfp4",
    "gemma4/a4b",
    "qwen35moe/small-f16",
    "granitehybrid/small-f16",
    "deepseek2/v3",
    "mistral4/small-4",
];

fn looking_changes_no_bit(name: &str) {
    let Some(subject) = moe_run_tests::every_subject().into_iter().find(|s| s.backend.name() == name) else {
        eprintln!("SKIPPED: backend {name} is not in this build, or has no device here");
        return;
    };
    if !fixtures::full() && subject.in_software() {
        // A few taps of one model, and groups of recurrent layers and of latent attention; the rest takes minutes.
        for (stem, model, _) in fixtures::architecture_models() {
            if ["qwen35moe/small-f16", "deepseek2/v3"].contains(&stem) {
                identical(&subject, &model, Singles::None);
            }
        }
        return identical(&subject, &fixtures::tiny_q4_k_m(), Singles::Few(3));
    }
    for (stem, model, _) in fixtures::micro_models() {
        let single = fixtures::full() || stem.starts_with("mixed") || stem.starts_with("wide");
        identical(&subject, &model, if single { Singles::All } else { Singles::None });
    }
    for (stem, model, _) in fixtures::architecture_models() {
        let single = fixtures::full() || KINDS.contains(&stem);
        identical(&subject, &model, if single { Singles::All } else { Singles::None });
    }
    identical(&subject, &fixtures::tiny_q4_k_m(), Singles::All);
}

#[test]
fn looking_changes_no_bit_on_the_reference() {
    looking_changes_no_bit("reference");
}

#[test]
fn looking_changes_no_bit_on_the_cpu() {
    looking_changes_no_bit("cpu");
}

#[test]
fn looking_changes_no_bit_on_wgpu() {
    looking_changes_no_bit("wgpu");
}

#[test]
fn looking_changes_no_bit_on_cuda() {
    looking_changes_no_bit("cuda");
}
