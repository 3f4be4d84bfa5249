//! Tokenizers by the names that `tokenizer.ggml.pre` has: ids of 279 texts each, and the tokens that end a generation, as the
//! models' own tokenizers give them, or llama.cpp where it differs.

use moe_run_graph::gguf::GgufFile;
use moe_run_tests::fixtures;
use moe_run_text::tokenizer::{ControlTokens, Tokenizer};
use serde::Deserialize;

#[derive(Deserialize)]
struct Family {
    add_eos: bool,
    eog: Vec<u32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    hf_ids: Option<Vec<u32>>,
    #[serde(default = "yes")]
    add_special: bool,
    #[serde(default = "yes")]
    parse_special: bool,
}

fn yes() -> bool {
    true
}

/// Folders of fixtures whose rule is known here.
const FAMILIES: &[&str] = &[
    "bailingmoe",
    "bailingmoe2",
    "command-r",
    "dbrx",
    "gigachat",
    "glm4",
    "gpt-2",
    "gpt-4o",
    "gpt-4o-real",
    "grok-2",
    "hunyuan",
    "kanana2",
    "lfm2",
    "llama-bpe",
    "llama4",
    "mellum2",
    "minimax-m2",
    "olmo",
    "pixtral",
    "qwen2",
    "qwen35",
    "refact",
    "solar-open",
];

#[test]
fn families_give_their_models_ids() {
    let mut wrong = Vec::new();
    for name in FAMILIES {
        let Some(vocabulary) = fixtures::find(&format!("tokenizer/{name}/vocab.gguf")) else { continue };
        let cases = vocabulary.with_file_name("cases.json");
        let family: Family = serde_json::from_str(&std::fs::read_to_string(cases).unwrap()).unwrap();
        let file = GgufFile::open(&vocabulary).unwrap();
        let tokenizer = Tokenizer::from_metadata(file.metadata()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut missed = 0;
        for case in &family.cases {
            // llama.cpp reads gpt-oss's and Solar's markers from any text; here they are control tokens, so that no message speaks in them.
            let steers = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>", "<|end|>"];
            if !case.parse_special
                && (name.starts_with("gpt-4o") || *name == "solar-open")
                && steers.iter().any(|s| case.text.contains(s))
            {
                continue;
            }
            let control = if case.parse_special { ControlTokens::Parse } else { ControlTokens::Literal };
            let mut found: Vec<u32> = Vec::new();
            if case.add_special {
                found.extend(tokenizer.leading_bos().map(|id| id.0));
            }
            found.extend(tokenizer.encode(&case.text, control).unwrap().iter().map(|id| id.0));
            if case.add_special && family.add_eos {
                found.extend(tokenizer.eos().map(|id| id.0));
            }
            if found != case.ids && case.hf_ids.as_ref() != Some(&found) {
                missed += 1;
                if missed <= 3 {
                    let wanted = case.hf_ids.as_ref().unwrap_or(&case.ids);
                    println!("{name} {:?}: {found:?}, wanted {wanted:?}", case.text);
                }
            }
        }
        let ends: Vec<u32> = tokenizer.end_of_generation().iter().map(|id| id.0).collect();
        if missed > 0 || ends != family.eog {
            wrong.push(format!(
                "{name}: {missed} of {}, ends {ends:?} of {:?}",
                family.cases.len(),
                family.eog
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
