//! A file that is written from front to back and can be gone on with after the process was killed.
//!
//! Beside `OUT` stand, until it is whole, `OUT.partial`, what is written so far, and `OUT.partial.journal`: a line that says
//! which job it is, then one for each number of bytes that the disk is known to have. Whoever comes with the same job goes on
//! behind the last of these; another job begins anew. A lock on the journal keeps two processes from one file.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What the journal's first line begins with.
const TITLE: &str = "moe-run quantize 1 ";
/// And the lines behind it.
const DONE: &str = "done ";
/// More than any journal: what is longer is none.
const JOURNAL_MAX_BYTES: u64 = 64 << 20;

/// Why a file cannot be begun or gone on with.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// Another process has it.
    #[error("{}: another process is writing this file", path.display())]
    InUse {
        /// The journal.
        path: PathBuf,
    },
    /// Something is there that this did not make.
    #[error("{}: is there and is no journal of moe-run quantize; remove it, or give another output", path.display())]
    NotOurs {
        /// The journal.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How it began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begun {
    /// From nothing.
    New,
    /// From nothing, though there was a half-written file of another job.
    Anew,
    /// Behind so many bytes of the same job.
    Resumed {
        /// Bytes that are there.
        done_bytes: u64,
    },
}

/// A file being written.
#[derive(Debug)]
pub struct Resumable {
    out: PathBuf,
    partial: PathBuf,
    journal_path: PathBuf,
    file: File,
    journal: File,
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

impl Resumable {
    /// The names of the half-written file and its journal.
    #[must_use]
    pub fn names(out: &Path) -> [PathBuf; 2] {
        [with_ending(out, ".partial"), with_ending(out, ".partial.journal")]
    }

    /// Opens the half-written file of a job, at the place where it goes on.
    ///
    /// # Errors
    /// [`ResumeError`].
    pub fn open(out: &Path, fingerprint: &str) -> Result<(Resumable, Begun), ResumeError> {
        let [partial, journal_path] = Resumable::names(out);
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| ResumeError::Io { path, source }
        };
        let open = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .map_err(fail(path))
        };
        let mut journal = open(&journal_path)?;
        match journal.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ResumeError::InUse { path: journal_path }),
            Err(TryLockError::Error(source)) => return Err(fail(&journal_path)(source)),
        }
        let mut text = String::new();
        let read = (&mut journal).take(JOURNAL_MAX_BYTES).read_to_string(&mut text);
        let is_ours = read.is_ok() && (text.is_empty() || text.starts_with(TITLE));
        if !is_ours {
            return Err(ResumeError::NotOurs { path: journal_path });
        }
        // The last line may have been cut.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let mut lines = whole.lines();
        let same = lines.next().and_then(|line| line.strip_prefix(TITLE)) == Some(fingerprint);
        let done_bytes = lines.filter_map(|line| line.strip_prefix(DONE)?.parse::<u64>().ok()).next_back();
        let had_partial = partial.exists();
        let mut file = open(&partial)?;
        let len = file.metadata().map_err(fail(&partial))?.len();
        let done_bytes = done_bytes.filter(|done| same && *done <= len).unwrap_or(0);
        file.set_len(done_bytes).map_err(fail(&partial))?;
        file.seek(SeekFrom::Start(done_bytes)).map_err(fail(&partial))?;
        let begun = match done_bytes {
            0 if had_partial && !same => Begun::Anew,
            0 => Begun::New,
            done_bytes => Begun::Resumed { done_bytes },
        };
        let keep = if done_bytes > 0 { whole.len() as u64 } else { 0 };
        journal.set_len(keep).map_err(fail(&journal_path))?;
        journal.seek(SeekFrom::Start(keep)).map_err(fail(&journal_path))?;
        if keep == 0 {
            journal.write_all(format!("{TITLE}{fingerprint}\n").as_bytes()).map_err(fail(&journal_path))?;
        }
        let out = out.to_owned();
        Ok((Resumable { out, partial, journal_path, file, journal }, begun))
    }

    /// The half-written file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Waits until the disk has what was written, and notes that it is so many bytes.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn note(&self, done_bytes: u64) -> io::Result<()> {
        self.file.sync_data()?;
        (&self.journal).write_all(format!("{DONE}{done_bytes}\n").as_bytes())
    }

    /// Gives the file its name and takes the journal away.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn finish(self) -> io::Result<()> {
        self.file.sync_data()?;
        drop(self.file); // some systems do not rename an open file
        fs::rename(&self.partial, &self.out)?;
        fs::remove_file(&self.journal_path)
    }

    /// Takes both away.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn discard(self) -> io::Result<()> {
        drop((self.file, self.journal));
        fs::remove_file(&self.partial).and_then(|()| fs::remove_file(&self.journal_path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_goes_on_where_the_disk_has_it_and_another_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.gguf");
        let [partial, journal] = Resumable::names(&out);
        let (first, begun) = Resumable::open(&out, "job").unwrap();
        assert_eq!(begun, Begun::New);
        first.file().write_all(b"hello world").unwrap();
        first.note(5).unwrap();
        first.note(8).unwrap();
        let held = Resumable::open(&out, "job").unwrap_err();
        assert!(matches!(held, ResumeError::InUse { .. }), "{held}");
        drop(first);
        // A line that was cut does not count.
        OpenOptions::new().append(true).open(&journal).unwrap().write_all(b"done 11").unwrap();
        let (again, begun) = Resumable::open(&out, "job").unwrap();
        assert_eq!(begun, Begun::Resumed { done_bytes: 8 });
        again.file().write_all(b"ld!").unwrap();
        again.note(11).unwrap();
        drop(again);
        assert_eq!(
            fs::read(&partial).unwrap(),
            b"hello world!"[..8].iter().chain(b"ld!").copied().collect::<Vec<_>>()
        );
        // A file that is shorter than was noted is not trusted.
        OpenOptions::new().write(true).open(&partial).unwrap().set_len(9).unwrap();
        let (short, begun) = Resumable::open(&out, "job").unwrap();
        assert_eq!(begun, Begun::New);
        short.file().write_all(b"abc").unwrap();
        short.note(3).unwrap();
        drop(short);
        let (other, begun) = Resumable::open(&out, "other job").unwrap();
        assert_eq!(begun, Begun::Anew);
        other.file().write_all(b"other").unwrap();
        other.finish().unwrap();
        assert_eq!(fs::read(&out).unwrap(), b"other");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let (gone, _) = Resumable::open(&out, "job").unwrap();
        gone.discard().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_journal_stays() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.gguf");
        let [_, journal] = Resumable::names(&out);
        fs::write(&journal, b"somebody's notes").unwrap();
        let error = Resumable::open(&out, "job").unwrap_err();
        assert!(matches!(error, ResumeError::NotOurs { .. }), "{error}");
        assert_eq!(fs::read(&journal).unwrap(), b"somebody's notes");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
