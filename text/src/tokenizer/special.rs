//! Tokens that are found in text as a whole, before any merging: control and user-defined ones.

use aho_corasick::{AhoCorasick, BuildError, MatchKind};

use moe_run_graph::ids::TokenId;

use super::{ControlTokens, TokenKind, TokenizerError};

/// A piece of a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment<'a> {
    /// A special token.
    Token(TokenId),
    /// Text between them, never empty.
    Text(&'a str),
}

/// The most bytes of all special tokens together: a hundred times those of the vocabulary with the most.
pub const MAX_BYTES: usize = 4 << 20;
/// The most bytes of one: what a text can cost for each of its bytes.
pub const MAX_TOKEN_BYTES: usize = 1 << 10;

/// The special tokens of a vocabulary.
#[derive(Debug, Default)]
pub struct SpecialTokens {
    /// The texts of the control tokens, in the order of ids.
    controls: Vec<String>,
    any: Finder,
    control: Finder,
    user_defined: Finder,
}

/// Finds tokens in text.
#[derive(Debug, Default)]
struct Finder {
    /// `None` where there are no tokens.
    automaton: Option<AhoCorasick>,
    /// Of each pattern.
    ids: Vec<TokenId>,
}

impl Finder {
    fn new(tokens: &[(&str, TokenId)]) -> Result<Finder, BuildError> {
        let automaton = if tokens.is_empty() {
            None
        } else {
            let texts = tokens.iter().map(|(text, _)| text);
            Some(AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts)?)
        };
        Ok(Finder { automaton, ids: tokens.iter().map(|(_, id)| *id).collect() })
    }

    /// The text's tokens and what is between them.
    fn split<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Fragment<'a>> {
        let mut done = 0;
        let mut pending = None;
        let mut matches = self.automaton.as_ref().map(|automaton| automaton.find_iter(text));
        std::iter::from_fn(move || {
            if let Some(token) = pending.take() {
                return Some(token);
            }
            let Some(found) = matches.as_mut().and_then(Iterator::next) else {
                let rest = text.get(done..).filter(|rest| !rest.is_empty())?;
                done = text.len();
                return Some(Fragment::Text(rest));
            };
            let token = Fragment::Token(self.ids[found.pattern().as_usize()]);
            let before = &text[done..found.start()];
            done = found.end();
            if before.is_empty() {
                return Some(token);
            }
            pending = Some(token);
            Some(Fragment::Text(before))
        })
    }
}

impl SpecialTokens {
    /// From the whole vocabulary.
    ///
    /// Errors: they are longer, or more, than can be looked for.
    pub fn new(texts: &[String], kinds: &[TokenKind]) -> Result<SpecialTokens, TokenizerError> {
        let tokens_of = |wanted: &[TokenKind]| -> Vec<(&str, TokenId)> {
            let ids = (0u32..).map(TokenId);
            let tokens = texts.iter().zip(kinds).zip(ids);
            tokens
                .filter(|((text, kind), _)| wanted.contains(kind) && !text.is_empty())
                .map(|((text, _), id)| (text.as_str(), id))
                .collect()
        };
        let any = tokens_of(&[TokenKind::Control, TokenKind::UserDefined]);
        let bytes = any.iter().map(|(text, _)| text.len()).sum();
        let longest = any.iter().map(|(text, _)| text.len()).max().unwrap_or(0);
        let refused = || TokenizerError::SpecialTokens { bytes, longest };
        if bytes > MAX_BYTES || longest > MAX_TOKEN_BYTES {
            return Err(refused());
        }
        let control = tokens_of(&[TokenKind::Control]);
        let finder = |tokens: &[(&str, TokenId)]| Finder::new(tokens).map_err(|_| refused());
        Ok(SpecialTokens {
            controls: control.iter().map(|(text, _)| (*text).to_owned()).collect(),
            any: finder(&any)?,
            control: finder(&control)?,
            user_defined: finder(&tokens_of(&[TokenKind::UserDefined]))?,
        })
    }

    /// The texts of the control tokens.
    pub fn controls(&self) -> impl Iterator<Item = &str> {
        self.controls.iter().map(String::as_str)
    }

    /// Splits at user-defined tokens and, where `control` says so, at control tokens: leftmost first, then longest.
    pub fn split<'a>(&'a self, text: &'a str, control: ControlTokens) -> impl Iterator<Item = Fragment<'a>> {
        match control {
            ControlTokens::Parse => self.any.split(text),
            ControlTokens::Literal => self.user_defined.split(text),
        }
    }

    /// Splits at control tokens only.
    pub fn split_control<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Fragment<'a>> {
        self.control.split(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special() -> SpecialTokens {
        let texts = ["a", "<|x|>", "<t>", "<t><t>", "<|x", ""].map(str::to_owned);
        use TokenKind::{Control, Normal, UserDefined};
        SpecialTokens::new(&texts, &[Normal, Control, UserDefined, UserDefined, Control, Control]).unwrap()
    }

    #[test]
    fn leftmost_longest_by_kind() {
        let special = special();
        let split = |text, control| special.split(text, control).collect::<Vec<_>>();
        use Fragment::{Text, Token};
        assert_eq!(
            split("a<|x|>b<t><t><t>", ControlTokens::Parse),
            [Text("a"), Token(TokenId(1)), Text("b"), Token(TokenId(3)), Token(TokenId(2))]
        );
        assert_eq!(split("<|x|><t>", ControlTokens::Literal), [Text("<|x|>"), Token(TokenId(2))]);
        assert_eq!(split("é<|x", ControlTokens::Parse), [Text("é"), Token(TokenId(4))]);
        assert_eq!(special.split_control("<t><|x|>").collect::<Vec<_>>(), [Text("<t>"), Token(TokenId(1))]);
        assert_eq!(split("", ControlTokens::Parse), []);
    }

    #[test]
    fn tokens_beyond_measure_are_refused() {
        let long = ["a".repeat(MAX_TOKEN_BYTES + 1)];
        let refused = SpecialTokens::new(&long, &[TokenKind::Control]).unwrap_err();
        assert!(matches!(refused, TokenizerError::SpecialTokens { longest: 1025, .. }), "{refused}");
        assert!(SpecialTokens::new(&long, &[TokenKind::Normal]).is_ok());
        let many: Vec<String> = (0..5000).map(|n| format!("{n:01000}")).collect();
        let refused = SpecialTokens::new(&many, &[TokenKind::UserDefined; 5000]).unwrap_err();
        assert!(matches!(refused, TokenizerError::SpecialTokens { bytes: 5_000_000, .. }), "{refused}");
    }
}
