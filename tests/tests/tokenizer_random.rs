//! Vocabularies that chance or malice makes: every text ends in time, gives the ids that the plain definition gives, and comes
//! back as it was.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use moe_run_graph::{
    gguf::{MetaArray, MetaValue, Metadata},
    ids::TokenId,
};
use moe_run_text::tokenizer::{ControlTokens, StreamDecoder, Tokenizer, TokenizerError};

/// A linear congruential generator.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    /// A text of up to `len` of the parts.
    fn text(&mut self, parts: &[&str], len: usize) -> String {
        (0..self.below(len + 1)).map(|_| self.of(parts)).collect()
    }
}

/// A vocabulary: texts, types, and what else its kind has.
#[derive(Default)]
struct Vocabulary {
    model: &'static str,
    pre: Option<&'static str>,
    texts: Vec<String>,
    types: Vec<i32>,
    scores: Vec<f32>,
    merges: Vec<String>,
    switches: Vec<(&'static str, bool)>,
    ids: Vec<(&'static str, u32)>,
}

impl Vocabulary {
    fn push(&mut self, text: impl Into<String>, kind: i32, score: f32) {
        self.texts.push(text.into());
        self.types.push(kind);
        self.scores.push(score);
    }

    /// `<unk>`, `<s>`, `</s>`, a user-defined token and all bytes.
    fn pieces() -> Vocabulary {
        let mut vocabulary = Vocabulary { model: "llama", ..Vocabulary::default() };
        for (text, kind) in [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<think>", 4)] {
            vocabulary.push(text, kind, 0.0);
        }
        vocabulary.push_bytes();
        vocabulary
    }

    fn push_bytes(&mut self) {
        for byte in 0..=u8::MAX {
            self.push(format!("<0x{byte:02X}>"), 6, 0.0);
        }
    }

    fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        let string = |text: &str| MetaValue::String(text.to_owned());
        let mut pairs = vec![
            ("tokenizer.ggml.model", string(self.model)),
            ("tokenizer.ggml.tokens", MetaValue::Array(MetaArray::String(self.texts.clone()))),
        ];
        if !self.types.is_empty() {
            pairs.push(("tokenizer.ggml.token_type", MetaValue::Array(MetaArray::I32(self.types.clone()))));
        }
        pairs.extend(self.pre.map(|pre| ("tokenizer.ggml.pre", string(pre))));
        if self.model == "llama" {
            pairs.push(("tokenizer.ggml.scores", MetaValue::Array(MetaArray::F32(self.scores.clone()))));
        } else {
            pairs.push(("tokenizer.ggml.merges", MetaValue::Array(MetaArray::String(self.merges.clone()))));
        }
        pairs.extend(self.switches.iter().map(|(key, value)| (*key, MetaValue::Bool(*value))));
        pairs.extend(self.ids.iter().map(|(key, id)| (*key, MetaValue::U32(*id))));
        Tokenizer::from_metadata(&Metadata::from_pairs("random.gguf", pairs).unwrap())
    }
}

/// Merges `symbols` two by two: always the pair that `rank` puts first, of equals the leftmost.
fn merged(mut symbols: Vec<String>, rank: impl Fn(&str, &str) -> Option<f32>) -> Vec<String> {
    loop {
        let mut best: Option<(f32, usize)> = None;
        for at in 1..symbols.len() {
            let Some(score) = rank(&symbols[at - 1], &symbols[at]) else { continue };
            if best.is_none_or(|(highest, _)| score > highest) {
                best = Some((score, at));
            }
        }
        let Some((_, at)) = best else { return symbols };
        let right = symbols.remove(at);
        symbols[at - 1].push_str(&right);
    }
}

/// The ids of symbols: tokens, and else their bytes.
fn ids_of(symbols: &[String], ids: &HashMap<&str, u32>) -> Vec<TokenId> {
    let spelled = |symbol: &str| symbol.bytes().map(|b| ids[format!("<0x{b:02X}>").as_str()]).collect();
    let of_symbol =
        |symbol: &String| ids.get(symbol.as_str()).map_or_else(|| spelled(symbol), |id| vec![*id]);
    symbols.iter().flat_map(of_symbol).map(TokenId).collect()
}

fn characters(text: &str) -> Vec<String> {
    text.chars().map(String::from).collect()
}

/// Ids → text at once and token by token: both are `text`.
fn comes_back(tokenizer: &Tokenizer, ids: &[TokenId], text: &str) {
    assert_eq!(tokenizer.decode(ids).unwrap(), text);
    let mut stream = StreamDecoder::new();
    let mut streamed = String::new();
    for &id in ids {
        let part = stream.push(tokenizer, id).unwrap();
        assert!(!part.contains('\u{FFFD}'), "{text:?}: {part:?}");
        streamed.push_str(&part);
    }
    assert_eq!((streamed.as_str(), stream.finish().as_str()), (text, ""));
}

#[test]
fn pieces_of_any_scores() {
    const PARTS: [&str; 8] = ["a", "b", "ab", "▁", "é", "語", "🙂", "▁a"];
    const WORDS: [&str; 9] = ["a", "b", " ", "é", "語", "🙂", "c", "ab", "\n"];
    // Scores of every order, among them many that are equal, and what is no number.
    const SCORES: [f32; 8] = [0.0, -0.0, -1.0, -1.0, 5.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let mut random = Random(1);
    for round in 0..300 {
        let mut vocabulary = Vocabulary::pieces();
        vocabulary.push("▁", 1, -100.0);
        for _ in 0..random.below(60) {
            let text = random.text(&PARTS, 6);
            if !vocabulary.texts.contains(&text) && !text.is_empty() {
                let score = random.of(&SCORES);
                vocabulary.push(text, 1, score);
            }
        }
        let prefix = round % 2 == 0;
        vocabulary.switches.push(("tokenizer.ggml.add_space_prefix", prefix));
        let tokenizer = vocabulary.tokenizer().unwrap();
        let ids: HashMap<&str, u32> = vocabulary.texts.iter().map(String::as_str).zip(0..).collect();
        let rank = |left: &str, right: &str| {
            let id = *ids.get(format!("{left}{right}").as_str())?;
            let score = vocabulary.scores[id as usize];
            Some(if score.is_nan() { f32::NEG_INFINITY } else { score })
        };
        for _ in 0..20 {
            let text = random.text(&WORDS, 30);
            let found = tokenizer.encode(&text, ControlTokens::Parse).unwrap();
            let in_front = if prefix && !text.is_empty() { "▁" } else { "" };
            let normalized = format!("{in_front}{}", text.replace(' ', "▁"));
            let wanted = ids_of(&merged(characters(&normalized), rank), &ids);
            assert_eq!(found, wanted, "{text:?}");
            comes_back(&tokenizer, &found, &text);
            // Behind a user-defined token a text begins anew; a control token is no text.
            let twice = format!("<think>{text}</s>{text}");
            let found = tokenizer.encode(&twice, ControlTokens::Parse).unwrap();
            assert_eq!(found, [&[TokenId(3)], &wanted[..], &[TokenId(2)], &wanted[..]].concat());
            comes_back(&tokenizer, &found, &format!("<think>{text}{text}"));
        }
    }
}

/// Without types the tokens that keys name and the bytes are known by their texts; what merging gives is a word.
#[test]
fn pieces_without_types() {
    let mut vocabulary = Vocabulary::pieces();
    for piece in ["<", "b", "s", ">", "s>", "b>", "<b>", "[", "]", "[X]"] {
        vocabulary.push(piece, 1, -1.0);
    }
    vocabulary.types.clear();
    vocabulary.switches = vec![("tokenizer.ggml.add_space_prefix", false)];
    let text = |tokenizer: &Tokenizer, text: &str| -> Vec<String> {
        let ids = tokenizer.encode(text, ControlTokens::Literal).unwrap();
        ids.iter().map(|&id| tokenizer.raw_text(id).unwrap().to_owned()).collect()
    };
    let tokenizer = vocabulary.tokenizer().unwrap();
    assert_eq!(text(&tokenizer, "<b>\n<s>"), ["<b>", "<0x0A>", "<s>"]);
    vocabulary.ids = vec![("tokenizer.ggml.bos_token_id", 1), ("tokenizer.ggml.eos_token_id", 2)];
    let tokenizer = vocabulary.tokenizer().unwrap();
    assert_eq!(text(&tokenizer, "<b>\n<s>"), ["<b>", "<0x0A>", "<", "s>"]);
    assert_eq!(tokenizer.end_of_generation(), [TokenId(2)]);
    assert_eq!((tokenizer.leading_bos(), tokenizer.warnings().len()), (Some(TokenId(1)), 1));
}

/// What is generated behind a prompt: behind a control token its first space is the tokenizer's, behind text its own.
#[test]
fn an_answer_keeps_the_space_that_is_its_own() {
    let mut vocabulary = Vocabulary::pieces();
    for piece in ["▁", "a", "▁a"] {
        vocabulary.push(piece, 1, -1.0);
    }
    let tokenizer = vocabulary.tokenizer().unwrap();
    let answer = tokenizer.encode("a a", ControlTokens::Literal).unwrap();
    for (prompt, text) in [("", "a a"), ("a</s>", "a a"), ("a<think>", "a a"), ("a", " a a")] {
        let prompt = tokenizer.encode(prompt, ControlTokens::Parse).unwrap();
        let mut stream = StreamDecoder::behind(&tokenizer, &prompt);
        let found: String = answer.iter().map(|&id| stream.push(&tokenizer, id).unwrap()).collect();
        assert_eq!(found, text, "{prompt:?}");
    }
}

#[test]
fn spaces_that_are_too_many() {
    let mut vocabulary = Vocabulary::pieces();
    for piece in ["▁", "a", "b", "▁a", "▁▁"] {
        vocabulary.push(piece, 1, -1.0);
    }
    vocabulary.switches = vec![("tokenizer.ggml.remove_extra_whitespaces", true)];
    let tokenizer = vocabulary.tokenizer().unwrap();
    let decoded =
        |text: &str| tokenizer.decode(&tokenizer.encode(text, ControlTokens::Parse).unwrap()).unwrap();
    assert_eq!(decoded("  a   b\n  a "), "a b\n a");
    assert_eq!(decoded("   "), "");
    vocabulary.switches.push(("tokenizer.ggml.add_space_prefix", false));
    let tokenizer = vocabulary.tokenizer().unwrap();
    let ids = tokenizer.encode("  a  b", ControlTokens::Parse).unwrap();
    assert_eq!(ids.iter().map(|&id| tokenizer.raw_text(id).unwrap()).collect::<Vec<_>>(), ["a", "▁", "b"]);
}

#[test]
fn pieces_that_training_left_unused_are_taken_apart() {
    let mut vocabulary = Vocabulary::pieces();
    for (piece, kind, score) in
        [("a", 1, -3.0), ("b", 1, -3.0), ("ab", 5, -1.0), ("abab", 5, -2.0), ("c", 5, 0.0)]
    {
        vocabulary.push(piece, kind, score);
    }
    vocabulary.switches = vec![("tokenizer.ggml.add_space_prefix", false)];
    let tokenizer = vocabulary.tokenizer().unwrap();
    let ids = tokenizer.encode("ababc", ControlTokens::Parse).unwrap();
    assert_eq!(ids.iter().map(|&id| tokenizer.raw_text(id).unwrap()).collect::<String>(), "ababc");
    assert_eq!(ids.len(), 5);
}

/// Random merges: each of two tokens that are there, in random order.
fn with_merges(vocabulary: &mut Vocabulary, random: &mut Random, first: usize) {
    for _ in 0..random.below(80) {
        let (left, right) = (
            first + random.below(vocabulary.texts.len() - first),
            first + random.below(vocabulary.texts.len() - first),
        );
        let (left, right) = (vocabulary.texts[left].clone(), vocabulary.texts[right].clone());
        let (pair, text) = (format!("{left} {right}"), format!("{left}{right}"));
        if text.len() > 40 || vocabulary.merges.contains(&pair) {
            continue;
        }
        if !vocabulary.texts.contains(&text) {
            vocabulary.push(text, 1, 0.0);
        }
        let at = random.below(vocabulary.merges.len() + 1);
        vocabulary.merges.insert(at, pair);
    }
}

#[test]
fn merges_over_lines_in_any_order() {
    const WORDS: [&str; 8] = ["a", "b", " ", "é", "語", "🙂", "c", "ab"];
    let mut random = Random(2);
    for round in 0..300 {
        let mut vocabulary = Vocabulary::default();
        (vocabulary.model, vocabulary.pre) =
            if round % 2 == 0 { ("gemma4", None) } else { ("gpt2", Some("sarvam-moe")) };
        vocabulary.push_bytes();
        let first = vocabulary.texts.len();
        for character in ["▁", "a", "b", "é", "語"] {
            vocabulary.push(character, 1, 0.0);
        }
        with_merges(&mut vocabulary, &mut random, first);
        let tokenizer = vocabulary.tokenizer().unwrap();
        let ids: HashMap<&str, u32> = vocabulary.texts.iter().map(String::as_str).zip(0..).collect();
        let ranks: HashMap<&str, usize> = vocabulary.merges.iter().map(String::as_str).zip(0..).collect();
        let rank = |left: &str, right: &str| Some(-(*ranks.get(format!("{left} {right}").as_str())? as f32));
        for _ in 0..20 {
            let text = random.text(&WORDS, 30);
            let found = tokenizer.encode(&text, ControlTokens::Parse).unwrap();
            let wanted = ids_of(&merged(characters(&text.replace(' ', "▁")), rank), &ids);
            assert_eq!(found, wanted, "{text:?} {:?}", vocabulary.merges);
            comes_back(&tokenizer, &found, &text);
            let lines = format!("{text}\n\n\n{text}\n");
            comes_back(&tokenizer, &tokenizer.encode(&lines, ControlTokens::Parse).unwrap(), &lines);
        }
    }
}

#[test]
fn merges_inside_words_in_any_order() {
    const WORDS: [&str; 12] = ["a", "B", " ", "é", "語", "🙂", "1", "'s", "\n", ".", "\u{301}", "▁"];
    let names = [
        "qwen2",
        "gpt-2",
        "kimi-k2",
        "deepseek-v3",
        "deepseek-llm",
        "tekken",
        "cohere2moe",
        "afmoe",
        "youtu",
    ];
    // The byte-level alphabet: printable bytes of Latin-1 stand for themselves, the others follow from U+0100 on.
    let printable = |b: &u32| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let letters: Vec<u32> = (0..256).filter(printable).chain(0x100..0x144).collect();
    let mut random = Random(3);
    for _ in 0..200 {
        let pre = Some(random.of(&names));
        let mut vocabulary = Vocabulary { model: "gpt2", pre, ..Vocabulary::default() };
        for &letter in &letters {
            vocabulary.push(char::from_u32(letter).unwrap(), 1, 0.0);
        }
        with_merges(&mut vocabulary, &mut random, 0);
        let tokenizer = vocabulary.tokenizer().unwrap();
        for _ in 0..20 {
            let text = random.text(&WORDS, 30);
            comes_back(&tokenizer, &tokenizer.encode(&text, ControlTokens::Parse).unwrap(), &text);
        }
    }
}

/// Runs `work`, which should take a moment; a minute is for a machine that is busy otherwise.
fn soon<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let done = work();
    assert!(started.elapsed() < Duration::from_secs(60), "{what}: {:?}", started.elapsed());
    done
}

#[test]
fn long_pieces_and_long_texts_end_in_time() {
    // Each piece one longer than the last and better: the worst order of merging.
    for rising in [1.0, -1.0] {
        let mut vocabulary = Vocabulary::pieces();
        vocabulary.push("▁", 1, 0.0);
        for len in 1..3000 {
            vocabulary.push("a".repeat(len), 1, rising * len as f32);
        }
        vocabulary.push("b".repeat(1 << 20), 1, 0.0);
        let tokenizer = vocabulary.tokenizer().unwrap();
        for text in ["a".repeat(1 << 18), "ab".repeat(1 << 17), "b".repeat(1 << 20), " a\n".repeat(50_000)] {
            let ids = soon("pieces", || tokenizer.encode(&text, ControlTokens::Parse).unwrap());
            assert!(tokenizer.decode(&ids).unwrap() == text);
        }
    }
    for (model, pre) in [("gemma4", None), ("gpt2", Some("sarvam-moe"))] {
        let mut vocabulary = Vocabulary { model, pre, ..Vocabulary::default() };
        vocabulary.push_bytes();
        vocabulary.push("a", 1, 0.0);
        for len in 2..2000 {
            vocabulary.push("a".repeat(len), 1, 0.0);
            vocabulary.merges.push(format!("{} a", "a".repeat(len - 1)));
        }
        let tokenizer = vocabulary.tokenizer().unwrap();
        let text = "a".repeat(1 << 20);
        let ids = soon("lines", || tokenizer.encode(&text, ControlTokens::Parse).unwrap());
        assert!(tokenizer.decode(&ids).unwrap() == text);
    }
}

#[test]
fn many_special_tokens_that_begin_alike_end_in_time() {
    let mut vocabulary = Vocabulary::pieces();
    vocabulary.push("▁", 1, 0.0);
    for len in 1..1000 {
        vocabulary.push(format!("{}>", "<".repeat(len)), 3 + (len % 2) as i32, 0.0);
    }
    let tokenizer = vocabulary.tokenizer().unwrap();
    for control in [ControlTokens::Parse, ControlTokens::Literal] {
        let text = "<".repeat(1 << 20);
        let ids = soon("special tokens", || tokenizer.encode(&text, control).unwrap());
        assert!(tokenizer.decode(&ids).unwrap() == text);
    }
    // A token that no text could be searched for.
    vocabulary.push("<".repeat(1 << 20), 4, 0.0);
    let refused = vocabulary.tokenizer().unwrap_err();
    assert!(matches!(refused, TokenizerError::SpecialTokens { longest: 1_048_576, .. }), "{refused}");
}

#[test]
fn what_contradicts_itself_is_refused() {
    let mut vocabulary = Vocabulary::pieces();
    vocabulary.scores.pop();
    let refused = vocabulary.tokenizer().unwrap_err();
    assert!(matches!(refused, TokenizerError::ScoreCount { found: 259, wanted: 260 }), "{refused}");
    // Without byte tokens a text may hold what cannot be written; the others can.
    for model in ["llama", "gemma4"] {
        let mut vocabulary = Vocabulary { model, ..Vocabulary::default() };
        for text in ["a", "▁", "é"] {
            vocabulary.push(text, 1, 0.0);
        }
        let tokenizer = vocabulary.tokenizer().unwrap();
        let ids = tokenizer.encode("a é", ControlTokens::Parse).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), "a é");
        let refused = tokenizer.encode("a語", ControlTokens::Parse).unwrap_err();
        assert!(matches!(refused, TokenizerError::MissingByte { byte: 0xE8 }), "{refused}");
    }
}
