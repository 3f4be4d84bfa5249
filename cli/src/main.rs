//! The binary `moe-run`.
fn main() {}
