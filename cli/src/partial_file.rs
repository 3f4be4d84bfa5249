//! A file that appears whole or not at all: written under a temporary name beside its own, then renamed.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// A file being written. Dropped before [`PartialFile::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct PartialFile {
    path: PathBuf,
    partial: PathBuf,
    file: Option<File>,
}

impl PartialFile {
    /// Opens the temporary file, `.NAME.PID.partial`.
    ///
    /// Errors: the directory is not there or may not be written, or `path` is a directory.
    pub fn create(path: &Path) -> io::Result<PartialFile> {
        if path.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let mut partial_name = std::ffi::OsString::from(".");
        partial_name.push(name);
        partial_name.push(format!(".{}.partial", std::process::id()));
        let partial = path.with_file_name(partial_name);
        let file = File::create(&partial)?;
        Ok(PartialFile { path: path.to_owned(), partial, file: Some(file) })
    }

    /// The temporary file.
    pub fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::other("the file is closed"))
    }

    /// Closes the file and gives it its name. What is written is not forced to the disk: local file systems tell of a full
    /// one when written to, and to wait for gigabytes would take longer than to write them.
    ///
    /// Errors: the name cannot be given; nothing is left then.
    pub fn finish(mut self) -> io::Result<()> {
        self.file = None; // some systems do not rename an open file
        fs::rename(&self.partial, &self.path)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        self.file = None;
        // After finish() there is none; otherwise there is nobody left to tell.
        let _ = fs::remove_file(&self.partial);
    }
}
