//! Stages 2 to 4 and the dumps: metadata → configuration → graph → plan → text, JSON, DOT, HTML.

mod architectures;
mod chromium;
mod cli;
mod common;
mod deepseek4;
mod dumps;
mod golden;
mod groups;
mod html;
mod infer;
mod lower;
mod passes;
