//! The script of docs/parity-with-transformers.md, against a real transformers: in the full test run only.

use super::{BINARY, TOKENS};
use moe_run_tests::{cli::run, fixtures};
use std::process::Command;

#[test]
fn a_dumped_transformers_run_is_no_alarm() {
    if !std::env::var("MOE_FULL").is_ok_and(|v| v == "1") {
        eprintln!("SKIPPED: runs in scripts/test.sh --full only");
        return;
    }
    let python = std::env::var("MOE_PYTHON").unwrap_or_else(|_| "python3".into());
    let works = Command::new(&python).args(["-c", "import torch, transformers, safetensors, gguf"]).output();
    if !works.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: {python} has no torch, transformers, safetensors and gguf");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (model, stages) = (fixtures::tiny_q4_k_m(), dir.path().join("stages.safetensors"));
    let script = fixtures::crate_dir().join("../scripts/dump-transformers-stages.py");
    let dump = Command::new(&python)
        .arg(script)
        .arg(&model)
        .args(["--tokens", TOKENS, "-o"])
        .arg(&stages)
        .output()
        .unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let (model, stages) = (model.display().to_string(), stages.display().to_string());
    let args = ["parity", "-m", &model, "--backend", "reference", "--against", &stages, "--json"];
    let report = run(BINARY, args).succeeded().json();
    assert_eq!((&report["verdict"], &report["logits"]["argmax_agreement"]), (&"pass".into(), &1.0.into()));
}
