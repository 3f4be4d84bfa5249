//! What a request says of how its tokens are chosen, and of what ends them.

use hyper::StatusCode;
use moe_run_graph::ids::TokenId;
use moe_run_runtime::engine::Choose;
use moe_run_runtime::generate::Constraint;
use moe_run_runtime::sequences::Taps;
use moe_run_text::chat::kind;
use serde_json::Value;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use crate::error::ApiError;
use crate::fields::{Fields, wrong_type};
use crate::form::{Form, Held};
use crate::model::Model;
use crate::taps;

/// Stop texts of a request at most.
const MAX_STOPS: usize = 64;
/// Log probabilities beside a token's own at most: OpenAI's bound.
pub const MAX_TOP_LOGPROBS: i64 = 20;

/// How the choices of a request are made.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// How tokens are chosen.
    pub choose: Choose,
    /// Tokens at most.
    pub max_tokens: Option<usize>,
    /// Texts that end the text.
    pub stops: Vec<String>,
    /// Choices of each prompt.
    pub n: usize,
    /// Tokens that end a text are taken as any other.
    pub ignores_end: bool,
    /// What the answer is held to.
    pub form: Option<Form>,
    /// Each token is told with its experts.
    pub wants_routing: bool,
    /// What each choice is told of its passes, and elements of a row of all of it.
    pub taps: (Arc<Taps>, usize),
}

impl Sampling {
    /// Reads what OpenAI's endpoints have in common; `logprobs` and the limit of tokens are the endpoint's own.
    ///
    /// Errors: a field of the wrong type, or outside of its range.
    pub fn read(fields: &mut Fields, model: &Model) -> Result<Sampling, ApiError> {
        let mut sampler = model.sampler;
        let f32 = |value: Option<f64>, default: f32| value.map_or(default, |v| v as f32);
        sampler.temperature = f32(fields.number("temperature", 0.0..=2.0)?, sampler.temperature);
        // A share of 0 keeps the best token, as the smallest number above it does.
        sampler.top_p = f32(fields.number("top_p", 0.0..=1.0)?, sampler.top_p).max(f32::MIN_POSITIVE);
        sampler.min_p = f32(fields.number("min_p", 0.0..=1.0)?, sampler.min_p);
        if let Some(top_k) = fields.integer("top_k", -1..=i64::MAX)? {
            sampler.top_k = usize::try_from(top_k).unwrap_or(0);
        }
        let penalty = fields.number("repetition_penalty", 0.01..=100.0)?;
        sampler.repetition_penalty = f32(penalty, sampler.repetition_penalty);
        sampler.seed = match fields.integer("seed", i64::MIN..=i64::MAX)? {
            Some(seed) => seed as u64,
            None => model.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish()),
        };
        let choose = Choose {
            presence_penalty: f32(fields.number("presence_penalty", -2.0..=2.0)?, 0.0),
            frequency_penalty: f32(fields.number("frequency_penalty", -2.0..=2.0)?, 0.0),
            logit_bias: logit_bias(fields, model)?,
            ..Choose::by(sampler)
        };
        choose.check().map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", e.to_string()))?;
        let n = fields.integer("n", 1..=128)?.unwrap_or(1) as usize;
        let ignores_end = fields.bool("ignore_eos")?.unwrap_or(false);
        let wants_routing = fields.bool("routing")?.unwrap_or(false);
        if wants_routing && model.taps.experts.is_empty() {
            return Err(ApiError::unsupported("routing", "this model has no experts"));
        }
        let taps = taps::read(fields, model)?;
        let form = Form::read(fields)?;
        let stops = stop_texts(fields, "stop")?;
        Ok(Sampling { choose, max_tokens: None, stops, n, ignores_end, form, wants_routing, taps })
    }

    /// Constraints of every choice, where the answer is `held` to something. It takes a while.
    ///
    /// Errors: it cannot be held; an answer that never ends.
    pub fn constrain(
        &self,
        held: Option<Held>,
        prompts: usize,
        model: &Model,
    ) -> Result<Vec<Box<dyn Constraint>>, ApiError> {
        let Some(held) = held else { return Ok(Vec::new()) };
        if self.ignores_end {
            let message = "an answer that is held to a form ends with it";
            return Err(ApiError::field("ignore_eos", "invalid_value", message));
        }
        model.check_choices(prompts, self.n)?;
        held.constrain(model, prompts.saturating_mul(self.n))
    }
}

/// A limit of tokens.
///
/// Errors: it is no whole number above 0.
pub fn max_tokens(fields: &mut Fields, name: &str) -> Result<Option<usize>, ApiError> {
    let found = fields.integer(name, 1..=i64::MAX)?;
    Ok(found.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)))
}

/// One text or several.
///
/// Errors: something else, an empty text, too many.
pub fn stop_texts(fields: &mut Fields, name: &str) -> Result<Vec<String>, ApiError> {
    let texts = match fields.take(name) {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(texts)) => texts
            .into_iter()
            .enumerate()
            .map(|(at, text)| match text {
                Value::String(text) => Ok(text),
                other => Err(wrong_type(format!("{name}[{at}]"), &other, "a string")),
            })
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong_type(name, &other, "a string, or an array of strings")),
    };
    if texts.len() > MAX_STOPS {
        let message = format!("found {} texts, wanted {MAX_STOPS} at most", texts.len());
        return Err(ApiError::field(name, "invalid_value", message));
    }
    if texts.iter().any(String::is_empty) {
        return Err(ApiError::field(
            name,
            "invalid_value",
            "found an empty text, which would end every answer",
        ));
    }
    Ok(texts)
}

/// `{"id": bias}`.
fn logit_bias(fields: &mut Fields, model: &Model) -> Result<Vec<(TokenId, f32)>, ApiError> {
    const NAME: &str = "logit_bias";
    let Some(map) = fields.object(NAME)? else { return Ok(Vec::new()) };
    let wrong = |message: String| ApiError::field(NAME, "invalid_value", message);
    let mut biases = Vec::with_capacity(map.len());
    for (id, bias) in map {
        let token = id.parse().ok().map(TokenId).filter(|token| token.index() < model.vocab_size);
        let Some(token) = token else {
            let wanted = format!("wanted token ids below {}", model.vocab_size);
            return Err(wrong(format!(
                "found the key {:?}, {wanted}",
                id.chars().take(40).collect::<String>()
            )));
        };
        match bias.as_f64() {
            Some(bias) if (-100.0..=100.0).contains(&bias) => biases.push((token, bias as f32)),
            Some(bias) => return Err(wrong(format!("token {token}: found {bias}, wanted -100 to 100"))),
            None => return Err(wrong(format!("token {token}: found {}, wanted a number", kind(&bias)))),
        }
    }
    Ok(biases)
}
