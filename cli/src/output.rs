//! Standard output and standard error: writes that neither panic nor hide an error.

use std::io::{self, Write};

#[cfg(doc)]
use moe_run_graph::shown::shown;
use moe_run_graph::shown::{shown_json, shown_lines};
use serde::Serialize;

use crate::CliError;

/// Writes a report to standard output. What would steer a terminal is escaped, but for line ends: names in it are to be
/// [`shown`] where they are put in.
///
/// Errors: [`CliError::Stdout`]; a reader that went away ends the command quietly.
pub fn text(text: &str) -> Result<(), CliError> {
    bytes(shown_lines(text).as_bytes())
}

/// Writes text to standard output exactly as it is: what the model generates, or a rendered prompt. It is flushed, so
/// that streamed text appears at once.
///
/// Errors: as for [`text`].
pub fn exact(text: &str) -> Result<(), CliError> {
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
    let line = serde_json::to_string_pretty(value).map_err(CliError::failed)?;
    exact(&(shown_json(&line) + "\n"))
}

/// Two hexadecimal digits a byte.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a line to standard error, escaped as for [`text`]. Nothing can be said when that fails, so nothing is.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", shown_lines(line));
}
