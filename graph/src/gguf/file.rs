//! `GgufFile`: a model's file, or all parts of a split one, opened, checked and mapped.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use memmap2::Mmap;

use super::{
    GgufError, Metadata,
    header::{self, Header, MIN_ALIGNMENT_BYTES},
    split,
};
use crate::quant::{Format, GgmlType, UnknownFormat};

/// One tensor of a file: name, shape, format and where its bytes are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorEntry {
    /// The file's name for it.
    pub name: String,
    /// Outermost-first (GGUF's own order turned round); 1 to 4 dimensions, none 0.
    pub shape: Vec<usize>,
    /// How the values are stored; not necessarily in a format that is decoded here. A row (the last dimension) is a whole
    /// number of blocks, where their size is known.
    pub ggml_type: GgmlType,
    /// Part of a split model that holds the bytes.
    pub(super) part: usize,
    /// From the start of that part.
    pub(super) offset_bytes: usize,
    pub(super) len_bytes: Option<usize>,
}

impl TensorEntry {
    /// How many elements the tensor has.
    pub fn elems(&self) -> usize {
        self.shape.iter().product() // fits, as the reader checked
    }

    /// The format that the values are stored in.
    ///
    /// Errors: it is none that is decoded here.
    pub fn format(&self) -> Result<Format, UnknownFormat> {
        self.ggml_type.format()
    }

    /// How many bytes the tensor takes in the file; `None` where the size of its type's blocks is not known. Then only
    /// that it begins within the file, and not within another, has been checked.
    pub fn len_bytes(&self) -> Option<usize> {
        self.len_bytes
    }

    /// Which part of a split model holds the tensor, from 0.
    pub fn part(&self) -> usize {
        self.part
    }

    /// Where the bytes begin, from the start of the part.
    pub fn offset_bytes(&self) -> usize {
        self.offset_bytes
    }
}

/// A file's bytes held in memory by someone else.
#[derive(Clone, Debug)]
pub enum GgufBytes {
    /// Compiled into the program.
    Static(&'static [u8]),
    /// Read from elsewhere.
    Shared(Arc<[u8]>),
}

impl From<&'static [u8]> for GgufBytes {
    fn from(bytes: &'static [u8]) -> GgufBytes {
        GgufBytes::Static(bytes)
    }
}

impl<const N: usize> From<&'static [u8; N]> for GgufBytes {
    fn from(bytes: &'static [u8; N]) -> GgufBytes {
        GgufBytes::Static(bytes)
    }
}

impl From<Arc<[u8]>> for GgufBytes {
    fn from(bytes: Arc<[u8]>) -> GgufBytes {
        GgufBytes::Shared(bytes)
    }
}

impl From<Vec<u8>> for GgufBytes {
    fn from(bytes: Vec<u8>) -> GgufBytes {
        GgufBytes::Shared(bytes.into())
    }
}

/// A file that is mapped into memory, with what was known of it when it was opened.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    file: File,
    map: Mmap,
    len_bytes: u64,
    /// `None` where the file system records none.
    modified: Option<SystemTime>,
}

impl MappedFile {
    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The addresses at which its bytes are.
    pub fn addresses(&self) -> Range<usize> {
        let start = self.map.as_ptr().addr();
        start..start + self.map.len()
    }

    /// Compares the file's size and time of modification with those that it had when it was opened. A file that was put
    /// in its place under the same name is another: this one is still what it was.
    ///
    /// Errors: [`GgufError::Changed`]; the file can no longer be looked at.
    pub fn check_unchanged(&self) -> Result<(), GgufError> {
        let file = || self.path.display().to_string();
        let now = self.file.metadata().map_err(|source| GgufError::Io {
            file: file(),
            action: "look at",
            source,
            hint: "check the disk",
        })?;
        let found = if now.len() != self.len_bytes {
            format!("{} bytes, {} when it was opened", now.len(), self.len_bytes)
        } else if now.modified().ok() != self.modified {
            "another time of modification than when it was opened".to_owned()
        } else {
            return Ok(());
        };
        Err(GgufError::Changed { file: file(), found })
    }
}

#[derive(Debug)]
enum Storage {
    Mapped(Arc<MappedFile>),
    Borrowed(GgufBytes),
    /// A copy of bytes that began at an odd address: u64s, so aligned, and the length in bytes.
    Copied(Vec<u64>, usize),
}

impl Storage {
    fn new(bytes: GgufBytes) -> Storage {
        let slice = match &bytes {
            GgufBytes::Static(b) => b,
            GgufBytes::Shared(b) => &**b,
        };
        const { assert!(align_of::<u64>() == MIN_ALIGNMENT_BYTES) };
        if slice.as_ptr().addr().is_multiple_of(MIN_ALIGNMENT_BYTES) {
            return Storage::Borrowed(bytes);
        }
        let mut copy = vec![0u64; slice.len().div_ceil(size_of::<u64>())];
        bytemuck::cast_slice_mut(&mut copy)[..slice.len()].copy_from_slice(slice);
        Storage::Copied(copy, slice.len())
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(mapped) => &mapped.map,
            Storage::Borrowed(GgufBytes::Static(b)) => b,
            Storage::Borrowed(GgufBytes::Shared(b)) => b,
            Storage::Copied(copy, len) => &bytemuck::cast_slice(copy)[..*len],
        }
    }
}

/// One file: the whole model, or a part of a split one.
#[derive(Debug)]
pub struct GgufPart {
    file: String,
    storage: Storage,
    version: u32,
    alignment_bytes: usize,
    header_bytes: usize,
}

impl GgufPart {
    /// The path, or the name that was given with bytes in memory.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// GGUF version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of this part's tensors, a power of two of at least 8.
    pub fn alignment_bytes(&self) -> usize {
        self.alignment_bytes
    }

    /// The file's size.
    pub fn len_bytes(&self) -> usize {
        self.storage.bytes().len()
    }

    /// Magic, version, counts, metadata and tensor table as the file has them.
    pub fn header(&self) -> &[u8] {
        &self.storage.bytes()[..self.header_bytes]
    }
}

/// An opened model: metadata, tensor table, and the tensors' bytes.
///
/// The files are mapped: they must not be changed while the model is open. [`MappedFile::check_unchanged`] tells whether
/// they were; reading behind the end of one that was cut raises SIGBUS, or what the system has in its place.
#[derive(Debug)]
pub struct GgufFile {
    parts: Vec<GgufPart>,
    metadata: Metadata,
    tensors: Vec<TensorEntry>,
    index: HashMap<String, usize>,
}

impl GgufFile {
    /// Opens and checks the file at `path`, and where it is one part of a split model, all the others beside it.
    pub fn open(path: impl AsRef<Path>) -> Result<GgufFile, GgufError> {
        GgufFile::open_with(path, |_| ())
    }

    /// As [`GgufFile::open`]; `mapped` is told of each file, before anything is read from it.
    pub fn open_with(
        path: impl AsRef<Path>,
        mut mapped: impl FnMut(&Arc<MappedFile>),
    ) -> Result<GgufFile, GgufError> {
        let path = path.as_ref();
        let file = path.display().to_string();
        let mut map = |path: &Path, file: &str| {
            let opened = Arc::new(map(path, file)?);
            mapped(&opened);
            Ok(Storage::Mapped(opened))
        };
        let storage = map(path, &file)?;
        let header = header::parse(&file, storage.bytes(), 0)?;
        match split::of(&file, &header.metadata)? {
            None => GgufFile::assemble(vec![(file, storage, header)]),
            Some(this) => {
                let paths = split::paths(path, &file, &this)?;
                let mut parts = Vec::with_capacity(paths.len());
                for (no, part_path) in paths.iter().enumerate() {
                    let part_file = part_path.display().to_string();
                    let part_storage = match map(part_path, &part_file) {
                        Err(GgufError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                            let (count, path) = (paths.len(), part_path.clone());
                            return Err(GgufError::MissingPart { file, part: no + 1, count, path });
                        }
                        other => other?,
                    };
                    let part_header = header::parse(&part_file, part_storage.bytes(), no)?;
                    split::check(&part_file, &part_header.metadata, no, this.count)?;
                    parts.push((part_file, part_storage, part_header));
                }
                GgufFile::assemble(parts)
            }
        }
    }

    /// A model from bytes in memory; `name` stands for it in errors. The bytes are copied only if they do not begin at a
    /// multiple of 8.
    pub fn from_bytes(name: &str, bytes: impl Into<GgufBytes>) -> Result<GgufFile, GgufError> {
        let storage = Storage::new(bytes.into());
        let header = header::parse(name, storage.bytes(), 0)?;
        if let Some(this) = split::of(name, &header.metadata)? {
            return Err(GgufError::Invalid {
                file: name.to_owned(),
                what: "the model".to_owned(),
                found: format!("part {} of {}", this.no + 1, this.count),
                wanted: "a whole model".to_owned(),
                hint: "open the parts as files, or merge them first",
            });
        }
        GgufFile::assemble(vec![(name.to_owned(), storage, header)])
    }

    /// Joins the parts, of which there is at least one, in order.
    fn assemble(opened: Vec<(String, Storage, Header)>) -> Result<GgufFile, GgufError> {
        let mut parts = Vec::with_capacity(opened.len());
        let mut metadata = None;
        let mut tensors: Vec<TensorEntry> = Vec::new();
        let mut index = HashMap::new();
        for (file, storage, header) in opened {
            for tensor in header.tensors {
                if index.insert(tensor.name.clone(), tensors.len()).is_some() {
                    return Err(GgufError::Duplicate { file, kind: "tensor", name: tensor.name });
                }
                tensors.push(tensor);
            }
            metadata.get_or_insert(header.metadata);
            let Header { version, alignment_bytes, header_bytes, .. } = header;
            parts.push(GgufPart { file, storage, version, alignment_bytes, header_bytes });
        }
        let metadata = metadata.unwrap_or_default();
        split::check_total(&metadata, tensors.len())?;
        Ok(GgufFile { parts, metadata, tensors, index })
    }

    /// The metadata; of a split model, the first part's.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors, in the order of the files.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    /// The bytes of one of this file's tensors, as the file holds them. They begin at a multiple of 8. None of a tensor
    /// whose length is not known.
    ///
    /// An entry of another file is a mistake of the caller: it gives other bytes or panics.
    pub fn data(&self, tensor: &TensorEntry) -> &[u8] {
        let bytes = &self.parts[tensor.part].storage.bytes()[tensor.offset_bytes..];
        &bytes[..tensor.len_bytes.unwrap_or(0)]
    }

    /// The files, in order; one unless the model is split.
    pub fn parts(&self) -> &[GgufPart] {
        &self.parts
    }

    /// Size of all files together.
    pub fn len_bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.len_bytes() as u64).sum()
    }
}

fn map(path: &Path, file: &str) -> Result<MappedFile, GgufError> {
    let io_error = |action: &'static str| {
        move |source: io::Error| {
            let hint = match source.kind() {
                io::ErrorKind::NotFound => "check the path",
                io::ErrorKind::PermissionDenied => "check that you may read it",
                _ => "check the path and the disk",
            };
            GgufError::Io { file: file.to_owned(), action, source, hint }
        }
    };
    // Before opening: a pipe would block in open.
    let kind = fs::metadata(path).map_err(io_error("open"))?;
    let not_a_file = |found| Err(GgufError::NotAFile { file: file.to_owned(), found });
    if kind.is_dir() {
        return not_a_file("a directory");
    }
    if !kind.is_file() {
        return not_a_file("a pipe, socket or device");
    }
    if kind.len() == 0 {
        return not_a_file("an empty file");
    }
    let opened = File::open(path).map_err(io_error("open"))?;
    // SAFETY: the mapping is private to reading, and nobody in this process writes the file. That no other process
    // shortens or changes it while it is mapped cannot be enforced; `GgufFile` states it as a condition, and
    // `MappedFile::check_unchanged` tells.
    let map = unsafe { Mmap::map(&opened) }.map_err(io_error("map"))?;
    let state = opened.metadata().map_err(io_error("open"))?;
    let (len_bytes, modified) = (map.len() as u64, state.modified().ok());
    Ok(MappedFile { path: path.to_owned(), file: opened, map, len_bytes, modified })
}
