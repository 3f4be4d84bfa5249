//! Vulkan's validation layer (Debian: vulkan-validationlayers), with checks of synchronization, over a generation, a watched
//! prompt, and with `--full` the self-test's op cases: it must report nothing.
//!
//! wgpu's own validation is on in every other test: whatever it reports fails the step that follows.

use moe_run_tests::cli::finish;
use moe_run_tests::fixtures;
use std::process::Command;

/// The layer's report of a run; `None` where the layer is not installed or there is no adapter.
fn report(args: &[&str]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("report.txt");
    let settings = format!(
        "khronos_validation.debug_action = VK_DBG_LAYER_ACTION_LOG_MSG\n\
         khronos_validation.report_flags = error,warn,perf,info\n\
         khronos_validation.log_filename = {}\n\
         khronos_validation.enables = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT\n",
        log.display()
    );
    std::fs::write(folder.path().join("vk_layer_settings.txt"), settings).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_moe-run-under-test"))
        .args(args)
        .env("VK_INSTANCE_LAYERS", "VK_LAYER_KHRONOS_validation")
        .env("VK_LAYER_SETTINGS_PATH", folder.path())
        // naga's notes for debuggers name WGSL as the source language, by a number that older layers refuse.
        .env("WGPU_DEBUG", "0")
        .output()
        .unwrap();
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    // What the layer says of itself: with it, its silence means something.
    if !text.contains("Khronos Validation Layer Active") {
        println!("SKIPPED: no adapter, or no vulkan-validationlayers");
        return None;
    }
    let _ = finish(output).succeeded();
    Some(text)
}

/// Nothing but the layer's report of its own start.
fn silent(args: &[&str]) {
    let Some(report) = report(args) else { return };
    let entries: Vec<&str> = report
        .lines()
        .filter(|line| ["(ERROR", "(WARN", "(PERF", "(INFO"].iter().any(|kind| line.contains(kind)))
        .filter(|line| !line.contains("createinstance-status-message"))
        .collect();
    assert!(entries.is_empty(), "{args:?}: {} entries, the first: {}", entries.len(), entries[0]);
}

#[test]
fn a_generation_is_valid() {
    silent(&["run", "--backend", "wgpu", "-p", "What is 2+2?", "--temp", "0"]);
    silent(&["run", "--backend", "wgpu", "-p", "What is 2+2?", "--temp", "1", "--seed", "1", "-n", "4"]);
}

#[test]
fn a_watched_prompt_is_valid() {
    silent(&["trace", "--backend", "wgpu", "-p", "What is 2+2?"]);
}

#[test]
fn the_op_cases_are_valid() {
    if fixtures::full() {
        silent(&["selftest", "--backend", "wgpu"]);
    } else {
        println!("SKIPPED: the self-test under the validation layer (scripts/test.sh --full runs it)");
    }
}
