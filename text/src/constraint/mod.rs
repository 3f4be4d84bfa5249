//! What a text is held to: a JSON schema, a regular expression or a grammar → the tokens that may come next.
//!
//! A [`Vocabulary`] is made once for a tokenizer; each text has a [`Constraint`] of its own, which gives the tokens that may
//! follow ([`Constraint::allowed`]) and is told the one that was chosen ([`Constraint::accept`]). The tokens that end a
//! generation are allowed where the text may end. Rules come from strangers: their size and nesting are bounded before they are
//! compiled, on a stack that is known to suffice, and the engine's own limits bound states, steps and memory. A keyword of a
//! schema that cannot be held is refused by name, never ignored.
//! Where a model reasons before it answers, its reasoning is free, and the rule holds what comes behind it ([`Lead`]).
//! Deliberately absent: logits and sampling.

mod keywords;
mod lead;

use std::{fmt, sync::Arc};

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv},
};
use moe_run_graph::{ids::TokenId, shown::shown};
use serde_json::{Map, Value, json};
use thiserror::Error;

pub use lead::{Lead, Place};

use crate::tokenizer::{TokenKind, Tokenizer};
use lead::{Pieces, Progress, Taken};

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

const JSON_SCHEMA: &str = "JSON schema";

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
            Rule::JsonSchema(_) => JSON_SCHEMA,
            Rule::Regex(_) => "regular expression",
            Rule::Grammar(_) => "grammar",
        }
    }

    /// Errors: it is too large or too deep, or a schema has a keyword that cannot be held.
    fn check(&self) -> Result<(), ConstraintError> {
        match self {
            Rule::JsonSchema(schema) => check_schema(schema),
            Rule::Regex(text) | Rule::Grammar(text) => {
                check_size(self.kind(), || text.len(), bracket_depth(text))
            }
        }
    }

    /// The engine's form of it.
    fn grammar(&self) -> TopLevelGrammar {
        match self {
            Rule::JsonSchema(schema) => TopLevelGrammar::from_json_schema(with_options(schema)),
            Rule::Regex(text) => TopLevelGrammar::from_regex(text),
            Rule::Grammar(text) => TopLevelGrammar::from_lark(text.clone()),
        }
    }
}

/// Errors: a schema is too large or too deep, or has a keyword that cannot be held.
pub(crate) fn check_schema(schema: &Value) -> Result<(), ConstraintError> {
    check_size(JSON_SCHEMA, || schema.to_string().len(), value_depth(schema))?;
    keywords::check(schema).map_err(|detail| ConstraintError::Rule { kind: JSON_SCHEMA, detail })
}

/// Errors: a rule is too large or too deep.
fn check_size(
    kind: &'static str,
    bytes: impl FnOnce() -> usize,
    depth: usize,
) -> Result<(), ConstraintError> {
    if depth > MAX_DEPTH {
        let found = format!("nesting of {depth}");
        return Err(ConstraintError::Size { kind, found, most: MAX_DEPTH });
    }
    // What is too deep is not written out.
    let bytes = bytes();
    if bytes > MAX_RULE {
        return Err(ConstraintError::Size { kind, found: format!("{bytes} bytes"), most: MAX_RULE });
    }
    Ok(())
}

/// A schema with the engine's options: one blank behind each comma and colon, none elsewhere. `true` takes any value; what is no
/// schema is refused by the engine.
pub(crate) fn with_options(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(schema) => schema.clone(),
        other => Map::from_iter([("allOf".to_owned(), json!([other]))]),
    };
    let options = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    schema.insert(keywords::OPTIONS.to_owned(), options);
    Value::Object(schema)
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

/// A control token that rules may write as text, and the tokens that spell a beginning of it.
#[derive(Debug)]
struct Mark {
    id: TokenId,
    /// A bit a token.
    beginnings: Vec<u32>,
}

/// A tokenizer's tokens, ready for constraints.
#[derive(Clone)]
pub struct Vocabulary {
    factory: Arc<ParserFactory>,
    /// Tokens that end a generation.
    ends: Arc<[TokenId]>,
    pieces: Arc<Pieces>,
    marks: Arc<[Mark]>,
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
        Vocabulary::with_marks(tokenizer, &[])
    }

    /// As [`Vocabulary::new`], but the control tokens among `marks` are text, for rules that write them, as those of
    /// [`Syntax::calls`](crate::toolcalls::Syntax::calls) do. Where a mark must come, its token does.
    ///
    /// Errors: no token ends a generation.
    pub fn with_marks(tokenizer: &Tokenizer, marks: &[String]) -> Result<Vocabulary, ConstraintError> {
        let ids = || (0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX)).map(TokenId);
        let mut ends = tokenizer.end_of_generation().to_vec();
        ends.retain(|id| id.index() < tokenizer.vocab_size());
        let first_end = ends.first().ok_or(ConstraintError::NoEnd)?;
        let mut pieces = Pieces::default();
        let mut marked = Vec::new();
        let mut words: Vec<Vec<u8>> = Vec::new();
        for id in ids() {
            let bytes =
                tokenizer.piece(id).filter(|bytes| bytes.len() <= MAX_TOKEN_BYTES).unwrap_or_default();
            let kind = tokenizer.kind(id);
            pieces.push(&bytes, kind == Some(TokenKind::Control));
            words.push(match kind {
                _ if bytes.is_empty() => bytes,
                Some(TokenKind::Control)
                    if !ends.contains(&id) && marks.iter().any(|m| m.as_bytes() == bytes) =>
                {
                    marked.push(id);
                    bytes
                }
                Some(TokenKind::Control) => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat(),
                Some(TokenKind::Unused) | None => Vec::new(),
                Some(TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte) => bytes,
            });
        }
        let marks = marked.into_iter().map(|id| Mark { id, beginnings: beginnings(&pieces, id) }).collect();
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
        Ok(Vocabulary { factory: Arc::new(factory), ends: ends.into(), pieces: Arc::new(pieces), marks })
    }

    /// Words of a bit a token.
    fn words(&self) -> usize {
        self.pieces.len().div_ceil(32)
    }

    /// A constraint at the beginning of an answer that begins with `lead`.
    ///
    /// Errors: the rule is not valid, cannot be held, or is too large.
    pub fn constrain(&self, rule: &Rule, lead: &Lead) -> Result<Constraint, ConstraintError> {
        rule.check()?;
        let wrong = |detail: String| ConstraintError::Rule { kind: rule.kind(), detail };
        let grammar = rule.grammar();
        let compile = || {
            let mut matcher = Matcher::new(self.factory.create_parser(grammar));
            // The first mask tells what compiling does not.
            match matcher.get_error() {
                Some(error) => Err(error),
                None => matcher.compute_mask_or_eos().map(|_| matcher).map_err(|e| format!("{e:#}")),
            }
        };
        let matcher =
            on_known_stack(compile).and_then(|compiled| compiled).map_err(|e| wrong(readable(&e)))?;
        let lead = Progress::new(lead, Arc::clone(&self.pieces));
        Ok(Constraint { matcher, lead, vocabulary: self.clone(), words: Vec::new(), is_told: false })
    }
}

/// The tokens that spell a beginning of a token's text, but not all of it.
fn beginnings(pieces: &Pieces, id: TokenId) -> Vec<u32> {
    let mark = pieces.of(id);
    let mut words = Vec::new();
    for (index, bytes) in pieces.all() {
        if bytes.len() < mark.len() && mark.starts_with(bytes) {
            words.resize(words.len().max(index / 32 + 1), 0);
            lead::set(&mut words, index);
        }
    }
    words
}

/// What the engine says of a rule, for people: its first line, without the names of its own settings.
fn readable(text: &str) -> String {
    let line = first_line(text);
    match line.split_once("; either increase") {
        Some((what, _)) => format!("it is too much to be held ({what})"),
        // What the engine calls the end of a text that cannot begin.
        None if line == "NoExtensionBias" || line == "NoExtension" => "no finite text fits it".to_owned(),
        None => line,
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

impl<'a> Allowed<'a> {
    /// Whether a token may come.
    #[must_use]
    pub fn contains(&self, id: TokenId) -> bool {
        self.0.get(id.index() / 32).is_some_and(|word| word >> (id.index() % 32) & 1 == 1)
    }

    /// The bits.
    #[must_use]
    pub fn words(self) -> &'a [u32] {
        self.0
    }
}

/// A rule, and how far a text has come in it.
pub struct Constraint {
    matcher: Matcher,
    lead: Progress,
    vocabulary: Vocabulary,
    words: Vec<u32>,
    /// Whether `words` are those of what has come so far.
    is_told: bool,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("is_complete", &self.is_complete()).finish_non_exhaustive()
    }
}

impl Constraint {
    /// The tokens that may come next; those that end a generation where the text may end here. They are found once for a
    /// token, however often this is asked.
    ///
    /// Errors: telling them costs more than is allowed.
    pub fn allowed(&mut self) -> Result<Allowed<'_>, ConstraintError> {
        if self.is_told {
            return Ok(Allowed(&self.words));
        }
        self.words.clear();
        if self.lead.asks_rule() {
            let mask = self.matcher.compute_mask_or_eos().map_err(step)?;
            self.words.extend_from_slice(mask.as_slice());
            self.prefer_marks();
        }
        if !self.lead.is_over() {
            self.words.resize(self.words.len().max(self.vocabulary.words()), 0);
            self.lead.allow(&self.vocabulary.ends, &mut self.words);
        }
        self.is_told = true;
        Ok(Allowed(&self.words))
    }

    /// Where marks must come, only their tokens may: not the text that spells them.
    fn prefer_marks(&mut self) {
        let allowed = |mark: &&Mark| Allowed(&self.words).contains(mark.id);
        let marks: Vec<&Mark> = self.vocabulary.marks.iter().filter(allowed).collect();
        if marks.is_empty() {
            return;
        }
        let mut only = vec![0; self.words.len()];
        marks.iter().for_each(|mark| lead::set(&mut only, mark.id.index()));
        let is_forced = self.words.iter().enumerate().all(|(at, word)| {
            let spelled =
                marks.iter().filter_map(|mark| mark.beginnings.get(at)).fold(only[at], |a, b| a | b);
            word & !spelled == 0
        });
        if is_forced {
            self.words = only;
        }
    }

    /// The token that was chosen comes next. One that ends the generation is none of the text's.
    ///
    /// Errors: it was not allowed.
    pub fn accept(&mut self, id: TokenId) -> Result<(), ConstraintError> {
        self.is_told = false;
        if self.lead.asks_rule() && self.vocabulary.ends.contains(&id) {
            return match self.matcher.is_stopped() || self.matcher.is_accepting().map_err(step)? {
                true => Ok(()),
                false => Err(ConstraintError::Step {
                    detail: format!("token {id} ends a text that is not complete"),
                }),
            };
        }
        if self.lead.is_over() {
            return self.matcher.consume_token(id.0).map_err(step);
        }
        let matcher = &mut self.matcher;
        let rule = |id: TokenId| {
            let may = !matcher.is_stopped();
            if may {
                matcher.try_consume_tokens(&[id.0]).map(|taken| taken == 1).map_err(step)
            } else {
                Ok(false)
            }
        };
        if self.lead.accept(id, rule)? == Taken::LeadFromStart {
            self.matcher.reset().map_err(step)?;
        }
        Ok(())
    }

    /// Whether the text is complete, and nothing can follow.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.lead.is_over() && self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

fn step(error: impl fmt::Display) -> ConstraintError {
    ConstraintError::Step { detail: first_line(&format!("{error:#}")) }
}
