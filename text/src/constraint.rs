//! What a text is held to: a JSON schema, a regular expression or a grammar → the tokens that may come next.
//!
//! A [`Vocabulary`] is made once for a tokenizer; each text has a [`Constraint`] of its own, which gives the tokens that may
//! follow ([`Constraint::allowed`]) and is told the one that was chosen ([`Constraint::accept`]). The tokens that end a
//! generation are allowed where the text may end. Rules come from strangers: their size and nesting are bounded before they are
//! compiled, on a stack that is known to suffice, and the engine's own limits bound states, steps and memory. A keyword of a
//! schema that cannot be held is refused by name, never ignored.
//! Deliberately absent: logits and sampling.

use std::{fmt, sync::Arc};

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv},
};
use moe_run_graph::{ids::TokenId, shown::shown};
use serde_json::{Value, json};
use thiserror::Error;

use crate::tokenizer::{TokenKind, Tokenizer};

/// Bytes of a rule; schemas in use stay far below.
const MAX_RULE: usize = 1 << 20;
/// How deeply a schema, or brackets in a grammar or an expression, may be nested.
const MAX_DEPTH: usize = 100;
/// The stack on which rules are compiled; what the bound above allows needs a fraction of it.
const STACK: usize = 64 << 20;
/// States of the lexer, of one or two kB each.
const MAX_LEXER_STATES: usize = 30_000;
/// Symbols in a compiled grammar.
const MAX_GRAMMAR: usize = 200_000;
/// Longer tokens stand for nothing that a grammar could want.
const MAX_TOKEN_BYTES: usize = 4096;

/// Why a text cannot be held to a rule, or no longer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// The rule is not valid, or says what cannot be held.
    #[error("{kind}: {}", shown(detail))]
    Rule {
        /// "JSON schema", "regular expression", "grammar".
        kind: &'static str,
        /// What is wrong, with the keyword's name where it is one.
        detail: String,
    },
    /// The rule is larger or more deeply nested than what is taken.
    #[error("{kind}: found {found}, wanted at most {most}")]
    Size {
        /// As above.
        kind: &'static str,
        /// What was found: "1234567 bytes", "nesting of 20000".
        found: String,
        /// The bound.
        most: usize,
    },
    /// No token ends a generation, so that a text could never be complete.
    #[error(
        "the tokenizer has no token that ends a generation, wanted one: a text that is held to a rule must end"
    )]
    NoEnd,
    /// The next step costs more than is allowed, or the token that was chosen was not allowed.
    #[error("the text can no longer be held to its rule: {}", shown(detail))]
    Step {
        /// What the engine says.
        detail: String,
    },
}

/// What a text has to be.
#[derive(Clone, PartialEq, Debug)]
pub enum Rule {
    /// JSON that a schema describes, with one blank behind each comma and colon.
    JsonSchema(Value),
    /// A regular expression that matches the whole text; the `regex` crate's syntax, without look-around and word borders.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark, which begins at `start`.
    Grammar(String),
}

impl Rule {
    fn kind(&self) -> &'static str {
        match self {
            Rule::JsonSchema(_) => "JSON schema",
            Rule::Regex(_) => "regular expression",
            Rule::Grammar(_) => "grammar",
        }
    }

    /// Errors: it is too large or too deep.
    fn check(&self) -> Result<(), ConstraintError> {
        let (bytes, depth) = match self {
            Rule::JsonSchema(schema) => {
                let depth = value_depth(schema);
                // What is too deep is not written out, either.
                let bytes = if depth > MAX_DEPTH { 0 } else { schema.to_string().len() };
                (bytes, depth)
            }
            Rule::Regex(text) | Rule::Grammar(text) => (text.len(), bracket_depth(text)),
        };
        if bytes > MAX_RULE {
            return Err(ConstraintError::Size {
                kind: self.kind(),
                found: format!("{bytes} bytes"),
                most: MAX_RULE,
            });
        }
        if depth > MAX_DEPTH {
            let found = format!("nesting of {depth}");
            return Err(ConstraintError::Size { kind: self.kind(), found, most: MAX_DEPTH });
        }
        Ok(())
    }

    /// The engine's form of it.
    fn grammar(&self) -> Result<TopLevelGrammar, ConstraintError> {
        let options = || json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        match self {
            Rule::JsonSchema(Value::Object(schema)) => {
                if schema.contains_key("x-guidance") {
                    let detail = "the keyword \"x-guidance\" is not taken".to_owned();
                    return Err(ConstraintError::Rule { kind: self.kind(), detail });
                }
                let mut schema = schema.clone();
                schema.insert("x-guidance".to_owned(), options());
                Ok(TopLevelGrammar::from_json_schema(Value::Object(schema)))
            }
            // `true` takes any value; what is no schema is refused by the engine.
            Rule::JsonSchema(other) => {
                Ok(TopLevelGrammar::from_json_schema(json!({"allOf": [other], "x-guidance": options()})))
            }
            Rule::Regex(text) => Ok(TopLevelGrammar::from_regex(text)),
            Rule::Grammar(text) => Ok(TopLevelGrammar::from_lark(text.clone())),
        }
    }
}

/// How deeply a value is nested, counted without recursion.
fn value_depth(value: &Value) -> usize {
    let mut deepest = 0;
    let mut open = vec![(value, 1)];
    while let Some((value, depth)) = open.pop() {
        deepest = deepest.max(depth);
        match value {
            Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(fields) => open.extend(fields.values().map(|item| (item, depth + 1))),
            _ => {}
        }
    }
    deepest
}

/// The most brackets that are open at once, as far as can be told without reading strings apart.
fn bracket_depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// The tokens as the engine knows them.
struct Tokens(TokTrie);

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.0.greedy_tokenize(bytes)
    }

    // Text is never forced: the model chooses its tokens among those that fit.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

/// A tokenizer's tokens, ready for constraints.
#[derive(Clone)]
pub struct Vocabulary {
    factory: Arc<ParserFactory>,
    /// Tokens that end a generation.
    ends: Arc<[TokenId]>,
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl Vocabulary {
    /// The tokens of a tokenizer. Control tokens are in no text; a grammar may name them.
    ///
    /// Errors: no token ends a generation.
    pub fn new(tokenizer: &Tokenizer) -> Result<Vocabulary, ConstraintError> {
        let ids = || (0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX)).map(TokenId);
        let ends = tokenizer.end_of_generation().to_vec();
        let first_end = ends.first().ok_or(ConstraintError::NoEnd)?;
        let words: Vec<Vec<u8>> = ids()
            .map(|id| {
                let bytes = tokenizer.piece(id).unwrap_or_default();
                match tokenizer.kind(id) {
                    Some(TokenKind::Normal | TokenKind::UserDefined) if bytes.len() <= MAX_TOKEN_BYTES => {
                        bytes
                    }
                    Some(TokenKind::Control) if bytes.len() <= MAX_TOKEN_BYTES => {
                        [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat()
                    }
                    _ => Vec::new(),
                }
            })
            .collect();
        let info = TokRxInfo::new(words.len().try_into().unwrap_or(u32::MAX), first_end.0);
        let end_ids: Vec<u32> = ends.iter().map(|id| id.0).collect();
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&end_ids);
        let environment: TokEnv = Arc::new(Tokens(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|e| ConstraintError::Step { detail: format!("{e:#}") })?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.max_grammar_size = MAX_GRAMMAR;
        limits.verbose_errors = false;
        Ok(Vocabulary { factory: Arc::new(factory), ends: ends.into() })
    }

    /// A constraint at the beginning of a text.
    ///
    /// Errors: the rule is not valid, cannot be held, or is too large.
    pub fn constrain(&self, rule: &Rule) -> Result<Constraint, ConstraintError> {
        rule.check()?;
        let wrong = |detail: String| ConstraintError::Rule { kind: rule.kind(), detail };
        let grammar = rule.grammar()?;
        let compile = || {
            let mut matcher = Matcher::new(self.factory.create_parser(grammar));
            // The first mask tells what compiling does not.
            match matcher.get_error() {
                Some(error) => Err(error),
                None => matcher.compute_mask_or_eos().map(|_| matcher).map_err(|e| format!("{e:#}")),
            }
        };
        let matcher =
            on_known_stack(compile).and_then(|compiled| compiled).map_err(|e| wrong(first_line(&e)))?;
        Ok(Constraint { matcher, ends: Arc::clone(&self.ends), words: Vec::new() })
    }
}

/// The text up to the first line end: what follows are the engine's own notes.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Errors: the work failed in a way that it must not, or no thread could be started for it.
fn on_known_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("constraint".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, work)
            .map_err(|e| format!("no thread with a stack of {} MiB for it: {e}", STACK >> 20))?;
        thread.join().map_err(|_| "the engine failed on it (a defect: please report the rule)".to_owned())
    })
}

/// Tokens that may come next: a bit each, the lowest of a word first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowed<'a>(&'a [u32]);

impl Allowed<'_> {
    /// Whether a token may come.
    #[must_use]
    pub fn contains(&self, id: TokenId) -> bool {
        self.0.get(id.index() / 32).is_some_and(|word| word >> (id.index() % 32) & 1 == 1)
    }

    /// The bits.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        self.0
    }
}

/// A rule, and how far a text has come in it.
pub struct Constraint {
    matcher: Matcher,
    ends: Arc<[TokenId]>,
    words: Vec<u32>,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("is_complete", &self.matcher.is_stopped()).finish_non_exhaustive()
    }
}

impl Constraint {
    /// The tokens that may come next; those that end a generation where the text may end here.
    ///
    /// Errors: telling them costs more than is allowed.
    pub fn allowed(&mut self) -> Result<Allowed<'_>, ConstraintError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(step)?;
        self.words.clear();
        self.words.extend_from_slice(mask.as_slice());
        Ok(Allowed(&self.words))
    }

    /// The token that was chosen comes next. One that ends the generation is none of the text's.
    ///
    /// Errors: it was not allowed.
    pub fn accept(&mut self, id: TokenId) -> Result<(), ConstraintError> {
        if self.ends.contains(&id) {
            return match self.matcher.is_stopped() || self.matcher.is_accepting().map_err(step)? {
                true => Ok(()),
                false => Err(ConstraintError::Step {
                    detail: format!("token {id} ends a text that is not complete"),
                }),
            };
        }
        self.matcher.consume_token(id.0).map_err(step)
    }

    /// Whether the text is complete, and nothing can follow.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

fn step(error: impl fmt::Display) -> ConstraintError {
    ConstraintError::Step { detail: first_line(&format!("{error:#}")) }
}
