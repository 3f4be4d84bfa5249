//! Errors as clients know them: a status, and OpenAI's or Anthropic's object.

use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use moe_run_runtime::engine::Refused;
use moe_run_text::{chat::ChatError, tokenizer::TokenizerError};
use serde_json::{Value, json};

use crate::respond::{self, Body};

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP's.
    pub status: StatusCode,
    /// What is wrong, in a sentence.
    pub message: String,
    /// The field concerned.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
}

impl ApiError {
    /// Something else than a field is wrong with a request.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code: Some(code) }
    }

    /// A field whose value is not what it may be.
    pub fn field(name: impl Into<String>, code: &'static str, message: impl AsRef<str>) -> ApiError {
        let name = name.into();
        let message = format!("{name}: {}", message.as_ref());
        ApiError { status: StatusCode::BAD_REQUEST, message, param: Some(name), code: Some(code) }
    }

    /// A field that would change the answer, and that this server does not know how to heed.
    pub fn unsupported(name: impl Into<String>, why: &str) -> ApiError {
        ApiError::field(name, "unsupported_parameter", format!("not supported by this server: {why}"))
    }

    /// A failure of the server itself.
    pub fn failed(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// The kind of error, in OpenAI's words.
    fn openai_type(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The kind of error, in Anthropic's words.
    fn anthropic_type(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            status if status.is_server_error() => "api_error",
            _ => "invalid_request_error",
        }
    }

    /// OpenAI's object.
    pub fn openai(&self) -> Value {
        let ApiError { status: _, message, param, code } = self;
        json!({"error": {"message": message, "type": self.openai_type(), "param": param, "code": code}})
    }

    /// Anthropic's object.
    pub fn anthropic(&self) -> Value {
        json!({"type": "error", "error": {"type": self.anthropic_type(), "message": self.message}})
    }

    /// The response, in the words of the path's API.
    pub fn respond(&self, is_anthropic: bool) -> Response<Body> {
        let body = if is_anthropic { self.anthropic() } else { self.openai() };
        let mut response = respond::json(self.status, &body);
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> ApiError {
        match refused {
            Refused::QueueFull { .. } => {
                ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", refused.to_string())
            }
            Refused::Ended => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "ending", "the server is ending")
            }
        }
    }
}

impl From<ChatError> for ApiError {
    fn from(error: ChatError) -> ApiError {
        ApiError {
            status: StatusCode::BAD_REQUEST,
            message: error.to_string(),
            param: Some("messages".to_owned()),
            code: Some("invalid_value"),
        }
    }
}

impl From<TokenizerError> for ApiError {
    fn from(error: TokenizerError) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", error.to_string())
    }
}
