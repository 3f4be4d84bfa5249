//! benches/gpu.sh in small, on the CUDA kernels' host harness: the script itself works where no GPU is.

use std::path::Path;
use std::process::Command;

#[test]
fn the_gpu_script_runs_dry() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let out = tempfile::tempdir().unwrap();
    let run = Command::new("bash")
        .arg(root.join("benches/gpu.sh"))
        .args(["--dry", "--bin", env!("CARGO_BIN_EXE_moe-run-under-test"), "--out"])
        .arg(out.path())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{errors}");
    let table = std::fs::read_to_string(out.path().join("gpu.md")).unwrap();
    for wanted in [
        "stages-",
        "decode-1",
        "greedy2",
        "prompt-1",
        "tg2 @ d16",
        "pp12",
        "memory GB/s",
        "without-overlap",
        "without-graph",
    ] {
        assert!(table.contains(wanted), "{wanted} is missing:\n{table}");
    }
    assert!(!table.contains("FAILED"), "{table}");
}
