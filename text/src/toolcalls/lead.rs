//! What a model writes in front of an answer or a call, for constraints: its reasoning, and the tags of its format.

use super::{Format, Syntax, blocks, harmony, syntax};
use crate::constraint::{Lead, Place};

/// What is to come behind the lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ahead {
    /// Content.
    Content,
    /// Calls, as [`Syntax::calls`] writes them.
    Calls,
}

impl Syntax {
    /// The tags that must stand in front of content; none in most formats.
    pub(super) fn content_tags(&self) -> &'static str {
        match self.format {
            Format::Harmony => harmony::CONTENT,
            Format::CohereActions if self.is_older_cohere => blocks::COHERE_RESPONSE,
            Format::CohereActions => blocks::COHERE_TEXT,
            Format::SolarOpen => blocks::SOLAR_CONTENT,
            _ => "",
        }
    }

    /// What stands behind `prompt`, which the syntax's template rendered, and in front of what a rule holds.
    #[must_use]
    pub fn lead(&self, prompt: &str, ahead: Ahead) -> Lead {
        let tail = syntax::tail(prompt).trim_end();
        let content = if ahead == Ahead::Content { self.content_tags() } else { "" };
        let pair = |(open, close): (&str, &str)| Some((open.to_owned(), close.to_owned()));
        let lead = match self.format {
            Format::Harmony => Lead {
                place: Place::MayReason,
                reasoning: pair(harmony::REASONING),
                first: content.to_owned(),
                behind: format!("{}{content}", harmony::NEXT),
            },
            Format::CohereActions => Lead {
                place: Place::MayReason,
                reasoning: pair(blocks::COHERE_REASONING),
                first: content.to_owned(),
                behind: content.to_owned(),
            },
            Format::SolarOpen => Lead {
                place: Place::MayReason,
                reasoning: pair(blocks::SOLAR_REASONING),
                first: content.to_owned(),
                behind: format!("{}{content}", blocks::SOLAR_NEXT),
            },
            _ => Lead {
                place: if self.reasoning.is_some() { Place::MayReason } else { Place::Answers },
                reasoning: self.reasoning.clone(),
                ..Lead::default()
            },
        };
        let ends_with = |tag: &str| !tag.is_empty() && tail.ends_with(tag);
        let place = match &lead.reasoning {
            Some((open, _)) if ends_with(open) => Place::Reasons,
            // The prompt has the reasoning, or the tags in front of the answer.
            Some((_, close)) if ends_with(close) || ends_with(&lead.first) => Place::Answers,
            _ => lead.place,
        };
        let first = if ends_with(&lead.first) { String::new() } else { lead.first };
        Lead { place, first, ..lead }
    }
}
