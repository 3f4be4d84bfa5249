//! A file that an option names, for what a command writes besides its answer; or `-`, which is standard output.
//!
//! A file that is there is replaced, whole or not at all, unless the command reads it: see [`crate::inputs`].

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use moe_run_backends::partial_file::{self, PartialFile};

use crate::{CliError, output};

/// Where it goes.
#[derive(Debug)]
pub enum OutputFile {
    /// Standard output.
    Stdout,
    /// A file, which has its name from [`OutputFile::finish`] on.
    File {
        /// As the option gives it.
        path: PathBuf,
        /// The file so far.
        partial: PartialFile,
    },
}

/// Whether a path stands for standard output.
pub fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

impl OutputFile {
    /// Opens what `option` names.
    ///
    /// Errors: as for [`check`], and what the file system reports.
    pub fn create(option: &str, path: &Path) -> Result<OutputFile, CliError> {
        if is_stdout(path) {
            return Ok(OutputFile::Stdout);
        }
        check(option, Some(path))?;
        let partial = PartialFile::create(path).map_err(|e| CliError::unwritable(path, &e))?;
        Ok(OutputFile::File { path: path.to_owned(), partial })
    }

    /// Adds bytes.
    ///
    /// Errors: what the file system reports.
    pub fn write(&self, bytes: &[u8]) -> Result<(), CliError> {
        match self {
            OutputFile::Stdout => output::bytes(bytes),
            OutputFile::File { path, partial } => partial
                .file()
                .and_then(|mut file| file.write_all(bytes))
                .map_err(|e| CliError::unwritable(path, &e)),
        }
    }

    /// Gives the file its name.
    ///
    /// Errors: what the file system reports; nothing is left then.
    pub fn finish(self) -> Result<(), CliError> {
        match self {
            OutputFile::Stdout => Ok(()),
            OutputFile::File { path, partial } => {
                partial.finish().map_err(|e| CliError::unwritable(&path, &e))
            }
        }
    }
}

/// What can be said of a file that is to be written before any work is done for it: at once, and again when everything that
/// the command reads is known.
///
/// Errors: it is a directory, its directory is not there, the command reads it or writes it already, or it is `-`.
pub fn check(option: &str, path: Option<&Path>) -> Result<(), CliError> {
    let Some(path) = path else { return Ok(()) };
    if is_stdout(path) {
        return check_name(option, path);
    }
    if path.is_dir() {
        return Err(CliError::bad_input(format!(
            "{option} {}: is a directory, wanted a file",
            path.display()
        )));
    }
    if let Some(dir) = path.parent()
        && !dir.as_os_str().is_empty()
        && !dir.is_dir()
    {
        return Err(CliError::bad_input(format!(
            "{option} {}: there is no directory {}; make it first",
            path.display(),
            dir.display()
        )));
    }
    check_inputs(option, path)
}

/// The part of [`check`] that is about the command's own files, where the writing itself reports the rest.
///
/// Errors: the command reads the file or writes it already, or it is `-`.
pub fn check_inputs(option: &str, path: &Path) -> Result<(), CliError> {
    check_name(option, path)?;
    partial_file::check_target(path)
        .map_err(|error| CliError::bad_input(format!("{option} {}: {error}", path.display())))
}

/// Errors: a name is `-`, by which nobody means a file or directory of that name.
pub fn check_name(option: &str, path: &Path) -> Result<(), CliError> {
    if is_stdout(path) {
        return Err(CliError::bad_input(format!(
            "{option} -: standard output cannot be had here; give a name (./- is one)"
        )));
    }
    Ok(())
}

/// The same as [`check`] for an option where `-` is standard output.
///
/// Errors: as for [`check`], without `-`.
pub fn check_or_stdout(option: &str, path: Option<&Path>) -> Result<(), CliError> {
    check(option, path.filter(|path| !is_stdout(path)))
}
