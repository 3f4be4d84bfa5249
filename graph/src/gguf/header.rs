//! One file's header: magic, version, metadata, tensor table, each checked against what the file can hold.

use std::{collections::HashSet, fmt::Arguments};

use super::{
    GgufError, MetaArray, MetaValue, Metadata, TensorEntry,
    cursor::{Cursor, KEY_MAX_BYTES, NAME_MAX_BYTES, clipped},
    keys,
};
use crate::quant::GgmlType;

use self::value_type as vt;

pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// Alignment of tensor data where `general.alignment` is absent.
const DEFAULT_ALIGNMENT_BYTES: usize = 32;
/// Smallest alignment that the specification allows; lets a tensor's bytes be read as floats in place.
pub(super) const MIN_ALIGNMENT_BYTES: usize = 8;
/// Arrays of arrays deeper than this are refused. No known file nests at all.
const MAX_ARRAY_DEPTH: usize = 4;
const MAX_DIMS: u32 = 4;
const DAMAGED: &str = "the file is damaged or badly converted: fetch or convert it again";

/// GGUF's numbers for the types of metadata values.
pub(super) mod value_type {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

/// A parsed header. Every tensor lies within the file, aligned, overlapping no other; where the size of a tensor's blocks
/// is not known, it begins so.
#[derive(Debug)]
pub(super) struct Header {
    pub version: u32,
    pub alignment_bytes: usize,
    /// Bytes of magic, version, counts, metadata and tensor table.
    pub header_bytes: usize,
    pub metadata: Metadata,
    pub tensors: Vec<TensorEntry>,
}

/// Parses the header of the file whose whole content is `bytes`. `part` is recorded in the entries.
pub(super) fn parse(file: &str, bytes: &[u8], part: usize) -> Result<Header, GgufError> {
    parse_sized(file, bytes, bytes.len(), part)
}

/// Parses a header given alone, of a file of `file_bytes` bytes.
pub(super) fn parse_sized(
    file: &str,
    bytes: &[u8],
    file_bytes: usize,
    part: usize,
) -> Result<Header, GgufError> {
    let mut cursor = Cursor::new(file, bytes);
    let version = parse_version(&mut cursor)?;
    let tensor_count: u64 = cursor.scalar(format_args!("the number of tensors"))?;
    let pair_count: u64 = cursor.scalar(format_args!("the number of metadata keys"))?;

    let metadata = parse_metadata(&mut cursor, pair_count)?;
    let alignment_bytes = parse_alignment(file, &metadata)?;
    let tensors = parse_tensors(&mut cursor, tensor_count, part)?;

    let header_bytes = cursor.position();
    let mut header = Header { version, alignment_bytes, header_bytes, metadata, tensors };
    place_tensors(file, file_bytes, &mut header)?;
    Ok(header)
}

fn parse_version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let file = cursor.file();
    let magic = cursor.take(4, format_args!("the magic \"GGUF\""))?;
    if magic != MAGIC {
        let found = match magic {
            b"ggml" | b"lmgg" | b"tjgg" | b"fmgg" | b"ggjt" | b"ggmf" | b"algg" | b"ggla" => {
                "an old GGML file".to_owned()
            }
            [b'P', b'K', ..] => "a ZIP archive (PyTorch?)".to_owned(),
            _ if magic.is_ascii() => format!("{:?}", String::from_utf8_lossy(magic)),
            _ => format!("bytes {magic:02x?}"),
        };
        return Err(GgufError::NotGguf {
            file: file.to_owned(),
            found,
            hint: "give a model in GGUF, or convert it to GGUF",
        });
    }
    let version: u32 = cursor.scalar(format_args!("the version"))?;
    match version {
        2 | 3 => Ok(version),
        1 => Err(GgufError::Version {
            file: file.to_owned(),
            found: "version 1 (of 2023, withdrawn)".to_owned(),
            hint: "convert the model again",
        }),
        // A byte-swapped small number: the same file written on a big-endian machine.
        v if v.swap_bytes() <= 0xffff && v > 0xffff => Err(GgufError::Version {
            file: file.to_owned(),
            found: format!("big-endian version {}", v.swap_bytes()),
            hint: "convert the model for little-endian machines",
        }),
        v => Err(GgufError::Version {
            file: file.to_owned(),
            found: format!("version {v}"),
            hint: "get a newer moe-run, or a file of version 3",
        }),
    }
}

fn parse_metadata(cursor: &mut Cursor<'_>, pair_count: u64) -> Result<Metadata, GgufError> {
    // The smallest pair: u64 length of an empty key, u32 type, one byte.
    const PAIR_MIN_BYTES: u128 = 8 + 4 + 1;
    cursor.want(u128::from(pair_count) * PAIR_MIN_BYTES, format_args!("{pair_count} metadata keys"))?;
    let mut metadata = Metadata::empty(cursor.file());
    for i in 0..pair_count {
        let key = cursor.string(KEY_MAX_BYTES, format_args!("metadata key {i} of {pair_count}"))?;
        if key.is_empty() {
            return Err(cursor.invalid(
                format_args!("metadata key {i} of {pair_count}"),
                "an empty name".to_owned(),
                "a name".to_owned(),
                DAMAGED,
            ));
        }
        let value_type: u32 = cursor.scalar(format_args!("the type of metadata key {}", clipped(key)))?;
        let value = parse_value(cursor, key, value_type)?;
        metadata.insert(key.to_owned(), value)?;
    }
    Ok(metadata)
}

fn parse_value(cursor: &mut Cursor<'_>, key: &str, value_type: u32) -> Result<MetaValue, GgufError> {
    let shown_key = clipped(key);
    let what = format_args!("metadata key {shown_key}");
    Ok(match value_type {
        vt::U8 => MetaValue::U8(cursor.scalar(what)?),
        vt::I8 => MetaValue::I8(cursor.scalar(what)?),
        vt::U16 => MetaValue::U16(cursor.scalar(what)?),
        vt::I16 => MetaValue::I16(cursor.scalar(what)?),
        vt::U32 => MetaValue::U32(cursor.scalar(what)?),
        vt::I32 => MetaValue::I32(cursor.scalar(what)?),
        vt::F32 => MetaValue::F32(cursor.scalar(what)?),
        vt::BOOL => MetaValue::Bool(cursor.bool(what)?),
        // A string is judged by what uses it: a description in Latin-1 harms nothing.
        vt::STRING => {
            let bytes = cursor.string_bytes(u64::MAX, what)?;
            match std::str::from_utf8(bytes) {
                Ok(text) => MetaValue::String(text.to_owned()),
                Err(_) => MetaValue::Bytes(bytes.to_vec()),
            }
        }
        vt::ARRAY => MetaValue::Array(parse_array(cursor, &shown_key, 1)?),
        vt::U64 => MetaValue::U64(cursor.scalar(what)?),
        vt::I64 => MetaValue::I64(cursor.scalar(what)?),
        vt::F64 => MetaValue::F64(cursor.scalar(what)?),
        other => return Err(unknown_type(cursor, &shown_key, other)),
    })
}

fn unknown_type(cursor: &Cursor<'_>, shown_key: &str, found: u32) -> GgufError {
    cursor.invalid(
        format_args!("metadata key {shown_key}"),
        format!("value type {found}"),
        "a type of 0 to 12".to_owned(),
        DAMAGED,
    )
}

fn parse_array(cursor: &mut Cursor<'_>, shown_key: &str, depth: usize) -> Result<MetaArray, GgufError> {
    let what = format_args!("array of metadata key {shown_key}");
    let element_type: u32 = cursor.scalar(what)?;
    let count: u64 = cursor.scalar(what)?;
    Ok(match element_type {
        vt::U8 => MetaArray::U8(cursor.scalars(count, what)?),
        vt::I8 => MetaArray::I8(cursor.scalars(count, what)?),
        vt::U16 => MetaArray::U16(cursor.scalars(count, what)?),
        vt::I16 => MetaArray::I16(cursor.scalars(count, what)?),
        vt::U32 => MetaArray::U32(cursor.scalars(count, what)?),
        vt::I32 => MetaArray::I32(cursor.scalars(count, what)?),
        vt::F32 => MetaArray::F32(cursor.scalars(count, what)?),
        vt::U64 => MetaArray::U64(cursor.scalars(count, what)?),
        vt::I64 => MetaArray::I64(cursor.scalars(count, what)?),
        vt::F64 => MetaArray::F64(cursor.scalars(count, what)?),
        vt::BOOL => {
            cursor.want(count.into(), what)?;
            MetaArray::Bool((0..count).map(|_| cursor.bool(what)).collect::<Result<_, _>>()?)
        }
        vt::STRING => {
            const STRING_MIN_BYTES: u128 = 8;
            cursor.want(u128::from(count) * STRING_MIN_BYTES, what)?;
            parse_strings(cursor, count, what)?
        }
        vt::ARRAY => {
            const ARRAY_MIN_BYTES: u128 = 4 + 8;
            if depth == MAX_ARRAY_DEPTH {
                return Err(cursor.invalid(
                    what,
                    format!("arrays nested deeper than {MAX_ARRAY_DEPTH}"),
                    format!("at most {MAX_ARRAY_DEPTH} levels"),
                    DAMAGED,
                ));
            }
            cursor.want(u128::from(count) * ARRAY_MIN_BYTES, what)?;
            let arrays = (0..count).map(|_| parse_array(cursor, shown_key, depth + 1));
            MetaArray::Array(arrays.collect::<Result<_, _>>()?)
        }
        other => return Err(unknown_type(cursor, shown_key, other)),
    })
}

/// The strings of an array: as text, unless one of them is not UTF-8.
fn parse_strings(cursor: &mut Cursor<'_>, count: u64, what: Arguments<'_>) -> Result<MetaArray, GgufError> {
    let mut texts: Vec<String> = Vec::new();
    for i in 0..count {
        let bytes = cursor.string_bytes(u64::MAX, what)?;
        let Ok(text) = std::str::from_utf8(bytes) else {
            let mut strings: Vec<Vec<u8>> = texts.into_iter().map(String::into_bytes).collect();
            strings.push(bytes.to_vec());
            for _ in i + 1..count {
                strings.push(cursor.string_bytes(u64::MAX, what)?.to_vec());
            }
            return Ok(MetaArray::Bytes(strings));
        };
        texts.push(text.to_owned());
    }
    Ok(MetaArray::String(texts))
}

/// Alignment of tensor data, as the metadata states it.
pub(super) fn parse_alignment(file: &str, metadata: &Metadata) -> Result<usize, GgufError> {
    let Some(alignment) = metadata.opt_u32(keys::GENERAL_ALIGNMENT)? else {
        return Ok(DEFAULT_ALIGNMENT_BYTES);
    };
    let bytes = alignment as usize;
    if !alignment.is_power_of_two() || bytes < MIN_ALIGNMENT_BYTES {
        return Err(GgufError::Invalid {
            file: file.to_owned(),
            what: format!("metadata key {:?}", keys::GENERAL_ALIGNMENT),
            found: alignment.to_string(),
            wanted: format!("a power of two of {MIN_ALIGNMENT_BYTES} or more"),
            hint: DAMAGED,
        });
    }
    Ok(bytes)
}

/// The tensor table. Offsets are left relative to the start of the data.
fn parse_tensors(cursor: &mut Cursor<'_>, count: u64, part: usize) -> Result<Vec<TensorEntry>, GgufError> {
    // The smallest entry: u64 length and one byte of name, u32 dimensions, one u64, u32 type, u64 offset.
    const ENTRY_MIN_BYTES: u128 = 8 + 1 + 4 + 8 + 4 + 8;
    cursor.want(u128::from(count) * ENTRY_MIN_BYTES, format_args!("a table of {count} tensors"))?;
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for i in 0..count {
        let name = cursor.string(NAME_MAX_BYTES, format_args!("the name of tensor {i} of {count}"))?;
        if name.is_empty() {
            return Err(cursor.invalid(
                format_args!("tensor {i} of {count}"),
                "an empty name".to_owned(),
                "a name".to_owned(),
                DAMAGED,
            ));
        }
        if !names.insert(name) {
            return Err(GgufError::Duplicate {
                file: cursor.file().to_owned(),
                kind: "tensor",
                name: name.to_owned(),
            });
        }
        tensors.push(parse_tensor(cursor, name, part)?);
    }
    Ok(tensors)
}

fn parse_tensor(cursor: &mut Cursor<'_>, name: &str, part: usize) -> Result<TensorEntry, GgufError> {
    let what = format_args!("tensor {name:?}");
    let dims: u32 = cursor.scalar(what)?;
    if !(1..=MAX_DIMS).contains(&dims) {
        return Err(cursor.invalid(what, format!("{dims} dimensions"), format!("1 to {MAX_DIMS}"), DAMAGED));
    }
    // The file has the innermost dimension first; from here on shapes are outermost-first.
    let mut sizes: Vec<u64> = cursor.scalars(dims.into(), what)?;
    sizes.reverse();
    let ggml_type = GgmlType::from_number(cursor.scalar(what)?);
    let offset: u64 = cursor.scalar(what)?;

    let shape: Option<Vec<usize>> =
        sizes.iter().map(|&n| usize::try_from(n).ok().filter(|&n| n > 0)).collect();
    let elems = shape.as_ref().and_then(|s| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d)));
    let (Some(shape), Some(elems)) = (shape, elems) else {
        return Err(cursor.invalid(
            what,
            format!("shape {sizes:?}"),
            "dimensions of at least 1 whose product fits the machine".to_owned(),
            DAMAGED,
        ));
    };
    let cols_elems = shape.last().copied().unwrap_or(1);
    let len_bytes = match ggml_type.block() {
        None => None,
        Some((block_elems, block_bytes)) => {
            let whole = cols_elems.is_multiple_of(block_elems);
            let Some(len) = (elems / block_elems).checked_mul(block_bytes).filter(|_| whole) else {
                return Err(cursor.invalid(
                    what,
                    format!("shape {shape:?} in {ggml_type}"),
                    format!("rows of a multiple of {block_elems} elements"),
                    DAMAGED,
                ));
            };
            Some(len)
        }
    };
    let Ok(offset_bytes) = usize::try_from(offset) else {
        return Err(cursor.invalid(
            what,
            format!("data offset {offset}"),
            "an offset within the file".to_owned(),
            DAMAGED,
        ));
    };
    Ok(TensorEntry { name: name.to_owned(), shape, ggml_type, part, offset_bytes, len_bytes })
}

/// Turns data offsets into file offsets and checks alignment, range and overlap. Of a tensor whose length is not known
/// only its beginning is checked: its one element at the least takes a byte.
fn place_tensors(file: &str, file_bytes: usize, header: &mut Header) -> Result<(), GgufError> {
    let data_start = header.header_bytes.checked_next_multiple_of(header.alignment_bytes);
    for tensor in &mut header.tensors {
        let relative = tensor.offset_bytes;
        if relative % header.alignment_bytes != 0 {
            return Err(GgufError::Invalid {
                file: file.to_owned(),
                what: format!("tensor {:?}", tensor.name),
                found: format!("data offset {relative}"),
                wanted: format!("a multiple of the alignment, {} bytes", header.alignment_bytes),
                hint: DAMAGED,
            });
        }
        let start = data_start.and_then(|s| s.checked_add(relative));
        let least_bytes = tensor.len_bytes.unwrap_or(1);
        let end = start.and_then(|s| s.checked_add(least_bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes => tensor.offset_bytes = start,
            _ => {
                let offset = data_start.unwrap_or(usize::MAX) as u64;
                let offset = offset.saturating_add(relative as u64);
                return Err(GgufError::Truncated {
                    file: file.to_owned(),
                    what: format!("tensor {:?}", tensor.name),
                    offset,
                    wanted: least_bytes as u128,
                    remaining: (file_bytes as u64).saturating_sub(offset),
                });
            }
        }
    }
    let mut by_offset: Vec<&TensorEntry> = header.tensors.iter().collect();
    by_offset.sort_by_key(|t| t.offset_bytes);
    for pair in by_offset.windows(2) {
        let end = pair[0].offset_bytes + pair[0].len_bytes.unwrap_or(1); // within the file, as just checked
        if pair[1].offset_bytes < end {
            return Err(GgufError::Overlap {
                file: file.to_owned(),
                first: pair[0].name.clone(),
                second: pair[1].name.clone(),
                first_end: end as u64,
                second_offset: pair[1].offset_bytes as u64,
            });
        }
    }
    Ok(())
}
