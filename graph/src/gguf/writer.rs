//! Writing GGUF version 3: metadata, tensor table, aligned data.
//!
//! Input: metadata and a list of (name, shape, type). Output: a [`GgufLayout`], which knows the header's bytes and where
//! every tensor goes, so that data can be written in any order, by several threads, or left a hole; and [`GgufWriter`],
//! which writes the tensors one after another, in pieces of any size, to anything that is `Write`.
//! Deliberately absent: split files, and quantizing.

use std::{
    borrow::Cow,
    io::{self, Read, Write},
};

use thiserror::Error;

use super::{
    MetaArray, MetaValue, Metadata, TensorEntry,
    cursor::NAME_MAX_BYTES,
    header::{self, value_type},
};
use crate::quant::GgmlType;

const VERSION: u32 = 3;

/// A tensor to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorSpec {
    /// GGUF's name, at most 64 bytes.
    pub name: String,
    /// Outermost-first.
    pub shape: Vec<usize>,
    /// How the values are stored: a format, or 32-bit integers.
    pub format: GgmlType,
}

/// Why a file could not be laid out or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The metadata or the tensors cannot be those of a GGUF file.
    #[error("{what}: found {found}, wanted {wanted}")]
    Invalid {
        /// Key or tensor.
        what: String,
        /// What was given.
        found: String,
        /// What would be right.
        wanted: String,
    },
    /// The file would not be readable: what the reader says of the header.
    #[error(transparent)]
    Unreadable(#[from] super::GgufError),
    /// The operating system refused.
    #[error("cannot write: {0}")]
    Io(#[from] io::Error),
}

/// Where everything of a file goes, before any of it is written.
#[derive(Clone, Debug)]
pub struct GgufLayout {
    header: Vec<u8>,
    tensors: Vec<TensorEntry>,
    file_bytes: usize,
}

impl GgufLayout {
    /// Lays out a file: header, then the tensors in the order given, each at the alignment that the metadata states (32
    /// bytes where it states none).
    ///
    /// Errors: a name that is too long or occurs twice, a shape that the format or the machine cannot hold.
    pub fn new(metadata: &Metadata, tensors: &[TensorSpec]) -> Result<GgufLayout, WriteError> {
        let alignment = header::parse_alignment(metadata.origin(), metadata)?;
        let mut header = Vec::new();
        header.extend_from_slice(&header::MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        put_count(&mut header, tensors.len());
        put_count(&mut header, metadata.len());
        for (key, value) in metadata.iter() {
            put_string(&mut header, key.as_bytes());
            put_value(&mut header, value);
        }
        let mut offset_bytes = 0usize;
        for tensor in tensors {
            let bytes = put_tensor(&mut header, tensor, offset_bytes)?;
            offset_bytes = offset_bytes
                .checked_add(bytes)
                .and_then(|n| n.checked_next_multiple_of(alignment))
                .ok_or_else(|| invalid(&tensor.name, "tensors of more bytes than the machine can count"))?;
        }
        // The reader checks the rest: what it would refuse is not written.
        let stated = header.len();
        let parsed = header::parse_sized("the file to be written", &header, usize::MAX, 0)?;
        debug_assert_eq!(parsed.header_bytes, stated);
        let data_start = stated.next_multiple_of(parsed.alignment_bytes);
        if !tensors.is_empty() {
            header.resize(data_start, 0);
        }
        let data_end = data_start.checked_add(offset_bytes);
        let file_bytes = match data_end {
            _ if tensors.is_empty() => stated,
            Some(end) => end,
            None => return Err(invalid("the file", "more bytes than the machine can count")),
        };
        Ok(GgufLayout { header, tensors: parsed.tensors, file_bytes })
    }

    /// Everything before the first tensor's bytes, padding included.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The tensors, in the order given, with their places in the file.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// Size of the file, the last tensor's padding included.
    pub fn file_bytes(&self) -> usize {
        self.file_bytes
    }
}

fn invalid(what: &str, found: &str) -> WriteError {
    WriteError::Invalid {
        what: format!("tensor {what:?}"),
        found: found.to_owned(),
        wanted: "a shape that the format and the machine can hold".to_owned(),
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&(count as u64).to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_tensor(out: &mut Vec<u8>, tensor: &TensorSpec, offset_bytes: usize) -> Result<usize, WriteError> {
    let TensorSpec { name, shape, format } = tensor;
    if name.is_empty() || name.len() as u64 > NAME_MAX_BYTES {
        return Err(WriteError::Invalid {
            what: format!("tensor {name:?}"),
            found: format!("a name of {} bytes", name.len()),
            wanted: format!("1 to {NAME_MAX_BYTES}"),
        });
    }
    put_string(out, name.as_bytes());
    out.extend_from_slice(&(shape.len() as u32).to_le_bytes());
    for &size in shape.iter().rev() {
        put_count(out, size);
    }
    out.extend_from_slice(&format.number().to_le_bytes());
    put_count(out, offset_bytes);
    let row_bytes = |cols: usize| {
        let (block_elems, block_bytes) = format.block()?;
        (cols / block_elems).checked_mul(block_bytes).filter(|_| cols.is_multiple_of(block_elems))
    };
    let row = shape.last().and_then(|&cols| row_bytes(cols));
    row.and_then(|row| shape.iter().rev().skip(1).try_fold(row, |n, &size| n.checked_mul(size)))
        .ok_or_else(|| invalid(name, &format!("shape {shape:?} in {format}")))
}

/// The type's number, then the value.
fn put_value(out: &mut Vec<u8>, value: &MetaValue) {
    use value_type as vt;
    let mut put = |number: u32, bytes: &[u8]| {
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(bytes);
    };
    match value {
        MetaValue::U8(v) => put(vt::U8, &v.to_le_bytes()),
        MetaValue::I8(v) => put(vt::I8, &v.to_le_bytes()),
        MetaValue::U16(v) => put(vt::U16, &v.to_le_bytes()),
        MetaValue::I16(v) => put(vt::I16, &v.to_le_bytes()),
        MetaValue::U32(v) => put(vt::U32, &v.to_le_bytes()),
        MetaValue::I32(v) => put(vt::I32, &v.to_le_bytes()),
        MetaValue::F32(v) => put(vt::F32, &v.to_le_bytes()),
        MetaValue::Bool(v) => put(vt::BOOL, &[u8::from(*v)]),
        MetaValue::U64(v) => put(vt::U64, &v.to_le_bytes()),
        MetaValue::I64(v) => put(vt::I64, &v.to_le_bytes()),
        MetaValue::F64(v) => put(vt::F64, &v.to_le_bytes()),
        MetaValue::String(v) => {
            put(vt::STRING, &[]);
            put_string(out, v.as_bytes());
        }
        MetaValue::Bytes(v) => {
            put(vt::STRING, &[]);
            put_string(out, v);
        }
        MetaValue::Array(v) => {
            put(vt::ARRAY, &[]);
            put_array(out, v);
        }
    }
}

/// The element type's number, the count, then the elements.
fn put_array(out: &mut Vec<u8>, array: &MetaArray) {
    use value_type as vt;
    let mut head = |number: u32, count: usize| {
        out.extend_from_slice(&number.to_le_bytes());
        put_count(out, count);
    };
    macro_rules! scalars {
        ($number:expr, $v:expr) => {{
            head($number, $v.len());
            $v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }};
    }
    match array {
        MetaArray::U8(v) => scalars!(vt::U8, v),
        MetaArray::I8(v) => scalars!(vt::I8, v),
        MetaArray::U16(v) => scalars!(vt::U16, v),
        MetaArray::I16(v) => scalars!(vt::I16, v),
        MetaArray::U32(v) => scalars!(vt::U32, v),
        MetaArray::I32(v) => scalars!(vt::I32, v),
        MetaArray::F32(v) => scalars!(vt::F32, v),
        MetaArray::U64(v) => scalars!(vt::U64, v),
        MetaArray::I64(v) => scalars!(vt::I64, v),
        MetaArray::F64(v) => scalars!(vt::F64, v),
        MetaArray::Bool(v) => {
            head(vt::BOOL, v.len());
            out.extend(v.iter().map(|&b| u8::from(b)));
        }
        MetaArray::String(v) => {
            head(vt::STRING, v.len());
            v.iter().for_each(|text| put_string(out, text.as_bytes()));
        }
        MetaArray::Bytes(v) => {
            head(vt::STRING, v.len());
            v.iter().for_each(|bytes| put_string(out, bytes));
        }
        MetaArray::Array(v) => {
            head(vt::ARRAY, v.len());
            v.iter().for_each(|inner| put_array(out, inner));
        }
    }
}

/// Bytes of a tensor that is written: its type is a format, whose blocks are known.
fn len(tensor: &TensorEntry) -> usize {
    tensor.len_bytes.unwrap_or(0)
}

/// Writes a file from front to back.
#[derive(Debug)]
pub struct GgufWriter<W> {
    out: W,
    layout: GgufLayout,
    /// The tensor being written; the number of tensors when all are.
    current: usize,
    /// Bytes of it that are written.
    written_bytes: usize,
}

impl<W: Write> GgufWriter<W> {
    /// Writes the header.
    pub fn new(mut out: W, layout: GgufLayout) -> Result<GgufWriter<W>, WriteError> {
        out.write_all(layout.header())?;
        Ok(GgufWriter { out, layout, current: 0, written_bytes: 0 })
    }

    /// The tensor that the next bytes go to; `None` when all are written.
    pub fn current(&self) -> Option<&TensorEntry> {
        self.layout.tensors.get(self.current)
    }

    /// Writes the next bytes of the current tensor, and after its last one the padding.
    ///
    /// Errors: more bytes than the tensor has left, or writing fails.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let left = self.current().map_or(0, |t| len(t) - self.written_bytes);
        if bytes.len() > left {
            return Err(WriteError::Invalid {
                what: self.current().map_or("the file".to_owned(), |t| format!("tensor {:?}", t.name)),
                found: format!("{} bytes more", bytes.len()),
                wanted: format!("at most {left}"),
            });
        }
        self.out.write_all(bytes)?;
        self.written_bytes += bytes.len();
        if bytes.len() == left && left > 0 {
            let end = self.current().map_or(0, |t| t.offset_bytes + len(t));
            self.current += 1;
            self.written_bytes = 0;
            let next = self.current().map_or(self.layout.file_bytes, |t| t.offset_bytes);
            io::copy(&mut io::repeat(0).take((next - end) as u64), &mut self.out)?;
        }
        Ok(())
    }

    /// Flushes the output and gives it back.
    ///
    /// Errors: bytes are missing, or writing fails.
    pub fn finish(mut self) -> Result<W, WriteError> {
        if let Some(tensor) = self.current() {
            return Err(WriteError::Invalid {
                what: format!("tensor {:?}", tensor.name),
                found: format!("{} bytes", self.written_bytes),
                wanted: len(tensor).to_string(),
            });
        }
        self.out.flush()?;
        Ok(self.out)
    }
}

/// A whole file in memory: the tensors' bytes are those that `data` gives for each number.
///
/// Errors: as for [`GgufLayout::new`], and bytes of another length than the tensor's.
pub fn to_vec<'a>(
    metadata: &Metadata,
    tensors: &[TensorSpec],
    data: impl Fn(usize) -> Cow<'a, [u8]>,
) -> Result<Vec<u8>, WriteError> {
    let mut writer = GgufWriter::new(Vec::new(), GgufLayout::new(metadata, tensors)?)?;
    for index in 0..tensors.len() {
        writer.write(&data(index))?;
    }
    writer.finish()
}
