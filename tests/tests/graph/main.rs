//! Stages 2 to 4 and the dumps: metadata → configuration → graph → plan → text, JSON, DOT, HTML.

mod common;
mod dumps;
