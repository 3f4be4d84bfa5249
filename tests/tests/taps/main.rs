//! Taps and what becomes of them: looking changes nothing; statistics, saved tensors and comparisons are right.

mod diff;
mod identity;
mod save_tensor;
mod trace;
mod transformers;

const BINARY: &str = env!("CARGO_BIN_EXE_moe-run-under-test");

/// `--tokens` of the tiny model's "What is 2+2?".
const TOKENS: &str = "3070,303,198,354,294,220,17,10,17,30,3071,198,3070,304,198";
