//! How text is cut into words before BPE merges inside each: one entry per name of `tokenizer.ggml.pre`.
//!
//! The patterns are published with the models (`tokenizer.json`, pre_tokenizer). They hold one lookahead, `\s+(?!\S)`; it
//! is done by hand here, so that the rest runs on an engine whose time is linear in the text and which cannot give up
//! half-way: a backtracking engine stops at its step limit on a long run of blanks, and the text after it would be cut
//! wrongly without a word.

use regex::Regex;

/// Qwen2, Qwen2.5, Qwen3 and Qwen3-MoE, up to the last two alternatives `\s+(?!\S)|\s+`, which are one `\s+` here.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";

/// Names of `tokenizer.ggml.pre` and their patterns. Converters name a pre-tokenizer after the model that they first saw it
/// with, so one rule has several names; these are those that llama.cpp gives the same pattern.
const KNOWN: [(&str, &str); 8] = [
    ("qwen2", QWEN2),
    ("deepseek-r1-qwen", QWEN2),
    ("kormo", QWEN2),
    ("f2llmv2", QWEN2),
    ("megrez", QWEN2),
    ("stablelm2", QWEN2),
    ("hunyuan", QWEN2),
    ("solar-open", QWEN2),
];

/// Cuts text into words.
#[derive(Debug)]
pub struct PreTokenizer {
    pattern: Regex,
}

impl PreTokenizer {
    /// The names that are known, in quotes.
    pub fn known_names() -> String {
        KNOWN.map(|(name, _)| format!("{name:?}")).join(", ")
    }

    /// The pre-tokenizer of that name; `None` where it is not listed.
    pub fn by_name(name: &str) -> Option<PreTokenizer> {
        let (_, pattern) = KNOWN.iter().find(|(known, _)| *known == name)?;
        #[expect(
            clippy::expect_used,
            reason = "the pattern is a constant; every one of KNOWN is built by a test"
        )]
        let pattern = Regex::new(pattern).expect("a constant pattern");
        Some(PreTokenizer { pattern })
    }

    /// The words of a text, in order; together they are the text.
    pub fn words<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            // Some alternative matches at every character, so a match begins where the last one ended; a text that none
            // matched would be one word.
            let end = match self.pattern.find(rest) {
                Some(found) if found.start() == 0 => lookahead_end(rest, found.end()),
                Some(found) => found.start(),
                None => rest.len(),
            };
            let (word, tail) = rest.split_at(end);
            rest = tail;
            (!word.is_empty()).then_some(word)
        })
    }
}

/// Where a match of `\s+(?!\S)|\s+` ends, given that `\s+` ends at `end`: before the last blank, if text follows and the
/// blank is not the only one. A match with a line end is one of `\s*[\r\n]+`, and any other match has a visible character.
fn lookahead_end(text: &str, end: usize) -> usize {
    let word = &text[..end];
    if end == text.len() || word.contains(['\r', '\n']) || !word.chars().all(char::is_whitespace) {
        return end;
    }
    match word.char_indices().next_back() {
        Some((last, _)) if last > 0 => last,
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        PreTokenizer::by_name("qwen2").unwrap().words(text).map(str::to_owned).collect()
    }

    #[test]
    fn every_known_pattern_compiles() {
        for (name, _) in KNOWN {
            PreTokenizer::by_name(name).unwrap();
        }
    }

    #[test]
    fn a_name_is_listed_or_not() {
        assert!(PreTokenizer::by_name("llama-bpe").is_none() && PreTokenizer::by_name("").is_none());
        let names = PreTokenizer::known_names();
        assert!(names.starts_with("\"qwen2\", ") && names.contains("\"deepseek-r1-qwen\""), "{names}");
    }

    #[test]
    fn blanks_leave_the_last_one_to_the_word() {
        assert_eq!(words("a   b"), ["a", "  ", " b"]);
        assert_eq!(words("a b  "), ["a", " b", "  "]);
        assert_eq!(words("   "), ["   "]);
        assert_eq!(words(" \t 1"), [" \t", " ", "1"]);
        assert_eq!(words("a \n  b"), ["a", " \n", " ", " b"]);
        assert_eq!(words("a\u{a0}\u{a0}b"), ["a", "\u{a0}", "\u{a0}b"]);
    }

    #[test]
    fn contractions_digits_marks() {
        assert_eq!(
            words("It's 12 o'clock!?\n\nYES'LL"),
            ["It", "'s", " ", "1", "2", " o", "'clock", "!?\n\n", "YES", "'LL"]
        );
        assert_eq!(words("naïve日本語"), ["naïve日本語"]);
    }

    #[test]
    fn the_words_are_the_text() {
        for text in ["", " ", "\r\n \u{2003}x", "\u{0}\u{1}", "é\u{301} ½ ²", "\u{85}\u{85}a"] {
            assert_eq!(words(text).concat(), text);
        }
    }

    #[test]
    fn a_long_run_of_blanks_is_cut_like_a_short_one() {
        let text = format!("{}x y", " ".repeat(3_000_000));
        let words = words(&text);
        assert_eq!(words.len(), 3);
        assert_eq!((words[0].len(), words[1].as_str(), words[2].as_str()), (2_999_999, " x", " y"));
    }
}
