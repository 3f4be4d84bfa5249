//! The script of docs/parity-with-transformers.md, against a real transformers: in the full test run only.

use super::{BINARY, TOKENS};
use moe_run_tests::{cli::run, fixtures};
use std::path::Path;
use std::process::Command;

/// The interpreter with torch and transformers, or a loud line.
fn python() -> Option<String> {
    if !fixtures::full() {
        eprintln!("SKIPPED: runs in scripts/test.sh --full only");
        return None;
    }
    let python = std::env::var("MOE_PYTHON").unwrap_or_else(|_| "python3".into());
    let wanted = "import torch, transformers, safetensors, gguf, accelerate";
    let works = Command::new(&python).args(["-c", wanted]).output();
    if works.is_ok_and(|o| o.status.success()) {
        return Some(python);
    }
    eprintln!("SKIPPED: {python} has no torch, transformers, safetensors, gguf and accelerate");
    None
}

fn script(python: &str, path: &str, args: &[&str]) {
    let output = Command::new(python).arg(fixtures::crate_dir().join(path)).args(args).output().unwrap();
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Dumps what transformers computes from `source`, and compares a GGUF file of the same weights with it.
fn is_no_alarm(python: &str, source: &str, model: &Path, tokens: &str, layers: usize) {
    let dir = tempfile::tempdir().unwrap();
    let stages = dir.path().join("stages.safetensors").display().to_string();
    script(
        python,
        "../scripts/dump-transformers-stages.py",
        &[source, "--tokens", tokens, "-o", stages.as_str()],
    );
    let model = model.display().to_string();
    for backend in ["reference", "cpu"] {
        for decode in ["0", "3"] {
            let args = ["parity", "-m", &model, "--backend", backend, "--against", &stages, "--forced"];
            let report =
                run(BINARY, args.into_iter().chain(["--decode", decode, "--json"])).succeeded().json();
            assert_eq!(
                (&report["verdict"], &report["logits"]["argmax_agreement"]),
                (&"pass".into(), &1.0.into())
            );
            // All but attn_scores and the five stages of single experts, which transformers never holds apart.
            let stages = report["stages"].as_array().unwrap();
            assert_eq!(stages.len(), 16 * layers + 3, "{backend}: {:?}", report["missing_stages"]);
            let judged = report["ops"].as_array().unwrap().iter().filter(|o| o["forced"] == true).count();
            assert!(judged >= 14 * layers, "{backend}: only {judged} ops had all their inputs");
        }
    }
}

#[test]
fn a_dumped_transformers_run_is_no_alarm() {
    let Some(python) = python() else { return };
    let model = fixtures::tiny_q4_k_m();
    is_no_alarm(&python, &model.display().to_string(), &model, TOKENS, 4);
}

#[test]
fn a_transformers_directory_and_its_conversion_agree() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    script(&python, "python/random_qwen3_moe.py", &[&dir.path().display().to_string()]);
    let source = dir.path().join("hf").display().to_string();
    is_no_alarm(&python, &source, &dir.path().join("model.gguf"), "5,99,3,159,42,0,17,17,120,64,8", 3);
}
