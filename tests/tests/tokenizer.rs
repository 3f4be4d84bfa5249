//! The tokenizer against llama.cpp's ids: Qwen's own vocabulary of 151,936 tokens, and the demo model's.

use std::{fs, path::PathBuf, sync::LazyLock};

use moe_run_graph::{
    gguf::{GgufFile, MetaArray, MetaValue, Metadata, keys},
    ids::TokenId,
};
use moe_run_tests::fixtures;
use moe_run_text::tokenizer::{ControlTokens, StreamDecoder, TokenKind, Tokenizer, TokenizerError};
use serde::Deserialize;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn open(name: &str) -> GgufFile {
    GgufFile::open(path(name)).unwrap()
}

static QWEN2: LazyLock<Tokenizer> = LazyLock::new(|| {
    Tokenizer::from_metadata(GgufFile::open(fixtures::qwen2_vocabulary()).unwrap().metadata()).unwrap()
});

static TINY: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_metadata(open("models/tiny-qwen3moe-q4_k_m.gguf").metadata()).unwrap());

fn qwen2() -> &'static Tokenizer {
    &QWEN2
}

fn tiny() -> &'static Tokenizer {
    &TINY
}

fn ids(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

/// Texts for which there are no reference ids: they must come back.
const TEXTS: [&str; 8] = [
    "",
    "What is 2+2?",
    "naïve café — 日本語 🙂🙃 👩‍👩‍👧‍👦",
    "  \t\r\n\r\n  x\u{a0}\u{2003}y ",
    "e\u{301} vs é, ﬁ, Å\u{212B}",
    "\u{0}\u{1}\u{7f}\u{85}",
    "IT'S don't WE'LL ½ ²³ ٣",
    "<think> is <|im_end|> here",
];

#[test]
fn llama_cpp_s_test_strings() {
    let tokenizer = qwen2();
    let input = fs::read_to_string(path("fixtures/tokenizer/ggml-vocab-qwen2.gguf.inp")).unwrap();
    let output = fs::read_to_string(path("fixtures/tokenizer/ggml-vocab-qwen2.gguf.out")).unwrap();
    let texts: Vec<&str> = input.split("\n__ggml_vocab_test__\n").collect();
    let expected: Vec<Vec<TokenId>> = output
        .lines()
        .map(|line| line.split_whitespace().map(|id| TokenId(id.parse().unwrap())).collect())
        .collect();
    assert!(expected.len() > 40 && texts.len() >= expected.len(), "{} {}", texts.len(), expected.len());
    for (text, expected) in texts.iter().zip(&expected) {
        assert_eq!(&tokenizer.encode(text, ControlTokens::Literal).unwrap(), expected, "{text:?}");
    }
    // What follows the last separator is no case.
    assert!(texts[expected.len()..].iter().all(|rest| rest.trim().is_empty()));
}

#[test]
fn more_cases() {
    #[derive(Deserialize)]
    struct Case {
        text: String,
        ids: Vec<u32>,
    }
    let tokenizer = qwen2();
    let cases: Vec<Case> =
        serde_json::from_str(&fs::read_to_string(path("fixtures/tokenizer/more-cases.json")).unwrap())
            .unwrap();
    assert_eq!(cases.len(), 20);
    for case in cases {
        let encoded = tokenizer.encode(&case.text, ControlTokens::Parse).unwrap();
        assert_eq!(encoded, ids(&case.ids), "{:?}", case.text);
    }
}

#[test]
fn text_comes_back_whole() {
    for tokenizer in [qwen2(), tiny()] {
        for text in TEXTS {
            let ids = tokenizer.encode(text, ControlTokens::Literal).unwrap();
            assert!(ids.iter().all(|&id| tokenizer.kind(id) != Some(TokenKind::Control)), "{text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
}

#[test]
fn streamed_text_is_never_half_a_character() {
    let tokenizer = tiny();
    for text in TEXTS {
        let ids = tokenizer.encode(text, ControlTokens::Literal).unwrap();
        let mut decoder = StreamDecoder::new();
        let mut streamed = String::new();
        let mut silent_tokens = 0;
        for &id in &ids {
            let part = decoder.push(tokenizer, id).unwrap();
            assert!(!part.contains('\u{FFFD}'), "{text:?}: {part:?}");
            silent_tokens += usize::from(part.is_empty());
            streamed.push_str(&part);
        }
        assert_eq!(decoder.finish(), "");
        assert_eq!(streamed, text);
        if text.contains('🙂') {
            assert!(silent_tokens > 0, "the demo vocabulary splits emoji into bytes");
        }
    }
}

#[test]
fn control_tokens_only_where_asked_for() {
    let tokenizer = tiny();
    let text = "<|im_start|>user\nhi<|im_end|>";
    let parsed = tokenizer.encode(text, ControlTokens::Parse).unwrap();
    assert_eq!((parsed[0], parsed[parsed.len() - 1]), (TokenId(3070), TokenId(3071)));
    let literal = tokenizer.encode(text, ControlTokens::Literal).unwrap();
    assert!(literal.iter().all(|id| id.0 < 3069));
    assert_eq!(tokenizer.decode(&literal).unwrap(), text);
    assert_eq!(tokenizer.decode(&parsed).unwrap(), "user\nhi");
    assert_eq!(tokenizer.piece_lossy(TokenId(3071)).as_deref(), Some("<|im_end|>"));
    assert_eq!(tokenizer.piece(TokenId(3072)), None);
    assert!(matches!(
        tokenizer.decode(&[TokenId(3072)]),
        Err(TokenizerError::UnknownToken { id: 3072, vocab_size: 3072 })
    ));
}

#[test]
fn user_defined_tokens_are_always_read() {
    let tokenizer = qwen2();
    let encoded = tokenizer.encode("a[PAD151646]b", ControlTokens::Literal).unwrap();
    assert_eq!(encoded, ids(&[64, 151646, 65]));
    assert_eq!(tokenizer.decode(&encoded).unwrap(), "a[PAD151646]b");
}

#[test]
fn every_end_of_generation_is_known() {
    let tokenizer = tiny();
    // The file names 3071 (<|im_end|>) alone; <|endoftext|> ends a generation, too.
    assert_eq!(tokenizer.end_of_generation(), ids(&[3069, 3071]));
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(TokenId(3069)), Some(TokenId(3071))));
    assert_eq!(tokenizer.leading_bos(), None);
    assert!(!tokenizer.is_end_of_generation(TokenId(3070)));
    assert_eq!(qwen2().end_of_generation(), ids(&[151643, 151645]));
}

#[test]
fn the_demo_model_s_prompts_of_the_reference() {
    let tokenizer = tiny();
    let decoded = tokenizer.decode(&ids(&[17, 393, 220, 17, 351, 220, 19])).unwrap();
    assert_eq!(decoded, "2 + 2 = 4");
    assert_eq!(
        tokenizer.encode("What is 2+2?", ControlTokens::Parse).unwrap(),
        ids(&[354, 294, 220, 17, 10, 17, 30])
    );
}

/// Metadata of the demo model's tokenizer with one key replaced, or removed.
fn tiny_with(key: &str, value: Option<MetaValue>) -> Result<Tokenizer, TokenizerError> {
    let file = open("models/tiny-qwen3moe-q4_k_m.gguf");
    let pairs = file.metadata().iter().filter(|(k, _)| *k != key).map(|(k, v)| (k.to_owned(), v.clone()));
    let metadata =
        Metadata::from_pairs("test.gguf", pairs.chain(value.map(|v| (key.to_owned(), v)))).unwrap();
    Tokenizer::from_metadata(&metadata)
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let string = |s: &str| Some(MetaValue::String(s.to_owned()));
    let strings =
        |s: &[&str]| Some(MetaValue::Array(MetaArray::String(s.iter().map(|&s| s.to_owned()).collect())));
    let cases: [(&str, Option<MetaValue>, &[&str]); 10] = [
        (keys::TOKENIZER_MODEL, None, &["test.gguf", "no tokenizer", "--tokens"]),
        (keys::TOKENIZER_MODEL, string("t5"), &["\"t5\"", "gpt2", "llama", "gemma4"]),
        (keys::TOKENIZER_MODEL, string("llama"), &["test.gguf", keys::TOKENIZER_SCORES]),
        (keys::TOKENIZER_PRE, string("no-such-rule"), &["\"no-such-rule\"", "\"qwen2\"", "\"sarvam-moe\""]),
        (keys::TOKENIZER_MERGES, strings(&["ab"]), &["entry 0", "\"ab\""]),
        (keys::TOKENIZER_MERGES, strings(&["no such"]), &["byte-pair"]),
        (keys::TOKENIZER_TOKENS, strings(&[]), &["0 tokens"]),
        (keys::TOKENIZER_TOKEN_TYPE, Some(MetaValue::Array(MetaArray::I32(vec![1]))), &["1 types", "3072"]),
        (keys::TOKENIZER_TOKEN_TYPE, Some(MetaValue::Array(MetaArray::I32(vec![9; 3072]))), &["type 9"]),
        (keys::TOKENIZER_EOS, string("3071"), &["test.gguf", keys::TOKENIZER_EOS]),
    ];
    for (key, value, wanted) in cases {
        let error = tiny_with(key, value).unwrap_err().to_string();
        for word in wanted {
            assert!(error.contains(word), "{key}: {error}");
        }
    }
    // A byte without a token would vanish from texts.
    let file = open("models/tiny-qwen3moe-q4_k_m.gguf");
    let tokens = file.metadata().string_array(keys::TOKENIZER_TOKENS).unwrap();
    let without_newline: Vec<String> =
        tokens.iter().map(|t| if t == "Ċ" { "[gone]".to_owned() } else { t.clone() }).collect();
    let error = tiny_with(keys::TOKENIZER_TOKENS, Some(MetaValue::Array(MetaArray::String(without_newline))))
        .unwrap_err();
    assert!(matches!(error, TokenizerError::MissingByte { byte: b'\n' }), "{error}");
}
