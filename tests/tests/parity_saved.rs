//! `moe-run parity` by what its other side records and by what no comparison can tell: saved stages with their limit, tokens
//! and model; stages that only one side has; weights that are not finite.

use moe_run_graph::gguf::GgufFile;
use moe_run_tests::cli::{Finished, run};
use moe_run_tests::fixtures;
use serde_json::Value;
use std::path::{Path, PathBuf};

const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-run-under-test");
const TOKENS: &str = "3070,303,198,354,294";

/// A folder with what the tests write.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The tiny model with a tensor's bytes changed.
    fn model(&self, name: &str, tensor: &str, change: impl FnOnce(&mut [u8])) -> PathBuf {
        let intact = fixtures::tiny_q4_k_m();
        let file = GgufFile::open(&intact).unwrap();
        let tensor = file.tensor(tensor).unwrap();
        let mut bytes = std::fs::read(&intact).unwrap();
        change(&mut bytes[tensor.offset_bytes()..][..tensor.len_bytes().unwrap()]);
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The final norm's weights times 1.02.
    fn two_percent_off(&self) -> PathBuf {
        self.model("two-percent.gguf", "output_norm.weight", |bytes| {
            for weight in bytes.chunks_exact_mut(4) {
                let scaled = f32::from_le_bytes(weight.try_into().unwrap()) * 1.02;
                weight.copy_from_slice(&scaled.to_le_bytes());
            }
        })
    }

    /// Saves stages of the intact model: all layers' where nothing else is said.
    fn saved(&self, name: &str, args: &[&str]) -> PathBuf {
        let (model, dir) = (fixtures::tiny_q4_k_m(), self.path(name));
        let trace = ["trace", "-m", text(&model), "--tokens", TOKENS, "--save-tensor-dir", text(&dir)];
        let stages: &[&str] = match args.contains(&"--save-tensor") {
            true => &[],
            false => &["--save-tensor", "all", "--save-tensor-layers", "0..4"],
        };
        let _ = run(PROGRAM, [&trace, stages, args].concat()).succeeded();
        dir
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn parity(model: &Path, against: &str, args: &[&str]) -> Finished {
    let command = ["parity", "-m", text(model), "--against", against];
    run(PROGRAM, [&command[..], args].concat())
}

fn json(model: &Path, against: &str, args: &[&str]) -> (i32, Value) {
    let finished = parity(model, against, &[args, &["--json"]].concat());
    (finished.code, finished.json())
}

#[test]
fn stages_that_a_run_is_defined_to_give_are_wanted_to_the_bit() {
    let folder = Folder::new();
    let (intact, off) = (fixtures::tiny_q4_k_m(), folder.two_percent_off());
    let q8_0 = ["--kv-type", "q8_0"];
    for (name, saving, judging) in [
        ("cpu", &["--backend", "cpu"][..], &["--backend", "cpu"][..]),
        ("both", &["--backend", "cpu"], &["--backend", "reference", "--decode", "2"]),
        ("kv", &[&["--backend", "cpu"], &q8_0[..]].concat(), &["--backend", "cpu", "--decode", "3"]),
        ("one-file", &["--backend", "cpu", "--save-tensor-format", "safetensors"], &["--backend", "cpu"]),
    ] {
        let dir = folder.saved(name, saving);
        let (code, passed) = json(&intact, text(&dir), judging);
        assert_eq!((code, &passed["free_tolerance"]["value"]), (0, &0.0.into()), "{name}");
        assert!(passed["saved_from"].is_null(), "{name}: {}", passed["saved_from"]);
        let (code, diverged) = json(&off, text(&dir), judging);
        let first = &diverged["first"];
        assert_eq!(
            (code, &first["op"], &first["stage"]),
            (1, &"norm".into(), &"final_norm".into()),
            "{name}"
        );
        assert_eq!(first["found_by"], "forced", "{name}");
        // Another model is compared, and named.
        let file = intact.file_name().unwrap().to_str().unwrap();
        assert_eq!(diverged["saved_from"]["file"], file, "{name}");
        let said = parity(&off, text(&dir), judging).stdout;
        assert!(said.contains(&format!("saved from another model: {file} (")), "{name}: {said}");
    }
}

#[test]
fn a_free_run_that_passes_within_a_limit_points_to_the_forced_one() {
    const HINT: &str = "--forced judges each op by itself";
    let folder = Folder::new();
    let (intact, off) = (fixtures::tiny_q4_k_m(), folder.two_percent_off());
    let on = ["--backend", "cpu"];
    let dir = folder.saved("dir", &on);
    // Another version may have rounded otherwise.
    let manifest = dir.join("manifest.json");
    let mut recorded: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    recorded["moe_run_version"] = "0.0.1".into();
    std::fs::write(&manifest, recorded.to_string()).unwrap();
    let passed = parity(&off, text(&dir), &on).succeeded().stdout;
    assert!(passed.contains("\npass: ") && passed.contains(HINT), "{passed}");
    let forced = parity(&off, text(&dir), &[&on[..], &["--forced"]].concat());
    assert!(forced.code == 1 && forced.stdout.contains("norm is wrong by itself"), "{forced:#?}");
    let forced = parity(&intact, text(&dir), &[&on[..], &["--forced"]].concat()).succeeded().stdout;
    assert!(forced.contains("\npass: ") && !forced.contains(HINT), "{forced}");
    // And two backends whose bits differ.
    let f32 = ["--backend", "cpu", "--activations", "f32", "--tokens", TOKENS];
    let passed = parity(&intact, "reference", &f32).succeeded().stdout;
    assert!(passed.contains("\npass: ") && passed.contains(HINT), "{passed}");
}

#[test]
fn stages_of_other_tokens_are_refused() {
    let folder = Folder::new();
    let model = fixtures::tiny_q4_k_m();
    for format in ["aprt", "safetensors"] {
        let dir = folder.saved(format, &["--backend", "reference", "--save-tensor-format", format]);
        for (tokens, said) in [
            ("15,303,198,354,294", "token 0 is 3070 there and 15 here"),
            ("3070,303,198,354,295", "token 4 is 294 there and 295 here"),
            ("3070,303", "5 tokens there and 2 here"),
            ("3070,303,198,354,294,1", "5 tokens there and 6 here"),
        ] {
            let refused = parity(&model, text(&dir), &["--backend", "cpu", "--tokens", tokens]);
            assert_eq!((refused.code, refused.stdout.as_str()), (2, ""), "{refused:#?}");
            for said in [said, "saved for other tokens", text(&dir)] {
                assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
            }
        }
        let _ = parity(&model, text(&dir), &["--backend", "reference", "--tokens", TOKENS]).succeeded();
        let _ = parity(&model, text(&dir), &["--backend", "reference"]).succeeded();
    }
}

#[test]
fn what_only_one_side_has_is_listed() {
    let folder = Folder::new();
    let model = fixtures::tiny_q4_k_m();
    let dir = folder.saved("dir", &["--backend", "cpu", "--save-tensor", "attn_norm,lm_head"]);
    std::fs::create_dir(dir.join("layer-9")).unwrap();
    let unknown = ["layer-9/attn_norm", "something"];
    for name in unknown {
        std::fs::copy(dir.join("layer-0/attn_norm.bin"), dir.join(format!("{name}.bin"))).unwrap();
    }
    let (code, report) = json(&model, text(&dir), &["--backend", "cpu"]);
    assert_eq!((code, &report["unknown_tensors"]), (0, &serde_json::json!(unknown)));
    let missing = report["missing_stages"].as_array().unwrap().len();
    assert!(missing > 80 && report["stages"].as_array().unwrap().len() == 2, "{missing}");
    let said = parity(&model, text(&dir), &["--backend", "cpu"]).succeeded().stdout;
    let listed = format!("not compared, as the other side lacks them: {missing}: embedding, final_norm, ");
    let bounded = format!("and {} more\n", missing - 6);
    let unknown = "not compared, as this model has no such stages: 2: layer-9/attn_norm, something\n";
    for wanted in [listed.as_str(), bounded.as_str(), unknown] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}

/// A NaN or an infinity in a weight, of every expert where there are experts: as a float, and as the binary16 scale of a
/// quantized block.
fn damaged(folder: &Folder, tensor: &str, value: f32) -> PathBuf {
    let file = GgufFile::open(fixtures::tiny_q4_k_m()).unwrap();
    let format = file.tensor(tensor).unwrap().format().unwrap().name().to_owned();
    let parts = if tensor.contains("_exps") { 16 } else { 1 };
    let half: u16 = if value.is_nan() { 0x7e00 } else { 0x7c00 };
    folder.model(&format!("{tensor}-{value}.gguf"), tensor, |bytes| {
        let len = bytes.len();
        let (at, value) = match format.as_str() {
            "F32" => (0, value.to_le_bytes().to_vec()),
            "Q4_K" => (0, half.to_le_bytes().to_vec()),
            "Q6_K" => (208, half.to_le_bytes().to_vec()),
            other => panic!("{tensor} is {other}"),
        };
        for part in bytes.chunks_exact_mut(len / parts) {
            part[at..at + value.len()].copy_from_slice(&value);
        }
    })
}

#[test]
fn what_both_sides_have_that_is_not_finite_is_no_ops_fault() {
    let folder = Folder::new();
    let tensors = [
        "output_norm.weight",
        "blk.0.attn_k_norm.weight",
        "blk.1.attn_norm.weight",
        "blk.1.attn_k.weight",
        "blk.2.attn_v.weight",
        "blk.2.ffn_gate_inp.weight",
        "blk.3.ffn_down_exps.weight",
        "blk.0.ffn_gate_exps.weight",
        "output.weight",
    ];
    let options = [&["--activations", "q8"][..], &["--activations", "f32"], &["--kv-type", "q8_0"]];
    for (i, tensor) in tensors.into_iter().enumerate() {
        for value in [f32::NAN, f32::INFINITY] {
            let model = damaged(&folder, tensor, value);
            let sides = ["--backend", "cpu", "--tokens", TOKENS];
            for (j, option) in options.iter().enumerate() {
                // Every combination for what the cache stores, and one for each of the others.
                let is_cached = ["blk.0.attn_k_norm.weight", "blk.2.attn_v.weight"].contains(&tensor);
                if !is_cached && j != i % options.len() {
                    continue;
                }
                let runs = [&["--forced"][..], &["--free-only", "--decode", "2"]];
                for run in &runs[..if is_cached { 2 } else { 1 }] {
                    let args = [&sides[..], option, run].concat();
                    let (code, report) = json(&model, "reference", &args);
                    let what = format!("{tensor} {value} {option:?} {run:?}: {}", report["conclusion"]);
                    assert_eq!((code, &report["verdict"]), (0, &"pass".into()), "{what}");
                    let ops = report["ops"].as_array().unwrap();
                    assert_eq!(ops.is_empty(), *run != ["--forced"], "{what}");
                    let beyond = |list: &Value| list.as_array().unwrap().iter().any(|x| x["beyond"] == true);
                    assert!(!beyond(&report["ops"]) && !beyond(&report["stages"]), "{what}");
                    let found = &report["not_finite"];
                    assert_eq!(found["on_both_sides"], true, "{what}: {found}");
                    assert_eq!(found["weights"], serde_json::json!([tensor]), "{what}: {found}");
                }
            }
            let said = parity(&model, "reference", &sides).succeeded().stdout;
            assert!(!said.contains("BEYOND") && said.contains("\npass: "), "{said}");
            let warning = format!("the weight {tensor} is not finite");
            assert!(said.contains(&warning), "{tensor} {value}: {said}");
        }
    }
}

#[test]
fn what_one_side_has_that_is_not_finite_is_beyond() {
    let folder = Folder::new();
    let dir = folder.saved("dir", &["--backend", "cpu"]);
    let model = damaged(&folder, "output_norm.weight", f32::NAN);
    let diverged = parity(&model, text(&dir), &["--backend", "cpu"]);
    assert_eq!(diverged.code, 1, "{diverged:#?}");
    for said in [
        "norm is wrong by itself",
        "values that are not finite on this side",
        "the weight output_norm.weight is not finite",
    ] {
        assert!(diverged.stdout.contains(said), "{said}: {}", diverged.stdout);
    }
}

/// Saved on both sides, compared file by file.
#[test]
fn diff_takes_the_same_nan_for_equal() {
    let folder = Folder::new();
    let model = damaged(&folder, "output_norm.weight", f32::NAN);
    let saved = |name: &str| -> PathBuf {
        let dir = folder.path(name);
        let trace = ["trace", "-m", text(&model), "--tokens", TOKENS, "--save-tensor-dir", text(&dir)];
        let _ =
            run(PROGRAM, [&trace[..], &["--save-tensor", "all", "--backend", "cpu"]].concat()).succeeded();
        dir
    };
    let (a, b) = (saved("a"), saved("b"));
    let args = ["diff", text(&a), text(&b)];
    let report = run(PROGRAM, [&args[..], &["--json"]].concat()).succeeded().json();
    let logits = report["pairs"].as_array().unwrap().iter().find(|p| p["name"] == "lm_head").unwrap();
    assert!(logits["nan_a"].as_u64() > Some(0) && logits["nan_a"] == logits["nan_b"], "{logits}");
    assert_eq!((&logits["within"], &logits["non_finite_mismatches"]), (&true.into(), &0.into()));
    let said = run(PROGRAM, args).succeeded().stdout;
    assert!(!said.contains("BEYOND"), "{said}");
}

/// A file has choices among entries without the positions between those; they are compared at the positions that complete them.
#[test]
fn choices_among_entries_are_compared() {
    let model = fixtures::find("arch/deepseek4/tiny.gguf").expect("carried");
    let stages = fixtures::find("arch/deepseek4/tiny.stages.safetensors").expect("carried");
    let exact = ["--backend", "cpu", "--activations", "f32", "--kv-type", "f32"];
    for decode in ["0", "7"] {
        let (code, report) = json(&model, text(&stages), &[&exact[..], &["--decode", decode]].concat());
        assert_eq!((code, &report["unknown_tensors"]), (0, &serde_json::json!([])), "{report}");
        let names: Vec<_> = report["stages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|check| check["stage"].as_str().unwrap())
            .collect();
        assert!(names.contains(&"index_scores") && names.contains(&"index_selected"), "{names:?}");
    }
}

/// States of recurrent layers have no taps, and are compared all the same: with a stage file's, with saved ones and with another
/// backend's.
#[test]
fn states_behind_the_last_token_are_compared() {
    let Some(model) = fixtures::find("arch/qwen35moe/small-f16.gguf") else { return };
    let Some(stages) = fixtures::find("arch/qwen35moe/small-f16.stages.safetensors") else { return };
    let exact = ["--backend", "cpu", "--activations", "f32", "--kv-type", "f32"];
    let states = |report: &Value| -> Vec<String> {
        let checks = report["stages"].as_array().unwrap().iter();
        let names = checks.map(|check| (check["stage"].as_str().unwrap(), check["layer"].as_u64()));
        names
            .filter(|(stage, _)| ["conv_state", "ssm_state"].contains(stage))
            .map(|(stage, layer)| format!("layer-{}/{stage}", layer.unwrap()))
            .collect()
    };
    let (code, report) = json(&model, text(&stages), &exact);
    assert_eq!((code, &report["unknown_tensors"]), (0, &serde_json::json!([])), "{report}");
    let of_file = states(&report);
    assert!(of_file.contains(&"layer-0/conv_state".to_owned()), "{of_file:?}");
    assert!(of_file.contains(&"layer-0/ssm_state".to_owned()), "{of_file:?}");
    // In several steps, too: a file's are those behind the last one.
    let (code, report) = json(&model, text(&stages), &[&exact[..], &["--decode", "2"]].concat());
    assert_eq!((code, states(&report)), (0, of_file.clone()), "{report}");
    let tokens = ["--tokens", "5,6,7,8,9"];
    let (code, report) = json(&model, "reference", &[&exact[..], &tokens, &["--decode", "1"]].concat());
    assert_eq!((code, states(&report)), (0, of_file.clone()), "{report}");
    // A state that is off is beyond, and what writes it is named.
    let folder = Folder::new();
    let dir = folder.path("saved");
    let save = ["--save-tensor", "all", "--save-tensor-layers", "0..1", "--save-tensor-dir", text(&dir)];
    let trace = [&["trace", "-m", text(&model)], &exact[..], &tokens, &save].concat();
    let _ = run(PROGRAM, trace).succeeded();
    let path = dir.join("layer-0/ssm_state.bin");
    let mut bytes = std::fs::read(&path).unwrap();
    for value in bytes[12..].chunks_exact_mut(4) {
        let off = f32::from_le_bytes(value.try_into().unwrap()) * 1.5;
        value.copy_from_slice(&off.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    let (code, report) = json(&model, text(&dir), &[&exact[..], &tokens, &["--free-only"]].concat());
    assert_eq!((code, report["first"]["stage"].as_str()), (1, Some("ssm_state")), "{report}");
    assert!(report["first"]["op"].as_str().unwrap().contains("layer"), "{report}");
}
