//! moe-run backends
#![deny(missing_docs)]
