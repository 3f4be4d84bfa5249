//! moe-run serve: OpenAI's and Anthropic's HTTP APIs over the runtime's engine.
//!
//! Input: a [`Model`] that is compiled, and a [`Config`]. Output: answers to HTTP requests, until the process is told to end. The
//! engine is a plain thread; tokio drives the connections alone. `server` has connections and paths, `guard` who may ask;
//! `chat`, `completions`, `responses`, `anthropic`, `texts` are the endpoints, which read `fields`, `form`, `messages`, `tools`,
//! `taps` and `sampling`; `listener` makes text of tokens, `writer` takes it apart, `answer` drives one answer, whole or in parts.
//! Deliberately absent: TLS, which is a reverse proxy's.
#![deny(missing_docs)]

mod answer;
mod anthropic;
mod anthropic_shape;
mod chat;
mod completions;
mod error;
mod fields;
mod form;
mod guard;
mod listener;
mod messages;
mod metrics;
mod model;
mod openai;
mod page;
mod record;
mod respond;
mod responses;
mod responses_shape;
mod sampling;
mod server;
mod taps;
mod texts;
mod tools;
mod writer;

pub use model::{Model, Vocabularies};
pub use server::{Config, Listening, ServeError};
pub use taps::TapTable;
