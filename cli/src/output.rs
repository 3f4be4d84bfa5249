//! Standard output and standard error: writes that neither panic nor hide an error.

use std::{
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
};

#[cfg(doc)]
use moe_run_graph::shown::shown;
use moe_run_graph::shown::{shown_json, shown_lines};
use serde::Serialize;

use crate::CliError;

/// Whether notes and progress are left out.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Leaves out notes and progress from now on (`--quiet`).
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether notes and progress are left out.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

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

/// Writes text that a file's template made: exactly as it is to a file or a pipe, and escaped as [`text`] does where standard
/// output is a terminal, which it could steer.
///
/// Errors: as for [`text`].
pub fn rendered(rendered: &str) -> Result<(), CliError> {
    if io::stdout().is_terminal() { text(rendered) } else { exact(rendered) }
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

/// What is good to know, on standard error; `--quiet` leaves it out.
pub fn note(line: &str) {
    if !is_quiet() {
        say(line);
    }
}

/// What may be wrong, on standard error, however quiet.
pub fn warning(line: &str) {
    say(&format!("warning: {line}"));
}

/// Writes a line to standard error, escaped as for [`text`], however quiet: errors, and answers to what was typed. Nothing can
/// be said when that fails, so nothing is.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", shown_lines(line));
}
