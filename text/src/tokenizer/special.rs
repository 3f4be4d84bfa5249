//! Tokens that are found in text as a whole, before any merging: control and user-defined ones.

use moe_run_graph::ids::TokenId;

use super::{ControlTokens, TokenKind};

/// A piece of a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment<'a> {
    /// A special token.
    Token(TokenId),
    /// Text between them, never empty.
    Text(&'a str),
}

/// The special tokens of a vocabulary.
#[derive(Debug)]
pub struct SpecialTokens {
    /// In the order of ids.
    tokens: Vec<(String, TokenId, TokenKind)>,
    /// Indices into `tokens` by first byte, longest text first: the first that fits at a place is the longest.
    by_first_byte: Vec<Vec<usize>>,
}

impl SpecialTokens {
    /// From the whole vocabulary.
    pub fn new(texts: &[String], kinds: &[TokenKind]) -> SpecialTokens {
        let mut tokens = Vec::new();
        for (id, (text, &kind)) in (0u32..).zip(texts.iter().zip(kinds)) {
            if matches!(kind, TokenKind::Control | TokenKind::UserDefined) && !text.is_empty() {
                tokens.push((text.clone(), TokenId(id), kind));
            }
        }
        let mut by_first_byte = vec![Vec::new(); 256];
        for (index, (text, ..)) in tokens.iter().enumerate() {
            by_first_byte[usize::from(text.as_bytes()[0])].push(index);
        }
        for indices in &mut by_first_byte {
            indices.sort_by_key(|&i| std::cmp::Reverse(tokens[i].0.len()));
        }
        SpecialTokens { tokens, by_first_byte }
    }

    /// The texts of the control tokens.
    pub fn controls(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().filter(|(.., kind)| *kind == TokenKind::Control).map(|(text, ..)| text.as_str())
    }

    /// Splits at user-defined tokens and, where `control` says so, at control tokens: leftmost first, then longest.
    pub fn split<'a>(&'a self, text: &'a str, control: ControlTokens) -> impl Iterator<Item = Fragment<'a>> {
        self.split_where(text, move |kind| kind == TokenKind::UserDefined || control == ControlTokens::Parse)
    }

    /// Splits at control tokens only.
    pub fn split_control<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Fragment<'a>> {
        self.split_where(text, |kind| kind == TokenKind::Control)
    }

    fn split_where<'a>(
        &'a self,
        text: &'a str,
        wanted: impl Fn(TokenKind) -> bool + 'a,
    ) -> impl Iterator<Item = Fragment<'a>> {
        let mut rest = text;
        let mut pending = None;
        std::iter::from_fn(move || {
            if let Some(token) = pending.take() {
                return Some(token);
            }
            if rest.is_empty() {
                return None;
            }
            match self.find(rest, &wanted) {
                Some((start, end, id)) => {
                    let before = &rest[..start];
                    rest = &rest[end..];
                    if before.is_empty() {
                        return Some(Fragment::Token(id));
                    }
                    pending = Some(Fragment::Token(id));
                    Some(Fragment::Text(before))
                }
                None => Some(Fragment::Text(std::mem::take(&mut rest))),
            }
        })
    }

    /// The leftmost, then longest, wanted token of a text: its byte range and id.
    fn find(&self, text: &str, wanted: &impl Fn(TokenKind) -> bool) -> Option<(usize, usize, TokenId)> {
        let bytes = text.as_bytes();
        (0..bytes.len()).find_map(|start| {
            self.by_first_byte[usize::from(bytes[start])].iter().find_map(|&index| {
                let (token, id, kind) = &self.tokens[index];
                (wanted(*kind) && bytes[start..].starts_with(token.as_bytes()))
                    .then(|| (start, start + token.len(), *id))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special() -> SpecialTokens {
        let texts = ["a", "<|x|>", "<t>", "<t><t>", "<|x", ""].map(str::to_owned);
        use TokenKind::{Control, Normal, UserDefined};
        SpecialTokens::new(&texts, &[Normal, Control, UserDefined, UserDefined, Control, Control])
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
}
