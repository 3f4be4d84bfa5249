//! What can be wrong with a GGUF file: each error says what was found, what was wanted and what to try.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::{
    quant::UnknownFormat,
    shown::{shown, shown_path},
};

/// Why a GGUF file could not be opened, read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}; {hint}", shown(file))]
    Io {
        /// File concerned.
        file: String,
        /// What was tried: "open", "map", "write".
        action: &'static str,
        /// The system's answer.
        source: io::Error,
        /// What to try.
        hint: &'static str,
    },
    /// Something wrote to a file that is mapped.
    #[error(
        "{}: the model's file was changed or cut while it was in use: found {found}; leave the file alone while it is \
         open, and start again",
        shown(file)
    )]
    Changed {
        /// File concerned.
        file: String,
        /// What it is now and was before.
        found: String,
    },
    /// A directory, a device, a pipe.
    #[error("{}: found {found}, wanted a GGUF file; give the path of the .gguf file itself", shown(file))]
    NotAFile {
        /// Path concerned.
        file: String,
        /// What it is instead.
        found: &'static str,
    },
    /// The first four bytes are not "GGUF".
    #[error("{}: found {found}, wanted a GGUF file (first bytes \"GGUF\"); {hint}", shown(file))]
    NotGguf {
        /// File concerned.
        file: String,
        /// What the first bytes look like.
        found: String,
        /// What to try.
        hint: &'static str,
    },
    /// A GGUF file of a version that this reader does not know, or a big-endian one.
    #[error("{}: found GGUF {found}, wanted little-endian version 2 or 3; {hint}", shown(file))]
    Version {
        /// File concerned.
        file: String,
        /// What the file states.
        found: String,
        /// What to try.
        hint: &'static str,
    },
    /// The file ends before what it announces.
    #[error(
        "{}: {what} at byte {offset} wants {wanted} bytes, but only {remaining} bytes are left; the file is \
         incomplete or damaged: fetch it again and compare its size",
        shown(file)
    )]
    Truncated {
        /// File concerned.
        file: String,
        /// What was being read: "key 12", "tensor table entry 3", "array of key \"…\"".
        what: String,
        /// Where it begins.
        offset: u64,
        /// Bytes that it needs at the least.
        wanted: u128,
        /// Bytes left.
        remaining: u64,
    },
    /// A value of the header that cannot be right.
    #[error("{}: {what}: found {found}, wanted {wanted}; {hint}", shown(file))]
    Invalid {
        /// File concerned.
        file: String,
        /// Which key, tensor or field.
        what: String,
        /// What the file states.
        found: String,
        /// What would be right.
        wanted: String,
        /// What to try.
        hint: &'static str,
    },
    /// A metadata key or tensor name that occurs twice.
    #[error(
        "{}: {kind} {name:?} occurs twice, wanted once; the file is damaged or badly converted: convert it again",
        shown(file)
    )]
    Duplicate {
        /// File concerned.
        file: String,
        /// "metadata key" or "tensor".
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A tensor in a format that this project does not read.
    #[error(
        "{}: tensor {tensor:?}: {source}; use a file quantized to one of those (Q4_K_M, for one)",
        shown(file)
    )]
    TensorType {
        /// File concerned.
        file: String,
        /// The tensor.
        tensor: String,
        /// The type found.
        source: UnknownFormat,
    },
    /// Two tensors claim the same bytes.
    #[error(
        "{}: tensors {first:?} and {second:?} overlap: the second begins at data byte {second_offset}, the first ends \
         at {first_end}; the file is damaged or badly converted: convert it again",
        shown(file)
    )]
    Overlap {
        /// File concerned.
        file: String,
        /// The tensor that begins first.
        first: String,
        /// The one that begins inside it.
        second: String,
        /// End of the first, in bytes from the start of the data.
        first_end: u64,
        /// Start of the second.
        second_offset: u64,
    },
    /// Part of a split model is not there.
    #[error(
        "{}: part {part} of {count} is missing, wanted {}; put all {count} parts into one directory",
        shown(file),
        shown_path(path)
    )]
    MissingPart {
        /// The part that was given.
        file: String,
        /// Number of the missing part, from 1.
        part: usize,
        /// How many parts there are.
        count: usize,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A metadata key that the model needs is absent.
    #[error(
        "{}: metadata key {key:?} is missing, wanted {wanted}; use a complete conversion of the model",
        shown(file)
    )]
    MissingKey {
        /// File concerned.
        file: String,
        /// The key.
        key: String,
        /// The type wanted.
        wanted: &'static str,
    },
    /// A tensor that the model needs is absent.
    #[error("{}: tensor {tensor:?} is missing; use a complete conversion of the model", shown(file))]
    MissingTensor {
        /// File concerned.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// A metadata value of another type, or out of the range, than wanted.
    #[error(
        "{}: metadata key {key:?}: found {found}, wanted {wanted}; use a correct conversion of the model",
        shown(file)
    )]
    KeyType {
        /// File concerned.
        file: String,
        /// The key.
        key: String,
        /// Type (and value, if short) found.
        found: String,
        /// Type wanted.
        wanted: &'static str,
    },
}

impl GgufError {
    /// The file concerned.
    pub fn file(&self) -> &str {
        match self {
            GgufError::Io { file, .. }
            | GgufError::Changed { file, .. }
            | GgufError::NotAFile { file, .. }
            | GgufError::NotGguf { file, .. }
            | GgufError::Version { file, .. }
            | GgufError::Truncated { file, .. }
            | GgufError::Invalid { file, .. }
            | GgufError::Duplicate { file, .. }
            | GgufError::TensorType { file, .. }
            | GgufError::Overlap { file, .. }
            | GgufError::MissingPart { file, .. }
            | GgufError::MissingKey { file, .. }
            | GgufError::MissingTensor { file, .. }
            | GgufError::KeyType { file, .. } => file,
        }
    }

    /// What is wrong, where the file's name stands by it already.
    pub fn without_file(&self) -> String {
        let text = self.to_string();
        let named = format!("{}: ", shown(self.file()));
        text.strip_prefix(&named).map(str::to_owned).unwrap_or(text)
    }
}
