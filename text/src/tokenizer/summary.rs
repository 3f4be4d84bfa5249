//! What a file's tokenizer is, as far as that can be said without building it.

use std::fmt;

use moe_run_graph::{
    gguf::{Metadata, keys},
    ids::TokenId,
    shown::shown,
};
use serde::Serialize;

use super::{SpecialIds, TokenizerError, method::Method};

/// The kind of a file's tokenizer and its switches, with their defaults where the file does not say. Displayed in one line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TokenizerSummary {
    /// How text becomes tokens: "byte-level BPE", "BPE over lines", "SentencePiece BPE".
    pub method: &'static str,
    /// Of byte-level BPE: the name in `tokenizer.ggml.pre` of the rule by which text is cut into words.
    pub pre_tokenizer: Option<String>,
    /// How many tokens there are.
    pub num_tokens: usize,
    /// The token that a raw prompt begins with.
    pub leading_bos: Option<TokenId>,
    /// The token that a whole text ends with; a prompt that is to be answered does not.
    pub trailing_eos: Option<TokenId>,
    /// Whether a text gets a space in front.
    pub adds_space_prefix: bool,
}

impl TokenizerSummary {
    /// Of a file's metadata.
    ///
    /// Errors: there is no tokenizer, it is of a kind that is not known, or a key is of the wrong type.
    pub fn from_metadata(metadata: &Metadata) -> Result<TokenizerSummary, TokenizerError> {
        let (method, _) = Method::of_file(metadata)?;
        let num_tokens = metadata.string_array(keys::TOKENIZER_TOKENS)?.len();
        let ids = SpecialIds::of_file(metadata, num_tokens)?.with_defaults(metadata, &method)?;
        let adds_bos = method.adds_bos(metadata.opt_bool(keys::TOKENIZER_ADD_BOS)?);
        let adds_eos = metadata.opt_bool(keys::TOKENIZER_ADD_EOS)?.unwrap_or(false);
        let space_prefix = metadata.opt_bool(keys::TOKENIZER_ADD_SPACE_PREFIX)?;
        let (name, pre_tokenizer, adds_space_prefix) = match method {
            Method::ByteLevel(_) => {
                let stated = metadata.opt_str(keys::TOKENIZER_PRE)?.unwrap_or_default();
                ("byte-level BPE", Some(stated.to_owned()), false)
            }
            Method::Lines { .. } => ("BPE over lines", None, false),
            Method::SentencePiece => ("SentencePiece BPE", None, space_prefix.unwrap_or(true)),
        };
        Ok(TokenizerSummary {
            method: name,
            pre_tokenizer,
            num_tokens,
            leading_bos: ids.bos.filter(|_| adds_bos),
            trailing_eos: ids.eos.filter(|_| adds_eos),
            adds_space_prefix,
        })
    }
}

impl fmt::Display for TokenizerSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.method)?;
        match self.pre_tokenizer.as_deref() {
            Some("") => f.write_str(" with words as of older files")?,
            Some(name) => write!(f, " with words as of {}", shown(name))?,
            None => {}
        }
        write!(f, ", {} tokens; a text begins with ", self.num_tokens)?;
        match self.leading_bos {
            Some(bos) => write!(f, "BOS ({bos})")?,
            None => f.write_str("no BOS")?,
        }
        if self.adds_space_prefix {
            f.write_str(" and a space")?;
        }
        match self.trailing_eos {
            Some(eos) => write!(f, ", and ends with EOS ({eos})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use moe_run_graph::gguf::{MetaArray, MetaValue};

    use super::*;

    #[test]
    fn kinds_and_their_defaults() {
        let string = |text: &str| MetaValue::String(text.to_owned());
        let tokens =
            || MetaValue::Array(MetaArray::String(["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec()));
        let types = || MetaValue::Array(MetaArray::I32(vec![2, 3, 3]));
        let line = |pairs: Vec<(&str, MetaValue)>| {
            let all = [(keys::TOKENIZER_TOKENS, tokens()), (keys::TOKENIZER_TOKEN_TYPE, types())];
            let metadata = Metadata::from_pairs("f", pairs.into_iter().chain(all)).unwrap();
            TokenizerSummary::from_metadata(&metadata).unwrap().to_string()
        };
        let (model, pre, bos) = (keys::TOKENIZER_MODEL, keys::TOKENIZER_PRE, keys::TOKENIZER_BOS);
        assert_eq!(
            line(vec![(model, string("llama")), (keys::TOKENIZER_ADD_EOS, MetaValue::Bool(true))]),
            "SentencePiece BPE, 3 tokens; a text begins with BOS (1) and a space, and ends with EOS (2)"
        );
        assert_eq!(
            line(vec![(model, string("gpt2")), (pre, string("tekken")), (bos, MetaValue::U32(1))]),
            "byte-level BPE with words as of tekken, 3 tokens; a text begins with BOS (1)"
        );
        assert_eq!(
            line(vec![(model, string("gpt2")), (pre, string("qwen2")), (bos, MetaValue::U32(1))]),
            "byte-level BPE with words as of qwen2, 3 tokens; a text begins with no BOS"
        );
        let denied = (keys::TOKENIZER_ADD_BOS, MetaValue::Bool(false));
        assert_eq!(
            line(vec![(model, string("gemma4")), (bos, MetaValue::U32(1)), denied]),
            "BPE over lines, 3 tokens; a text begins with BOS (1)"
        );
    }
}
