//! Bit-identity: the logits with any taps, and with an observer that looks at every launch, are those without.

use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{BackendError, CompileOptions, Observer, ValueAccess, WeightSource};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::passes::{Launch, Plan, TapSelection};
use moe_run_tests::{Subject, fixtures, subjects};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

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

fn identical(subject: &Subject, path: &Path, each_single: bool) {
    let model = Model::open(path).unwrap();
    let name = format!("{} {}", subject.backend.name(), path.display());
    let plain = logits(subject, &model, TapSelection::None, None);
    let mut profile = Profile::default();
    assert!(logits(subject, &model, TapSelection::None, Some(&mut profile)) == plain, "{name}: profiled");
    assert!(profile.launches > 0 && profile.taps == 0, "{name}: the profile saw nothing");
    let mut all = Profile::default();
    assert!(logits(subject, &model, TapSelection::All, Some(&mut all)) == plain, "{name}: all taps");
    assert_eq!(all.taps, 3 * model.graph.taps().count(), "{name}: every tap in each of three steps");
    assert!(logits(subject, &model, TapSelection::All, None) == plain, "{name}: all taps, nobody looks");
    if each_single {
        for (node, stage) in model.graph.taps() {
            let tap = (stage, node.layer.map(|l| l.index()));
            let mut profile = Profile::default();
            let tapped = logits(subject, &model, [tap].into_iter().collect(), Some(&mut profile));
            assert!(tapped == plain, "{name}: tap {} changes the logits", stage.path(tap.1));
            assert_eq!(profile.taps, 3, "{name}: {}", stage.path(tap.1));
        }
    }
}

#[test]
fn looking_changes_no_bit() {
    let full = std::env::var("MOE_FULL").is_ok_and(|v| v == "1");
    for subject in subjects() {
        for (stem, model, _) in fixtures::micro_models() {
            identical(&subject, &model, full || stem.starts_with("mixed") || stem.starts_with("wide"));
        }
        identical(&subject, &fixtures::tiny_q4_k_m(), true);
    }
}
