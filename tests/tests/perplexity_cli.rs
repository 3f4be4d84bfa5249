//! `moe-run perplexity`: llama.cpp's numbers, saved logits, refusals.

use moe_run_tests::cli::{Finished, run};
use moe_run_tests::fixtures;
use serde_json::Value;
use std::fs;
use std::path::Path;

fn perplexity(args: &[&str]) -> Finished {
    let command = ["perplexity", "--backend", "reference"];
    run(env!("CARGO_BIN_EXE_moe-run-under-test"), command.iter().chain(args).copied())
}

/// A text of the tiny model's kind, long enough for chunks of 32 tokens.
fn text_file(dir: &Path) -> String {
    let path = dir.join("text.txt");
    let text =
        "The capital of France is Paris. Two and two make four, and three and four make seven.\n".repeat(8);
    fs::write(&path, text).expect("writable");
    path.display().to_string()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} in {value}"))
}

#[test]
fn chunks_are_counted_and_half_of_each_is_scored() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = text_file(dir.path());
    let result = perplexity(&["-f", &file, "-c", "32", "--chunks", "3", "--json"]).succeeded().json();
    assert_eq!((result["chunks"].as_u64(), result["scored_tokens"].as_u64()), (Some(3), Some(3 * 15)));
    assert_eq!(result["activations"], "f32");
    let (ppl, stderr) = (number(&result, "perplexity"), number(&result, "stderr"));
    assert!(ppl > 1.0 && ppl < 3072.0 && stderr > 0.0 && stderr < ppl, "{result}");
}

#[test]
fn a_run_does_not_diverge_from_its_own_logits_and_eight_bits_diverge_a_little() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (file, logits) = (text_file(dir.path()), dir.path().join("base.logits").display().to_string());
    let base = ["-f", &file, "-c", "32", "--chunks", "2", "--json"];
    let with = |more: &[&str]| perplexity(&[&base[..], more].concat()).succeeded().json();
    let saved = with(&["--save-logits", &logits]);
    // Header of 20 bytes, 64 tokens, 2 × 15 rows of 3072 logits.
    assert_eq!(fs::metadata(&logits).expect("written").len(), 20 + 64 * 4 + 30 * 3072 * 4);
    let same = with(&["--against", &logits]);
    assert_eq!(number(&same["divergence"]["kl"], "mean"), 0.0, "{same}");
    assert_eq!(number(&same["divergence"], "same_top"), 1.0);
    assert_eq!(same["perplexity"], saved["perplexity"]);
    let eight = with(&["--against", &logits, "--activations", "q8"]);
    let kl = number(&eight["divergence"]["kl"], "mean");
    assert!(kl > 0.0 && kl < 0.05, "{eight}");
    let ratio = number(&eight["divergence"]["ln_perplexity_ratio"], "mean");
    let wanted = (number(&eight, "perplexity") / number(&saved, "perplexity")).ln();
    assert!((ratio - wanted).abs() < 1e-9, "{ratio} and {wanted}");
}

#[test]
fn what_cannot_be_scored_is_refused_with_the_numbers() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = text_file(dir.path());
    let short = perplexity(&["-f", &file, "-c", "4096"]);
    assert_eq!(short.code, 2, "{short:#?}");
    assert!(short.stderr.contains("wanted 8192 or more"), "{short:#?}");
    let absent = perplexity(&["-f", "no-such-file.txt"]);
    assert_eq!((absent.code, absent.stdout.as_str()), (2, ""), "{absent:#?}");
    assert!(absent.stderr.contains("no-such-file.txt"), "{absent:#?}");
    let device = ["perplexity", "--backend", "auto", "--device", "3", "-f", &file];
    let device = run(env!("CARGO_BIN_EXE_moe-run-under-test"), device);
    assert_eq!(device.code, 2, "{device:#?}");
    assert!(device.stderr.contains("devices are numbered by backend"), "{device:#?}");
    let not_logits = perplexity(&["-f", &file, "-c", "32", "--against", &file]);
    assert_eq!(not_logits.code, 2, "{not_logits:#?}");
    assert!(not_logits.stderr.contains("--save-logits"), "{not_logits:#?}");
    let unwritable = perplexity(&["-f", &file, "-c", "32", "--save-logits", "no/such/directory/logits"]);
    assert_eq!(unwritable.code, 4, "{unwritable:#?}");
    let micro = fixtures::crate_dir().join("fixtures/micro/zoo-q8_0.gguf").display().to_string();
    let no_tokenizer = perplexity(&["-m", &micro, "-f", &file]);
    assert_eq!(no_tokenizer.code, 2, "{no_tokenizer:#?}");
    assert!(no_tokenizer.stderr.contains("has no tokenizer"), "{no_tokenizer:#?}");
    // This command has no such option.
    assert!(!no_tokenizer.stderr.contains("give token ids"), "{no_tokenizer:#?}");
    let not_text = dir.path().join("not-text");
    fs::write(&not_text, [b'a', 0xff]).expect("writable");
    let not_text = perplexity(&["-f", &not_text.display().to_string()]);
    assert_eq!(not_text.code, 2);
    assert!(not_text.stderr.contains("not UTF-8 at byte 1"), "{not_text:#?}");
}

#[test]
fn verse_that_the_model_was_not_trained_on_is_scored_as_llama_cpp_scores_it() {
    // llama.cpp's perplexities of the same files and text, context 512, 32 chunks.
    for (model, wanted) in [("q8_0", 133.72), ("q4_k_m", 133.27), ("q2_k", 137.16)] {
        let (Some(model), Some(text)) = (
            fixtures::find(&format!("tiny/tiny-qwen3moe-{model}.gguf")),
            fixtures::find("tiny/verse-heldout.txt"),
        ) else {
            return;
        };
        let (model, text) = (model.display().to_string(), text.display().to_string());
        let args = ["perplexity", "--backend", "cpu", "-m", &model, "-f", &text, "--chunks", "32", "--json"];
        let result = run(env!("CARGO_BIN_EXE_moe-run-under-test"), args).succeeded().json();
        assert_eq!(result["activations"], "q8");
        // 1 %: rounding of activations alone moves it by less than a tenth of that.
        let found = number(&result, "perplexity");
        assert!((found / wanted - 1.0).abs() < 0.01, "{model}: {found}, wanted {wanted}");
    }
}

#[test]
fn the_help_states_the_default_that_is_used() {
    let help = perplexity(&["--help"]).succeeded().stdout;
    let ctx_size = help.split("--ctx-size <TOKENS>").nth(1).expect("the option").trim_start();
    assert!(ctx_size.starts_with("Tokens of a chunk [default: 512]"), "{help}");
}
