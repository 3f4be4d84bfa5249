//! How text is cut into words before BPE merges inside each: one entry per name of `tokenizer.ggml.pre`.
//!
//! The patterns are published with the models (`tokenizer.json`, pre_tokenizer). They hold one lookahead, `\s+(?!\S)`; it
//! is done by hand here, so that the rest runs on an engine whose time is linear in the text and which cannot give up
//! half-way: a backtracking engine stops at its step limit on a long run of blanks, and the text after it would be cut
//! wrongly without a word.

use regex::Regex;

use super::TokenizerError;

/// Qwen2, Qwen2.5, Qwen3 and Qwen3-MoE, up to the last two alternatives `\s+(?!\S)|\s+`, which are one `\s+` here.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";

/// Names of `tokenizer.ggml.pre` and their patterns.
const KNOWN: [(&str, &str); 1] = [("qwen2", QWEN2)];

/// Cuts text into words.
#[derive(Debug)]
pub struct PreTokenizer {
    pattern: Regex,
}

impl PreTokenizer {
    /// The pre-tokenizer of that name.
    ///
    /// Errors: the name is not listed.
    pub fn by_name(name: &str) -> Result<PreTokenizer, TokenizerError> {
        let Some((_, pattern)) = KNOWN.iter().find(|(known, _)| *known == name) else {
            let known = KNOWN.map(|(known, _)| format!("{known:?}")).join(", ");
            return Err(TokenizerError::PreTokenizer { found: name.to_owned(), known });
        };
        #[expect(
            clippy::expect_used,
            reason = "the pattern is a constant; every one of KNOWN is built by a test"
        )]
        let pattern = Regex::new(pattern).expect("a constant pattern");
        Ok(PreTokenizer { pattern })
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
    fn an_unlisted_name_is_refused_by_name() {
        let error = PreTokenizer::by_name("llama-bpe").unwrap_err().to_string();
        assert!(error.contains("llama-bpe") && error.contains("qwen2"), "{error}");
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
