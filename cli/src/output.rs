//! Standard output and standard error: writes that neither panic nor hide an error.

use std::io::{self, Write};

use serde::Serialize;

use crate::CliError;

/// Writes text to standard output and flushes it, so that streamed text appears at once.
///
/// Errors: [`CliError::Stdout`]; a reader that went away ends the command quietly.
pub fn text(text: &str) -> Result<(), CliError> {
    bytes(text.as_bytes())
}

/// Writes bytes to standard output and flushes them.
///
/// Errors: as for [`text`].
pub fn bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(CliError::Stdout)
}

/// Writes one JSON value and a line end to standard output.
///
/// Errors: as for [`text`].
pub fn json(value: &impl Serialize) -> Result<(), CliError> {
    let mut line = serde_json::to_vec_pretty(value).map_err(CliError::failed)?;
    line.push(b'\n');
    bytes(&line)
}

/// Writes a line to standard error. Nothing can be said when that fails, so nothing is.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
