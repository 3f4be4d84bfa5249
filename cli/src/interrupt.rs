//! Ctrl-C: the first one ends a running generation cleanly, with its statistics; a second one, or one while nothing is
//! generated, ends the process with exit code 130. No unfinished file stays behind.

use std::sync::atomic::{AtomicBool, Ordering};

use moe_run_backends::partial_file;

use crate::{CliError, ExitCode};

/// Whether a generation is running, so that a Ctrl-C can wait for its end.
static GENERATING: AtomicBool = AtomicBool::new(false);
/// Whether Ctrl-C was pressed during it.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Takes over Ctrl-C. Call it once.
///
/// Errors: the operating system refuses.
pub fn install() -> Result<(), CliError> {
    ctrlc::set_handler(|| {
        if !GENERATING.load(Ordering::SeqCst) || REQUESTED.swap(true, Ordering::SeqCst) {
            partial_file::remove_unfinished();
            std::process::exit(ExitCode::Interrupted as i32);
        }
    })
    .map_err(CliError::failed)
}

/// A running generation: while it lives, one Ctrl-C only sets a flag.
#[derive(Debug)]
pub struct Generation(());

impl Generation {
    /// Begins one.
    pub fn begin() -> Generation {
        REQUESTED.store(false, Ordering::SeqCst);
        GENERATING.store(true, Ordering::SeqCst);
        Generation(())
    }

    /// Whether Ctrl-C asks for its end.
    pub fn is_interrupted(&self) -> bool {
        REQUESTED.load(Ordering::SeqCst)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        GENERATING.store(false, Ordering::SeqCst);
    }
}
