//! How text is cut into words before BPE merges inside each, by one of the [`rules`](super::rules).
//!
//! The published patterns hold one lookahead, `\s+(?!\S)`; it is done by hand here, so that the rest runs on an engine whose
//! time is linear in the text and which cannot give up half-way: a backtracking engine stops at its step limit on a long run
//! of blanks, and the text after it would be cut wrongly without a word.

use regex::Regex;

use super::rules::{Groups, RULES, Rule, Step};

/// A step, made ready.
#[derive(Debug)]
enum Cutter {
    /// Of [`Step::Matches`].
    Matches {
        pattern: Regex,
        /// What its last alternative is.
        blanks: Blanks,
    },
    /// Of [`Step::Groups`].
    Groups {
        digits: Regex,
        /// What may not follow digits that are cut.
        word: Option<Regex>,
    },
}

/// Whether a pattern ends with `\s+(?!\S)|\s+`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Blanks {
    /// It does not.
    No,
    /// It does.
    Last,
    /// It does, after an alternative for blanks with line ends.
    LastAfterLineEnds,
}

impl Cutter {
    #[expect(
        clippy::expect_used,
        reason = "the patterns are constants; every one of RULES is built by a test"
    )]
    fn new(step: &Step) -> Cutter {
        let regex = |pattern: &str| Regex::new(pattern).expect("a constant pattern");
        match step {
            Step::Matches(pattern) => {
                let blanks = match (pattern.ends_with(r"|\s+"), pattern.contains(r"\s*[\r\n]")) {
                    (false, _) => Blanks::No,
                    (true, false) => Blanks::Last,
                    (true, true) => Blanks::LastAfterLineEnds,
                };
                Cutter::Matches { pattern: regex(pattern), blanks }
            }
            Step::Groups(Groups::Everywhere) => Cutter::Groups { digits: regex(r"\p{N}+"), word: None },
            Step::Groups(Groups::AtWordEnds) => Cutter::Groups {
                digits: regex(r"\d+"),
                // What a word is made of where `\b` is looked for (Oniguruma).
                word: Some(regex(r"^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]")),
            },
        }
    }

    fn cut<'a>(&self, text: &'a str, words: &mut Vec<&'a str>) {
        match self {
            Cutter::Matches { pattern, blanks } => words.extend(cut(pattern, *blanks, text)),
            Cutter::Groups { digits, word } => cut_groups(digits, word.as_ref(), text, words),
        }
    }
}

/// Cuts text into words.
#[derive(Debug)]
pub struct PreTokenizer {
    rule: &'static Rule,
    cutters: Vec<Cutter>,
}

impl PreTokenizer {
    /// The names that are known.
    pub fn known_names() -> impl Iterator<Item = &'static str> {
        RULES.iter().flat_map(|rule| rule.names).copied()
    }

    /// The pre-tokenizer of that name; `None` where it is not listed.
    pub fn by_name(name: &str) -> Option<PreTokenizer> {
        let rule = RULES.iter().find(|rule| rule.names.contains(&name))?;
        Some(PreTokenizer { rule, cutters: rule.steps.iter().map(Cutter::new).collect() })
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
        for cutter in &self.cutters {
            let mut cut = Vec::with_capacity(words.len());
            for word in words {
                cutter.cut(word, &mut cut);
            }
            words = cut;
        }
        words
    }
}

/// A text cut at the matches of a pattern; what none matches is a word.
fn cut<'a>(pattern: &Regex, blanks: Blanks, text: &'a str) -> impl Iterator<Item = &'a str> {
    let mut rest = text;
    // Where the next match lies, if it was found behind a gap.
    let mut found: Option<usize> = None;
    std::iter::from_fn(move || {
        let end = match found.take() {
            Some(len) => lookahead_end(rest, len, blanks),
            None => match pattern.find(rest) {
                Some(next) if next.start() == 0 => lookahead_end(rest, next.end(), blanks),
                Some(next) => {
                    found = Some(next.len());
                    next.start()
                }
                None => rest.len(),
            },
        };
        let (word, tail) = rest.split_at(end);
        rest = tail;
        (!word.is_empty()).then_some(word)
    })
}

/// Where a match that ends at `end` does with the lookahead of `\s+(?!\S)|\s+`: before the last blank, if text follows and the
/// blank is not the only one. Where the pattern has an alternative for line ends, a match with one is that alternative's; any
/// other match has a visible character.
fn lookahead_end(text: &str, end: usize, blanks: Blanks) -> usize {
    let word = &text[..end];
    if blanks == Blanks::No
        || end == text.len()
        || (blanks == Blanks::LastAfterLineEnds && word.contains(['\r', '\n']))
        || !word.chars().all(char::is_whitespace)
    {
        return end;
    }
    match word.char_indices().next_back() {
        Some((last, _)) if last > 0 => last,
        _ => end,
    }
}

/// A text cut around its runs of digits, and these into groups of three from the right; a run before a character of `word` is
/// not cut, nor cut off.
fn cut_groups<'a>(digits: &Regex, word: Option<&Regex>, text: &'a str, words: &mut Vec<&'a str>) {
    let mut done = 0;
    for run in digits.find_iter(text) {
        if word.is_some_and(|word| word.is_match(&text[run.end()..])) {
            continue;
        }
        if run.start() > done {
            words.push(&text[done..run.start()]);
        }
        let count = run.as_str().chars().count();
        let mut start = run.start();
        for (index, (at, character)) in run.as_str().char_indices().enumerate() {
            let end = run.start() + at + character.len_utf8();
            if (count - index - 1).is_multiple_of(3) {
                words.push(&text[start..end]);
                start = end;
            }
        }
        done = run.end();
    }
    if done < text.len() {
        words.push(&text[done..]);
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
        for name in PreTokenizer::known_names() {
            PreTokenizer::by_name(name).unwrap();
        }
    }

    #[test]
    fn a_name_is_listed_or_not() {
        assert!(PreTokenizer::by_name("llama").is_none() && PreTokenizer::by_name("").is_none());
        let names: Vec<&str> = PreTokenizer::known_names().collect();
        assert!(names.starts_with(&["qwen2", "deepseek-r1-qwen"]), "{names:?}");
        let mut once = names.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), names.len());
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

    #[test]
    fn digits_in_groups_from_the_right() {
        assert_eq!(words_of("afmoe", "a1234567x12"), ["a", "1", "234", "567", "x", "12"]);
        assert_eq!(
            words_of("cohere2moe", "a1234 1234x ٣٤٥٦"),
            ["a", "1", "234", " ", "123", "4", "x", " ", "٣", "٤٥٦"]
        );
    }

    #[test]
    fn patterns_one_after_the_other() {
        assert_eq!(words_of("deepseek-v3", "x+1234語a  b"), ["x", "+", "123", "4", "語", "a", " ", " b"]);
        assert_eq!(
            words_of("deepseek-llm", "a  b\n\n 12語 ."),
            ["a", " ", " b", "\n", "\n", " ", "12", "語", " ."]
        );
        assert_eq!(words_of("kimi-k2", "a語B"), ["a", "語", "B"]);
        assert_eq!(words_of("tekken", "fooBar's"), ["foo", "Bar", "'s"]);
        assert_eq!(words_of("exaone-moe", "a b  c"), ["a b", " ", " c"]);
        assert_eq!(words_of("default", "a+b 12345 "), ["a", "+", "b", " ", "123", "45", " "]);
        assert_eq!(words_of("laguna", "a \n\nb"), ["a", " ", "\n\n", "b"]);
    }

    /// Every rule, on texts of every kind of character: no character is lost, and a long text takes no longer than its length.
    #[test]
    fn every_rule_keeps_the_text() {
        let texts = ["a1 \u{3000}\n\r\u{200B}語\u{301}'s?½\u{0}🙂ſ", "''ll123 ٣abc\u{85}\u{a0}", "  \n  "];
        for name in PreTokenizer::known_names() {
            let rule = PreTokenizer::by_name(name).unwrap();
            for text in texts {
                assert_eq!(rule.words(text).concat(), text, "{name}");
                let long = text.repeat(1_000);
                assert_eq!(rule.words(&long).concat(), long, "{name}");
            }
            for run in [" ", "\n", "1", "a", "語", ".", "\u{301}", " a", "'"] {
                let long = run.repeat(30_000);
                assert_eq!(rule.words(&long).concat(), long, "{name}: {run:?}");
            }
        }
    }
}
