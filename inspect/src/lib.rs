//! moe-run inspect: what looks at a run and judges it.
//!
//! Taps' statistics and tensor files ([`taps`]), comparisons stage by stage ([`parity`]) within the limits of
//! [`tolerance`], [`perplexity`], a [`profile`] of launches, and the [`cases`] that every op of every backend is held to.
//! All of it watches the one production pass through the runtime's observer. Deliberately absent: any backend.
#![deny(missing_docs)]

pub mod cases;
pub mod importance;
pub mod parity;
pub mod perplexity;
pub mod profile;
pub mod sensitivity;
pub mod taps;
pub mod tolerance;
