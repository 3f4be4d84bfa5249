//! What each token is: by `tokenizer.ggml.token_type`, put right where a token's text and use say otherwise.
//!
//! Converters have left the types out, or called every token normal. `<|im_start|>` would then be cut into pieces that the
//! model never saw, and `<|im_end|>` would end nothing. So a token that is called text counts as a control token if its
//! text is that of a known one, or looks like one (`<|this|>`, `[THIS]`) and is written by the chat template or named by
//! a key; a `<tag>` that the template writes counts as user-defined. A text that merging gives anyway needs no
//! correction: it is a word. What ends a generation counts as a control token even where it is called user-defined, as the
//! published types of some are.
//! Types that are right are left alone; what is put right is said by [`TokenizerWarning`](super::TokenizerWarning).

use std::collections::{HashMap, HashSet};

use moe_run_graph::gguf::{GgufError, MetaValue, Metadata, keys};
use moe_run_graph::ids::TokenId;

use super::{TokenKind, TokenizerError};

/// Texts of tokens that end a generation. Files name one or two ids by key; the rest are found by these texts among the
/// control tokens, so that a model stops at each of its ends.
const ENDS: [&str; 16] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
];

/// Ends where they are control or user-defined tokens. Vocabularies hold the same texts as words too (Qwen's has `</s>`), so
/// nothing is concluded from the text alone.
const ENDS_IF_CONTROL: [&str; 6] = ["</s>", "<eos>", "[EOS]", "<turn|>", TOOL_RESPONSE, "[e~["];

/// Gemma 4's end of a turn that calls tools.
const TOOL_RESPONSE: &str = "<|tool_response>";

/// Control tokens of filling in the middle that no answer goes on behind: padding, a repository's name, a file's border.
const ENDS_OF_FILLING: [&str; 11] = [
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Texts of further control tokens that no vocabulary holds as words.
const CONTROLS: [&str; 17] = [
    "<|im_start|>",
    "<|im_sep|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|begin_of_text|>",
    "<|start|>",
    "<|message|>",
    "<|channel|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|tool|>",
    "<|observation|>",
    "<start_of_turn>",
    "[INST]",
    "[/INST]",
    "<｜begin▁of▁sentence｜>",
];

/// Control tokens where the template writes them or a key names them; they are words of some vocabularies.
const CONTROLS_IF_USED: [&str; 9] =
    ["<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<turn|>", "<|turn>", "<|tool_response>"];

/// A token whose type was put right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Correction {
    /// The token.
    pub id: TokenId,
    /// Its text.
    pub text: String,
    /// What the file calls it; `None` where it has no types.
    pub found: Option<&'static str>,
    /// What it counts as.
    pub taken_as: TokenKind,
}

/// Types from `tokenizer.ggml.token_type`; all are normal where the key is absent. With `byte_tokens` the texts `<0x00>` to
/// `<0xFF>` are the bytes that they spell, typed so or as text.
///
/// Errors: there is not one for each token, or one that is not known.
pub fn of_file(
    metadata: &Metadata,
    texts: &[String],
    byte_tokens: bool,
) -> Result<Vec<TokenKind>, TokenizerError> {
    let text_or_byte = |text: &str| match byte_of(text) {
        Some(_) if byte_tokens => TokenKind::Byte,
        _ => TokenKind::Normal,
    };
    let Some(types) = metadata.opt_i32_array(keys::TOKENIZER_TOKEN_TYPE)? else {
        return Ok(texts.iter().map(|text| text_or_byte(text)).collect());
    };
    if types.len() != texts.len() {
        return Err(TokenizerError::TypeCount { found: types.len(), wanted: texts.len() });
    }
    types
        .iter()
        .zip(texts)
        .enumerate()
        .map(|(id, (&t, text))| match t {
            // 0 is "undefined" and 6 a byte token of SentencePiece: neither is special in a byte-level vocabulary.
            0 | 1 | 6 => Ok(text_or_byte(text)),
            // The unknown token (2) is never text, so it is treated like a control token.
            2 | 3 => Ok(TokenKind::Control),
            4 => Ok(TokenKind::UserDefined),
            5 => Ok(TokenKind::Unused),
            found => Err(TokenizerError::TokenType { id, found }),
        })
        .collect()
}

/// The byte that a text like `<0x0A>` spells.
pub fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hexadecimal = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_hexadecimal)
}

/// Puts types right. `named` are the tokens that keys name, and `is_word` says whether merging gives a text as that token.
///
/// Errors: the file's types are not of a type that can be read.
pub fn correct(
    metadata: &Metadata,
    texts: &[String],
    kinds: &mut [TokenKind],
    named: &[TokenId],
    is_word: impl Fn(&str, TokenId) -> bool,
) -> Result<Vec<Correction>, GgufError> {
    let types = metadata.opt_i32_array(keys::TOKENIZER_TOKEN_TYPE)?;
    let found = |id: TokenId| {
        types.as_ref().map(|types| match types.get(id.index()) {
            Some(0) => "undefined",
            Some(4) => "user-defined",
            Some(5) => "unused",
            Some(6) => "byte",
            _ => "normal",
        })
    };
    // A template may have several forms, each under its own key.
    let templates: Vec<&str> = metadata
        .iter()
        .filter(|(key, _)| key.starts_with(keys::CHAT_TEMPLATE))
        .filter_map(
            |(_, value)| if let MetaValue::String(source) = value { Some(source.as_str()) } else { None },
        )
        .collect();
    let written = written(&templates);
    // Beside a turn's own end </s> is a tag of HTML.
    let has_tool_response = texts.iter().any(|text| text == TOOL_RESPONSE);
    let mut corrections = Vec::new();
    for ((id, text), kind) in (0u32..).map(TokenId).zip(texts).zip(kinds) {
        let taken_as = match kind {
            TokenKind::Control | TokenKind::Byte => continue,
            TokenKind::UserDefined if ENDS.contains(&text.as_str()) => TokenKind::Control,
            TokenKind::UserDefined => {
                // Files call these so for a reason of their own: nothing is wrong.
                let ends =
                    ENDS_IF_CONTROL.contains(&text.as_str()) || ENDS_OF_FILLING.contains(&text.as_str());
                if ends && !(has_tool_response && text == "</s>") {
                    *kind = TokenKind::Control;
                }
                continue;
            }
            TokenKind::Normal | TokenKind::Unused => {
                let is_written = written.contains(text.as_str());
                match looks_like(text, named.contains(&id), is_written) {
                    Some(taken_as) if !is_word(text, id) => taken_as,
                    _ => continue,
                }
            }
        };
        *kind = taken_as;
        corrections.push(Correction { id, text: text.clone(), found: found(id), taken_as });
    }
    Ok(corrections)
}

/// What a token that is called text is by its text, by a key that names it, and by a template that writes it.
fn looks_like(text: &str, is_named: bool, is_written: bool) -> Option<TokenKind> {
    if ENDS.contains(&text) || CONTROLS.contains(&text) {
        return Some(TokenKind::Control);
    }
    let kind = if CONTROLS_IF_USED.contains(&text) { Some(TokenKind::Control) } else { marker(text) };
    if is_named { kind.map(|_| TokenKind::Control) } else { kind.filter(|_| is_written) }
}

/// Every text of a marker's shape, `<…>` or `[…]`, that the templates write. One pass over them, whatever they hold and however
/// many tokens there are.
fn written<'a>(templates: &[&'a str]) -> HashSet<&'a str> {
    let mut written = HashSet::new();
    for source in templates {
        for (at, open) in source.match_indices(['<', '[']) {
            let close = if open == "<" { '>' } else { ']' };
            let rest = &source[at..];
            // The next bracket closes this one, or it is none.
            let end = rest[1..].find(['<', '>', '[', ']']).map(|end| end + 1);
            if let Some(end) = end.filter(|&end| rest[end..].starts_with(close)) {
                written.insert(&rest[..=end]);
            }
        }
    }
    written
}

/// What a text of the shape of a marker is: `<|this|>`, `<｜this｜>` and `[THIS]` steer; a `<tag>` is text that is one token.
fn marker(text: &str) -> Option<TokenKind> {
    let has_letter = |inner: &str| inner.chars().any(char::is_alphabetic);
    if let Some(inner) = text.strip_prefix('<').and_then(|t| t.strip_suffix('>')) {
        let is_of_markers = |c: char| c.is_alphanumeric() || "|｜▁_-/:.".contains(c);
        if !inner.chars().all(is_of_markers) || !has_letter(inner) {
            return None;
        }
        let steers = |bar: char| inner.starts_with(bar) && inner.ends_with(bar);
        return Some(if steers('|') || steers('｜') { TokenKind::Control } else { TokenKind::UserDefined });
    }
    let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'))?;
    let name = inner.strip_prefix('/').unwrap_or(inner);
    let is_name = has_letter(name) && name.chars().all(|c| c.is_ascii_alphabetic() || c == '_');
    is_name.then_some(TokenKind::Control)
}

/// The tokens that end a generation, ascending: those that keys name, and the control tokens of known texts.
pub fn ends(texts: &[String], kinds: &[TokenKind], named: impl Iterator<Item = TokenId>) -> Vec<TokenId> {
    let mut controls: HashMap<&str, Vec<TokenId>> = HashMap::new();
    for (id, (text, kind)) in (0u32..).map(TokenId).zip(texts.iter().zip(kinds)) {
        if *kind == TokenKind::Control {
            controls.entry(text).or_default().push(id);
        }
    }
    let control = |text: &str| controls.get(text).into_iter().flatten().copied();
    // Where an answer is of several messages (OpenAI's harmony format, Solar's), <|end|> ends one of them; what ends the answer
    // are these. Beside a turn's own end </s> is text.
    let has = |text: &str| controls.contains_key(text);
    let of_messages = (has("<|return|>") && has("<|call|>")) || (has("<|calls|>") && has("<|flush|>"));
    let is_no_end = |text: &str| (of_messages && text == "<|end|>") || (text == "</s>" && has(TOOL_RESPONSE));
    let known = ENDS.into_iter().chain(ENDS_IF_CONTROL).chain(ENDS_OF_FILLING);
    let texts = known.filter(|text| !is_no_end(text));
    let mut ends: Vec<TokenId> = named.chain(texts.flat_map(control)).collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}

#[cfg(test)]
mod tests {
    use super::*;
    use TokenKind::{Byte, Control, Normal, Unused, UserDefined};

    #[test]
    fn the_shapes_of_markers() {
        for (text, kind) in [
            ("<|x_1|>", Some(Control)),
            ("<｜User｜>", Some(Control)),
            ("[TOOL_CALLS]", Some(Control)),
            ("[/INST]", Some(Control)),
            ("<think>", Some(UserDefined)),
            ("</tool_call>", Some(UserDefined)),
            ("<>", None),
            ("<?>", None),
            ("<||>", None),
            ("[]", None),
            ("[0]", None),
            ("['role']", None),
            ("<a b>", None),
            ("x", None),
            ("<", None),
            ("", None),
        ] {
            assert_eq!(marker(text), kind, "{text}");
        }
    }

    /// Tokens 0 to 9 with a template that writes some of them.
    fn corrected(types: Option<Vec<i32>>, named: &[TokenId]) -> (Vec<TokenKind>, Vec<String>) {
        let texts =
            ["a", "<|im_end|>", "<|x|>", "<|y|>", "<think>", "<s>", "</s>", "<b>", "[INST]", "<|user|>"];
        let texts = texts.map(str::to_owned);
        let template = MetaValue::String("{{ '<|x|>' }}<think><b>".into());
        let types = types
            .map(|t| ("tokenizer.ggml.token_type", MetaValue::Array(moe_run_graph::gguf::MetaArray::I32(t))));
        let pairs = [("tokenizer.chat_template.default", template)].into_iter().chain(types);
        let metadata = Metadata::from_pairs("f", pairs).unwrap();
        let mut kinds = of_file(&metadata, &texts, false).unwrap();
        // "<b>" is one that merging gives.
        let found = correct(&metadata, &texts, &mut kinds, named, |text, _| text == "<b>").unwrap();
        (kinds, found.into_iter().map(|c| c.text).collect())
    }

    #[test]
    fn what_is_text_by_its_type_and_not_by_its_use() {
        let all = [Normal, Control, Control, Normal, UserDefined, Normal, Normal, Normal, Control, Control];
        let names = ["<|im_end|>", "<|x|>", "<think>", "[INST]", "<|user|>"];
        for types in [None, Some(vec![1; 10]), Some(vec![0; 10]), Some(vec![6; 10])] {
            let (kinds, found) = corrected(types, &[]);
            assert_eq!((kinds.as_slice(), found), (all.as_slice(), names.map(str::to_owned).to_vec()));
        }
        // A key names what else is one, if it looks like one.
        let (kinds, _) = corrected(None, &[TokenId(0), TokenId(3), TokenId(6)]);
        assert_eq!((kinds[0], kinds[3], kinds[5], kinds[6]), (Normal, Control, Normal, Control));
    }

    #[test]
    fn types_that_are_right_stay() {
        let (kinds, found) = corrected(Some(vec![1, 3, 4, 1, 4, 1, 1, 1, 3, 4]), &[]);
        assert!(found.is_empty(), "{found:?}");
        assert_eq!((kinds[2], kinds[9]), (UserDefined, UserDefined));
        // An end is no text, whatever it is called.
        let (kinds, found) = corrected(Some(vec![5, 4, 3, 5, 4, 1, 1, 1, 3, 3]), &[]);
        assert_eq!((kinds[1], kinds[0], kinds[3]), (Control, Unused, Unused));
        assert_eq!(found, ["<|im_end|>"]);
    }

    #[test]
    fn bytes_and_ends_by_their_texts() {
        for (text, byte) in
            [("<0x0A>", Some(10)), ("<0xff>", Some(255)), ("<0x+1>", None), ("<0x1>", None), ("<0x0A", None)]
        {
            assert_eq!(byte_of(text), byte, "{text}");
        }
        let texts = ["<0x41>", "</s>", "<|fim_pad|>", "<|tool_response>", "<0x42>"].map(str::to_owned);
        let types = |types: [i32; 5]| {
            let types = MetaValue::Array(moe_run_graph::gguf::MetaArray::I32(types.to_vec()));
            Metadata::from_pairs("f", [("tokenizer.ggml.token_type", types)]).unwrap()
        };
        let metadata = types([6, 4, 4, 1, 1]);
        let mut kinds = of_file(&metadata, &texts, true).unwrap();
        let found = correct(&metadata, &texts[..3], &mut kinds[..3], &[], |_, _| true).unwrap();
        assert_eq!((kinds.as_slice(), found), ([Byte, Control, Control, Normal, Byte].as_slice(), vec![]));
        let metadata = types([6, 4, 4, 4, 6]);
        let mut kinds = of_file(&metadata, &texts, false).unwrap();
        correct(&metadata, &texts, &mut kinds, &[], |_, _| true).unwrap();
        assert_eq!(kinds, [Normal, UserDefined, Control, Control, Normal]);
    }

    #[test]
    fn ends_by_text_and_key() {
        let texts = ["<|end|>", "<|call|>", "<|return|>", "</s>", "</s>", "w"].map(str::to_owned);
        let all = |kinds: [TokenKind; 6], named: &[u32]| {
            ends(&texts, &kinds, named.iter().copied().map(TokenId)).iter().map(|id| id.0).collect::<Vec<_>>()
        };
        assert_eq!(all([Control, Control, Control, Control, Normal, Normal], &[]), [1, 2, 3]);
        assert_eq!(all([Control, Control, Normal, Normal, Control, Normal], &[5, 0]), [0, 1, 4, 5]);
    }
}
