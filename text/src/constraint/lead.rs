//! What stands in front of the part of an answer that a rule holds: reasoning, which is free, and tags that must come.
//!
//! Reasoning takes any token but those that end a generation, until its closing tag. Where a model may reason but the prompt
//! does not begin it, the first tokens decide: the opening tag, the closing tag of reasoning that is over before it began, or
//! the answer.

use std::{ops::Range, sync::Arc};

use moe_run_graph::ids::TokenId;

/// Blanks that may stand between reasoning and the answer, in bytes.
const MAX_BLANKS: usize = 4;

/// Where a prompt ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Place {
    /// In front of reasoning, or of the answer: the model decides.
    MayReason,
    /// Inside of reasoning.
    Reasons,
    /// Where the answer is.
    #[default]
    Answers,
}

/// What stands in front of the part of an answer that a rule holds. The default: nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lead {
    /// Where the prompt ends; where the model reasons, `reasoning` is given.
    pub place: Place,
    /// The tags around reasoning.
    pub reasoning: Option<(String, String)>,
    /// The tags that must stand in front of the answer where no reasoning came.
    pub first: String,
    /// The tags that must stand between reasoning and the answer.
    pub behind: String,
}

/// Every token's text, control tokens spelled out.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    is_control: Vec<bool>,
}

impl Pieces {
    pub fn push(&mut self, bytes: &[u8], is_control: bool) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.is_control.push(is_control);
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    fn range(&self, index: usize) -> Range<usize> {
        let begin = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        begin..self.ends.get(index).copied().unwrap_or(begin)
    }

    /// A token's text; empty where it has none.
    pub fn of(&self, id: TokenId) -> &[u8] {
        self.bytes.get(self.range(id.index())).unwrap_or_default()
    }

    /// Whether any of a text's tokens is a control token.
    fn is_control(&self, index: usize) -> bool {
        self.is_control.get(index).copied().unwrap_or(false)
    }

    /// Every token that has a text.
    pub fn all(&self) -> impl Iterator<Item = (usize, &[u8])> {
        (0..self.ends.len())
            .map(|index| (index, &self.bytes[self.range(index)]))
            .filter(|(_, b)| !b.is_empty())
    }
}

/// What a prefix takes.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
    /// What has come may still become one of the tags. `is_answer`: it may be the answer, too.
    Opening { spelled: Vec<u8>, is_answer: bool },
    /// Inside of reasoning: its last bytes.
    Reasoning { tail: Vec<u8> },
    /// Behind reasoning: how many bytes of blanks may still come.
    Behind { blanks: usize },
    /// Tags that must come.
    Tags { rest: Vec<u8> },
    /// The rule holds.
    Over,
}

/// How far a text has come in its lead.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    lead: Lead,
    stage: Stage,
    pieces: Arc<Pieces>,
}

/// Whose a token is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// The lead's.
    Lead,
    /// The lead's, and so is what the rule took before.
    LeadFromStart,
    /// The rule's, which took it.
    Rule,
}

impl Progress {
    pub fn new(lead: &Lead, pieces: Arc<Pieces>) -> Progress {
        let stage = match (lead.place, &lead.reasoning) {
            (Place::MayReason, Some(_)) => {
                Stage::Opening { spelled: Vec::new(), is_answer: lead.first.is_empty() }
            }
            (Place::Reasons, Some(_)) => Stage::Reasoning { tail: Vec::new() },
            _ => tags(&lead.first),
        };
        Progress { lead: lead.clone(), stage, pieces }
    }

    /// Whether the rule alone holds.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether the rule holds, perhaps beside something else.
    pub fn asks_rule(&self) -> bool {
        matches!(self.stage, Stage::Opening { is_answer: true, .. } | Stage::Behind { .. } | Stage::Over)
    }

    /// The tags that the beginning may be, and whether text may follow them in the same token.
    fn openings(&self) -> impl Iterator<Item = (&[u8], Next)> {
        let reasoning = self.lead.reasoning.iter();
        let tags = reasoning.flat_map(|(open, close)| [(open, Next::Reasoning), (close, Next::Behind)]);
        let first = Some((&self.lead.first, Next::Answer)).filter(|(first, _)| !first.is_empty());
        tags.chain(first).map(|(text, next)| (text.as_bytes(), next))
    }

    /// Adds the lead's tokens to those that may come. `ends` are those that end a generation.
    pub fn allow(&self, ends: &[TokenId], words: &mut [u32]) {
        match &self.stage {
            Stage::Over => {}
            Stage::Opening { spelled, .. } => {
                // A tag that would end the generation is not the way to begin the answer.
                let is_end = |text: &[u8]| ends.iter().any(|end| self.pieces.of(*end) == text);
                for (text, next) in self.openings() {
                    if let Some(rest) = text.strip_prefix(spelled.as_slice())
                        && !(next == Next::Behind && is_end(text))
                    {
                        self.allow_spelling(rest, next, words);
                    }
                }
            }
            Stage::Tags { rest } => self.allow_spelling(rest, Next::Answer, words),
            Stage::Behind { blanks } => {
                for (index, bytes) in self.pieces.all() {
                    if bytes.len() <= *blanks && is_blank(bytes) {
                        set(words, index);
                    }
                }
            }
            Stage::Reasoning { tail } => {
                let close = self.close();
                for (index, bytes) in self.pieces.all() {
                    // What stands behind the tag in the same token would be the rule's.
                    if behind_close(tail, bytes, close).is_none_or(|rest| fits_behind(&rest, &self.lead)) {
                        set(words, index);
                    }
                }
                for end in ends {
                    // Reasoning's own closing tag may be what ends other generations.
                    if self.pieces.of(*end) != close {
                        clear(words, end.index());
                    }
                }
            }
        }
    }

    fn close(&self) -> &[u8] {
        self.lead.reasoning.as_ref().map_or(&[], |(_, close)| close.as_bytes())
    }

    /// Adds the tokens that spell what is left of a tag. A control token that does is the only way.
    fn allow_spelling(&self, rest: &[u8], next: Next, words: &mut [u32]) {
        let spells = |bytes: &[u8]| {
            rest.starts_with(bytes)
                || bytes.strip_prefix(rest).is_some_and(|more| next.takes(more, &self.lead))
        };
        let fitting = || self.pieces.all().filter(|(_, bytes)| spells(bytes)).map(|(index, _)| index);
        let is_controlled = fitting().any(|index| self.pieces.is_control(index));
        for index in fitting().filter(|&index| !is_controlled || self.pieces.is_control(index)) {
            set(words, index);
        }
    }

    /// A token has come, which was allowed. `rule` gives it to the rule, and says whether the rule takes it.
    pub fn accept<E>(
        &mut self,
        id: TokenId,
        rule: impl FnOnce(TokenId) -> Result<bool, E>,
    ) -> Result<Taken, E> {
        let pieces = Arc::clone(&self.pieces);
        let bytes = pieces.of(id);
        match &mut self.stage {
            Stage::Over => {
                rule(id)?;
                return Ok(Taken::Rule);
            }
            Stage::Tags { rest } => {
                rest.drain(..bytes.len().min(rest.len()));
                if rest.is_empty() {
                    self.stage = Stage::Over;
                }
            }
            Stage::Behind { blanks } => {
                if rule(id)? {
                    self.stage = Stage::Over;
                    return Ok(Taken::Rule);
                }
                *blanks = blanks.saturating_sub(bytes.len());
            }
            Stage::Reasoning { .. } => self.reason(bytes),
            Stage::Opening { spelled, is_answer } => {
                let is_answer = *is_answer;
                let spelled = [spelled.as_slice(), bytes].concat();
                let done = self.openings().find(|(text, _)| spelled.starts_with(text));
                if let Some((text, next)) = done {
                    let more = spelled[text.len()..].to_vec();
                    match next {
                        Next::Reasoning => {
                            self.stage = Stage::Reasoning { tail: Vec::new() };
                            self.reason(&more);
                        }
                        Next::Behind => self.stage = behind(&self.lead, more.len()),
                        Next::Answer => self.stage = Stage::Over,
                    }
                    return Ok(Taken::LeadFromStart);
                }
                let is_open = self.openings().any(|(text, _)| text.starts_with(&spelled));
                let is_answer = is_answer && rule(id)?;
                self.stage = if is_open { Stage::Opening { spelled, is_answer } } else { Stage::Over };
                if is_answer {
                    return Ok(Taken::Rule);
                }
            }
        }
        Ok(Taken::Lead)
    }

    fn reason(&mut self, bytes: &[u8]) {
        let Stage::Reasoning { tail } = &mut self.stage else { return };
        let close = self.lead.reasoning.as_ref().map_or(&[] as &[u8], |(_, close)| close.as_bytes());
        if let Some(rest) = behind_close(tail, bytes, close) {
            self.stage = behind(&self.lead, rest.len());
            return;
        }
        tail.extend_from_slice(bytes);
        let kept = tail.len().min(close.len().saturating_sub(1));
        tail.drain(..tail.len() - kept);
    }
}

/// What a tag leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Reasoning,
    Behind,
    Answer,
}

impl Next {
    /// Whether text may stand behind the tag in the same token.
    fn takes(self, more: &[u8], lead: &Lead) -> bool {
        match self {
            Next::Reasoning => true,
            Next::Behind => fits_behind(more, lead),
            Next::Answer => more.is_empty(),
        }
    }
}

/// The stage behind reasoning, of which some blanks came already.
fn behind(lead: &Lead, blanks: usize) -> Stage {
    match lead.behind.is_empty() {
        true => Stage::Behind { blanks: MAX_BLANKS.saturating_sub(blanks) },
        false => tags(&lead.behind),
    }
}

fn tags(text: &str) -> Stage {
    if text.is_empty() { Stage::Over } else { Stage::Tags { rest: text.as_bytes().to_vec() } }
}

fn fits_behind(rest: &[u8], lead: &Lead) -> bool {
    rest.is_empty() || (is_blank(rest) && rest.len() <= MAX_BLANKS && lead.behind.is_empty())
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b' ' | b'\n'))
}

/// What stands behind a closing tag that a token completes.
fn behind_close(tail: &[u8], bytes: &[u8], close: &[u8]) -> Option<Vec<u8>> {
    let last = *close.last()?;
    if !bytes.contains(&last) {
        return None;
    }
    let text = [tail, bytes].concat();
    let at = text.windows(close.len()).position(|window| window == close)?;
    Some(text[at + close.len()..].to_vec())
}

pub(super) fn set(words: &mut [u32], index: usize) {
    if let Some(word) = words.get_mut(index / 32) {
        *word |= 1 << (index % 32);
    }
}

fn clear(words: &mut [u32], index: usize) {
    if let Some(word) = words.get_mut(index / 32) {
        *word &= !(1 << (index % 32));
    }
}
