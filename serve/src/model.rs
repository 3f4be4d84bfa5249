//! The model that is served: its engine, tokenizer and template, and how requests become the engine's.

use moe_run_graph::ids::TokenId;
use moe_run_runtime::engine::{Choose, Engine, Looks, Request};
use moe_run_runtime::generate::Constraint;
use moe_run_runtime::sampler::SamplerOptions;
use moe_run_text::{
    chat::{ChatInput, ChatTemplate, Rendered},
    constraint::{ConstraintError, Vocabulary},
    stop::StopTexts,
    tokenizer::{ControlTokens, StreamDecoder, Tokenizer},
    toolcalls::{Format, Syntax},
};
use serde_json::Value;
use std::sync::{Arc, OnceLock};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::error::ApiError;
use crate::listener::{Event, TextListener};
use crate::messages::Conversation;
use crate::sampling::Sampling;
use crate::taps::{self, TapTable};

/// A model that is ready to answer.
#[derive(Debug)]
pub struct Model {
    /// What runs it.
    pub engine: Engine,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to prompt; or why there is none.
    pub template: Result<ChatTemplate, String>,
    /// How the model writes calls of tools and its reasoning, by its template.
    pub syntax: Option<Syntax>,
    /// What answers can be held to, made when it is first needed.
    pub vocabularies: Vocabularies,
    /// How tokens are chosen where a request does not say; the seed is not used.
    pub sampler: SamplerOptions,
    /// The seed where a request has none; another one each time where absent.
    pub seed: Option<u64>,
    /// Tokens that a request may have, prompt and answer together.
    pub ctx_size: usize,
    /// Rows of the embedding: ids lie below it.
    pub vocab_size: usize,
    /// What requests may be told of its passes.
    pub taps: TapTable,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
}

/// The tokens as constraints know them: in texts, and in calls, whose tags may be control tokens.
#[derive(Debug, Default)]
pub struct Vocabularies {
    plain: OnceLock<Vocabulary>,
    calls: OnceLock<Vocabulary>,
}

/// A prompt, whole.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// As text, where it was one.
    pub text: String,
    /// As ids.
    pub tokens: Vec<TokenId>,
}

impl Model {
    /// The chat template.
    ///
    /// Errors: there is none.
    pub fn template(&self) -> Result<&ChatTemplate, ApiError> {
        self.template.as_ref().map_err(|why| ApiError::unsupported("messages", why))
    }

    /// How the model writes calls of tools and its reasoning.
    ///
    /// Errors: there is no template.
    pub fn syntax(&self) -> Result<&Syntax, ApiError> {
        self.syntax
            .as_ref()
            .ok_or_else(|| ApiError::unsupported("messages", "the model has no chat template"))
    }

    /// The tokens as constraints know them; with the tags of calls, which are always the same ones, where these are given.
    ///
    /// Errors: no token ends a text.
    pub fn vocabulary(&self, marks: Option<&[String]>) -> Result<&Vocabulary, ConstraintError> {
        let made = if marks.is_some() { &self.vocabularies.calls } else { &self.vocabularies.plain };
        match made.get() {
            Some(vocabulary) => Ok(vocabulary),
            None => {
                let vocabulary = Vocabulary::with_marks(&self.tokenizer, marks.unwrap_or_default())?;
                Ok(made.get_or_init(|| vocabulary))
            }
        }
    }

    /// Whether control tokens are part of how calls and reasoning are written.
    pub fn spells_control(&self) -> bool {
        self.syntax.as_ref().is_some_and(|syntax| syntax.format != Format::Plain)
    }

    /// Messages as the template makes one text of them.
    ///
    /// Errors: the template fails on them.
    pub fn rendered(&self, input: &ChatInput) -> Result<Rendered, ApiError> {
        let template = self.template()?;
        let render = |input: &ChatInput| template.render(input, self.tokenizer.control_texts());
        match (render(input), without_absent_contents(input)) {
            // Templates that know of no calls want a text of every message.
            (Err(_), Some(input)) => Ok(render(&input)?),
            (rendered, _) => Ok(rendered?),
        }
    }

    /// A conversation as the model reads it.
    ///
    /// Errors: the template fails on it; it is too long; its answer was begun where the template begins reasoning.
    pub fn render(&self, conversation: &Conversation) -> Result<Prompt, ApiError> {
        let rendered = self.rendered(&conversation.input)?;
        let mut tokens = self.tokenizer.encode_rendered(&rendered)?;
        let mut text = rendered.text().to_owned();
        if let Some(begun) = &conversation.begun {
            if self.syntax()?.is_inside_reasoning(&text) {
                let message =
                    "the template begins an answer with reasoning, so that no text can be gone on with";
                return Err(ApiError::field("messages", "invalid_value", message));
            }
            tokens.extend(self.tokenizer.encode(begun, ControlTokens::Literal)?);
            text.push_str(begun);
        }
        self.check(Prompt { text, tokens }, "messages")
    }

    /// A text as it is, in which control tokens are read; with the BOS token where the file asks for one.
    ///
    /// Errors: it is empty or too long.
    pub fn raw_prompt(&self, text: String) -> Result<Prompt, ApiError> {
        let ids = self.tokenizer.encode(&text, ControlTokens::Parse)?;
        let bos = self.tokenizer.leading_bos().filter(|bos| ids.first() != Some(bos));
        let tokens = bos.into_iter().chain(ids).collect();
        self.check(Prompt { text, tokens }, "prompt")
    }

    /// Ids as they are.
    ///
    /// Errors: an id that is none; none, or too many.
    pub fn token_prompt(&self, tokens: Vec<TokenId>) -> Result<Prompt, ApiError> {
        if let Some(id) = tokens.iter().find(|id| id.index() >= self.vocab_size) {
            let message = format!("found the id {id}, wanted ids below {}", self.vocab_size);
            return Err(ApiError::field("prompt", "invalid_value", message));
        }
        self.check(Prompt { text: self.spell(&tokens), tokens }, "prompt")
    }

    fn check(&self, prompt: Prompt, name: &str) -> Result<Prompt, ApiError> {
        match prompt.tokens.len() {
            0 => Err(ApiError::field(name, "invalid_value", "no tokens, wanted one at least")),
            tokens if tokens > self.ctx_size => Err(ApiError {
                code: Some("context_length_exceeded"),
                ..ApiError::field(
                    name,
                    "",
                    format!(
                        "this model's maximum context length is {} tokens, and the prompt has {tokens}; shorten it, or start \
                         the server with a larger --ctx-size",
                        self.ctx_size
                    ),
                )
            }),
            _ => Ok(prompt),
        }
    }

    /// Ids as text, control tokens spelled out.
    pub fn spell(&self, tokens: &[TokenId]) -> String {
        let bytes: Vec<u8> =
            tokens.iter().flat_map(|id| self.tokenizer.piece(*id).unwrap_or_default()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Errors: more choices than may run or wait at once.
    pub fn check_choices(&self, prompts: usize, n: usize) -> Result<(), ApiError> {
        let capacity = self.engine.capacity();
        if prompts.saturating_mul(n) > capacity {
            let found = format!("found {prompts} prompts of {n} choices each");
            let message =
                format!("{found}, wanted at most {capacity} in all: what may run or wait (--max-queue)");
            return Err(ApiError::field("n", "invalid_value", message));
        }
        Ok(())
    }

    /// Hands prompts to the engine, `sampling.n` choices of each, each held to its constraint where there are any; what comes is
    /// told by the choice's index. When the receiver is dropped, they end.
    ///
    /// Errors: the queue is full; the taps' values would be too large.
    pub fn submit(
        &self,
        prompts: &[Prompt],
        sampling: &Sampling,
        spells_control: bool,
        constraints: Vec<Box<dyn Constraint>>,
    ) -> Result<UnboundedReceiver<(usize, Event)>, ApiError> {
        self.check_choices(prompts.len(), sampling.n)?;
        let (rows, width) = &sampling.taps;
        let longest = |prompt: &Prompt| match sampling.max_tokens {
            Some(most) => self.ctx_size.min(prompt.tokens.len().saturating_add(most)),
            None => self.ctx_size,
        };
        let tokens = prompts.iter().map(longest).fold(0, usize::saturating_add);
        taps::check_size(*width, tokens.saturating_mul(sampling.n))?;
        let experts = if sampling.wants_routing { Arc::clone(&self.taps.experts) } else { Arc::default() };
        let looks = Looks { experts, rows: Arc::clone(rows) };
        let end_tokens: Arc<[TokenId]> =
            if sampling.ignores_end { Arc::new([]) } else { self.tokenizer.end_of_generation().into() };
        let (sender, receiver) = unbounded_channel();
        let mut requests = Vec::new();
        let mut constraints = constraints.into_iter();
        for prompt in prompts {
            let decoder = StreamDecoder::behind(&self.tokenizer, &prompt.tokens);
            let decoder = if spells_control { decoder.with_control_tokens() } else { decoder };
            for choice in 0..sampling.n {
                let mut choose: Choose = sampling.choose.clone();
                // Each choice has random numbers of its own.
                choose.sampler.seed = choose.sampler.seed.wrapping_add(choice as u64);
                let listener = TextListener::new(
                    requests.len(),
                    Arc::clone(&self.tokenizer),
                    sender.clone(),
                    decoder.clone(),
                    StopTexts::new(sampling.stops.iter().cloned()),
                );
                requests.push(Request {
                    prompt: prompt.tokens.clone(),
                    max_tokens: sampling.max_tokens,
                    choose,
                    constraint: constraints.next(),
                    looks: looks.clone(),
                    end_tokens: Arc::clone(&end_tokens),
                    listener: Box::new(listener),
                });
            }
        }
        self.engine.submit(requests)?;
        Ok(receiver)
    }
}

/// Messages whose absent contents are empty ones; `None` where none is absent.
fn without_absent_contents(input: &ChatInput) -> Option<ChatInput> {
    let is_absent = |message: &Value| message.get("content").is_none_or(Value::is_null);
    if !input.messages.as_array()?.iter().any(is_absent) {
        return None;
    }
    let mut input = input.clone();
    for message in input.messages.as_array_mut()?.iter_mut().filter(|message| is_absent(message)) {
        if let Some(message) = message.as_object_mut() {
            message.insert("content".to_owned(), Value::String(String::new()));
        }
    }
    Some(input)
}
