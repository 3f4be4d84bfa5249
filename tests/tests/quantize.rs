//! `moe-run quantize` and `moe-run importance`: every format's file answers, jobs are gone on with, nothing half stays, and the
//! divergence from the original is what llama.cpp reaches or less.

use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{CompileOptions, registry};
use moe_run_graph::Model;
use moe_run_graph::gguf::GgufFile;
use moe_run_graph::ids::TokenId;
use moe_run_graph::passes::TapSelection;
use moe_run_graph::quant::Format;
use moe_run_graph::quantize::{Base, Begun, Choice, Importance, Job, JobError, QuantizePlan, Resumable};
use moe_run_inspect::importance::ImportanceSink;
use moe_run_inspect::sensitivity::{Options, SensitivityError, measure};
use moe_run_tests::cli::{Finished, run};
use moe_run_tests::fixtures;
use serde_json::Value;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-run-under-test");

fn moe_run(args: &[&str]) -> Finished {
    run(PROGRAM, args.iter().copied())
}

fn text_of(path: &Path) -> String {
    path.display().to_string()
}

/// A temporary folder with the demo model's file.
fn folder() -> (tempfile::TempDir, String) {
    (tempfile::tempdir().unwrap(), text_of(&fixtures::tiny_q4_k_m()))
}

/// A text of the tiny model's kind.
fn text_file(dir: &Path) -> String {
    let path = dir.join("text.txt");
    let text = "The capital of France is Paris. Two and two make four, and three and four make seven. \
                In the beginning was the word, and one and one were two.\n";
    fs::write(&path, text.repeat(40)).unwrap();
    text_of(&path)
}

/// The mean divergence of a model from the logits of another, on a text, with exact activations.
fn divergence(model: &str, text: &str, chunk_tokens: &str, chunks: &str, against: &str) -> f64 {
    let args = ["perplexity", "-m", model, "-f", text, "-c", chunk_tokens, "--chunks", chunks];
    let how = ["--backend", "cpu", "--activations", "f32", "--against", against, "--json"];
    let result = moe_run(&[&args[..], &how].concat()).succeeded().json();
    result["divergence"]["kl"]["mean"].as_f64().unwrap()
}

fn save_logits(model: &str, text: &str, chunk_tokens: &str, chunks: &str, to: &str) {
    let args = ["perplexity", "-m", model, "-f", text, "-c", chunk_tokens, "--chunks", chunks];
    let how = ["--backend", "cpu", "--activations", "f32", "--save-logits", to];
    let _ = moe_run(&[&args[..], &how].concat()).succeeded();
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

#[test]
fn the_demo_model_answers_in_every_format() {
    let (dir, model) = folder();
    let input = GgufFile::open(&model).unwrap();
    for format in Format::WRITTEN {
        let out = text_of(&dir.path().join(format!("{format}.gguf")));
        let _ = moe_run(&["quantize", "-m", &model, "-o", &out, "--format", format.name()]).succeeded();
        let file = GgufFile::open(&out).unwrap();
        assert_eq!(file.tensors().len(), input.tensors().len());
        for (tensor, before) in file.tensors().iter().zip(input.tensors()) {
            let is_matrix = before.shape.len() > 1 && !tensor.name.contains("ffn_gate_inp");
            let wanted = if is_matrix { format } else { Format::F32 };
            assert_eq!((&tensor.name, tensor.ggml_type), (&before.name, wanted.into()), "{format}");
            if before.ggml_type == wanted {
                assert!(file.data(tensor) == input.data(before), "{}: copied as it is", tensor.name);
            }
        }
        // Of two and three bits it is not known what they still can; that they run is.
        let answer = moe_run(&["-m", &out, "-p", "What is 2+2?", "--temp", "0", "-n", "16"]).succeeded();
        let knows = !matches!(format, Format::Q2K | Format::Q3K);
        assert!(!knows || answer.stdout.contains("2 + 2 = 4"), "{format}: {answer:#?}");
        fs::remove_file(&out).unwrap();
    }
}

#[test]
fn mixtures_are_those_of_llama_cpp() {
    let (_dir, model) = folder();
    let of = |format: &str| -> Value {
        moe_run(&["quantize", "-m", &model, "--format", format, "--dry-run", "--json"]).succeeded().json()
    };
    let input = GgufFile::open(&model).unwrap();
    // llama.cpp made the demo model by its Q4_K_M.
    let table = of("Q4_K_M");
    for entry in table["tensors"].as_array().unwrap() {
        let tensor = input.tensor(entry["name"].as_str().unwrap()).unwrap();
        assert_eq!(entry["to"], tensor.ggml_type.name().as_ref(), "{entry}");
    }
    let bytes: u64 = input.tensors().iter().map(|t| t.len_bytes().unwrap() as u64).sum();
    let said: u64 = table["tensors"].as_array().unwrap().iter().map(|e| e["bytes"].as_u64().unwrap()).sum();
    assert_eq!(said, bytes);
    for name in ["Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q5_K_S", "Q5_K_M", "MXFP4_MOE"] {
        let table = of(name);
        let bits = table["bits_per_weight"].as_f64().unwrap();
        assert!((2.0..9.0).contains(&bits), "{name}: {bits}");
        let output = table["tensors"].as_array().unwrap().iter().find(|e| e["name"] == "output.weight");
        let wanted = if name == "MXFP4_MOE" { "Q8_0" } else { "Q6_K" };
        assert_eq!(output.unwrap()["to"], wanted, "{name}");
    }
}

#[test]
fn recipes_say_what_each_tensor_gets_and_mistakes_are_named() {
    let (dir, model) = folder();
    let recipe = text_of(&dir.path().join("recipe.txt"));
    fs::write(&recipe, "# more for values\n*.attn_v.weight = Q8_0\nblk.0.* = keep, output.weight=F16\n")
        .unwrap();
    let base = ["quantize", "-m", &model, "--dry-run", "--json", "--format", "Q5_0", "--recipe", &recipe];
    let table = moe_run(&base).succeeded().json();
    for entry in table["tensors"].as_array().unwrap() {
        let name = entry["name"].as_str().unwrap();
        let wanted = match name {
            _ if entry["shape"].as_array().unwrap().len() == 1 || name.contains("ffn_gate_inp") => {
                (entry["from"].as_str().unwrap(), if name.contains("inp") { "router" } else { "vector" })
            }
            _ if name.ends_with("attn_v.weight") => ("Q8_0", "recipe"),
            _ if name.starts_with("blk.0.") => (entry["from"].as_str().unwrap(), "kept"),
            "output.weight" => ("F16", "recipe"),
            _ => ("Q5_0", "base"),
        };
        assert_eq!((entry["to"].as_str().unwrap(), entry["why"].as_str().unwrap()), wanted, "{name}");
    }
    let text = text_file(dir.path());
    for (args, words) in [
        (&["--recipe", "blk.9.*=Q4_K"][..], "matches no matrix; `moe-run inspect --all`"),
        (&["--recipe", "*attn_norm*=Q4_K"], "norms, biases and routers stay as they are"),
        (&["--recipe", "*=Q4_K,output.weight=Q6_K"], "\"output.weight\" is never reached"),
        (&["--recipe", "*=Q4_X"], "Q4_X"),
        (&["--recipe", "*=IQ2_XS"], "IQ2_XS is not written, only read"),
        (&["--format", "Q9_K"], "Q4_K_M"),
        (&["--format", "IQ1_S"], "not written, only read"),
        (&[], "--format"),
        (&["--target-bits", "4"], "--file"),
        (&["--target-bits", "-1", "-f", &text], "wanted a number above 0"),
        (&["--target-bits", "1.5", "-c", "32", "--chunks", "1", "-f", &text], "the smallest formats come to"),
        (&["--format", "Q4_K", "--importance", &model], "general.type"),
    ] {
        let refused = moe_run(&[&["quantize", "-m", &model, "--dry-run"], args].concat());
        assert!(
            refused.code == 2 && refused.stderr.contains(words),
            "{args:?}: no {words:?} in {refused:#?}"
        );
    }
    let without = moe_run(&["quantize", "-m", &model, "--format", "Q4_K"]);
    assert!(without.code == 2 && without.stderr.contains("--output"), "{without:#?}");
}

/// A job of the demo model, its plan made once.
fn with_job<T>(check: impl FnOnce(&Job<'_>) -> T) -> T {
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let choice = Choice { base: Base::parse("Q6_K").unwrap(), recipe: None, chosen: None };
    let plan = QuantizePlan::new(&model, &choice, None).unwrap();
    check(&Job { file: &model.file, plan: &plan, importance: None })
}

#[test]
fn a_job_that_was_ended_anywhere_gives_the_same_bytes_on_any_number_of_threads() {
    with_job(|job| {
        let threads = |n| NonZeroUsize::new(n).unwrap();
        let whole = job.write(Vec::new(), 0, threads(1), |_, _| Ok(ControlFlow::Continue(()))).unwrap();
        assert_eq!(whole.len(), job.plan.layout.file_bytes());
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.gguf");
        for (pieces, after) in [(1, 2), (7, 1), (30, 3), (50, 2)] {
            let (file, begun) = Resumable::open(&out, &job.fingerprint("input")).unwrap();
            assert_eq!(begun, Begun::New);
            let mut left = pieces;
            let stopped = job.write(file.file(), 0, threads(2), |bytes, _| {
                left -= 1;
                // What is written and not noted is written again.
                if left % 2 == 0 {
                    file.note(bytes)?;
                }
                Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            });
            assert!(matches!(stopped, Err(JobError::Stopped)));
            drop(file);
            let (file, begun) = Resumable::open(&out, &job.fingerprint("input")).unwrap();
            let Begun::Resumed { done_bytes } = begun else { panic!("{begun:?} after {pieces} pieces") };
            job.write(file.file(), done_bytes, threads(after), |_, _| Ok(ControlFlow::Continue(()))).unwrap();
            file.finish().unwrap();
            assert!(fs::read(&out).unwrap() == whole, "{pieces} pieces first");
            assert_eq!(names(dir.path()), ["out.gguf"]);
        }
        assert_ne!(job.fingerprint("input"), job.fingerprint("another input"));
    });
}

#[cfg(unix)]
#[test]
fn a_process_that_was_killed_is_gone_on_with() {
    let (dir, model) = folder();
    let at = |name: &str| dir.path().join(name);
    let command = |out: &Path| {
        let mut command = Command::new(PROGRAM);
        command.args(["quantize", "-m", &model, "--format", "Q6_K", "-t", "1", "-o"]).arg(out);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    assert!(command(&at("whole.gguf")).status().unwrap().success());
    let journal = at("killed.gguf.partial.journal");
    let mut child = command(&at("killed.gguf")).spawn().unwrap();
    // Killed as soon as the disk has something, or even then too late: the bytes are the same whatever the machine's speed.
    while child.try_wait().unwrap().is_none() {
        if fs::read_to_string(&journal).is_ok_and(|text| text.contains("done ")) {
            child.kill().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let was_killed = at("killed.gguf.partial").exists();
    assert_ne!(was_killed, at("killed.gguf").exists(), "never both, never neither");
    let again = moe_run(&[
        "quantize",
        "-m",
        &model,
        "--format",
        "Q6_K",
        "-o",
        &text_of(&at("killed.gguf")),
        "--json",
    ])
    .succeeded();
    assert_eq!(was_killed, again.json()["resumed_from_bytes"].is_u64(), "{}", again.stderr);
    assert!(fs::read(at("killed.gguf")).unwrap() == fs::read(at("whole.gguf")).unwrap());
    assert_eq!(names(dir.path()), ["killed.gguf", "whole.gguf"]);
}

#[test]
fn the_half_written_file_of_another_job_is_begun_anew() {
    let (dir, model) = folder();
    let out = dir.path().join("out.gguf");
    let (other, _) = Resumable::open(&out, "another job").unwrap();
    other.note(0).unwrap();
    drop(other);
    let done = moe_run(&["quantize", "-m", &model, "--format", "Q8_0", "-o", &text_of(&out)]).succeeded();
    assert!(done.stderr.contains("was of another job; begun anew"), "{done:#?}");
    // And what is no journal is not touched.
    fs::write(dir.path().join("new.gguf.partial.journal"), "notes").unwrap();
    let refused = moe_run(&[
        "quantize",
        "-m",
        &model,
        "--format",
        "Q8_0",
        "-o",
        &text_of(&dir.path().join("new.gguf")),
    ]);
    assert!(refused.code == 2 && refused.stderr.contains("no journal of moe-run"), "{refused:#?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing() {
    let (dir, model) = folder();
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(&full).status();
    if !mount.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: a small file system can be mounted by root only");
        return;
    }
    let out = text_of(&full.join("out.gguf"));
    let finished = moe_run(&["quantize", "-m", &model, "--format", "Q8_0", "-o", &out]);
    let left = names(&full);
    let unmounted = Command::new("umount").arg(&full).status().is_ok_and(|status| status.success());
    assert!(unmounted && left.is_empty(), "left behind: {left:?}");
    assert!(
        finished.code == 4
            && finished.stderr.contains("No space left")
            && finished.stderr.contains("it needs"),
        "{finished:#?}"
    );
}

#[test]
fn importance_is_of_what_products_read() {
    let (dir, model) = folder();
    let (text, out) = (text_file(dir.path()), text_of(&dir.path().join("i.gguf")));
    let args = ["importance", "-m", &model, "-f", &text, "-c", "64", "--chunks", "5", "-o", &out, "--json"];
    let mut all = Vec::new();
    for backend in ["reference", "cpu"] {
        let report = moe_run(&[&args[..], &["--backend", backend, "--activations", "f32"]].concat())
            .succeeded()
            .json();
        assert_eq!(
            (report["tokens"].as_u64(), report["unknown"].as_array().map(Vec::len)),
            (Some(320), Some(0))
        );
        all.push(Importance::read(&GgufFile::open(&out).unwrap()).unwrap());
    }
    let input = GgufFile::open(&model).unwrap();
    let mut matrices = 0;
    for tensor in input.tensors().iter().filter(|t| t.shape.len() > 1 && t.name != "token_embd.weight") {
        let [reference, cpu] = [&all[0], &all[1]].map(|i| i.get(&tensor.name).unwrap());
        let experts: usize = tensor.shape.iter().rev().skip(2).product();
        assert_eq!((reference.cols(), reference.counts.len()), (*tensor.shape.last().unwrap(), experts));
        let tokens: f32 = reference.counts.iter().sum();
        // Four experts of sixteen a token.
        assert_eq!(tokens, if experts > 1 { 4.0 * 320.0 } else { 320.0 }, "{}", tensor.name);
        assert_eq!(reference.counts, cpu.counts, "{}", tensor.name);
        for (a, b) in reference.sums.iter().zip(&cpu.sums) {
            assert!((a - b).abs() <= 1e-3 * a.max(1.0), "{}: {a} {b}", tensor.name);
        }
        matrices += 1;
    }
    assert_eq!(matrices, 4 * 8 + 1);
    // The same values are read by q, k and v; by gate and up; not by down.
    let of = |name: &str| all[0].get(&format!("blk.2.{name}.weight")).unwrap();
    assert!(of("attn_q") == of("attn_k") && of("attn_q") == of("attn_v"));
    assert!(of("ffn_gate_exps") == of("ffn_up_exps") && of("ffn_gate_exps").sums != of("ffn_down_exps").sums);
    // A norm's output has the mean square of its weights at least in size.
    let norm = input.tensor("blk.2.attn_norm.weight").unwrap();
    let mut w = vec![0.0f32; norm.elems()];
    Format::F32.decode_row(input.data(norm), &mut w);
    let expected: f32 = w.iter().map(|w| w * w).sum();
    let found: f32 = of("attn_q").sums.iter().sum::<f32>() / 320.0;
    assert!(found > 0.3 * expected && found < 3.0 * expected, "{found} {expected}");
    // Too little text: an expert that no token chose is said, and its columns count alike.
    let short = ["importance", "-m", &model, "-f", &text, "-c", "8", "--chunks", "1", "-o", &out, "--json"];
    let said = moe_run(&short).succeeded();
    let report = said.json();
    assert!(!report["unseen_experts"].as_array().unwrap().is_empty() && said.stderr.contains("for no token"));
    let quantized = text_of(&dir.path().join("q.gguf"));
    let _ = moe_run(&["quantize", "-m", &model, "-o", &quantized, "--format", "Q3_K", "--importance", &out])
        .succeeded();
    let metadata = GgufFile::open(&quantized).unwrap();
    assert_eq!(metadata.metadata().get("quantize.imatrix.entries_count").map(|v| v.describe()), {
        use moe_run_graph::gguf::MetaValue;
        Some(MetaValue::U32(33).describe())
    });
}

#[test]
fn bits_go_where_they_cost_most() {
    let (dir, model) = folder();
    let (text, base) = (text_file(dir.path()), text_of(&dir.path().join("base.logits")));
    let at = |name: &str| text_of(&dir.path().join(name));
    save_logits(&model, &text, "64", "8", &base);
    let kl = |file: &str| divergence(file, &text, "64", "8", &base);
    let _ = moe_run(&["quantize", "-m", &model, "-o", &at("plain.gguf"), "--format", "Q3_K"]).succeeded();
    let plain =
        moe_run(&["quantize", "-m", &model, "--format", "Q3_K", "--dry-run", "--json"]).succeeded().json();
    let bits = plain["bits_per_weight"].as_f64().unwrap();
    let target = ["quantize", "-m", &model, "-o", &at("target.gguf"), "--target-bits", &bits.to_string()];
    let report = moe_run(&[&target[..], &["-f", &text, "-c", "64", "--chunks", "4", "--json"]].concat());
    let report = report.succeeded().json();
    assert!(report["bits_per_weight"].as_f64().unwrap() <= bits, "{report}");
    let (ours, theirs) = (kl(&at("target.gguf")), kl(&at("plain.gguf")));
    assert!(ours < 0.8 * theirs, "{ours} chosen, {theirs} with one format of that size");
    // What is said of the divergence is what comes of it, roughly: errors of different matrices add up.
    let said = report["target"]["estimated_kl"].as_f64().unwrap();
    assert!(said > ours / 4.0 && said < ours * 4.0, "{said} estimated, {ours} found");
}

/// Architectures whose layers read what another layer keeps: they cannot be run one by one.
const NO_PARTS: [&str; 1] = ["gemma4/e2b-dense"];

#[test]
fn every_architectures_file_is_quantized_measured_and_runs() {
    let backend = registry::by_name("cpu").unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (stem, path, _) in fixtures::architecture_models() {
        let model = Model::open(&path).unwrap();
        let vocab_size = model.config.vocab_size as u32;
        let tokens: Vec<TokenId> = (0..16).map(|i| TokenId(i * 37 % vocab_size)).collect();
        // Every product's input is seen.
        let mut sink = ImportanceSink::new(&model);
        let options = CompileOptions {
            ctx_size: 64,
            micro_batch: Some(16),
            max_logits_rows: 16,
            taps: sink.taps(),
            ..CompileOptions::default()
        };
        let executable = backend.compile(&model.graph, model.file.clone(), &options).unwrap();
        let mut session = Session::new(executable).unwrap();
        session.feed(&tokens, LogitsRows::All, Some(&mut sink), |_, _| Ok(())).unwrap();
        // (A router's, which stays as it is, may be within a launch: Gemma 4's; of what weighs streams no stage shows the input.)
        let stays = |t: &&str| t.contains("ffn_gate_inp") || t.contains("hc_");
        let unknown: Vec<_> = sink.unknown().into_iter().filter(|t| !stays(t)).collect();
        assert!(unknown.is_empty(), "{stem}: {unknown:?}");
        let tensors = sink.finish();
        let importance = Importance::taken("i", tensors, "tokens", 1);

        // Its matrices, and nothing else, change; the file that comes out runs.
        let choice = Choice { base: Base::Format(Format::Q5_0), recipe: None, chosen: None };
        let plan = QuantizePlan::new(&model, &choice, Some(&importance)).unwrap();
        importance.check(plan.matrices()).unwrap_or_else(|e| panic!("{stem}: {e}"));
        assert!(plan.matrices().count() >= 4, "{stem}");
        let out = dir.path().join("out.gguf");
        let job = Job { file: &model.file, plan: &plan, importance: Some(&importance) };
        job.write(File::create(&out).unwrap(), 0, NonZeroUsize::MIN, |_, _| Ok(ControlFlow::Continue(())))
            .unwrap_or_else(|e| panic!("{stem}: {e}"));
        let quantized = Model::open(&out).unwrap_or_else(|e| panic!("{stem}: {e}"));
        assert_eq!(quantized.config, model.config, "{stem}");
        let options = CompileOptions { taps: TapSelection::None, ..options };
        let executable = backend.compile(&quantized.graph, quantized.file.clone(), &options).unwrap();
        let mut session = Session::new(executable).unwrap();
        session.feed(&tokens, LogitsRows::Last, None, |_, _| Ok(())).unwrap();
        let mut logits = Vec::new();
        session.logits(&mut logits).unwrap();
        assert!(logits.iter().all(|x| x.is_finite()), "{stem}");

        // Each matrix costs something, less in more bits.
        let keep = QuantizePlan::new(&model, &Choice::default(), None).unwrap();
        let entries: Vec<_> = keep.matrices().collect();
        let options = Options {
            chunks: &[tokens],
            formats: &[Format::Q4_0, Format::Q8_0],
            probe: Format::Q4_0,
            importance: None,
            backend: backend.as_ref(),
            compile: CompileOptions::default(),
            threads: NonZeroUsize::MIN,
        };
        let measured = measure(&model, &entries, &options, |_| Ok(()));
        let expected = NO_PARTS.contains(&stem);
        match measured {
            Err(SensitivityError::SharedState { .. }) if expected => {}
            Err(error) => panic!("{stem}: {error}"),
            Ok(_) if expected => panic!("{stem}: its layers can be run one by one after all"),
            Ok(measured) => {
                assert!(
                    measured.tensors.iter().flat_map(|t| &t.costs).all(|c| c.kl.is_finite() && c.kl >= 0.0),
                    "{stem}"
                );
                let sum = |format: Format| -> f64 {
                    let costs = measured.tensors.iter().flat_map(|t| &t.costs);
                    costs.filter(|cost| cost.format == format).map(|cost| cost.kl).sum()
                };
                let has_both = measured.tensors.iter().any(|t| t.costs.len() == 3);
                assert!(!has_both || sum(Format::Q8_0) < sum(Format::Q4_0), "{stem}");
            }
        }
    }
}

/// The divergence of llama.cpp's files of the same model and format on the same chunks, by the same program: `llama-quantize
/// --allow-requantize --pure` of llama-cpp-python 0.3.36 from the fixtures' Q8_0, all 32 chunks of 512 tokens of the held-out verse.
const OF_LLAMA_CPP: [(&str, f64); 3] = [("Q8_0", 0.0), ("Q6_K", 0.000_772), ("Q4_K", 0.008_825)];

#[test]
fn divergence_is_at_most_llama_cpps_and_a_budget_beats_mixtures() {
    let original =
        fixtures::tiny_models().into_iter().map(|(_, path, _)| path).find(|p| text_of(p).contains("q8_0"));
    let (Some(original), Some(verse)) = (original, fixtures::find("tiny/verse-heldout.txt")) else {
        eprintln!("SKIPPED: the fixtures' Q8_0 model and verse are not here");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| text_of(&dir.path().join(name));
    let (original, verse, base) = (text_of(&original), text_of(&verse), at("base.logits"));
    save_logits(&original, &verse, "512", "32", &base);
    let kl = |file: &str| divergence(file, &verse, "512", "32", &base);
    let make = |name: &str, how: &[&str]| -> (PathBuf, f64) {
        let out = at(name);
        let report =
            moe_run(&[&["quantize", "-m", &original, "-o", &out, "--json"], how].concat()).succeeded().json();
        (out.into(), report["bits_per_weight"].as_f64().unwrap())
    };
    for (format, theirs) in OF_LLAMA_CPP {
        let (file, _) = make(&format!("{format}.gguf"), &["--format", format]);
        let ours = kl(&text_of(&file));
        assert!(ours <= 1.01 * theirs, "{format}: {ours}, llama.cpp's {theirs}");
    }
    // From here on one half of the text is measured on and the other scored.
    let text = fs::read_to_string(&verse).unwrap();
    let half = text.len() / 2 + text[text.len() / 2..].find('\n').unwrap() + 1;
    let (other, scored) = (at("other.txt"), at("scored.txt"));
    fs::write(&other, &text[half..]).unwrap();
    fs::write(&scored, &text[..half]).unwrap();
    save_logits(&original, &scored, "512", "16", &base);
    let kl = |file: &str| divergence(file, &scored, "512", "16", &base);
    let single = kl(&at("Q4_K.gguf"));
    let (mixture, mixture_bits) = make("mixture.gguf", &["--format", "Q4_K_M"]);
    let mixture = kl(&text_of(&mixture));
    for (bits, than) in [(4.5, single), (mixture_bits, mixture)] {
        let how = ["--target-bits", &bits.to_string(), "-f", &other];
        let (file, found_bits) = make("target.gguf", &how);
        let ours = kl(&text_of(&file));
        assert!(
            found_bits <= bits && ours < 0.6 * than,
            "{bits} bits: {ours}, of one format or mixture {than}"
        );
    }
    // Importance, too, from the half that is not scored.
    let importance = at("importance.gguf");
    let _ = moe_run(&["importance", "-m", &original, "-f", &other, "-o", &importance]).succeeded();
    for format in ["IQ4_XS", "Q6_K"] {
        let plain = kl(&text_of(&make("plain.gguf", &["--format", format]).0));
        let weighted =
            kl(&text_of(&make("weighted.gguf", &["--format", format, "--importance", &importance]).0));
        eprintln!("{format}: {plain:.6} without importance, {weighted:.6} with");
        assert!(weighted < plain, "{format}: {weighted} with importance, {plain} without");
    }
}
