//! `moe-run trace`: the named fields, broken models, the routing record.

use super::{BINARY, TOKENS};
use moe_run_tests::cli::run;
use moe_run_tests::fixtures;
use moe_run_tests::stages::StageFile;
use serde_json::{Value, json};

fn tiny() -> String {
    fixtures::tiny_q4_k_m().display().to_string()
}

#[test]
fn json_has_the_named_fields_and_right_numbers() {
    let args =
        ["trace", "-m", &tiny(), "--tokens", TOKENS, "--backend", "reference", "--kv-type", "f32", "--json"];
    let trace = run(BINARY, args).succeeded().json();
    for key in [
        "schema_version",
        "format",
        "architecture",
        "backend",
        "device",
        "activations",
        "num_layers",
        "hidden_size",
        "vocab_size",
        "num_heads",
        "num_kv_heads",
        "prompt",
        "encoded_tokens",
        "embedding",
        "layers",
        "final_norm",
        "logits",
    ] {
        assert!(!trace[key].is_null(), "{key} is missing");
    }
    assert_eq!((&trace["num_layers"], &trace["hidden_size"]), (&4.into(), &256.into()));
    assert_eq!(trace["layers"][2]["ffn_out"]["stage"], "moe_ffn_out");
    assert_eq!(trace["layers"][2]["output"]["stage"], "post_ffn_residual");
    assert_eq!(trace["logits"]["top_k"][0]["token"], "2");
    assert!(trace["summary"]["first_non_finite"].is_null());
    let Some(stages) = fixtures::find("tiny/tiny-qwen3moe-q4_k_m.stages.safetensors") else { return };
    let stages = StageFile::read(&stages);
    for layer in 0..4 {
        for (field, stage) in [
            ("attn_norm", "attn_norm"),
            ("qkv", "qkv_matmul"),
            ("attn_out", "attn_out"),
            ("ffn_norm", "ffn_norm"),
            ("moe_router", "moe_router"),
            ("ffn_out", "moe_ffn_out"),
            ("output", "post_ffn_residual"),
        ] {
            let (shape, values) = &stages.values[&format!("layer-{layer}/{stage}")];
            let last = &values[values.len() - values.len() / shape[0]..];
            let (n, entry) = (last.len() as f64, &trace["layers"][layer][field]);
            let mean = last.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
            let deviation = (last.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n).sqrt();
            let norm = last.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let near = |key: &str, wanted: f64| {
                let found = entry[key].as_f64().unwrap();
                assert!(
                    (found - wanted).abs() <= 1e-4 * norm,
                    "layer {layer} {field} {key}: {found}, not {wanted}"
                );
            };
            assert_eq!(entry["count"], last.len(), "layer {layer} {field}");
            near("mean", mean);
            near("std_dev", deviation);
            near("l2_norm", norm);
            near("min", last.iter().copied().fold(f32::INFINITY, f32::min).into());
            near("max", last.iter().copied().fold(f32::NEG_INFINITY, f32::max).into());
        }
        let (_, ids) = &stages.values[&format!("layer-{layer}/moe_topk_ids")];
        let found: Vec<f32> =
            serde_json::from_value(trace["layers"][layer]["moe_router"]["experts"].clone()).unwrap();
        assert_eq!(found, ids[ids.len() - 4..]);
    }
}

#[test]
fn text_lists_layers_and_a_summary() {
    let text = run(BINARY, ["trace", "-m", &tiny(), "--tokens", "1,2,3", "--backend", "reference"])
        .succeeded()
        .stdout;
    for wanted in
        ["layer 3\n", "attn_norm", "experts: ", "top tokens", "entropy", "summary: every value is finite"]
    {
        assert!(text.contains(wanted), "no {wanted:?} in {text}");
    }
}

#[test]
fn a_broken_model_still_parses_and_its_first_nan_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = moe_run_graph::gguf::GgufFile::open(fixtures::tiny_q4_k_m()).unwrap();
    // The norm of k in layer 1 gets a NaN: the first stage that has it is k_norm, which a trace does not show by itself.
    let tensor = file.tensor("blk.1.attn_k_norm.weight").unwrap();
    let mut bytes = std::fs::read(fixtures::tiny_q4_k_m()).unwrap();
    let at = tensor.offset_bytes();
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let path = dir.path().join("broken.gguf");
    std::fs::write(&path, bytes).unwrap();
    let path = path.display().to_string();
    let args = ["trace", "-m", &path, "--tokens", TOKENS, "--backend", "reference"];
    let trace = run(BINARY, args.iter().copied().chain(["--json"])).succeeded().json();
    assert_eq!(trace["summary"]["first_non_finite"]["stage"], "layer-1/k_norm");
    assert_eq!(trace["summary"]["first_non_finite"]["kind"], "nan");
    assert_eq!(trace["layers"][1]["output"]["mean"], "NaN");
    assert!(trace["layers"][0]["output"]["mean"].is_number());
    let text = run(BINARY, args).succeeded().stdout;
    assert!(text.contains("the first NaN is in layer-1/k_norm"), "{text}");
}

#[test]
fn files_that_cannot_be_are_refused_before_the_model_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (here, nowhere) = (dir.path().display().to_string(), dir.path().join("no/x").display().to_string());
    for (option, path, wanted) in [
        ("--routing", &here, "is a directory"),
        ("--routing", &nowhere, "there is no directory"),
        ("--routing-plot", &nowhere, "there is no directory"),
    ] {
        let finished = run(BINARY, ["trace", "-m", "/nonexistent.gguf", "--tokens", "1", option, path]);
        assert!(finished.code == 2 && finished.stderr.contains(wanted), "{finished:#?}");
    }
    let args = ["parity", "-m", &tiny(), "--backend", "cpu", "--against", "reference", "--tokens", "1,2"];
    let finished = run(BINARY, args.into_iter().chain(["--decode", "3"]));
    assert!(finished.code == 2 && finished.stderr.contains("--decode 3: wanted at most"), "{finished:#?}");
}

#[test]
fn routing_is_recorded_for_every_position_and_layer() {
    let dir = tempfile::tempdir().unwrap();
    let (lines, plot) = (dir.path().join("routing.jsonl"), dir.path().join("routing.svg"));
    let (l, p) = (lines.display().to_string(), plot.display().to_string());
    let args = [
        "trace",
        "-m",
        &tiny(),
        "--tokens",
        TOKENS,
        "--backend",
        "reference",
        "--json",
        "--routing",
        &l,
        "--routing-plot",
        &p,
    ];
    let trace = run(BINARY, args).succeeded().json();
    let lines = std::fs::read_to_string(lines).unwrap();
    let mut records: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let head = records.remove(0);
    let tokens: Vec<u64> = TOKENS.split(',').map(|t| t.parse().unwrap()).collect();
    assert_eq!((&head["kind"], &head["schema_version"]), (&"routing".into(), &2.into()));
    assert_eq!(
        (&head["source"], &head["file"], &head["chunks"]),
        (&"tokens".into(), &Value::Null, &1.into())
    );
    assert_eq!((&head["backend"], &head["activations"]), (&"reference".into(), &"f32".into()));
    assert_eq!(head["model"]["file"], "tiny-qwen3moe-q4_k_m.gguf");
    assert_eq!(head["layers"][3], json!({"layer": 3, "num_experts": 16, "num_experts_per_tok": 4}));
    assert_eq!(head["tokens"], json!(tokens));
    assert_eq!(records.len(), 15 * 4);
    for (i, record) in records.iter().enumerate() {
        let place = (&record["chunk"], &record["position"], &record["layer"]);
        assert_eq!(place, (&0.into(), &(i / 4).into(), &(i % 4).into()));
        assert_eq!(record["token_id"], tokens[i / 4]);
    }
    let weights: f64 = records[7]["weights"].as_array().unwrap().iter().map(|w| w.as_f64().unwrap()).sum();
    assert!((weights - 1.0).abs() < 1e-5, "renormalised weights add up to 1, not {weights}");
    let layer = &trace["expert_use"][1];
    let counted = records.iter().filter(|r| r["layer"] == 1).flat_map(|r| r["experts"].as_array().unwrap());
    let mut counts = vec![0u64; 16];
    counted.for_each(|e| counts[e.as_u64().unwrap() as usize] += 1);
    assert_eq!(layer["counts"], serde_json::json!(counts));
    let svg = std::fs::read_to_string(plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.matches("<rect x=").count() == 4 * 16);
}

/// A routing file's first line, and the others.
fn routing(text: &str) -> (Value, Vec<Value>) {
    let mut lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    (lines.next().unwrap(), lines.collect())
}

#[test]
fn a_text_runs_in_chunks_from_empty_contexts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text.txt");
    std::fs::write(&file, "Two and two make four, and three and four make seven.\n".repeat(3)).unwrap();
    let file = file.display().to_string();
    let trace = |more: &[&str]| {
        let common = ["trace", "--backend", "reference", "--routing", "-"];
        run(BINARY, common.into_iter().chain(more.iter().copied())).succeeded()
    };
    let whole = trace(&["-f", &file, "-c", "16"]);
    let (head, lines) = routing(&whole.stdout);
    let tokens: Vec<u64> = serde_json::from_value(head["tokens"].clone()).unwrap();
    let chunks = tokens.len().div_ceil(16);
    assert!(
        chunks > 2 && !tokens.len().is_multiple_of(16),
        "a shorter rest is there: {} tokens",
        tokens.len()
    );
    assert_eq!((&head["source"], &head["file"]), (&"text".into(), &json!(file)));
    assert_eq!((&head["chunks"], &head["chunk_tokens"]), (&chunks.into(), &16.into()));
    assert_eq!(lines.len(), tokens.len() * 4);
    assert!(whole.stderr.contains("top tokens"), "the report goes elsewhere: {whole:#?}");
    // The text as it is: what `--raw` gives.
    let text = std::fs::read_to_string(&file).unwrap();
    let raw = run(BINARY, ["tokenize", "--json", text.trim_end()]).succeeded().json();
    assert_eq!(head["tokens"], raw["ids"]);
    // Each chunk is what a run of its tokens alone gives.
    for (chunk, ids) in tokens.chunks(16).enumerate() {
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        let (_, alone) = routing(&trace(&["--tokens", &ids.join(",")]).stdout);
        let of_chunk = lines.iter().filter(|line| line["chunk"] == chunk);
        let of_chunk: Vec<Value> = of_chunk
            .map(|line| {
                let mut line = line.clone();
                line["chunk"] = 0.into();
                line
            })
            .collect();
        assert_eq!(of_chunk, alone, "chunk {chunk}");
    }
    // Asked for the chat format, it is a prompt; so it is without --routing.
    let (head, _) = routing(&trace(&["-f", &file, "--system", "Be brief."]).stdout);
    assert_eq!((&head["source"], &head["chunks"]), (&"chat".into(), &1.into()));
    let report = run(BINARY, ["trace", "--backend", "reference", "--json", "-f", &file]).succeeded().json();
    let im_start = TOKENS.split(',').next().unwrap();
    assert_eq!(report["encoded_tokens"][0].to_string(), im_start);

    let saved = ["trace", "-f", &file, "-c", "16", "--routing", "-", "--save-tensor", "attn_norm"];
    let refused = run(BINARY, saved.into_iter().chain(["--save-tensor-dir", "/nonexistent/a"]));
    assert!(refused.code == 2 && refused.stderr.contains("saves one pass"), "{refused:#?}");
}

#[test]
fn a_drawing_counts_all_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let (file, plot) = (dir.path().join("text.txt"), dir.path().join("plot.svg"));
    std::fs::write(&file, "Two and two make four. ".repeat(8)).unwrap();
    let (file, plot) = (file.display().to_string(), plot.display().to_string());
    let args =
        ["trace", "--backend", "reference", "-f", &file, "-c", "16", "--routing-plot", &plot, "--json"];
    let report = run(BINARY, args).succeeded().json();
    let tokens = report["encoded_tokens"].as_array().unwrap().len() as u64;
    for layer in report["expert_use"].as_array().unwrap() {
        let sum: u64 = layer["counts"].as_array().unwrap().iter().map(|c| c.as_u64().unwrap()).sum();
        assert_eq!(sum, tokens * 4);
    }
    let svg = std::fs::read_to_string(plot).unwrap();
    assert_eq!(svg.matches("<rect x=").count(), 4 * 16);
}
