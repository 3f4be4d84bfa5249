//! A cursor over a file's header that never reads past the end and never believes a length before checking it.

use std::fmt;

use super::GgufError;

/// More than any real header needs (the largest vocabularies take about 20 MB): a bound on memory for hostile files that
/// are themselves huge.
pub(super) const HEADER_MAX_BYTES: usize = 64 << 20;

/// Longest key that the GGUF specification allows.
pub(super) const KEY_MAX_BYTES: u64 = 65535;
/// Longest tensor name that the GGUF specification allows.
pub(super) const NAME_MAX_BYTES: u64 = 64;

/// What a file says, clipped and escaped for a message.
pub(super) fn clipped(text: &str) -> String {
    const CHARS: usize = 80;
    match text.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Reads little-endian values from the start of a file.
pub(super) struct Cursor<'a> {
    file: &'a str,
    /// The whole file.
    bytes: &'a [u8],
    at: usize,
}

/// A type with a fixed little-endian representation.
pub(super) trait Scalar: Sized {
    const BYTES: usize;
    /// `bytes` has exactly `BYTES` bytes.
    fn read(bytes: &[u8]) -> Self;
}

macro_rules! scalars {
    ($($ty:ty),*) => { $(
        impl Scalar for $ty {
            const BYTES: usize = size_of::<$ty>();
            fn read(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$ty>()];
                raw.copy_from_slice(bytes);
                <$ty>::from_le_bytes(raw)
            }
        }
    )* };
}
scalars!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a str, bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { file, bytes, at: 0 }
    }

    pub(super) fn file(&self) -> &'a str {
        self.file
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Checks that `wanted` bytes are left; does not advance.
    pub(super) fn want(&self, wanted: u128, what: fmt::Arguments<'_>) -> Result<(), GgufError> {
        let remaining = self.bytes.len() - self.at;
        if wanted > remaining as u128 {
            return Err(GgufError::Truncated {
                file: self.file.to_owned(),
                what: what.to_string(),
                offset: self.at as u64,
                wanted,
                remaining: remaining as u64,
            });
        }
        if wanted > (HEADER_MAX_BYTES - self.at) as u128 {
            return Err(self.invalid(
                what,
                format!("{wanted} bytes at byte {}", self.at),
                format!("metadata and tensor table within the first {} MiB", HEADER_MAX_BYTES >> 20),
                "the file is damaged or hostile",
            ));
        }
        Ok(())
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: u64, what: fmt::Arguments<'_>) -> Result<&'a [u8], GgufError> {
        self.want(count.into(), what)?;
        let start = self.at;
        self.at += count as usize; // no more than the bytes left, as just checked
        Ok(&self.bytes[start..self.at])
    }

    /// The next scalar.
    pub(super) fn scalar<T: Scalar>(&mut self, what: fmt::Arguments<'_>) -> Result<T, GgufError> {
        Ok(T::read(self.take(T::BYTES as u64, what)?))
    }

    /// `count` scalars in a row.
    pub(super) fn scalars<T: Scalar>(
        &mut self,
        count: u64,
        what: fmt::Arguments<'_>,
    ) -> Result<Vec<T>, GgufError> {
        self.want(u128::from(count) * T::BYTES as u128, what)?;
        let bytes = self.take(count * T::BYTES as u64, what)?;
        Ok(bytes.chunks_exact(T::BYTES).map(T::read).collect())
    }

    /// A bool: one byte, 0 or 1.
    pub(super) fn bool(&mut self, what: fmt::Arguments<'_>) -> Result<bool, GgufError> {
        match self.scalar::<u8>(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.invalid(
                what,
                format!("byte {other}"),
                "a bool, 0 or 1".to_owned(),
                "the file is damaged: fetch it again",
            )),
        }
    }

    /// A string that may be no UTF-8: u64 length, then bytes.
    pub(super) fn string_bytes(
        &mut self,
        max_bytes: u64,
        what: fmt::Arguments<'_>,
    ) -> Result<&'a [u8], GgufError> {
        let count: u64 = self.scalar(what)?;
        if count > max_bytes {
            return Err(self.invalid(
                what,
                format!("a length of {count} bytes"),
                format!("at most {max_bytes}"),
                "the file is damaged: fetch it again",
            ));
        }
        self.take(count, what)
    }

    /// A string: u64 length, then UTF-8.
    pub(super) fn string(&mut self, max_bytes: u64, what: fmt::Arguments<'_>) -> Result<&'a str, GgufError> {
        let bytes = self.string_bytes(max_bytes, what)?;
        let start = self.at - bytes.len();
        std::str::from_utf8(bytes).map_err(|e| {
            self.invalid(
                what,
                format!("a byte that is not UTF-8 at byte {}", start + e.valid_up_to()),
                "UTF-8".to_owned(),
                "the file is damaged: fetch it again",
            )
        })
    }

    pub(super) fn invalid(
        &self,
        what: fmt::Arguments<'_>,
        found: String,
        wanted: String,
        hint: &'static str,
    ) -> GgufError {
        GgufError::Invalid { file: self.file.to_owned(), what: what.to_string(), found, wanted, hint }
    }
}
