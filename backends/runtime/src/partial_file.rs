//! Files that appear whole or not at all: written under a temporary name beside their own, then renamed.
//!
//! What is not finished is taken away when it is dropped. A process that ends without dropping, as at a Ctrl-C, calls
//! [`remove_unfinished`] first. Nothing is forced to the disk unless it is asked for: a local file system tells of a full
//! disk when written to, and to wait for gigabytes would take longer than to write them.
//!
//! Of a link the file that it points to is written. What is there and is no file (a device, a pipe) is written to as it is.
//!
//! A file that the process reads is never written: whoever reads one says so to [`add_input`] or [`add_mapped`], and no
//! file takes its place, under whatever name or link. Who computes from a mapped file asks [`check_mapped`] before a result
//! gets its name: of a file that was changed meanwhile it is worth nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use moe_run_graph::gguf::{GgufError, MappedFile};

/// What this process has made and not finished.
struct Unfinished {
    /// The temporary files, and what each is to become.
    files: BTreeMap<PathBuf, PathBuf>,
    /// Directories, in the order in which they were made.
    dirs: Vec<PathBuf>,
}

static UNFINISHED: Mutex<Unfinished> = Mutex::new(Unfinished { files: BTreeMap::new(), dirs: Vec::new() });

fn unfinished() -> MutexGuard<'static, Unfinished> {
    // Every change of the lists is one call, so a panic elsewhere leaves them true.
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes away every unfinished file, and the directories that were made for them. It is for a process that ends now: a
/// thread that is about to make, rename or remove such a file waits from here on, for ever.
pub fn remove_unfinished() {
    let unfinished = unfinished();
    for file in unfinished.files.keys() {
        // Nothing can be done where removing fails: the name says what it is.
        let _ = fs::remove_file(file);
    }
    for dir in unfinished.dirs.iter().rev() {
        let _ = fs::remove_dir(dir);
    }
    std::mem::forget(unfinished);
}

/// What this process reads.
struct Inputs {
    files: Vec<Input>,
    mapped: Vec<Arc<MappedFile>>,
}

/// A file that is read.
struct Input {
    what: &'static str,
    /// Where the system tells files from one another by more than their names.
    id: Option<FileId>,
    /// Without links; another file may be there by now, and that one is not to be written either.
    path: Option<PathBuf>,
}

static INPUTS: Mutex<Inputs> = Mutex::new(Inputs { files: Vec::new(), mapped: Vec::new() });

fn inputs() -> MutexGuard<'static, Inputs> {
    INPUTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Device and number: the same for every name of a file.
type FileId = (u64, u64);

#[cfg(unix)]
fn file_id(file: &Metadata) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    file.is_file().then(|| (file.dev(), file.ino()))
}

#[cfg(not(unix))]
fn file_id(_: &Metadata) -> Option<FileId> {
    None
}

/// Why a file is not written.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// It is read.
    #[error("it is {0}, which this command reads; nothing was written: give another file")]
    Input(&'static str),
    /// It is being written.
    #[error("this command writes it already, for another option; nothing was written: give another file")]
    Output,
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> io::Error {
        io::Error::other(refusal)
    }
}

/// Whether an error says that a file is not to be written, rather than that it cannot be.
#[must_use]
pub fn is_refusal(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|cause| cause.is::<Refusal>())
}

/// From here on the file at `path` is not written by this process. `what` is its place in the sentence "it is …", as in
/// "the prompt's file". What is not there, or is no file, needs no such care.
pub fn add_input(path: &Path, what: &'static str) {
    if let Ok(file) = fs::metadata(path) {
        add(&file, fs::canonicalize(path).ok(), what);
    }
}

/// The same for a file that is open, of which the name is not known: standard input.
pub fn add_open_input(file: &Metadata, what: &'static str) {
    add(file, None, what);
}

/// The same for a file that is mapped, which is also looked at by [`check_mapped`] from here on. It stays mapped.
pub fn add_mapped(mapped: &Arc<MappedFile>, what: &'static str) {
    if let Ok(file) = mapped.file().metadata() {
        add(&file, fs::canonicalize(mapped.path()).ok(), what);
    }
    inputs().mapped.push(Arc::clone(mapped));
}

fn add(file: &Metadata, path: Option<PathBuf>, what: &'static str) {
    if file.is_file() {
        inputs().files.push(Input { what, id: file_id(file), path });
    }
}

/// What an open file is among those that are read.
#[must_use]
pub fn input_that_is(file: &Metadata) -> Option<&'static str> {
    let id = file_id(file)?;
    inputs().files.iter().find(|input| input.id == Some(id)).map(|input| input.what)
}

/// Whether the file that `path` leads to may be written, as far as this process's other files are concerned.
///
/// # Errors
/// It is one that the process reads, or is writing already ([`is_refusal`]); the links go round.
pub fn check_target(path: &Path) -> io::Result<()> {
    let path = target(path)?;
    let metadata = fs::metadata(&path).ok();
    if metadata.as_ref().is_some_and(|there| !there.is_file()) {
        return Ok(());
    }
    if let Some(what) = metadata.as_ref().and_then(input_that_is) {
        return Err(Refusal::Input(what).into());
    }
    let name = without_links(&path);
    if let Some(input) = inputs().files.iter().find(|input| input.path.as_ref() == Some(&name)) {
        return Err(Refusal::Input(input.what).into());
    }
    if unfinished().files.values().any(|other| *other == name) {
        return Err(Refusal::Output.into());
    }
    Ok(())
}

/// Whether every mapped file is still what it was when it was opened.
///
/// # Errors
/// The first that is not.
pub fn check_mapped() -> Result<(), GgufError> {
    let mapped = inputs().mapped.clone();
    mapped.iter().try_for_each(|file| file.check_unchanged())
}

/// The path of the mapped file whose bytes are at an address.
#[must_use]
pub fn mapped_at(address: usize) -> Option<PathBuf> {
    let inputs = inputs();
    inputs.mapped.iter().find(|file| file.addresses().contains(&address)).map(|file| file.path().to_owned())
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
    /// The directory is not there or may not be written, or `path` is a directory; what [`check_target`] refuses.
    pub fn create(path: &Path) -> io::Result<PartialFile> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        check_target(path)?;
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
        unfinished.files.insert(partial.clone(), without_links(path));
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
        if unfinished.files.remove(&self.partial).is_some() {
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

/// The one name of a file that need not be there.
fn without_links(path: &Path) -> PathBuf {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (fs::canonicalize(dir), path.file_name()) {
        (Ok(dir), Some(name)) => dir.join(name),
        _ => path.to_owned(),
    }
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
    for path in stale {
        check_target(path).map_err(|error| (path.clone(), error))?;
    }
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

    #[test]
    fn what_is_read_is_not_written() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs::write(at("input"), "read").unwrap();
        let mut names_of_it =
            vec![at("input"), at("../").join(temp.path().file_name().unwrap()).join("./input")];
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("input", at("soft")).unwrap();
            fs::hard_link(at("input"), at("hard")).unwrap();
            names_of_it.extend([at("soft"), at("hard")]);
        }
        fs::write(at("stale"), "").unwrap();
        write(&at("input"), b"read").unwrap();
        #[cfg(unix)]
        {
            // The file was replaced, and the hard link is another file now.
            fs::remove_file(at("hard")).unwrap();
            fs::hard_link(at("input"), at("hard")).unwrap();
        }
        add_input(&at("input"), "the prompt's file");
        add_input(&at("not there"), "nothing");
        for name in &names_of_it {
            let error = write(name, b"written").unwrap_err();
            assert!(is_refusal(&error) && error.to_string().contains("the prompt's file"), "{error}");
            assert!(check_target(name).is_err());
        }
        let (path, error) =
            finish_all(vec![PartialFile::create(&at("new")).unwrap()], &[at("stale"), at("input")].into())
                .unwrap_err();
        assert!(path == at("input") && is_refusal(&error), "{error}");
        assert!(at("stale").exists() && !at("new").exists());
        assert_eq!(fs::read(at("input")).unwrap(), b"read");
        // What takes an input's name meanwhile is not written either.
        fs::remove_file(at("input")).unwrap();
        fs::write(at("input"), "another").unwrap();
        assert!(is_refusal(&write(&at("input"), b"").unwrap_err()));
        write(&at("not there"), b"new").unwrap();
    }

    #[test]
    fn two_at_a_time_do_not_become_one_file() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        let first = PartialFile::create(&at("a")).unwrap();
        let error = PartialFile::create(&at("./a")).unwrap_err();
        assert!(is_refusal(&error) && error.to_string().contains("writes it already"), "{error}");
        first.finish().unwrap();
        write(&at("a"), b"again").unwrap();
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
