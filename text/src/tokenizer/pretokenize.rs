//! How text is cut into words before BPE merges inside each: one entry per name of `tokenizer.ggml.pre`.
//!
//! The patterns are published with the models (`tokenizer.json`, pre_tokenizer). They hold one lookahead, `\s+(?!\S)`; it
//! is done by hand here, so that the rest runs on an engine whose time is linear in the text and which cannot give up
//! half-way: a backtracking engine stops at its step limit on a long run of blanks, and the text after it would be cut
//! wrongly without a word. Where a name stands for several patterns, each cuts what the one before it left.

use regex::Regex;

/// How a family of models cuts.
#[derive(Debug)]
struct Rule {
    /// Names of `tokenizer.ggml.pre`. Converters name a pre-tokenizer after the model that they first saw it with, so one
    /// rule has several names; these are those that llama.cpp gives the same pattern.
    names: &'static [&'static str],
    /// One after the other, each on the pieces of the one before. The last two alternatives of the published patterns,
    /// `\s+(?!\S)|\s+`, are one `\s+` here.
    patterns: &'static [&'static str],
    /// A word that is a token as a whole is taken before any merge.
    ignore_merges: bool,
    /// Whether a text begins with BOS where the file does not say.
    add_bos: bool,
}

/// Qwen2, Qwen2.5, Qwen3 and Qwen3-MoE.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
/// Qwen3.5: marks belong to letters.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
/// Llama 3, which is GPT-4's: up to three digits are a word.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
/// GPT-4o: a word begins with an upper-case letter.
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+";
/// GPT-2: line ends are blanks like others.
const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
/// Each digit by itself, before the rest.
const DIGIT: &str = r"\p{N}";
/// Ling.
const BAILING: &str = r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+";

const RULES: &[Rule] = &[
    Rule {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        patterns: &[QWEN2],
        ignore_merges: false,
        add_bos: false,
    },
    Rule { names: &["qwen35"], patterns: &[QWEN35], ignore_merges: false, add_bos: false },
    Rule {
        names: &["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        patterns: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    Rule { names: &["glm4", "glm5"], patterns: &[LLAMA3], ignore_merges: true, add_bos: false },
    Rule {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe"],
        patterns: &[LLAMA3],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        patterns: &[GPT_4O],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &[
            "gpt-2",
            "phi-2",
            "gigachat",
            "mellum",
            "exaone4",
            "olmo",
            "granite-docling",
            "trillion",
            "mpt",
        ],
        patterns: &[GPT_2],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &[
            "refact",
            "command-r",
            "starcoder",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        patterns: &[DIGIT, GPT_2],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        patterns: &[BAILING],
        ignore_merges: false,
        add_bos: false,
    },
];

/// Cuts text into words.
#[derive(Debug)]
pub struct PreTokenizer {
    rule: &'static Rule,
    /// Each with whether it has an alternative for line ends.
    patterns: Vec<(Regex, bool)>,
}

impl PreTokenizer {
    /// The names that are known, in quotes.
    pub fn known_names() -> String {
        let names = RULES.iter().flat_map(|rule| rule.names);
        names.map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
    }

    /// The pre-tokenizer of that name; `None` where it is not listed.
    pub fn by_name(name: &str) -> Option<PreTokenizer> {
        let rule = RULES.iter().find(|rule| rule.names.contains(&name))?;
        #[expect(
            clippy::expect_used,
            reason = "the patterns are constants; every one of RULES is built by a test"
        )]
        let build = |pattern: &&str| {
            (Regex::new(pattern).expect("a constant pattern"), pattern.contains(r"\s*[\r\n]"))
        };
        Some(PreTokenizer { rule, patterns: rule.patterns.iter().map(build).collect() })
    }

    /// Whether a word that is a token as a whole is taken before any merge.
    pub fn ignores_merges(&self) -> bool {
        self.rule.ignore_merges
    }

    /// Whether a text begins with BOS where the file does not say.
    pub fn adds_bos(&self) -> bool {
        self.rule.add_bos
    }

    /// The words of a text, in order; together they are the text.
    pub fn words<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let mut words = vec![text];
        for (pattern, has_line_ends) in &self.patterns {
            words = words.into_iter().flat_map(|word| cut(pattern, *has_line_ends, word)).collect();
        }
        words
    }
}

/// A text cut at the matches of a pattern, whose last alternative is `\s+(?!\S)|\s+`; what none matches is a word.
fn cut<'a>(pattern: &Regex, has_line_ends: bool, text: &'a str) -> impl Iterator<Item = &'a str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = match pattern.find(rest) {
            Some(found) if found.start() == 0 => lookahead_end(rest, found.end(), has_line_ends),
            Some(found) => found.start(),
            None => rest.len(),
        };
        let (word, tail) = rest.split_at(end);
        rest = tail;
        (!word.is_empty()).then_some(word)
    })
}

/// Where a match of `\s+(?!\S)|\s+` ends, given that `\s+` ends at `end`: before the last blank, if text follows and the
/// blank is not the only one. Where the pattern has an alternative for line ends, a match with one is that alternative's; any
/// other match has a visible character.
fn lookahead_end(text: &str, end: usize, has_line_ends: bool) -> usize {
    let word = &text[..end];
    if end == text.len()
        || (has_line_ends && word.contains(['\r', '\n']))
        || !word.chars().all(char::is_whitespace)
    {
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

    fn words_of(name: &str, text: &str) -> Vec<String> {
        PreTokenizer::by_name(name).unwrap().words(text).into_iter().map(str::to_owned).collect()
    }

    fn words(text: &str) -> Vec<String> {
        words_of("qwen2", text)
    }

    #[test]
    fn every_known_pattern_compiles() {
        for name in RULES.iter().flat_map(|rule| rule.names) {
            PreTokenizer::by_name(name).unwrap();
        }
    }

    #[test]
    fn a_name_is_listed_or_not() {
        assert!(PreTokenizer::by_name("llama").is_none() && PreTokenizer::by_name("").is_none());
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

    #[test]
    fn families_differ_where_they_do() {
        let text = "a \n  bC12345";
        assert_eq!(words_of("llama-bpe", text), ["a", " \n", " ", " bC", "123", "45"]);
        assert_eq!(words_of("gpt-2", text), ["a", " \n ", " bC", "12345"]);
        assert_eq!(words_of("gpt-4o", text), ["a", " \n", " ", " b", "C", "123", "45"]);
        assert_eq!(words_of("refact", "a 12"), ["a", " ", "1", "2"]);
        assert_eq!(words_of("qwen35", "e\u{301}a"), ["e\u{301}a"]);
    }
}
