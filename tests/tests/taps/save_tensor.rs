//! `--save-tensor`: what is written, its formats, and that a failure leaves nothing behind.

use super::{BINARY, TOKENS};
use moe_run_inspect::taps::tensor_set::TensorSet;
use moe_run_tests::cli::{Finished, run};
use moe_run_tests::stages::StageFile;
use moe_run_tests::{fixtures, relative_l2};
use std::path::{Path, PathBuf};
use std::process::Command;

fn save(dir: &Path, more: &[&str]) -> Finished {
    let (model, dir) = (fixtures::tiny_q4_k_m().display().to_string(), dir.display().to_string());
    let args = ["trace", "-m", &model, "--tokens", TOKENS, "--backend", "reference", "--kv-type", "f32"];
    let save = ["--save-tensor-dir", &dir];
    run(BINARY, args.into_iter().chain(save).chain(more.iter().copied()))
}

/// Saves, and must succeed.
fn saved(dir: &Path, more: &[&str]) {
    let finished = save(dir, more);
    assert_eq!(finished.code, 0, "{finished:#?}");
}

const ALL: [&str; 4] = ["--save-tensor", "all", "--save-tensor-layers", "0..4"];

/// Every file below a folder, by its path there.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                found.push((path.strip_prefix(dir).unwrap().to_owned(), bytes));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_stage_is_saved_twice_the_same_and_equals_the_stage_file() {
    let temp = tempfile::tempdir().unwrap();
    let (first, second) = (temp.path().join("a"), temp.path().join("b"));
    saved(&first, &ALL);
    saved(&second, &ALL);
    let written = files(&first);
    assert_eq!(written.len(), 22 * 4 + 3 + 1, "22 stages a layer, 3 of the model, the manifest");
    assert!(written == files(&second), "two runs wrote different bytes");
    let header = &written.iter().find(|f| f.0.ends_with("layer-3/attn_norm.bin")).unwrap().1;
    assert_eq!(&header[..4], b"APRT");
    assert_eq!(header[4..12], [3, 0, 0, 0, 0, 15, 0, 0], "layer 3, 15 x 256 elements");
    let whole = &written.iter().find(|f| f.0.ends_with("lm_head.bin")).unwrap().1;
    assert_eq!(whole[4..8], [255; 4]);
    let embedding = &written.iter().find(|f| f.0.ends_with("layer-0/embedding.bin")).unwrap().1;
    assert_eq!(embedding[4..8], [0; 4]);

    let set = TensorSet::open(&first).unwrap();
    let Some(stages) = fixtures::find("tiny/tiny-qwen3moe-q4_k_m.stages.safetensors") else { return };
    let stages = StageFile::read(&stages);
    assert_eq!(set.tokens().unwrap(), stages.tokens);
    assert_eq!(set.tensors.keys().collect::<Vec<_>>(), stages.values.keys().collect::<Vec<_>>());
    for (name, (shape, values)) in &stages.values {
        let tensor = &set.tensors[name];
        assert_eq!(&tensor.shape, shape, "{name}");
        let distance = relative_l2(&tensor.read().unwrap(), values);
        assert!(distance < 1e-4, "{name}: {distance:e}");
    }
}

/// A recurrent layer's states are those behind the last token.
#[test]
fn states_are_saved_as_the_stage_file_has_them() {
    let Some(model) = fixtures::find("arch/qwen35moe/small-f16.gguf") else { return };
    let Some(stages) = fixtures::find("arch/qwen35moe/small-f16.stages.safetensors") else { return };
    let stages = StageFile::read(&stages);
    let tokens: Vec<String> = stages.tokens.iter().map(|t| t.0.to_string()).collect();
    let (model, tokens) = (model.display().to_string(), tokens.join(","));
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("states").display().to_string();
    let args = ["trace", "-m", &model, "--tokens", &tokens, "--backend", "cpu", "--activations", "f32"];
    let more = ["--kv-type", "f32", "--save-tensor", "conv_state,ssm_state,ssm_out"];
    let save = ["--save-tensor-layers", "0..2", "--save-tensor-dir", &dir];
    let finished = run(BINARY, args.into_iter().chain(more).chain(save));
    assert_eq!(finished.code, 0, "{finished:#?}");
    let set = TensorSet::open(Path::new(&dir)).unwrap();
    assert_eq!(set.tensors.len(), 6);
    for (name, tensor) in &set.tensors {
        let (shape, values) = &stages.values[name];
        assert_eq!(&tensor.shape, shape, "{name}");
        let distance = relative_l2(&tensor.read().unwrap(), values);
        assert!(distance < 1e-4, "{name}: {distance:e}");
    }
}

/// The interpreter with numpy and safetensors, or a loud line.
fn python() -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os("MOE_PYTHON").unwrap_or_else(|| "python3".into()));
    let works = Command::new(&python).args(["-c", "import numpy, safetensors"]).output();
    if works.is_ok_and(|o| o.status.success()) {
        return Some(python);
    }
    eprintln!(
        "SKIPPED: {} has no numpy and safetensors (scripts/test.sh installs them into .venv)",
        python.display()
    );
    None
}

#[test]
fn numpy_and_safetensors_read_the_same_values() {
    let Some(python) = python() else { return };
    let temp = tempfile::tempdir().unwrap();
    for format in ["aprt", "npy", "safetensors"] {
        let args: Vec<&str> = ALL.into_iter().chain(["--save-tensor-format", format]).collect();
        saved(&temp.path().join(format), &args);
    }
    let script = r#"
import json, pathlib, sys
import numpy as np
from safetensors import safe_open
root = pathlib.Path(sys.argv[1])
manifest = json.loads((root / "aprt/manifest.json").read_text())
file = safe_open(root / "safetensors/stages.safetensors", "np")
assert json.loads(file.metadata()["tokens"]) == manifest["tokens"]
for entry in manifest["tensors"]:
    raw = (root / "aprt" / entry["file"]).read_bytes()
    assert raw[:4] == b"APRT"
    aprt = np.frombuffer(raw[12:], "<f4").reshape(entry["shape"])
    assert int.from_bytes(raw[8:12], "little") == aprt.size
    npy = np.load(root / "npy" / entry["file"].replace(".bin", ".npy"))
    st = file.get_tensor(entry["name"])
    for other in (npy, st):
        assert other.dtype == np.float32 and list(other.shape) == entry["shape"], entry
        assert aprt.tobytes() == other.tobytes(), entry
print(len(manifest["tensors"]))
# And back: files that numpy and safetensors write.
from safetensors.numpy import save_file
x = np.arange(12, dtype=np.float64).reshape(3, 4) / 7
np.save(root / "written.npy", x)
save_file({"x": x.astype(np.float16)}, root / "written.safetensors", metadata={"tokens": "[1, 2, 3]"})
"#;
    let output = Command::new(python).arg("-c").arg(script).arg(temp.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "91");
    let npy = TensorSet::open(&temp.path().join("written.npy")).unwrap();
    assert_eq!(
        (npy.tensors[""].shape.as_slice(), npy.tensors[""].read().unwrap()[8]),
        (&[3, 4][..], (8.0f64 / 7.0) as f32)
    );
    let half = TensorSet::open(&temp.path().join("written.safetensors")).unwrap();
    assert_eq!(half.tokens().unwrap().len(), 3);
    assert!((half.tensors["x"].read().unwrap()[11] - 11.0 / 7.0).abs() < 1e-3);
}

#[test]
fn run_saves_the_prompt_pass() {
    let temp = tempfile::tempdir().unwrap();
    let (model, dir) =
        (fixtures::tiny_q4_k_m().display().to_string(), temp.path().join("s").display().to_string());
    let args = [
        "run",
        "-m",
        &model,
        "-p",
        "What is 2+2?",
        "--temp",
        "0",
        "--backend",
        "reference",
        "--kv-type",
        "f32",
    ];
    let save =
        ["--save-tensor", "layer_output,lm_head", "--save-tensor-layers", "2..3", "--save-tensor-dir", &dir];
    let finished = run(BINARY, args.into_iter().chain(save)).succeeded();
    assert_eq!(finished.stdout, "2 + 2 = 4\n");
    let names: Vec<String> = files(Path::new(&dir)).into_iter().map(|f| f.0.display().to_string()).collect();
    assert_eq!(names, ["layer-2/post_ffn_residual.bin", "lm_head.bin", "manifest.json"]);
}

#[test]
fn arguments_are_checked_before_the_model_is_opened() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("x").display().to_string();
    for (stages, layers, wanted) in [
        ("attn_nrm", "0..1", "unknown stage 'attn_nrm'"),
        ("attn_norm,,q_norm", "0..1", "empty stage name"),
        ("", "0..1", "empty stage name"),
        ("all,q_norm", "0..1", "'all' beside"),
        ("all", "2..1", "START..END"),
        ("all", "0..0", "START..END"),
        ("all", "x", "START..END"),
    ] {
        for command in ["trace", "run"] {
            let args = [
                command,
                "-m",
                "/nonexistent.gguf",
                "--tokens",
                "1",
                "--save-tensor",
                stages,
                "--save-tensor-layers",
                layers,
                "--save-tensor-dir",
                &dir,
            ];
            let finished = run(BINARY, args);
            assert!(
                finished.code == 2 && finished.stderr.contains(wanted),
                "{stages} {layers}: {finished:#?}"
            );
        }
    }
    // What only the model can tell.
    let finished = save(&temp.path().join("y"), &["--save-tensor", "all", "--save-tensor-layers", "0..5"]);
    assert!(finished.code == 2 && finished.stderr.contains("at most 4"), "{finished:#?}");
    let finished = save(&temp.path().join("y"), &["--save-tensor", "qkv_bias"]);
    assert!(finished.code == 2 && finished.stderr.contains("no stage qkv_bias"), "{finished:#?}");
    assert!(files(temp.path()).is_empty());
}

#[test]
fn what_is_there_stays_unless_it_is_to_be_replaced() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("t");
    saved(&dir, &ALL);
    let before = files(&dir);
    let finished = save(&dir, &["--save-tensor", "attn_norm"]);
    assert!(finished.code == 2 && finished.stderr.contains("already exists"), "{finished:#?}");
    assert!(files(&dir) == before);
    saved(&dir, &["--save-tensor", "attn_norm", "--save-tensor-overwrite"]);
    let names: Vec<String> = files(&dir).into_iter().map(|f| f.0.display().to_string()).collect();
    assert_eq!(
        names,
        ["layer-0/attn_norm.bin", "manifest.json"],
        "stages of the earlier run would be mistaken for this one's"
    );
    let file = temp.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let finished = save(&file, &["--save-tensor", "attn_norm"]);
    assert!(finished.code == 2 && finished.stderr.contains("not a directory"), "{finished:#?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_and_a_read_only_one_leave_nothing_behind() {
    let temp = tempfile::tempdir().unwrap();
    let full = temp.path().join("full");
    std::fs::create_dir(&full).unwrap();
    let mounted = |options: &str| {
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&full)
            .status()
            .is_ok_and(|s| s.success())
    };
    if !mounted("size=256k") {
        eprintln!("SKIPPED: a small file system can be mounted by root only");
        return;
    }
    let finished = save(&full.join("t"), &ALL);
    let left = files(&full);
    let remounted =
        Command::new("mount").args(["-o", "remount,ro"]).arg(&full).status().is_ok_and(|s| s.success());
    let read_only = save(&full.join("t"), &["--save-tensor", "attn_norm"]);
    let unmounted = Command::new("umount").arg(&full).status().is_ok_and(|s| s.success());
    assert!(remounted && unmounted);
    assert!(
        finished.code == 4 && finished.stderr.contains(".bin: cannot write: No space left"),
        "{finished:#?}"
    );
    assert!(left.is_empty(), "left behind: {:?}", left.iter().map(|f| &f.0).collect::<Vec<_>>());
    assert!(read_only.code == 4 && read_only.stderr.contains("Read-only file system"), "{read_only:#?}");
}

/// What is left of a trace that got `signals` times Ctrl-C as soon as `appeared` is there.
#[cfg(unix)]
fn left_behind(appeared: &str, signals: usize) -> Vec<String> {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("t");
    // Long enough that the reference is still busy when the signal comes.
    let tokens = vec!["17"; 600].join(",");
    let mut process = Command::new(BINARY)
        .args(["trace", "-m"])
        .arg(fixtures::tiny_q4_k_m())
        .args(["--tokens", &tokens, "--backend", "reference", "--save-tensor-dir"])
        .arg(&dir)
        .args(ALL)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !dir.join(appeared).exists() {
        assert!(process.try_wait().unwrap().is_none(), "it ended before {appeared} was there");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    for _ in 0..signals {
        let signalled = Command::new("kill").args(["-INT", &process.id().to_string()]).status().unwrap();
        assert!(signalled.success(), "the process had ended before the signal");
    }
    let status = process.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let left = std::fs::read_dir(temp.path()).unwrap();
    left.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// What was asked for has not been done, other than where an answer ends early.
#[cfg(unix)]
#[test]
fn an_interrupted_prompt_saves_nothing_and_says_so() {
    use moe_run_tests::cli::{finish, interrupt, wait_for, wait_for_work};
    let temp = tempfile::tempdir().unwrap();
    let tokens = vec!["17"; 1200].join(",");
    let mut process = Command::new(BINARY)
        .args(["run", "--backend", "reference", "--tokens", &tokens, "-n", "1", "--temp", "0"])
        .args(["--save-tensor", "attn_norm", "--save-tensor-dir"])
        .arg(temp.path().join("t"))
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(&mut process, "sampling: ");
    wait_for_work(&process);
    interrupt(&process);
    let finished = finish(process.wait_with_output().unwrap());
    assert_eq!(finished.code, 130, "{finished:#?}");
    assert!(finished.stderr.contains("no tensors were saved"), "{finished:#?}");
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
}

/// While the files are made, in the pass itself, and with a second one that does not wait for the pass to end.
#[cfg(unix)]
#[test]
fn ctrl_c_midway_leaves_nothing_behind() {
    for (appeared, signals) in [("", 1), ("layer-0", 1), ("layer-2", 1), ("layer-3", 1), ("layer-3", 2)] {
        for _ in 0..3 {
            assert!(left_behind(appeared, signals).is_empty(), "{signals} signals at {appeared:?}");
        }
    }
}
