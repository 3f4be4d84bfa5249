//! Files that appear whole or not at all: written under a temporary name beside their own, then renamed.
//!
//! What is not finished is taken away when it is dropped. A process that ends without dropping, as at a Ctrl-C, calls
//! [`remove_unfinished`] first. Nothing is forced to the disk unless it is asked for: a local file system tells of a full
//! disk when written to, and to wait for gigabytes would take longer than to write them.
//!
//! Of a link the file that it points to is written. What is there and is no file (a device, a pipe) is written to as it is.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// What this process has made and not finished.
struct Unfinished {
    files: BTreeSet<PathBuf>,
    /// Directories, in the order in which they were made.
    dirs: Vec<PathBuf>,
}

static UNFINISHED: Mutex<Unfinished> = Mutex::new(Unfinished { files: BTreeSet::new(), dirs: Vec::new() });

fn unfinished() -> MutexGuard<'static, Unfinished> {
    // Every change of the lists is one call, so a panic elsewhere leaves them true.
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes away every unfinished file, and the directories that were made for them. It is for a process that ends now: a
/// thread that is about to make, rename or remove such a file waits from here on, for ever.
pub fn remove_unfinished() {
    let unfinished = unfinished();
    for file in &unfinished.files {
        // Nothing can be done where removing fails: the name says what it is.
        let _ = fs::remove_file(file);
    }
    for dir in unfinished.dirs.iter().rev() {
        let _ = fs::remove_dir(dir);
    }
    std::mem::forget(unfinished);
}

/// A file being written. Dropped before [`PartialFile::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct PartialFile {
    path: PathBuf,
    /// The same as `path` for what is no file.
    partial: PathBuf,
    file: Option<File>,
}

impl PartialFile {
    /// Opens the temporary file, `.NAME.PID-NUMBER.partial`.
    ///
    /// # Errors
    /// The directory is not there or may not be written, or `path` is a directory.
    pub fn create(path: &Path) -> io::Result<PartialFile> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let path = &target(path)?;
        match fs::metadata(path) {
            Ok(there) if there.is_dir() => return Err(io::Error::from(io::ErrorKind::IsADirectory)),
            Ok(there) if !there.is_file() => {
                let file = OpenOptions::new().write(true).open(path)?;
                return Ok(PartialFile { path: path.clone(), partial: path.clone(), file: Some(file) });
            }
            _ => {}
        }
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let mut partial_name = std::ffi::OsString::from(".");
        partial_name.push(name);
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        partial_name.push(format!(".{process}-{number}.partial"));
        let partial = path.with_file_name(partial_name);
        let mut unfinished = unfinished();
        let file = File::create(&partial)?;
        unfinished.files.insert(partial.clone());
        Ok(PartialFile { path: path.clone(), partial, file: Some(file) })
    }

    /// The name that it is to have.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The temporary file.
    ///
    /// # Errors
    /// It was closed.
    pub fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::other("the file is closed"))
    }

    /// Closes the temporary file, for those who have more files than a process may keep open.
    pub fn close(&mut self) {
        self.file = None;
    }

    /// The temporary file, opened once more for writing.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn reopen(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(&self.partial)
    }

    /// Waits until the disk has what was written, where it is a file: some file systems say only then that they are full.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn sync(&self) -> io::Result<()> {
        let file = self.reopen()?;
        if file.metadata()?.is_file() { file.sync_data() } else { Ok(()) }
    }

    /// Closes the file and gives it its name.
    ///
    /// # Errors
    /// The name cannot be given; nothing is left then.
    pub fn finish(self) -> io::Result<()> {
        finish_all(vec![self], &BTreeSet::new()).map_err(|(_, error)| error)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        self.file = None;
        let mut unfinished = unfinished();
        if unfinished.files.remove(&self.partial) {
            // There is nobody left to tell.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// What a path's links lead to, whether there is a file or not.
fn target(path: &Path) -> io::Result<PathBuf> {
    const MOST_LINKS: usize = 40; // as Linux has it
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            // An absolute target replaces the directory.
            Ok(link) => path = path.parent().unwrap_or(Path::new("")).join(link),
            Err(_) => return Ok(path), // no link, or nothing there
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// Takes away `stale` files, then gives each file its name, in order. A Ctrl-C waits for the end of it.
///
/// # Errors
/// The first file that cannot be removed or renamed, and why. Those before it have their names; nothing is left of it and
/// those behind it.
pub fn finish_all(
    mut files: Vec<PartialFile>,
    stale: &BTreeSet<PathBuf>,
) -> Result<(), (PathBuf, io::Error)> {
    let mut unfinished = unfinished();
    let finished = (|| {
        for path in stale {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err((path.clone(), error)),
                _ => {}
            }
        }
        for file in &mut files {
            file.file = None; // some systems do not rename an open file
            if file.partial != file.path {
                fs::rename(&file.partial, &file.path).map_err(|error| (file.path.clone(), error))?;
                unfinished.files.remove(&file.partial);
            }
        }
        Ok(())
    })();
    drop(unfinished); // the files take it again where they are dropped
    finished
}

/// Writes a whole file.
///
/// # Errors
/// What the file system reports; nothing is left behind.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = PartialFile::create(path)?;
    partial.file()?.write_all(bytes)?;
    partial.finish()
}

/// Directories made for files. Dropped before [`NewDirs::keep`], those that are empty are taken away.
#[derive(Debug, Default)]
pub struct NewDirs(Vec<PathBuf>);

impl NewDirs {
    /// Makes a directory and those above it, as far as they are not there.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn create(&mut self, dir: &Path) -> io::Result<()> {
        let mut unfinished = unfinished();
        let missing = dir.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists());
        let missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        for dir in missing.into_iter().rev() {
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                Err(_) => {} // another process was faster: it is not this one's to remove
                Ok(()) => {
                    unfinished.dirs.push(dir.clone());
                    self.0.push(dir);
                }
            }
        }
        Ok(())
    }

    /// Leaves them where they are.
    pub fn keep(mut self) {
        let made = std::mem::take(&mut self.0);
        unfinished().dirs.retain(|dir| !made.contains(dir));
    }
}

impl Drop for NewDirs {
    fn drop(&mut self) {
        let mut unfinished = unfinished();
        unfinished.dirs.retain(|dir| !self.0.contains(dir));
        for dir in self.0.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a");
        write(&path, b"old").unwrap();
        let partial = PartialFile::create(&path).unwrap();
        partial.file().unwrap().write_all(b"ne").unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(temp.path()).len()), (b"old".to_vec(), 2));
        drop(partial);
        assert_eq!(names(temp.path()), ["a"]);
        let mut partial = PartialFile::create(&path).unwrap();
        partial.close();
        assert!(partial.file().is_err());
        partial.reopen().unwrap().write_all(b"new").unwrap();
        partial.finish().unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(temp.path())), (b"new".to_vec(), vec!["a".to_owned()]));
    }

    #[test]
    fn of_files_that_cannot_all_be_named_nothing_unfinished_stays() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs::write(at("old"), "").unwrap();
        let files: Vec<_> = ["a", "b", "c"].map(|n| PartialFile::create(&at(n)).unwrap()).into();
        fs::create_dir(at("b")).unwrap(); // no file can take this name
        let (path, _) = finish_all(files, &[at("old"), at("never there")].into()).unwrap_err();
        assert_eq!(path, at("b"));
        assert_eq!(names(temp.path()), ["a", "b"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_written_to() {
        use std::os::unix::fs::symlink;
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs::create_dir(at("dir")).unwrap();
        for (link, to) in [("one", "two"), ("two", "dir/file"), ("round", "about"), ("about", "round")] {
            symlink(to, at(link)).unwrap();
        }
        symlink("/dev/null", at("null")).unwrap();
        for text in [&b"new"[..], b"newer"] {
            write(&at("one"), text).unwrap();
            assert_eq!(fs::read(at("dir/file")).unwrap(), text);
        }
        assert!(fs::symlink_metadata(at("one")).unwrap().is_symlink());
        assert!(write(&at("round"), b"").is_err());
        write(&at("null"), b"gone").unwrap();
        drop(PartialFile::create(&at("null")).unwrap());
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        assert_eq!(names(temp.path()), ["about", "dir", "null", "one", "round", "two"]);
        assert_eq!(names(&at("dir")), ["file"]);

        let pipe = at("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read(pipe).unwrap()
        });
        write(&pipe, b"through").unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(fs::symlink_metadata(&pipe).is_ok_and(|there| !there.is_file()));
    }

    #[test]
    fn new_directories_go_unless_they_are_kept() {
        let temp = tempfile::tempdir().unwrap();
        let mut dirs = NewDirs::default();
        dirs.create(&temp.path().join("a/b/c")).unwrap();
        dirs.create(&temp.path().join("a/d")).unwrap();
        fs::write(temp.path().join("a/d/file"), "").unwrap();
        drop(dirs);
        assert_eq!(names(&temp.path().join("a")), ["d"], "what holds another's file stays");
        let mut dirs = NewDirs::default();
        dirs.create(&temp.path().join("e/f")).unwrap();
        dirs.keep();
        assert!(temp.path().join("e/f").is_dir());
    }
}
