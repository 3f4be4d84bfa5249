//! `moe-run graph --for CHIP`: how long the launches of a decode step may take on a GPU that is not at hand, as text.
//!
//! Input: what the CUDA backend predicts. Output: a line for each kind of launch, and the sum.

use moe_run_backends::cuda::predict::{CHIPS, Chip, LaunchTime, predict, step_seconds};
use moe_run_backends::options::CompileOptions;
use moe_run_graph::{ir::StepSizes, passes::Plan};
use std::fmt::Write as _;

use crate::CliError;

/// The chip of a name.
///
/// # Errors
/// One that nothing is known of.
pub fn chip(key: &str) -> Result<&'static Chip, CliError> {
    CHIPS.iter().find(|chip| chip.key.eq_ignore_ascii_case(key)).ok_or_else(|| {
        let keys: Vec<&str> = CHIPS.iter().map(|chip| chip.key).collect();
        CliError::bad_input(format!("--for {key}: wanted one of {}", keys.join(", ")))
    })
}

/// The text for a plan of one token behind `sizes.cached - 1` others.
///
/// # Errors
/// What the backend reports.
pub fn text(
    plan: &Plan,
    options: &CompileOptions,
    chip: &Chip,
    sizes: StepSizes,
) -> Result<String, CliError> {
    let launches = predict(plan, options, chip, sizes)?;
    let depth = sizes.cached.saturating_sub(1);
    let mut text = format!(
        "predicted, not measured: one token at depth {depth} on {} ({} multiprocessors, {:.2} GHz, {:.0} GB/s)\n\n\
         launches  pattern             kernel            blocks  waves       MB   issue   bytes  latency  µs each\n",
        chip.name,
        chip.multiprocessors,
        chip.clock_hz / 1e9,
        chip.bytes_per_s / 1e9
    );
    let mut kinds: Vec<(&LaunchTime, usize)> = Vec::new();
    for launch in &launches {
        match kinds.iter_mut().find(|(kind, _)| *kind == launch) {
            Some((_, count)) => *count += 1,
            None => kinds.push((launch, 1)),
        }
    }
    let us = |seconds: f64| seconds * 1e6;
    for (launch, count) in kinds {
        let issue = launch.issue_s.map_or("-".into(), |s| format!("{:.1}", us(s)));
        let _ = writeln!(
            text,
            "{count:8}  {:18}  {:16}  {:6}  {:5.2}  {:7.2}  {issue:>6}  {:6.1}  {:7.1}  {:7.1}",
            launch.pattern,
            launch.kernel,
            launch.blocks,
            launch.waves,
            launch.bytes as f64 / 1e6,
            us(launch.bytes_s),
            us(launch.latency_s),
            us(launch.seconds()),
        );
    }
    let all = step_seconds(&launches);
    let bytes: f64 = launches.iter().map(|launch| launch.bytes_s).sum();
    let _ = writeln!(
        text,
        "\n{} launches, {:.3} ms a token: {:.0} tokens/s; the bytes alone {:.3} ms",
        launches.len(),
        all * 1e3,
        1.0 / all,
        bytes * 1e3
    );
    Ok(text)
}
