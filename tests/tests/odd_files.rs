//! Files that are sound and odd: types that nothing decodes, strings that are not UTF-8, shapes with dimensions of 1,
//! tensors that join several, and names that would steer a terminal. Each is used as far as it can be.

use std::{borrow::Cow, fs, path::PathBuf};

use moe_run_graph::{
    gguf::{
        GgufFile, MetaArray as A, MetaValue as V, Metadata,
        writer::{self, TensorSpec},
    },
    quant::Format,
    shown::is_steering,
    synth::{Random, fill},
};
use moe_run_tests::{
    cli::{Finished, run},
    fixtures,
};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_moe-run-under-test");

const HIDDEN: usize = 256;
const HEAD: usize = 32;
const HEADS: usize = 2;
const KV_HEADS: usize = 1;
const EXPERTS: usize = 4;
const WIDTH: usize = 32;
/// What a stranger may have named a thing: it clears the screen, begins a line, sets a title, turns the writing round.
const EVIL: &str = "evil\u{1b}[2J\r\nok: all is well\u{1b}]0;x\u{7}\u{9b}1A\u{7f}\u{202e}";

/// A model of two layers with the demo model's tokenizer, to be changed before it is written.
struct Odd {
    folder: tempfile::TempDir,
    pairs: Vec<(String, V)>,
    tensors: Vec<(TensorSpec, Vec<u8>)>,
}

impl Odd {
    fn new() -> Odd {
        let demo = GgufFile::open(fixtures::tiny_q4_k_m()).unwrap();
        let mut pairs: Vec<(String, V)> =
            vec![("general.architecture".to_owned(), V::String("qwen3moe".into()))];
        for (rest, value) in [
            ("context_length", 128),
            ("embedding_length", HIDDEN),
            ("block_count", 2),
            ("attention.head_count", HEADS),
            ("attention.head_count_kv", KV_HEADS),
            ("attention.key_length", HEAD),
            ("attention.value_length", HEAD),
            ("expert_count", EXPERTS),
            ("expert_used_count", 2),
            ("expert_feed_forward_length", WIDTH),
        ] {
            pairs.push((format!("qwen3moe.{rest}"), V::U32(value as u32)));
        }
        pairs.push(("qwen3moe.attention.layer_norm_rms_epsilon".to_owned(), V::F32(1e-6)));
        let tokenizer = demo.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer."));
        pairs.extend(tokenizer.map(|(key, value)| (key.to_owned(), value.clone())));

        let vocab = demo.tensor("token_embd.weight").unwrap().shape[0];
        let mut odd = Odd { folder: tempfile::tempdir().unwrap(), pairs, tensors: Vec::new() };
        odd.add("token_embd.weight", &[vocab, HIDDEN], Format::Q8_0);
        odd.add("output_norm.weight", &[HIDDEN], Format::F32);
        for layer in 0..2 {
            let mut add = |rest: &str, shape: &[usize], format| {
                odd.add(&format!("blk.{layer}.{rest}.weight"), shape, format);
            };
            add("attn_norm", &[HIDDEN], Format::F32);
            add("attn_q", &[HEADS * HEAD, HIDDEN], Format::Q8_0);
            add("attn_k", &[KV_HEADS * HEAD, HIDDEN], Format::Q8_0);
            add("attn_v", &[KV_HEADS * HEAD, HIDDEN], Format::Q8_0);
            add("attn_q_norm", &[HEAD], Format::F32);
            add("attn_k_norm", &[HEAD], Format::F32);
            add("attn_output", &[HIDDEN, HEADS * HEAD], Format::Q8_0);
            add("ffn_norm", &[HIDDEN], Format::F32);
            add("ffn_gate_inp", &[EXPERTS, HIDDEN], Format::F32);
            add("ffn_gate_exps", &[EXPERTS, WIDTH, HIDDEN], Format::Q8_0);
            add("ffn_up_exps", &[EXPERTS, WIDTH, HIDDEN], Format::Q8_0);
            add("ffn_down_exps", &[EXPERTS, HIDDEN, WIDTH], Format::Q8_0);
        }
        odd
    }

    fn add(&mut self, name: &str, shape: &[usize], format: Format) {
        let (cols, rows) = shape.split_last().unwrap();
        let mut bytes = vec![0; format.row_bytes(*cols).unwrap() * rows.iter().product::<usize>()];
        fill(format, 1.0, &mut Random::new(&[self.tensors.len() as u64]), &mut bytes);
        self.push(name, shape.to_vec(), format, bytes);
    }

    fn push(&mut self, name: &str, shape: Vec<usize>, format: Format, bytes: Vec<u8>) {
        self.tensors.push((TensorSpec { name: name.to_owned(), shape, format: format.into() }, bytes));
    }

    fn take(&mut self, name: &str) -> (TensorSpec, Vec<u8>) {
        let at = self.tensors.iter().position(|(spec, _)| spec.name == name).unwrap();
        self.tensors.remove(at)
    }

    fn set(mut self, key: &str, value: V) -> Odd {
        self.pairs.retain(|(k, _)| k != key);
        self.pairs.push((key.to_owned(), value));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let metadata = Metadata::from_pairs("odd", self.pairs.iter().cloned()).unwrap();
        let specs: Vec<TensorSpec> = self.tensors.iter().map(|(spec, _)| spec.clone()).collect();
        writer::to_vec(&metadata, &specs, |i| Cow::Borrowed(self.tensors[i].1.as_slice())).unwrap()
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("odd.gguf")
    }

    fn moe_run(&self, args: &[&str]) -> Finished {
        if !self.path().exists() {
            fs::write(self.path(), self.bytes()).unwrap();
        }
        let path = self.path();
        // `run` has no name of its own in front of its options.
        let at = usize::from(!args[0].starts_with('-'));
        let model = ["-m", path.to_str().unwrap()];
        run(BINARY, args[..at].iter().chain(&model).chain(&args[at..]).copied())
    }

    /// The ids that the model goes on with, on a backend and its device.
    fn ids_on(&self, backend: &str, device: &str) -> Value {
        let args = ["--tokens", "1,2,3,4,5", "--temp", "0", "-n", "6", "--json", "--backend", backend];
        let report = self.moe_run(&[&args[..], &["--device", device]].concat()).succeeded().json();
        report["output_tokens"].clone()
    }

    /// The ids that the model goes on with, on a backend.
    fn ids(&self, backend: &str) -> Value {
        let args = ["--tokens", "1,2,3,4,5", "--temp", "0", "-n", "6", "--json", "--backend", backend];
        let report = self.moe_run(&args).succeeded().json();
        let ids = report["output_tokens"].clone();
        assert!(ids.as_array().is_some_and(|ids| !ids.is_empty()), "{report}");
        ids
    }

    fn refused(&self, args: &[&str], code: i32, parts: &[&str]) {
        let ended = self.moe_run(args);
        assert_eq!(ended.code, code, "{args:?}: {ended:#?}");
        for part in parts {
            assert!(ended.stderr.contains(part), "{args:?}: {part:?} in {ended:#?}");
        }
        let errors = ended.stderr.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(errors, 1, "{args:?}: {ended:#?}");
        assert_eq!(ended.stderr.matches("odd.gguf").count(), 1, "the file is named once: {ended:#?}");
    }
}

const RUN: &[&str] = &["--tokens", "1,2,3", "--temp", "0", "-n", "1", "--backend", "cpu"];

/// The file with the type of a tensor's entry replaced, whose row is halved where an element takes 8 bytes.
fn with_type(bytes: &[u8], name: &str, number: u32) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let at = bytes.windows(name.len()).position(|w| w == name.as_bytes()).unwrap() + name.len();
    let dims = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    if [27, 28].contains(&number) {
        out[at + 4..at + 12].copy_from_slice(&(HIDDEN as u64 / 2).to_le_bytes());
    }
    let type_at = at + 4 + 8 * dims;
    out[type_at..type_at + 4].copy_from_slice(&number.to_le_bytes());
    out
}

#[test]
fn types_that_nothing_decodes_stop_only_what_computes() {
    const TENSOR: &str = "blk.1.ffn_gate_exps.weight";
    let mut odd = Odd::new();
    odd.take(TENSOR);
    odd.add(TENSOR, &[EXPERTS, WIDTH, HIDDEN], Format::F32);
    let bytes = odd.bytes();
    let types = [
        (4, "Q4_2"),
        (5, "Q4_3"),
        (9, "Q8_1"),
        (15, "Q8_K"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (31, "Q4_0_4_4"),
        (32, "Q4_0_4_8"),
        (33, "Q4_0_8_8"),
        (36, "IQ4_NL_4_4"),
        (37, "IQ4_NL_4_8"),
        (38, "IQ4_NL_8_8"),
        (99, "type 99"),
        (u32::MAX, "type 4294967295"),
    ];
    for (number, name) in types {
        fs::write(odd.path(), with_type(&bytes, TENSOR, number)).unwrap();
        let report = odd.moe_run(&["inspect", "--json", "--check"]).succeeded().json();
        let tensors = report["tensors"].as_array().unwrap();
        let tensor = tensors.iter().find(|t| t["name"] == TENSOR).unwrap();
        assert_eq!(tensor["format"], name);
        // What is not known is not guessed.
        assert_eq!(tensor["bytes"].is_null(), [4, 5, 99, u32::MAX].contains(&number), "{tensor}");
        assert_eq!(report["check"]["unchecked_tensors"], 1);
        assert_eq!(report["check"]["tensors"], tensors.len() - 1);
        let found = if name.starts_with("type") { format!("number {number}") } else { name.to_owned() };
        let reason = report["not_runnable"].as_str().unwrap();
        assert!(reason.contains(TENSOR) && reason.contains(&format!("tensor type {found}")), "{reason}");
        let shown = odd.moe_run(&["inspect"]).succeeded().stdout;
        assert!(shown.contains("\nNot a model that can be run: tensor blk.1."), "{shown}");
        assert_eq!(shown.contains("has not been checked"), tensor["bytes"].is_null(), "{shown}");
        let tokens = odd.moe_run(&["tokenize", "hi"]).succeeded();
        assert_eq!(tokens.stdout.trim(), "440  \"hi\"");
        if [4, 15, 27, 99].contains(&number) {
            for args in [RUN, &["graph"], &["trace", "--tokens", "1"], &["chat"], &["bench"]] {
                odd.refused(args, 3, &[TENSOR, &found]);
            }
        }
    }
}

#[test]
fn strings_that_are_not_utf8_harm_only_what_uses_them() {
    let latin1 = || V::Bytes(b"caf\xe9 \\".to_vec());
    let strings = || V::Array(A::Bytes(vec![b"en".to_vec(), b"fran\xe7ais".to_vec()]));
    let plain = Odd::new().ids("cpu");
    let odd = Odd::new()
        .set("general.description", latin1())
        .set("general.name", latin1())
        .set("general.languages", strings());
    assert_eq!(odd.ids("cpu"), plain);
    assert!(odd.moe_run(&["graph"]).succeeded().stdout.contains("(caf\\xE9 \\\\)"));
    let shown = odd.moe_run(&["inspect"]).succeeded().stdout;
    assert!(shown.contains("general.name = \"caf\\xE9 \\\\\" (not UTF-8)"), "{shown}");
    let report = odd.moe_run(&["inspect", "--json"]).succeeded().json();
    let of =
        |key: &str| report["metadata"].as_array().unwrap().iter().find(|p| p["key"] == key).unwrap().clone();
    let description = of("general.description");
    assert_eq!(description["value"], "caf\\xE9 \\\\");
    assert_eq!((&description["type"], &description["hex"]), (&"string".into(), &"636166e9205c".into()));
    assert_eq!(of("general.languages")["first"], serde_json::json!(["en", "fran\\xE7ais"]));
    assert_eq!(of("general.languages")["first_hex"][1], "6672616ee7616973");

    Odd::new().set("general.architecture", latin1()).refused(
        RUN,
        2,
        &["\"general.architecture\"", "caf\\xE9"],
    );
    let odd = Odd::new().set("tokenizer.chat_template", latin1());
    odd.refused(
        &["-p", "hi", "-n", "1", "--backend", "cpu"],
        2,
        &["\"tokenizer.chat_template\"", "not UTF-8"],
    );
    let _ = odd.moe_run(&["-p", "hi", "-n", "1", "--raw", "--backend", "cpu"]).succeeded();
    let mut tokens = vec![b"a".to_vec(); 300];
    tokens[17] = b"\xff".to_vec();
    let odd = Odd::new().set("tokenizer.ggml.tokens", V::Array(A::Bytes(tokens)));
    odd.refused(&["tokenize", "hi"], 2, &["\"tokenizer.ggml.tokens\"", "number 17, \"\\xFF\", is not UTF-8"]);
    let _ = odd.moe_run(&["inspect"]).succeeded();
}

#[test]
fn dimensions_of_one_outside_change_nothing() {
    let plain = Odd::new();
    let mut odd = Odd::new();
    for (i, (spec, _)) in odd.tensors.iter_mut().enumerate() {
        // One, or as many as there is room for.
        let wanted = if i % 2 == 0 { 4 } else { (spec.shape.len() + 1).min(4) };
        while spec.shape.len() < wanted {
            spec.shape.insert(0, 1);
        }
    }
    assert_eq!(odd.ids("cpu"), plain.ids("cpu"));
    // Inside it is another shape.
    let mut odd = Odd::new();
    let (spec, bytes) = odd.take("blk.0.attn_norm.weight");
    odd.push(&spec.name, vec![HIDDEN, 1], spec.format.format().unwrap(), bytes);
    odd.refused(RUN, 2, &["blk.0.attn_norm.weight", "[256, 1]", "[256]"]);
    let mut odd = Odd::new();
    let (spec, bytes) = odd.take("blk.0.attn_q.weight");
    odd.push(&spec.name, vec![1, HEAD, HEADS * HIDDEN], spec.format.format().unwrap(), bytes);
    odd.refused(RUN, 2, &["blk.0.attn_q.weight", "[1, 32, 512]", "[64, 256]"]);
}

/// Joins q, k and v of a layer.
fn fuse_qkv(odd: &mut Odd, layer: usize) {
    let parts = ["q", "k", "v"].map(|part| odd.take(&format!("blk.{layer}.attn_{part}.weight")));
    let rows = parts.iter().map(|(spec, _)| spec.shape[0]).sum();
    let bytes = parts.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    odd.push(&format!("blk.{layer}.attn_qkv.weight"), vec![rows, HIDDEN], Format::Q8_0, bytes);
}

/// Joins gate and up of each of a layer's experts.
fn fuse_gate_up(odd: &mut Odd, layer: usize) {
    let (_, gate) = odd.take(&format!("blk.{layer}.ffn_gate_exps.weight"));
    let (_, up) = odd.take(&format!("blk.{layer}.ffn_up_exps.weight"));
    let each = gate.len() / EXPERTS;
    let bytes = gate.chunks(each).zip(up.chunks(each)).flat_map(|(gate, up)| [gate, up].concat()).collect();
    let name = format!("blk.{layer}.ffn_gate_up_exps.weight");
    odd.push(&name, vec![EXPERTS, 2 * WIDTH, HIDDEN], Format::Q8_0, bytes);
}

#[test]
fn fused_tensors_are_read_by_their_rows() {
    let plain = Odd::new();
    let mut both = Odd::new();
    fuse_qkv(&mut both, 0);
    fuse_qkv(&mut both, 1);
    fuse_gate_up(&mut both, 0);
    fuse_gate_up(&mut both, 1);
    let mut mixed = Odd::new();
    fuse_qkv(&mut mixed, 1);
    fuse_gate_up(&mut mixed, 0);
    for backend in ["cpu", "reference"] {
        let wanted = plain.ids(backend);
        assert_eq!(both.ids(backend), wanted, "{backend}");
        assert_eq!(mixed.ids(backend), wanted, "{backend}");
    }
    // CUDA's kernels, on the processor.
    #[cfg(feature = "cuda")]
    assert_eq!(both.ids_on("cuda", "host-harness"), plain.ids_on("cuda", "host-harness"));
    // One token at a time and several together, op by op.
    for backend in ["cpu", "wgpu"] {
        let tokens = ["--against", "reference", "--tokens", "1,2,3,4,5,6,7,8"];
        let ended = both.moe_run(&[&["parity", "--backend", backend], &tokens[..]].concat());
        if backend == "wgpu" && ended.code == 3 {
            eprintln!("SKIPPED: {}", ended.stderr);
        } else {
            let _ = ended.succeeded();
        }
    }

    // Dumps say which tensor, and which rows of it.
    let dump = mixed.moe_run(&["graph", "--format", "json"]).succeeded().json();
    let weights = dump["weights"].as_array().unwrap();
    let names: Vec<&str> = weights.iter().map(|w| w["name"].as_str().unwrap()).collect();
    let (fused, separate) = ("blk.1.attn_qkv.weight", "blk.0.attn_k.weight");
    assert!(names.contains(&fused) && names.contains(&separate), "{names:?}");
    assert!(!names.contains(&"blk.1.attn_k.weight"), "{names:?}");
    let text = mixed.moe_run(&["graph"]).succeeded().stdout;
    assert!(
        text.contains("rows 0..64") && text.contains("rows 64..96") && text.contains("rows 96..128"),
        "{text}"
    );
    assert!(text.contains("rows 0..32") && text.contains("rows 32..64"), "{text}");
}

#[test]
fn fused_tensors_that_contradict_others_are_refused_by_name() {
    for (layer, rest) in [(0, "attn_k"), (1, "ffn_up_exps")] {
        let mut odd = Odd::new();
        let name = format!("blk.{layer}.{rest}.weight");
        let (spec, bytes) = odd.take(&name);
        odd.refused(RUN, 2, &[&format!("tensor {name} is missing")]);

        let mut odd = Odd::new();
        fuse_qkv(&mut odd, 0);
        fuse_gate_up(&mut odd, 1);
        odd.push(&name, spec.shape, spec.format.format().unwrap(), bytes);
        odd.refused(
            RUN,
            2,
            &[&name, if layer == 0 { "blk.0.attn_qkv.weight" } else { "blk.1.ffn_gate_up_exps" }],
        );
    }
    let mut odd = Odd::new();
    fuse_qkv(&mut odd, 0);
    let (spec, bytes) = odd.take("blk.0.attn_qkv.weight");
    odd.push(&spec.name, vec![2 * HIDDEN, HIDDEN / 4], spec.format.format().unwrap(), bytes);
    odd.refused(RUN, 2, &["blk.0.attn_qkv.weight", "wanted [128, 256]"]);
    for fused in [true, false] {
        let mut odd = Odd::new();
        if fused {
            fuse_qkv(&mut odd, 0);
        }
        odd.add("blk.0.attn_qkv.bias", &[(HEADS + 2 * KV_HEADS) * HEAD], Format::F32);
        odd.refused(RUN, 2, &["architecture qwen3moe has no place for blk.0.attn_qkv.bias"]);
        let report = odd.moe_run(&["inspect", "--json"]).succeeded().json();
        assert!(report["not_runnable"].as_str().unwrap().contains("attn_qkv.bias"));
    }
}

/// Fails where an output holds what steers a terminal, or a line that a file forged.
fn harmless(args: &[&str], ended: &Finished) {
    assert!((0..=3).contains(&ended.code), "{args:?}: {ended:#?}");
    for output in [&ended.stdout, &ended.stderr] {
        let steering = output.chars().find(|&c| is_steering(c) && c != '\n');
        assert_eq!(steering, None, "{args:?}: {output:?}");
        assert!(!output.lines().any(|line| line.starts_with("ok: all is well")), "{args:?}: {output:?}");
    }
}

#[test]
fn nothing_of_a_file_steers_the_terminal() {
    let evil = || V::String(EVIL.to_owned());
    let mut tensor = Odd::new();
    tensor.add(EVIL, &[32], Format::F32);
    let mut many = Odd::new();
    for i in 0..3 {
        many.add(&format!("{i}{EVIL}"), &[32], Format::F32);
    }
    let mut unknown = Odd::new();
    unknown.add(EVIL, &[256], Format::F32);
    fs::write(unknown.path(), with_type(&unknown.bytes(), EVIL, 99)).unwrap();
    let models = [
        tensor,
        many,
        unknown,
        Odd::new().set(EVIL, evil()),
        Odd::new().set("general.architecture", evil()),
        Odd::new().set("general.name", evil()),
        Odd::new().set("tokenizer.ggml.model", evil()),
        Odd::new().set("tokenizer.ggml.pre", evil()),
        Odd::new().set("tokenizer.ggml.merges", V::Array(A::String(vec![EVIL.into()]))),
        Odd::new().set("tokenizer.chat_template", V::String(format!("{{{{ raise_exception({EVIL:?}) }}}}"))),
        Odd::new().set("tokenizer.chat_template", V::String(format!("{{% {EVIL} %}}"))),
        Odd::new().set("qwen3moe.rope.scaling.type", evil()),
        Odd::new().set("qwen3moe.block_count", evil()),
        Odd::new().set("split.count", V::Array(A::String(vec![EVIL.into()]))),
    ];
    let commands: [&[&str]; 12] = [
        &["inspect"],
        &["inspect", "--json"],
        &["inspect", "--check"],
        &["tokenize", "hi"],
        &["tokenize", "hi", "--json"],
        &["graph"],
        &["graph", "--format", "json"],
        &["graph", "--format", "dot"],
        &["-p", "hi", "-n", "0", "--backend", "cpu"],
        &["trace", "--tokens", "1", "--backend", "cpu"],
        &["bench", "-p", "1", "-n", "0", "-r", "1", "--backend", "cpu"],
        &["parity", "--tokens", "1", "--backend", "cpu", "--against", "reference"],
    ];
    for model in &models {
        for args in commands {
            harmless(args, &model.moe_run(args));
        }
    }
    // What is shown is still there to be read.
    for args in [&["inspect"][..], RUN] {
        let ended = models[0].moe_run(args);
        let said = if args == RUN { &ended.stderr } else { &ended.stdout };
        assert!(said.contains("has no place for evil\\u{1b}[2J\\r\\nok: all is well"), "{ended:#?}");
    }
    let report = models[3].moe_run(&["inspect", "--json"]).succeeded().json();
    let pairs = report["metadata"].as_array().unwrap();
    assert!(
        pairs.iter().any(|pair| pair["key"] == EVIL && pair["value"] == EVIL),
        "JSON keeps what it escapes"
    );
}

#[cfg(unix)]
#[test]
fn no_name_of_a_file_steers_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let name = "evil\u{1b}[2J\nok: all is well";
    let at = |path: &str| folder.path().join(path).to_str().unwrap().to_owned();
    let value = [&b"APRT"[..], &u32::MAX.to_le_bytes(), &1u32.to_le_bytes(), &1f32.to_le_bytes()].concat();
    for dir in ["a", "b"] {
        fs::create_dir(at(dir)).unwrap();
        fs::write(at(&format!("{dir}/{name}.bin")), &value).unwrap();
        fs::write(at(&format!("{dir}/only-{dir}{name}.bin")), &value).unwrap();
    }
    fs::create_dir(at("c")).unwrap();
    fs::write(at(&format!("c/{name}.bin")), "neither").unwrap();
    for args in [
        ["diff", &at("a"), &at("b")],
        ["diff", &at("a"), &at("c")],
        ["diff", &at("a"), &at(name)],
        ["inspect", "-m", &at(name)],
        ["inspect", "-m", &at(&format!("a/{name}.bin"))],
    ] {
        let ended = run(BINARY, args);
        harmless(&args, &ended);
        assert!(ended.stdout.contains("evil\\u{1b}") || ended.stderr.contains("evil\\u{1b}"), "{ended:#?}");
    }
}

#[test]
fn a_file_is_named_once() {
    for key in ["general.architecture", "qwen3moe.attention.head_count"] {
        let mut odd = Odd::new();
        odd.pairs.retain(|(k, _)| k != key);
        for args in [RUN, &["graph"], &["bench"], &["chat"]] {
            odd.refused(args, 2, &[key, "is missing"]);
        }
        let shown = odd.moe_run(&["inspect"]).succeeded().stdout;
        let reason = format!("\nNot a model that can be run: metadata key {key:?} is missing");
        assert!(shown.contains(&reason), "{shown}");
    }
}
