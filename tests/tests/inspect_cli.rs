//! `moe-run inspect` from outside: what it shows, what its check finds, and its exit codes.

use std::{borrow::Cow, fs, path::Path};

use moe_run_graph::{
    gguf::{
        GgufFile, MetaArray as A, MetaValue as V, Metadata,
        writer::{self, TensorSpec},
    },
    quant::Format,
    synth::{Random, fill},
};
use moe_run_tests::{
    cli::{Finished, run},
    fixtures,
};

const BINARY: &str = env!("CARGO_BIN_EXE_moe-run-under-test");

fn inspect(path: &Path, args: &[&str]) -> Finished {
    run(BINARY, ["inspect", "-m", path.to_str().unwrap()].iter().chain(args).copied())
}

#[test]
fn the_json_holds_what_the_file_holds() {
    let path = fixtures::tiny_q4_k_m();
    let file = GgufFile::open(&path).unwrap();
    let report = inspect(&path, &["--json"]).succeeded().json();
    assert_eq!(report["schema_version"], 1);
    assert_eq!(report["architecture"], "qwen3moe");
    assert_eq!(report["file_bytes"], fs::metadata(&path).unwrap().len());

    let metadata = report["metadata"].as_array().unwrap();
    assert_eq!(metadata.len(), file.metadata().len());
    let of = |key: &str| metadata.iter().find(|pair| pair["key"] == key).unwrap();
    assert_eq!(of("qwen3moe.block_count")["value"], 4);
    assert_eq!(of("qwen3moe.attention.layer_norm_rms_epsilon")["value"], 1e-6);
    assert_eq!(of("tokenizer.ggml.tokens")["len"], 3072);
    assert_eq!(of("tokenizer.ggml.tokens")["type"], "array of string");
    assert_eq!(of("tokenizer.ggml.tokens")["first"].as_array().unwrap().len(), 8);
    assert_eq!(of("tokenizer.ggml.add_bos_token")["value"], false);

    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), file.tensors().len());
    for (shown, entry) in tensors.iter().zip(file.tensors()) {
        assert_eq!(shown["name"], entry.name.as_str());
        assert_eq!(shown["shape"], serde_json::json!(entry.shape));
        assert_eq!(shown["format"], entry.format().unwrap().name());
        assert_eq!(shown["bytes"], entry.len_bytes().unwrap());
    }
    let formats = report["formats"].as_array().unwrap();
    let sum = |field: &str| formats.iter().map(|f| f[field].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum("tensors"), 51);
    assert_eq!(sum("bytes"), report["total_tensor_bytes"].as_u64().unwrap());
    assert_eq!(report["total_elems"], 15_485_696);

    // 4 layers, 2 KV heads of 64, key and value, 2 bytes: 2048 bytes a token.
    assert_eq!(report["memory"]["ctx_size"], 2048, "the model's own limit");
    let kv = |kv_type: &str| {
        let list = report["memory"]["kv_cache"].as_array().unwrap();
        list.iter().find(|kv| kv["kv_type"] == kv_type).unwrap()["kv_bytes"].as_u64().unwrap()
    };
    assert_eq!((kv("f16"), kv("f32"), kv("q8_0")), (2048 * 2048, 2048 * 4096, 2048 * 1088));
    assert_eq!(report["config"]["num_hidden_layers"], 4);
    assert!(report["not_runnable"].is_null() && report["check"].is_null());
}

#[test]
fn the_text_shows_the_same_and_the_context_is_as_asked() {
    let text = inspect(&fixtures::tiny_q4_k_m(), &["--ctx-size", "1000", "--all"]).succeeded().stdout;
    for part in [
        "GGUF version 3",
        "qwen3moe.block_count = 4",
        "tokenizer.ggml.tokens = 3072 string",
        "blk.3.ffn_down_exps.weight",
        "[16, 256, 256]",
        "Q6_K",
        "15485696 elements",
        "context of 1000 tokens",
        "KV cache f16",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let ended = inspect(&fixtures::tiny_q4_k_m(), &["--ctx-size", "0"]);
    assert_eq!(ended.code, 2, "{ended:?}");
}

/// What tells most comes first, in 40 lines at most, and the last of them says what is left out.
#[test]
fn forty_lines_tell_most() {
    let tiny = fixtures::tiny_q4_k_m();
    let text = inspect(&tiny, &[]).succeeded().stdout;
    let places: Vec<usize> = [
        "File: ",
        "Memory for a context of 2048 tokens",
        "Formats: 3",
        "Architecture: qwen3moe",
        "4 layers, hidden size 256, vocabulary 3072, trained for 2048 tokens",
        "16 experts of width 256, 4 for a token",
        "general.name = ",
        "qwen3moe.block_count = 4",
        "--all shows ",
    ]
    .iter()
    .map(|part| text.find(part).unwrap_or_else(|| panic!("no {part:?} in {text}")))
    .collect();
    assert!(places.is_sorted(), "{text}");
    assert!(text.lines().count() <= 40 && !text.contains("blk.0."), "{text}");
    let all = inspect(&tiny, &["--all"]).succeeded().stdout;
    let file = GgufFile::open(&tiny).unwrap();
    let shown = text.lines().filter(|line| line.contains(" = ")).count();
    let more = format!("--all shows {} more keys of metadata and 51 tensors", file.metadata().len() - shown);
    assert!(text.ends_with(&format!("\n{more}\n")), "{more:?} in {text}");
    assert!(file.metadata().iter().all(|(key, _)| all.contains(&format!("  {key} = "))), "{all}");
    assert!(file.tensors().iter().all(|t| all.contains(&t.name)) && !all.contains("--all"), "{all}");

    // However many keys, formats and damaged tensors a file has; and a file that fits is shown whole.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.gguf");
    let infinite =
        [Format::Q4K, Format::Q5K, Format::Q8_0, Format::F32, Format::F16, Format::Bf16, Format::Q6K];
    let damage: Vec<(Format, usize, u8)> =
        infinite.iter().flat_map(|f| (0..f.row_bytes(512).unwrap()).map(|at| (*f, at, 0xff))).collect();
    fs::write(&path, file_with(&damage)).unwrap();
    let ended = inspect(&path, &["--check"]);
    assert_eq!((ended.code, ended.stdout.lines().count() <= 40), (1, true), "{ended:#?}");
    assert!(ended.stdout.contains(" tensors more") && ended.stdout.contains(" formats more"), "{ended:#?}");
    let metadata = Metadata::from_pairs("m", [("general.name", V::String("small".into()))]).unwrap();
    fs::write(&path, writer::to_vec(&metadata, &[], |_| Cow::Borrowed(&[])).unwrap()).unwrap();
    let small = inspect(&path, &[]).succeeded().stdout;
    assert!(small.contains("general.name = \"small\"") && !small.contains("--all"), "{small}");
}

#[test]
fn without_a_model_it_is_the_demo() {
    let ended = run(BINARY, ["inspect", "--check"]).succeeded();
    assert!(ended.stderr.contains("demo"), "{ended:?}");
    assert!(ended.stdout.contains("51 tensors") && ended.stdout.contains(": 0 with"), "{ended:?}");
}

/// A file of one tensor of every format, with the bytes of `damage` (tensor, byte, value) changed.
fn file_with(damage: &[(Format, usize, u8)]) -> Vec<u8> {
    let specs: Vec<TensorSpec> = Format::ALL
        .iter()
        .map(|&format| TensorSpec {
            name: format!("{format}.weight"),
            shape: vec![2, 3, 512],
            format: format.into(),
        })
        .collect();
    let metadata =
        Metadata::from_pairs("m", [("general.architecture", V::String("qwen3moe".into()))]).unwrap();
    writer::to_vec(&metadata, &specs, |i| {
        let format = specs[i].format.format().unwrap();
        let mut bytes = vec![0; format.row_bytes(512).unwrap() * 6];
        fill(format, 1.0, &mut Random::new(&[i as u64]), &mut bytes);
        for (_, at, value) in damage.iter().filter(|(f, ..)| *f == format) {
            bytes[*at] = *value;
        }
        Cow::Owned(bytes)
    })
    .unwrap()
}

#[test]
fn the_check_finds_damage_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.gguf");
    fs::write(&path, file_with(&[])).unwrap();
    let sound = inspect(&path, &["--check", "--json"]).succeeded().json();
    assert_eq!(sound["check"]["tensors"], Format::ALL.len());
    assert_eq!(sound["check"]["damaged"], serde_json::json!([]));

    // An infinite f16 scale in Q4_K's block 3 (row 1, second half), an infinite value in F32's element 700, and a NaN
    // exponent in MXFP4's block 16 (row 1, the first).
    let damage = [
        (Format::Q4K, 3 * 144, 0),
        (Format::Q4K, 3 * 144 + 1, 0x7c),
        (Format::F32, 700 * 4, 0),
        (Format::F32, 700 * 4 + 1, 0),
        (Format::F32, 700 * 4 + 2, 0x80),
        (Format::F32, 700 * 4 + 3, 0x7f),
        (Format::Mxfp4, 16 * 17, 0xff),
    ];
    fs::write(&path, file_with(&damage)).unwrap();
    let ended = inspect(&path, &["--check", "--json"]);
    assert_eq!(ended.code, 1, "{ended:?}");
    let check = &ended.json()["check"];
    let damaged = check["damaged"].as_array().unwrap();
    let of = |name: &str| damaged.iter().find(|d| d["tensor"] == name).unwrap();
    assert_eq!(damaged.len(), 3, "{damaged:?}");
    let first = |name: &str| of(name)["first"].clone();
    assert_eq!((&of("Q4_K.weight")["scales"], &of("Q4_K.weight")["values"]), (&1.into(), &256.into()));
    assert_eq!(first("Q4_K.weight"), serde_json::json!([0, 1, 256]));
    assert_eq!((&of("F32.weight")["scales"], &of("F32.weight")["values"]), (&0.into(), &1.into()));
    assert_eq!(first("F32.weight"), serde_json::json!([0, 1, 188]));
    assert_eq!(of("MXFP4.weight")["scales"], 1);
    assert_eq!(first("MXFP4.weight")[1], 1);

    let ended = inspect(&path, &["--check"]);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stdout.contains("Q4_K.weight (Q4_K): 1 scales, 256 values"), "{}", ended.stdout);
}

#[test]
fn what_is_left_out_is_said() {
    let path = fixtures::find("arch/glm4moe/air.gguf").expect("carried");
    let line =
        "left out: blk.3.* (23 tensors, 223.9 KiB): multi-token prediction layer, used only for drafting";
    let text = inspect(&path, &[]).succeeded().stdout;
    assert!(text.contains(line), "{text}");
    let report = inspect(&path, &["--json"]).succeeded().json();
    let left_out = &report["left_out"][0];
    assert_eq!((&left_out["prefix"], &left_out["tensors"]), (&"blk.3.".into(), &23.into()));
    let rest = report["total_tensor_bytes"].as_u64().unwrap() - left_out["bytes"].as_u64().unwrap();
    assert_eq!(report["memory"]["weights_bytes"], rest);

    let answer = ["run", "-m", path.to_str().unwrap(), "--tokens", "1,2", "-n", "1", "--backend", "cpu"];
    let answered = run(BINARY, answer).succeeded();
    assert_eq!(answered.stderr.lines().filter(|l| *l == line).count(), 1, "{}", answered.stderr);
}

#[test]
fn a_key_that_nobody_knows_is_warned_of() {
    let file = GgufFile::open(fixtures::find("arch/qwen2moe/fused-qkv.gguf").expect("carried")).unwrap();
    let mut pairs: Vec<(String, V)> =
        file.metadata().iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    pairs.push(("qwen2moe.attention.wobble".into(), V::F32(0.5)));
    let metadata = Metadata::from_pairs("m", pairs).unwrap();
    let tensors: Vec<TensorSpec> = file
        .tensors()
        .iter()
        .map(|t| TensorSpec { name: t.name.clone(), shape: t.shape.clone(), format: t.ggml_type })
        .collect();
    let data = |i: usize| Cow::Owned(file.data(&file.tensors()[i]).to_vec());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wobbling.gguf");
    fs::write(&path, writer::to_vec(&metadata, &tensors, data).unwrap()).unwrap();
    let text = inspect(&path, &[]).succeeded().stdout;
    assert!(text.contains("not known, without effect: qwen2moe.attention.wobble"), "{text}");
    let answer = ["run", "-m", path.to_str().unwrap(), "--tokens", "1,2", "-n", "1", "--backend", "cpu"];
    let said = run(BINARY, answer).succeeded().stderr;
    assert!(
        said.contains("metadata that is not known here has no effect: qwen2moe.attention.wobble"),
        "{said}"
    );
}

#[test]
fn a_file_that_is_no_model_is_shown_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.gguf");
    let pairs = [
        ("general.architecture", V::String("mamba".into())),
        ("evil", V::String("a\u{1b}[2Jb".into())),
        ("evil.array", V::Array(A::String(vec!["\u{1b}]0;x\u{7}".into()]))),
    ];
    let metadata = Metadata::from_pairs("m", pairs).unwrap();
    fs::write(&path, writer::to_vec(&metadata, &[], |_| Cow::Owned(vec![])).unwrap()).unwrap();
    let ended = inspect(&path, &[]).succeeded();
    assert!(
        ended.stdout.contains("Tensors: 0") && ended.stdout.contains("'mamba' is not supported"),
        "{ended:?}"
    );
    assert!(
        !ended.stdout.contains('\u{1b}') && !ended.stdout.contains('\u{7}'),
        "terminal escapes get through"
    );
    let report = inspect(&path, &["--json"]).succeeded().json();
    assert!(report["memory"].is_null());
    assert!(report["not_runnable"].as_str().unwrap().contains("mamba"));
    assert_eq!(report["metadata"][1]["value"], "a\u{1b}[2Jb");
}

#[test]
fn what_is_no_gguf_file_is_bad_input() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.gguf");
    fs::write(&text, "hello, world").unwrap();
    for (path, part) in [
        (text.as_path(), "\"hell\""),
        (dir.path(), "a directory"),
        (&dir.path().join("no"), "check the path"),
    ] {
        for args in [&[][..], &["--json"][..]] {
            let ended = inspect(path, args);
            assert_eq!(ended.code, 2, "{ended:?}");
            assert!(ended.stderr.contains(part) && ended.stdout.is_empty(), "{ended:?}");
        }
    }
}
