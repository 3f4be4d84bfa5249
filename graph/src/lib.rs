//! moe-run graph
#![deny(missing_docs)]
