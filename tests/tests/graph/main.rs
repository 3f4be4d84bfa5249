//! Stages 2 to 4 and the dumps: metadata → configuration → graph → plan → text, JSON, DOT, HTML.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod chromium;
mod cli;
mod common;
mod dumps;
mod golden;
mod html;
mod infer;
mod lower;
mod passes;
