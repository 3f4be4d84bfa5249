//! Tensor files: APRT, npy and safetensors. Readers trust nothing that a file says.
//!
//! APRT, little-endian: `APRT`, u32 layer (0xFFFFFFFF for the whole model), u32 number of f32 elements, the elements.
//! npy: version 1.0, `<f4`, C order. safetensors: u64 header length, JSON header, data. A file's kind is decided by its
//! first bytes, never by its name.

use serde::Serialize;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The first bytes of an APRT file.
pub const APRT_MAGIC: [u8; 4] = *b"APRT";
/// Its header's length.
pub const APRT_HEADER_BYTES: u64 = 12;
/// Its layer field for values of the whole model.
pub const APRT_WHOLE_MODEL: u32 = u32::MAX;
const NPY_MAGIC: [u8; 6] = *b"\x93NUMPY";
/// The longest header that is believed.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// A tensor file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    /// The file system.
    #[error("{}: cannot read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not what it should be.
    #[error("{}: {detail}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Found and wanted.
        detail: String,
    },
}

impl TensorFileError {
    pub(super) fn io(path: &Path, source: io::Error) -> TensorFileError {
        TensorFileError::Io { path: path.to_owned(), source }
    }

    pub(super) fn format(path: &Path, detail: impl Into<String>) -> TensorFileError {
        TensorFileError::Format { path: path.to_owned(), detail: detail.into() }
    }
}

/// How the elements of a stored tensor are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// f32.
    F32,
    /// f64, rounded to f32 when read.
    F64,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// i32, u32, i64 and u64 are expert ids: small.
    I32,
    /// See [`Element::I32`].
    U32,
    /// See [`Element::I32`].
    I64,
    /// See [`Element::I32`].
    U64,
}

impl Element {
    fn size_bytes(self) -> u64 {
        match self {
            Element::F16 | Element::Bf16 => 2,
            Element::F32 | Element::I32 | Element::U32 => 4,
            Element::F64 | Element::I64 | Element::U64 => 8,
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks::<N>().0.iter().map(|c| f(*c)).collect()
        }
        match self {
            Element::F32 => each(bytes, f32::from_le_bytes),
            Element::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
            Element::F16 => each(bytes, |b| half::f16::from_le_bytes(b).to_f32()),
            Element::Bf16 => each(bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
            Element::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
            Element::U32 => each(bytes, |b| u32::from_le_bytes(b) as f32),
            Element::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
            Element::U64 => each(bytes, |b| u64::from_le_bytes(b) as f32),
        }
    }
}

/// A tensor inside a file: read when it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRef {
    /// The file.
    pub path: PathBuf,
    /// Outermost first; one axis where the format records none.
    pub shape: Vec<usize>,
    /// Whether `shape` is the tensor's, not only its length.
    pub shaped: bool,
    /// APRT's layer field.
    pub layer: Option<u32>,
    element: Element,
    offset_bytes: u64,
}

impl TensorRef {
    /// Elements.
    #[must_use]
    pub fn elems(&self) -> usize {
        self.shape.iter().product()
    }

    /// Reads the elements.
    ///
    /// # Errors
    /// [`TensorFileError`] naming the file.
    pub fn read(&self) -> Result<Vec<f32>, TensorFileError> {
        let fail = |e| TensorFileError::io(&self.path, e);
        let mut file = File::open(&self.path).map_err(fail)?;
        file.seek(SeekFrom::Start(self.offset_bytes)).map_err(fail)?;
        // The length was checked against the file's when the reference was made.
        let mut bytes = vec![0; self.elems() * self.element.size_bytes() as usize];
        file.read_exact(&mut bytes).map_err(fail)?;
        Ok(self.element.decode(&bytes))
    }
}

/// What a file holds.
#[derive(Debug)]
pub enum TensorFile {
    /// One tensor.
    One(TensorRef),
    /// Named tensors and the file's metadata.
    Many(Vec<(String, TensorRef)>, Map<String, Value>),
}

/// Reads a file's header and checks it against the file's length.
///
/// # Errors
/// [`TensorFileError`] naming the file, what was found and what was wanted.
pub fn open(path: &Path) -> Result<TensorFile, TensorFileError> {
    let fail = |e| TensorFileError::io(path, e);
    let mut file = File::open(path).map_err(fail)?;
    let len = file.metadata().map_err(fail)?.len();
    let mut head = [0u8; 12];
    let got = read_up_to(&mut file, &mut head).map_err(fail)?;
    if got >= 4 && head[..4] == APRT_MAGIC {
        let short = || TensorFileError::format(path, format!("APRT file of {len} bytes: its header has 12"));
        let [_, layer, elems] = if got == 12 { words(head) } else { return Err(short()) };
        let wanted = APRT_HEADER_BYTES + u64::from(elems) * 4;
        if len != wanted {
            return Err(TensorFileError::format(
                path,
                format!("APRT header says {elems} elements ({wanted} bytes), the file has {len} bytes"),
            ));
        }
        return Ok(TensorFile::One(TensorRef {
            path: path.to_owned(),
            shape: vec![elems as usize],
            shaped: false,
            layer: Some(layer),
            element: Element::F32,
            offset_bytes: APRT_HEADER_BYTES,
        }));
    }
    if got >= 10 && head[..6] == NPY_MAGIC {
        return npy(path, &mut file, len, head).map(TensorFile::One);
    }
    let header_bytes = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| head[i]));
    if got >= 9 && head[8] == b'{' && header_bytes <= MAX_HEADER_BYTES && header_bytes <= len - 8 {
        return safetensors(path, &mut file, len, header_bytes);
    }
    Err(TensorFileError::format(path, "neither an APRT, an npy nor a safetensors file"))
}

fn words(head: [u8; 12]) -> [u32; 3] {
    [0, 4, 8].map(|i| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]))
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..])? {
            0 => break,
            n => got += n,
        }
    }
    Ok(got)
}

/// Checks that a tensor lies inside its file.
fn checked(
    path: &Path,
    what: &str,
    shape: &[usize],
    element: Element,
    offset: u64,
    len: u64,
) -> Result<u64, TensorFileError> {
    let bytes = shape
        .iter()
        .try_fold(1u64, |n, d| n.checked_mul(*d as u64))
        .and_then(|n| n.checked_mul(element.size_bytes()))
        .filter(|n| offset.checked_add(*n).is_some_and(|end| end <= len));
    bytes.ok_or_else(|| {
        TensorFileError::format(path, format!("{what}: shape {shape:?} does not fit the file's {len} bytes"))
    })
}

/// Parses a header like `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
fn npy(path: &Path, file: &mut File, len: u64, head: [u8; 12]) -> Result<TensorRef, TensorFileError> {
    let wrong = |detail: String| TensorFileError::format(path, detail);
    let (start, header_bytes) = match head[6] {
        1 => (10, u64::from(u16::from_le_bytes([head[8], head[9]]))),
        2 | 3 => (12, u64::from(words(head)[2])),
        version => return Err(wrong(format!("npy version {version}, wanted 1 to 3"))),
    };
    if header_bytes > MAX_HEADER_BYTES || start + header_bytes > len {
        return Err(wrong(format!("npy header of {header_bytes} bytes in a file of {len}")));
    }
    let mut header = vec![0; header_bytes as usize];
    let fail = |e| TensorFileError::io(path, e);
    file.seek(SeekFrom::Start(start)).map_err(fail)?;
    file.read_exact(&mut header).map_err(fail)?;
    let header = String::from_utf8_lossy(&header);
    let field = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let descr = field("descr").and_then(|r| r.strip_prefix('\'')).and_then(|r| r.split_once('\''));
    let element = match descr.map(|d| d.0) {
        Some("<f4") => Element::F32,
        Some("<f8") => Element::F64,
        Some("<f2") => Element::F16,
        Some("<i4") => Element::I32,
        Some("<u4") => Element::U32,
        Some("<i8") => Element::I64,
        Some("<u8") => Element::U64,
        found => {
            let found = found.unwrap_or("none");
            return Err(wrong(format!("npy dtype {found}, wanted <f2, <f4, <f8, <i4, <u4, <i8 or <u8")));
        }
    };
    if !field("fortran_order").is_some_and(|r| r.starts_with("False")) {
        return Err(wrong("npy in Fortran order, wanted C order".into()));
    }
    let axes = field("shape").and_then(|r| r.strip_prefix('(')).and_then(|r| r.split_once(')'));
    let axes = axes.map(|(axes, _)| axes.split(',').map(str::trim).filter(|a| !a.is_empty()));
    let shape: Option<Vec<usize>> = axes.and_then(|a| a.map(|a| a.parse().ok()).collect());
    let shape = shape.ok_or_else(|| wrong("npy header without a shape".into()))?;
    let offset_bytes = start + header_bytes;
    checked(path, "npy", &shape, element, offset_bytes, len)?;
    Ok(TensorRef { path: path.to_owned(), shape, shaped: true, layer: None, element, offset_bytes })
}

fn safetensors(
    path: &Path,
    file: &mut File,
    len: u64,
    header_bytes: u64,
) -> Result<TensorFile, TensorFileError> {
    let fail = |e| TensorFileError::io(path, e);
    let mut header = vec![0; header_bytes as usize];
    file.seek(SeekFrom::Start(8)).map_err(fail)?;
    file.read_exact(&mut header).map_err(fail)?;
    let wrong = |detail: String| TensorFileError::format(path, detail);
    let header: Map<String, Value> =
        serde_json::from_slice(&header).map_err(|e| wrong(format!("safetensors header: {e}")))?;
    let mut metadata = Map::new();
    let mut tensors = Vec::with_capacity(header.len());
    for (name, entry) in header {
        if name == "__metadata__" {
            if let Value::Object(map) = entry {
                metadata = map;
            }
            continue;
        }
        let element = match entry["dtype"].as_str() {
            Some("F32") => Element::F32,
            Some("F64") => Element::F64,
            Some("F16") => Element::F16,
            Some("BF16") => Element::Bf16,
            Some("I32") => Element::I32,
            Some("U32") => Element::U32,
            Some("I64") => Element::I64,
            Some("U64") => Element::U64,
            _ => return Err(wrong(format!("tensor {name}: dtype {} is not read", entry["dtype"]))),
        };
        let list = |v: &Value| -> Option<Vec<u64>> { v.as_array()?.iter().map(Value::as_u64).collect() };
        let (Some(shape), Some(offsets)) = (list(&entry["shape"]), list(&entry["data_offsets"])) else {
            return Err(wrong(format!("tensor {name}: no shape or no data_offsets")));
        };
        let shape: Vec<usize> = shape.into_iter().map(|d| d as usize).collect();
        let &[start, end] = offsets.as_slice() else {
            return Err(wrong(format!("tensor {name}: data_offsets are not two numbers")));
        };
        let Some(offset_bytes) = start.checked_add(8 + header_bytes) else {
            return Err(wrong(format!("tensor {name}: data_offsets beyond the file")));
        };
        let bytes = checked(path, &name, &shape, element, offset_bytes, len)?;
        if end.checked_sub(start) != Some(bytes) {
            return Err(wrong(format!(
                "tensor {name}: data_offsets {start}..{end}, its shape has {bytes} bytes"
            )));
        }
        let tensor =
            TensorRef { path: path.to_owned(), shape, shaped: true, layer: None, element, offset_bytes };
        tensors.push((name, tensor));
    }
    Ok(TensorFile::Many(tensors, metadata))
}

/// The kinds of files that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// A file a stage, in the format of `apr trace --save-tensor`.
    #[default]
    Aprt,
    /// A file a stage, for numpy.
    Npy,
    /// One file for all stages.
    Safetensors,
}

/// The header of an APRT file; `None` where the format cannot count so many elements.
#[must_use]
pub fn aprt_header(layer: Option<usize>, elems: usize) -> Option<[u8; 12]> {
    let layer = layer.map_or(Some(APRT_WHOLE_MODEL), |l| u32::try_from(l).ok())?;
    let elems = u32::try_from(elems).ok()?;
    let mut header = [0; 12];
    header[..4].copy_from_slice(&APRT_MAGIC);
    header[4..8].copy_from_slice(&layer.to_le_bytes());
    header[8..].copy_from_slice(&elems.to_le_bytes());
    Some(header)
}

/// The header of an npy file of f32, padded so that the data begins at a multiple of 64.
#[must_use]
pub fn npy_header(shape: &[usize]) -> Vec<u8> {
    let axes: String = shape.iter().map(|d| format!("{d}, ")).collect();
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", axes.trim_end());
    let len = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.extend(std::iter::repeat_n(' ', len - text.len() - 1));
    text.push('\n');
    let mut header = NPY_MAGIC.to_vec();
    header.extend([1, 0]);
    header.extend((len as u16).to_le_bytes());
    header.extend(text.into_bytes());
    header
}

/// The header of a safetensors file of f32 tensors, laid out in the order given, padded so that the data begins at a
/// multiple of 8.
#[must_use]
pub fn safetensors_header(tensors: &[(String, Vec<usize>)], metadata: &[(&str, String)]) -> Vec<u8> {
    let mut map = Map::new();
    let info: Map<String, Value> =
        metadata.iter().map(|(k, v)| ((*k).to_owned(), Value::String(v.clone()))).collect();
    map.insert("__metadata__".into(), Value::Object(info));
    let mut offset = 0u64;
    for (name, shape) in tensors {
        let end = offset + shape.iter().map(|d| *d as u64).product::<u64>() * 4;
        let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] });
        map.insert(name.clone(), entry);
        offset = end;
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    header
}
