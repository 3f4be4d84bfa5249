//! `/tokenize`, `/detokenize`, `/apply-template`: the prompt exactly as the model sees it.

use hyper::body::Bytes;
use hyper::{Response, StatusCode};
use moe_run_text::tokenizer::ControlTokens;
use serde_json::json;
use std::sync::Arc;

use crate::completions::ids;
use crate::error::ApiError;
use crate::fields::{Fields, missing};
use crate::messages;
use crate::model::Model;
use crate::respond::{self, Body};
use crate::server::Server;

/// `{content, add_special?, parse_special?}` → `{tokens}`.
///
/// Errors: no content.
pub async fn tokenize(server: &Arc<Server>, body: Bytes) -> Result<Response<Body>, ApiError> {
    let model = server.model()?;
    let value = server
        .on_worker(move || {
            let mut fields = Fields::parse(&body)?;
            let content = fields.string("content")?.ok_or_else(|| missing("content"))?;
            let control = match fields.bool("parse_special")?.unwrap_or(true) {
                true => ControlTokens::Parse,
                false => ControlTokens::Literal,
            };
            let mut tokens = model.tokenizer.encode(&content, control)?;
            if fields.bool("add_special")?.unwrap_or(false)
                && let Some(bos) = model.tokenizer.leading_bos().filter(|bos| tokens.first() != Some(bos))
            {
                tokens.insert(0, bos);
            }
            let tokens: Vec<u32> = tokens.into_iter().map(|token| token.0).collect();
            Ok(json!({"tokens": tokens}))
        })
        .await?;
    Ok(respond::json(StatusCode::OK, &value))
}

/// `{tokens}` → `{content}`, control tokens spelled out.
///
/// Errors: what are no ids.
pub async fn detokenize(server: &Arc<Server>, body: Bytes) -> Result<Response<Body>, ApiError> {
    let model = server.model()?;
    let mut fields = Fields::parse(&body)?;
    let tokens = fields.array("tokens")?.ok_or_else(|| missing("tokens"))?;
    let tokens = ids(&tokens, "tokens")?;
    let vocab_size = model.vocab_size;
    if let Some(id) = tokens.iter().find(|id| id.index() >= vocab_size) {
        let message = format!("found the id {id}, wanted ids below {vocab_size}");
        return Err(ApiError::field("tokens", "invalid_value", message));
    }
    Ok(respond::json(StatusCode::OK, &json!({"content": model.spell(&tokens)})))
}

/// `{messages, …}` → `{prompt}`.
///
/// Errors: what the template refuses.
pub async fn apply_template(server: &Arc<Server>, body: Bytes) -> Result<Response<Body>, ApiError> {
    let model = server.model()?;
    let render = move |model: &Model| {
        let conversation = messages::read(&mut Fields::parse(&body)?, model.template()?)?;
        let begun = conversation.begun.as_deref().unwrap_or_default();
        Ok(json!({"prompt": model.rendered(&conversation.input)?.text().to_owned() + begun}))
    };
    let value = server.on_worker(move || render(&model)).await?;
    Ok(respond::json(StatusCode::OK, &value))
}
