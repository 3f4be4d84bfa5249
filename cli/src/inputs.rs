//! What a command reads: noted where it is opened, so that nothing the command writes takes its place.
//!
//! The other half is [`partial_file`], which refuses to write what is noted, and [`crate::output_file`], which says so before
//! any work. Standard output and standard error are looked at here: a shell may have them appended to a file.

use std::{io, path::Path};

use moe_run_backends::{
    partial_file,
    taps::{save::MANIFEST, tensor_set::TensorSet},
};

use crate::CliError;

/// Notes a file that is about to be read. `what` is its place in the sentence "it is …".
///
/// Errors: standard output or standard error goes to that file.
pub fn add(path: &Path, what: &'static str) -> Result<(), CliError> {
    partial_file::add_input(path, what);
    check_streams()
}

/// Notes the file that standard input comes from, if it is one.
///
/// Errors: as for [`add`].
pub fn add_stdin() -> Result<(), CliError> {
    if let Some(file) = streams::file_of(&io::stdin()) {
        partial_file::add_open_input(&file, "what standard input reads");
    }
    check_streams()
}

/// Notes every file of a set of tensors.
///
/// Errors: as for [`add`].
pub fn add_tensors(set: &TensorSet, what: &'static str) -> Result<(), CliError> {
    for tensor in set.tensors.values() {
        partial_file::add_input(&tensor.path, what);
    }
    partial_file::add_input(&set.path.join(MANIFEST), what);
    check_streams()
}

/// Errors: standard output or standard error goes to a file that is read.
pub fn check_streams() -> Result<(), CliError> {
    let (out, err) = (streams::file_of(&io::stdout()), streams::file_of(&io::stderr()));
    for (name, file) in [("standard output", out), ("standard error", err)] {
        if let Some(what) = file.as_ref().and_then(partial_file::input_that_is) {
            return Err(CliError::bad_input(format!(
                "{name}: it goes to {what}, which this command reads; send it elsewhere"
            )));
        }
    }
    Ok(())
}

#[cfg(unix)]
mod streams {
    use std::{
        fs::{File, Metadata},
        os::fd::AsFd,
    };

    /// What a stream is connected to.
    pub fn file_of(stream: &impl AsFd) -> Option<Metadata> {
        File::from(stream.as_fd().try_clone_to_owned().ok()?).metadata().ok()
    }
}

#[cfg(not(unix))]
mod streams {
    use std::fs::Metadata;

    /// Not to be had without the numbers by which a system tells files apart.
    pub fn file_of<T>(_: &T) -> Option<Metadata> {
        None
    }
}
