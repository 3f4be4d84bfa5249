//! `moe-run synth` from outside: the files that it writes, that it leaves none half-written, and its exit codes.

use std::{
    fs,
    num::NonZeroUsize,
    ops::ControlFlow,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use moe_run_graph::{
    Model,
    gguf::GgufFile,
    quant::Format,
    synth::{PRESETS, Preset, Synth, SynthOptions},
};
use moe_run_tests::{
    cli::{Finished, run},
    fixtures,
};

const BINARY: &str = env!("CARGO_BIN_EXE_moe-run-under-test");
const CODER: &str = "qwen3-coder-30b-a3b";

fn synth(args: &[&str], output: &Path) -> Finished {
    let output = output.to_str().unwrap();
    run(BINARY, ["synth", "--preset"].iter().chain(args).chain(&["-o", output]).copied())
}

/// What a directory holds, hidden files too.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn one_layer_of_the_coder_is_a_model_that_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("coder-1.gguf");
    let report = synth(&[CODER, "--layers", "1", "--seed", "7", "--json"], &path).succeeded().json();
    assert_eq!(report["schema_version"], 1);
    assert_eq!(report["num_hidden_layers"], 1);
    assert_eq!(report["seed"], 7);
    assert_eq!(report["file_bytes"], fs::metadata(&path).unwrap().len());
    assert_eq!(names(dir.path()), ["coder-1.gguf"]);

    // It lowers, so every tensor that the model needs is there in its shape.
    let model = Model::open(&path).unwrap();
    assert_eq!(model.config.num_hidden_layers, 1);
    assert_eq!(model.config.vocab_size, 151_936);
    assert_eq!(model.config.max_position_embeddings, 262_144);
    assert_eq!(model.config.layers[0].attention.rope.as_ref().unwrap().theta, 1e7);
    let file = &model.file;
    let of = |name: &str| file.tensor(name).map(|t| (t.shape.clone(), t.format().unwrap())).unwrap();
    assert_eq!(of("output.weight"), (vec![151_936, 2048], Format::Q6K));
    assert_eq!(of("token_embd.weight"), (vec![151_936, 2048], Format::Q4K));
    // Layer 0 of 1: (0 ≥ 7/8 as integers) gives it more bits.
    assert_eq!(of("blk.0.ffn_down_exps.weight"), (vec![128, 2048, 768], Format::Q6K));
    assert_eq!(of("blk.0.ffn_gate_exps.weight"), (vec![128, 768, 2048], Format::Q4K));
    assert_eq!(of("blk.0.ffn_gate_inp.weight"), (vec![128, 2048], Format::F32));
    assert_eq!(report["tensors"], file.tensors().len());

    // Values: finite, and spread as the shapes want: 1 / √in, a router twice that, norms around 1.
    let rms = |name: &str, rows: usize| {
        let weights = moe_run_graph::weights::Weights::new(file.clone());
        let view = weights.get(name).unwrap();
        let mut row = vec![0.0; view.cols_elems()];
        let mut squares = 0.0;
        for r in 0..rows {
            view.decode_row(view.rows() / rows * r, &mut row);
            squares += row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / row.len() as f64;
        }
        (squares / rows as f64).sqrt()
    };
    for (name, wanted) in [
        ("blk.0.attn_q.weight", 1.0 / 2048f64.sqrt()),
        ("blk.0.ffn_down_exps.weight", 1.0 / 768f64.sqrt()),
        ("blk.0.ffn_gate_inp.weight", 2.0 / 2048f64.sqrt()),
        ("output.weight", 4.0 / 2048f64.sqrt()),
        ("blk.0.ffn_norm.weight", 1.0),
    ] {
        let rows = if name.contains("norm") { 1 } else { 64 };
        let found = rms(name, rows);
        assert!((found / wanted - 1.0).abs() < 0.1, "{name}: {found} for {wanted}");
    }
    let check =
        run(BINARY, ["inspect", "--check", "--json", "-m", path.to_str().unwrap()]).succeeded().json();
    assert_eq!(check["check"]["damaged"].as_array().unwrap().len(), 0);
    assert_eq!(check["check"]["zero_tensors"], 0);
}

#[test]
fn a_vocabulary_is_copied_whole() {
    let vocabulary = fixtures::qwen2_vocabulary();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let _ = synth(&[CODER, "--dry-run", "--vocab-from", vocabulary.to_str().unwrap()], &path).succeeded();
    let (from, to) = (GgufFile::open(&vocabulary).unwrap(), GgufFile::open(&path).unwrap());
    let tokenizer = |file: &GgufFile| {
        let pairs = file.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer."));
        pairs.map(|(key, value)| (key.to_owned(), value.clone())).collect::<Vec<_>>()
    };
    assert_eq!(tokenizer(&from), tokenizer(&to));
    assert!(to.metadata().get("tokenizer.chat_template").is_some());
    assert_eq!(Model::open(&path).unwrap().config.vocab_size, 151_936);
}

/// A file without a vocabulary says so, as other runtimes want it; text is refused as where the key is absent.
#[test]
fn without_a_vocabulary_the_file_says_that_it_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let _ = synth(&[CODER, "--dry-run", "--layers", "1"], &path).succeeded();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.metadata().opt_str("tokenizer.ggml.model").unwrap(), Some("none"));
    let file = path.to_str().unwrap();
    let refused = run(BINARY, ["tokenize", "-m", file, "text"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("has no tokenizer"), "{refused:?}");
    let none = synth(&[CODER, "--dry-run", "--vocab-from", file], &dir.path().join("x.gguf"));
    assert!(none.code == 2 && none.stderr.contains("model.gguf"), "{none:?}");
}

#[test]
fn a_dry_run_has_the_real_size_and_no_weights() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("full.gguf");
    for (preset, layers, gigabytes) in
        [(CODER, 48, 18), ("qwen3-30b-a3b", 48, 18), ("qwen3-235b-a22b", 94, 142)]
    {
        let report = synth(&[preset, "--dry-run", "--json"], &path).succeeded().json();
        assert_eq!(report["dry_run"], true);
        assert_eq!(report["file_bytes"].as_u64().unwrap() / 1_000_000_000, gigabytes, "{preset}");
        let model = Model::open(&path).unwrap();
        assert_eq!((model.config.layers.len(), model.config.num_hidden_layers), (layers, layers));
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            assert!(fs::metadata(&path).unwrap().blocks() * 512 < 16 << 20, "{preset}: not sparse");
        }
    }
    assert_eq!(names(dir.path()), ["full.gguf"]);
}

#[test]
fn every_preset_is_a_model_of_the_size_that_its_files_have() {
    // Gigabytes of the files that most people have: ggml-org's of gpt-oss, llama-quantize's Q4_K_M of the others.
    let real = [
        ("gpt-oss-20b", 12.1),
        ("gpt-oss-120b", 63.4),
        ("mixtral-8x7b", 28.4),
        ("qwen3-30b-a3b", 18.6),
        ("deepseek-v3", 404.4),
    ];
    let dir = tempfile::tempdir().unwrap();
    for preset in PRESETS {
        let path = dir.path().join(format!("{}.gguf", preset.name));
        let report = synth(&[preset.name, "--dry-run", "--json"], &path).succeeded().json();
        // It lowers, so no tensor and no key of it is too many or missing.
        let model = Model::open(&path).unwrap();
        assert_eq!(model.config.num_hidden_layers, preset.num_hidden_layers, "{}", preset.name);
        assert_eq!(model.config.vocab_size, preset.vocab_size, "{}", preset.name);
        assert!(model.config.unused_keys.is_empty(), "{}: {:?}", preset.name, model.config.unused_keys);
        let gigabytes = report["file_bytes"].as_u64().unwrap() as f64 / 1e9;
        if let Some((_, real)) = real.iter().find(|(name, _)| *name == preset.name) {
            assert!(
                (gigabytes / real - 1.0).abs() < 0.03,
                "{}: {gigabytes:.1} GB, wanted {real}",
                preset.name
            );
        }
        eprintln!("{}: {gigabytes:.1} GB", preset.name);
        let plan =
            run(BINARY, ["graph", "-m", path.to_str().unwrap(), "--level", "plan", "--backend", "cpu"]);
        assert!(plan.succeeded().stdout.contains("launches"), "{}", preset.name);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let tiny = fixtures::tiny_q4_k_m();
    let refused = |args: &[&str], parts: &[&str]| {
        let ended = synth(args, &path);
        assert_eq!(ended.code, 2, "{ended:?}");
        for part in parts {
            assert!(ended.stderr.contains(part), "{part:?} in {:?}", ended.stderr);
        }
        assert!(names(dir.path()).is_empty());
    };
    refused(&["qwen4"], &["qwen4", CODER, "qwen3-235b-a22b"]);
    refused(&[CODER, "--layers", "0"], &["0 layers", "1 to 48"]);
    refused(&[CODER, "--layers", "49"], &["49 layers", "1 to 48"]);
    refused(&[CODER, "--vocab-from", "absent.gguf"], &["absent.gguf", "check the path"]);
    refused(&[CODER, "--vocab-from", tiny.to_str().unwrap()], &["3072", "151936", CODER]);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("absent/x.gguf")] {
        let ended = synth(&[CODER, "--dry-run"], &path);
        assert_eq!(ended.code, 4, "{ended:?}");
        assert!(ended.stderr.contains(path.to_str().unwrap()), "{ended:?}");
    }
    assert!(names(dir.path()).is_empty());
}

/// A limit on the size of files stands in for a full disk: writing fails in the middle.
#[cfg(unix)]
#[test]
fn a_file_that_does_not_fit_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let script =
        format!("trap '' XFSZ; ulimit -f 20000; exec '{BINARY}' synth --preset {CODER} --layers 1 -o \"$0\"");
    let output = Command::new("sh").args(["-c", &script]).arg(&path).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(
        stderr.contains("x.gguf") && stderr.contains("it needs") && stderr.contains("--layers"),
        "{stderr}"
    );
    assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let mut child = Command::new(BINARY)
        .args(["synth", "--preset", CODER, "-o"])
        .arg(&path)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while names(dir.path()).is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before its file was there");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!path.exists(), "the file appears under its name only when it is whole");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
}

/// An interrupted or failed run does not touch a file that was there before.
#[cfg(unix)]
#[test]
fn an_older_file_survives_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    fs::write(&path, "older").unwrap();
    let script =
        format!("trap '' XFSZ; ulimit -f 20000; exec '{BINARY}' synth --preset {CODER} --layers 1 -o \"$0\"");
    let status = Command::new("sh").args(["-c", &script]).arg(&path).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(4));
    assert_eq!(fs::read(&path).unwrap(), b"older");
    assert_eq!(names(dir.path()), ["x.gguf"]);
}

/// A model of the presets' kind, but small and deep: its last layers must route as widely as its first.
static DEEP: Preset = Preset {
    name: "deep",
    num_hidden_layers: 16,
    hidden_size: 512,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    num_experts: 32,
    num_experts_per_tok: 4,
    moe_intermediate_size: 256,
    vocab_size: 512,
    ..PRESETS[0]
};

#[test]
fn activations_are_finite_and_routing_spreads_in_every_layer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep.gguf");
    let options =
        SynthOptions { preset: &DEEP, num_hidden_layers: None, seed: 3, vocabulary: None, format: None };
    let out = fs::File::create(&path).unwrap();
    let _ =
        Synth::new(&options).unwrap().write(out, NonZeroUsize::MIN, |_| ControlFlow::Continue(())).unwrap();
    const TOKENS: usize = 64;
    let tokens = (0..TOKENS).map(|i| (i * 7 + 1).to_string()).collect::<Vec<_>>().join(",");
    let args = ["trace", "-m", path.to_str().unwrap(), "--tokens", &tokens, "--positions", "all", "--json"];
    let report = run(BINARY, args.iter().chain(&["--backend", "cpu"]).copied()).succeeded().json();
    assert!(report["summary"]["first_non_finite"].is_null(), "{}", report["summary"]);
    let layers = report["expert_use"].as_array().unwrap();
    assert_eq!(layers.len(), DEEP.num_hidden_layers);
    for layer in layers {
        let counts: Vec<u64> =
            layer["counts"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        assert_eq!(counts.iter().sum::<u64>() as usize, TOKENS * DEEP.num_experts_per_tok);
        // Uniform choice would give each of the 32 experts 8 tokens of 64.
        let (used, most) = (counts.iter().filter(|&&n| n > 0).count(), *counts.iter().max().unwrap());
        assert!(
            used >= 29 && most <= 24,
            "layer {}: {used} experts used, one by {most} tokens",
            layer["layer"]
        );
    }
}
