//! Tokenizers by the names that `tokenizer.ggml.pre` has: ids of 279 texts each, and the tokens that end a generation, as the
//! models' own tokenizers give them, or llama.cpp where it differs; and back.

use moe_run_graph::{gguf::GgufFile, ids::TokenId};
use moe_run_tests::{cli::run, fixtures};
use moe_run_text::tokenizer::{ControlTokens, StreamDecoder, Tokenizer};
use serde::Deserialize;

const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-run-under-test");

#[derive(Deserialize)]
struct Family {
    add_bos: bool,
    add_eos: bool,
    eog: Vec<u32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    hf_ids: Option<Vec<u32>>,
    decoded: Option<String>,
    decoded_hex: Option<String>,
    #[serde(default = "yes")]
    add_special: bool,
    #[serde(default = "yes")]
    parse_special: bool,
}

fn yes() -> bool {
    true
}

/// Folders of fixtures, one a vocabulary.
const FAMILIES: &[&str] = &[
    "afmoe",
    "bailingmoe",
    "bailingmoe2",
    "cohere2moe",
    "command-r",
    "dbrx",
    "deepseek-llm",
    "deepseek-v3",
    "default",
    "exaone-moe",
    "gemma4",
    "gigachat",
    "glm4",
    "gpt-2",
    "gpt-4o",
    "gpt-4o-real",
    "grok-2",
    "hunyuan",
    "hunyuan-dense",
    "hy_v4",
    "joyai-llm",
    "kanana2",
    "kimi-k2",
    "laguna",
    "lfm2",
    "llama-bpe",
    "llama-spm",
    "llama-spm-options",
    "llama4",
    "mellum2",
    "minimax-m2",
    "none",
    "olmo",
    "pixtral",
    "qwen2",
    "qwen35",
    "refact",
    "sarvam-moe",
    "solar-open",
    "tekken",
    "youtu",
];

/// The vocabularies that are at hand, with what they must give.
fn families() -> impl Iterator<Item = (&'static str, Family, Tokenizer)> {
    FAMILIES.iter().filter_map(|name| {
        let vocabulary = fixtures::find(&format!("tokenizer/{name}/vocab.gguf"))?;
        let cases = vocabulary.with_file_name("cases.json");
        let family: Family = serde_json::from_str(&std::fs::read_to_string(cases).unwrap()).unwrap();
        let file = GgufFile::open(&vocabulary).unwrap();
        let tokenizer = Tokenizer::from_metadata(file.metadata()).unwrap_or_else(|e| panic!("{name}: {e}"));
        Some((*name, family, tokenizer))
    })
}

#[test]
fn families_give_their_models_ids() {
    let mut wrong = Vec::new();
    for (name, family, tokenizer) in families() {
        let mut missed = 0;
        for case in &family.cases {
            // llama.cpp reads gpt-oss's and Solar's markers from any text; here they are control tokens, so that no message speaks in them.
            let steers = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>", "<|end|>"];
            if !case.parse_special
                && (name.starts_with("gpt-4o") || name == "solar-open")
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
            if case.add_special {
                found.extend(tokenizer.trailing_eos().map(|id| id.0));
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
        let switches = (tokenizer.leading_bos().is_some(), tokenizer.trailing_eos().is_some());
        if missed > 0 || ends != family.eog || switches != (family.add_bos, family.add_eos) {
            wrong.push(format!(
                "{name}: {missed} of {}, ends {ends:?} of {:?}, BOS and EOS {switches:?}",
                family.cases.len(),
                family.eog
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The pieces of ids, control tokens spelled out, one after the other.
#[test]
fn pieces_of_ids_are_their_text() {
    for (name, family, tokenizer) in families() {
        for case in &family.cases {
            let pieces: Vec<u8> =
                case.ids.iter().flat_map(|&id| tokenizer.piece(TokenId(id)).unwrap()).collect();
            let hexadecimal = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
            let wanted = match (&case.decoded_hex, &case.decoded) {
                (Some(digits), _) => digits.clone(),
                (None, Some(text)) => hexadecimal(text.as_bytes()),
                (None, None) => hexadecimal(case.text.as_bytes()),
            };
            let found = String::from_utf8_lossy(&pieces);
            assert_eq!(hexadecimal(&pieces), wanted, "{name} {:?}: {found:?}", case.text);
        }
    }
}

/// A text comes back whole, at once or piece by piece, and never half a character.
#[test]
fn texts_come_back_as_they_were() {
    for (name, family, tokenizer) in families() {
        // Files without a token for U+2581 have spelled it in bytes.
        let lacks_blank = tokenizer.encode(" ", ControlTokens::Literal).unwrap().len() > 1;
        for case in &family.cases {
            let is_blank_of_pieces = !tokenizer.is_byte_level() && case.text.contains('\u{2581}');
            if is_blank_of_pieces || (lacks_blank && case.text.contains(' ')) {
                continue;
            }
            let ids = tokenizer.encode(&case.text, ControlTokens::Literal).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), case.text, "{name}");
            let mut stream = StreamDecoder::new();
            let mut text = String::new();
            for &id in &ids {
                let part = stream.push(&tokenizer, id).unwrap();
                assert!(
                    !part.contains('\u{FFFD}') || case.text.contains('\u{FFFD}'),
                    "{name} {:?}",
                    case.text
                );
                text.push_str(&part);
            }
            assert_eq!((text.as_str(), stream.finish().as_str()), (case.text.as_str(), ""), "{name}");
        }
    }
}

#[test]
fn inspect_and_tokenize_show_the_switches_of_a_file() {
    let path = fixtures::find("tokenizer/llama-spm-options/vocab.gguf").unwrap();
    let file = path.to_str().unwrap();
    let shown = run(PROGRAM, ["inspect", "-m", file]).succeeded();
    let line =
        "Tokenizer: SentencePiece BPE, 5007 tokens; a text begins with no BOS, and ends with EOS (5001)\n";
    assert!(shown.stdout.contains(line), "{shown:#?}");
    let json = run(PROGRAM, ["inspect", "--json", "-m", file]).succeeded().json();
    assert_eq!((&json["tokenizer"]["trailing_eos"], json["no_tokenizer"].is_null()), (&5001.into(), true));
    let ids = run(PROGRAM, ["tokenize", "--json", "-m", file, " user a b"]).succeeded().json();
    assert_eq!(ids["ids"], serde_json::json!([5005, 263, 289, 5001]));
    // BOS as the file says it, though the text begins with one.
    let path = fixtures::find("tokenizer/tekken/vocab.gguf").unwrap();
    let twice = run(PROGRAM, ["tokenize", "--json", "-m", path.to_str().unwrap(), "<s>[INST]"]).succeeded();
    assert_eq!(twice.json()["ids"], serde_json::json!([3461, 3461, 3463]));
    assert!(twice.stderr.contains("begins with BOS itself"), "{twice:#?}");
    let none = run(
        PROGRAM,
        ["inspect", "--json", "-m", fixtures::find("micro/dense-qwen3-q4_k.gguf").unwrap().to_str().unwrap()],
    );
    assert!(none.succeeded().json()["no_tokenizer"].as_str().unwrap().contains("no tokenizer"));
}
