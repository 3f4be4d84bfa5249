//! Metadata: the key-value pairs of a file, in its order, with accessors that say what was found and wanted.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use super::GgufError;
use crate::shown::shown_bytes;

/// A metadata value, of any of GGUF's types.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "the variants are the types that they carry")]
pub enum MetaValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    /// A string that is not UTF-8.
    Bytes(Vec<u8>),
    Array(MetaArray),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of a metadata value; all its elements have one type.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "the variants are the element types that they carry")]
pub enum MetaArray {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    /// Strings, of which one at the least is not UTF-8.
    Bytes(Vec<Vec<u8>>),
    Array(Vec<MetaArray>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Runs `$body` with `$v` bound to the vector of any variant.
macro_rules! any_array {
    ($array:expr, $v:ident => $body:expr) => {
        match $array {
            MetaArray::U8($v) => $body,
            MetaArray::I8($v) => $body,
            MetaArray::U16($v) => $body,
            MetaArray::I16($v) => $body,
            MetaArray::U32($v) => $body,
            MetaArray::I32($v) => $body,
            MetaArray::F32($v) => $body,
            MetaArray::Bool($v) => $body,
            MetaArray::String($v) => $body,
            MetaArray::Bytes($v) => $body,
            MetaArray::Array($v) => $body,
            MetaArray::U64($v) => $body,
            MetaArray::I64($v) => $body,
            MetaArray::F64($v) => $body,
        }
    };
}

impl MetaArray {
    /// How many elements the array has.
    pub fn len(&self) -> usize {
        any_array!(self, v => v.len())
    }

    /// Whether the array has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type's name: "u32", "string", "array".
    pub const fn element_type(&self) -> &'static str {
        match self {
            MetaArray::U8(_) => "u8",
            MetaArray::I8(_) => "i8",
            MetaArray::U16(_) => "u16",
            MetaArray::I16(_) => "i16",
            MetaArray::U32(_) => "u32",
            MetaArray::I32(_) => "i32",
            MetaArray::F32(_) => "f32",
            MetaArray::Bool(_) => "bool",
            MetaArray::String(_) | MetaArray::Bytes(_) => "string",
            MetaArray::Array(_) => "array",
            MetaArray::U64(_) => "u64",
            MetaArray::I64(_) => "i64",
            MetaArray::F64(_) => "f64",
        }
    }

    /// The elements as integers, where the type is an integer one and every value fits.
    fn integers<T>(&self) -> Option<Vec<T>>
    where
        T: TryFrom<u8> + TryFrom<i8> + TryFrom<u16> + TryFrom<i16> + TryFrom<u32> + TryFrom<i32>,
        T: TryFrom<u64> + TryFrom<i64>,
    {
        fn all<S: Copy, T: TryFrom<S>>(v: &[S]) -> Option<Vec<T>> {
            v.iter().map(|&x| T::try_from(x).ok()).collect()
        }
        match self {
            MetaArray::U8(v) => all(v),
            MetaArray::I8(v) => all(v),
            MetaArray::U16(v) => all(v),
            MetaArray::I16(v) => all(v),
            MetaArray::U32(v) => all(v),
            MetaArray::I32(v) => all(v),
            MetaArray::U64(v) => all(v),
            MetaArray::I64(v) => all(v),
            MetaArray::F32(_)
            | MetaArray::F64(_)
            | MetaArray::Bool(_)
            | MetaArray::String(_)
            | MetaArray::Bytes(_)
            | MetaArray::Array(_) => None,
        }
    }
}

impl MetaValue {
    /// The type's name: "u32", "string", "array of string".
    pub fn type_name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            MetaValue::U8(_) => "u8",
            MetaValue::I8(_) => "i8",
            MetaValue::U16(_) => "u16",
            MetaValue::I16(_) => "i16",
            MetaValue::U32(_) => "u32",
            MetaValue::I32(_) => "i32",
            MetaValue::F32(_) => "f32",
            MetaValue::Bool(_) => "bool",
            MetaValue::String(_) | MetaValue::Bytes(_) => "string",
            MetaValue::U64(_) => "u64",
            MetaValue::I64(_) => "i64",
            MetaValue::F64(_) => "f64",
            MetaValue::Array(a) => return Cow::Owned(format!("array of {}", a.element_type())),
        })
    }

    /// The value as an integer, for the integer types.
    fn integer(&self) -> Option<i128> {
        Some(match *self {
            MetaValue::U8(v) => v.into(),
            MetaValue::I8(v) => v.into(),
            MetaValue::U16(v) => v.into(),
            MetaValue::I16(v) => v.into(),
            MetaValue::U32(v) => v.into(),
            MetaValue::I32(v) => v.into(),
            MetaValue::U64(v) => v.into(),
            MetaValue::I64(v) => v.into(),
            MetaValue::F32(_)
            | MetaValue::F64(_)
            | MetaValue::Bool(_)
            | MetaValue::String(_)
            | MetaValue::Bytes(_)
            | MetaValue::Array(_) => return None,
        })
    }

    /// Type and, for scalars, value, for messages: "i32 -1", "array of 3 u32".
    pub fn describe(&self) -> String {
        const STRING_CHARS: usize = 40;
        match self {
            MetaValue::F32(v) => format!("f32 {v}"),
            MetaValue::F64(v) => format!("f64 {v}"),
            MetaValue::Bool(v) => format!("bool {v}"),
            MetaValue::String(s) if s.chars().nth(STRING_CHARS).is_some() => {
                format!("string {:?}…", s.chars().take(STRING_CHARS).collect::<String>())
            }
            MetaValue::String(s) => format!("string {s:?}"),
            MetaValue::Bytes(b) => format!("string {}, which is not UTF-8", clipped_bytes(b, STRING_CHARS)),
            MetaValue::Array(MetaArray::Bytes(strings)) => {
                let bad = strings.iter().enumerate().find(|(_, b)| std::str::from_utf8(b).is_err());
                let (index, bytes) = bad.map_or((0, &[][..]), |(index, bytes)| (index, bytes.as_slice()));
                let shown = clipped_bytes(bytes, STRING_CHARS);
                format!("array of {} strings, of which number {index}, {shown}, is not UTF-8", strings.len())
            }
            MetaValue::Array(a) => format!("array of {} {}", a.len(), a.element_type()),
            integer => format!("{} {}", integer.type_name(), integer.integer().unwrap_or_default()),
        }
    }
}

/// The first bytes of a string that is not UTF-8, for messages: the first that is none is among them.
fn clipped_bytes(bytes: &[u8], max_bytes: usize) -> String {
    let valid = std::str::from_utf8(bytes).map_or_else(|e| e.valid_up_to(), str::len);
    let mut start = valid.saturating_sub(max_bytes / 2);
    while start < valid && bytes[start] & 0xC0 == 0x80 {
        start += 1; // not within a character
    }
    let end = (start + max_bytes).min(bytes.len());
    let (before, behind) = (if start > 0 { "…" } else { "" }, if end < bytes.len() { "…" } else { "" });
    format!("\"{before}{}{behind}\"", shown_bytes(&bytes[start..end]))
}

/// The metadata of a file (of a split model's first part), in the file's order.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    /// Names the file in errors.
    origin: Arc<str>,
    entries: Vec<(String, MetaValue)>,
    index: HashMap<String, usize>,
}

/// The accessors of one type: `name` wants the key, `opt_name` gives `None` where it is absent.
macro_rules! accessors {
    ($(#[$doc:meta])* $name:ident, $opt:ident, $ty:ty, $wanted:literal, |$v:ident| $get:expr) => {
        $(#[$doc])*
        ///
        /// Errors: the key is absent, or its value is of another type or does not fit.
        pub fn $name(&self, key: &str) -> Result<$ty, GgufError> {
            self.$opt(key)?.ok_or_else(|| self.missing(key, $wanted))
        }

        $(#[$doc])*
        /// `None` when the key is absent.
        ///
        /// Errors: the value is of another type or does not fit.
        pub fn $opt(&self, key: &str) -> Result<Option<$ty>, GgufError> {
            let Some($v) = self.get(key) else { return Ok(None) };
            match $get {
                Some(value) => Ok(Some(value)),
                None => Err(self.wrong_type(key, $v, $wanted)),
            }
        }
    };
}

impl Metadata {
    /// Metadata from pairs. `origin` names their source in errors.
    ///
    /// Errors: a key occurs twice.
    pub fn from_pairs<K: Into<String>>(
        origin: &str,
        pairs: impl IntoIterator<Item = (K, MetaValue)>,
    ) -> Result<Metadata, GgufError> {
        let mut metadata = Metadata::empty(origin);
        for (key, value) in pairs {
            metadata.insert(key.into(), value)?;
        }
        Ok(metadata)
    }

    pub(super) fn empty(origin: &str) -> Metadata {
        Metadata { origin: origin.into(), ..Metadata::default() }
    }

    pub(super) fn insert(&mut self, key: String, value: MetaValue) -> Result<(), GgufError> {
        if self.index.contains_key(&key) {
            return Err(GgufError::Duplicate {
                file: self.origin.to_string(),
                kind: "metadata key",
                name: key,
            });
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        Ok(())
    }

    /// What names the metadata's source in errors: the file.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&MetaValue> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// Keys and values in the file's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &MetaValue)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A string for people to look at: bytes of it that are not UTF-8 are escaped. `None` when the key is absent.
    ///
    /// Errors: the value is of another type.
    pub fn opt_display(&self, key: &str) -> Result<Option<Cow<'_, str>>, GgufError> {
        match self.get(key) {
            Some(MetaValue::Bytes(bytes)) => Ok(Some(shown_bytes(bytes).into())),
            _ => Ok(self.opt_str(key)?.map(Cow::Borrowed)),
        }
    }

    /// The error for a key that is absent.
    pub fn missing(&self, key: &str, wanted: &'static str) -> GgufError {
        GgufError::MissingKey { file: self.origin.to_string(), key: key.to_owned(), wanted }
    }

    fn wrong_type(&self, key: &str, found: &MetaValue, wanted: &'static str) -> GgufError {
        let found = found.describe();
        GgufError::KeyType { file: self.origin.to_string(), key: key.to_owned(), found, wanted }
    }

    accessors! {
        /// An integer of any type, whatever its value.
        integer, opt_integer, i128, "an integer", |v| v.integer()
    }
    accessors! {
        /// An integer of any type that fits a u32.
        u32, opt_u32, u32, "an integer of 0 to 4294967295", |v| v.integer().and_then(|i| i.try_into().ok())
    }
    accessors! {
        /// An integer of any type that fits a u64.
        u64, opt_u64, u64, "an integer that is not negative", |v| v.integer().and_then(|i| i.try_into().ok())
    }
    accessors! {
        /// An integer of any type that fits a usize.
        usize, opt_usize, usize, "an integer that is not negative", |v| v.integer().and_then(|i| i.try_into().ok())
    }
    accessors! {
        /// An integer of any type that fits an i32.
        i32, opt_i32, i32, "an integer of 32 bits", |v| v.integer().and_then(|i| i.try_into().ok())
    }
    accessors! {
        /// A float (an f64 is rounded to f32).
        f32, opt_f32, f32, "a float", |v| match *v {
            MetaValue::F32(x) => Some(x),
            MetaValue::F64(x) => Some(x as f32),
            _ => None,
        }
    }
    accessors! {
        /// A boolean.
        bool, opt_bool, bool, "a bool", |v| match *v {
            MetaValue::Bool(x) => Some(x),
            _ => None,
        }
    }
    accessors! {
        /// A string.
        str, opt_str, &str, "a string", |v| match v {
            MetaValue::String(x) => Some(x.as_str()),
            _ => None,
        }
    }
    accessors! {
        /// An array of any type.
        array, opt_array, &MetaArray, "an array", |v| match v {
            MetaValue::Array(x) => Some(x),
            _ => None,
        }
    }
    accessors! {
        /// An array of strings.
        string_array, opt_string_array, &[String], "an array of strings", |v| match v {
            MetaValue::Array(MetaArray::String(x)) => Some(x.as_slice()),
            _ => None,
        }
    }
    accessors! {
        /// An array of integers of any type that all fit an i32.
        i32_array, opt_i32_array, Cow<'_, [i32]>, "an array of 32-bit integers", |v| match v {
            MetaValue::Array(MetaArray::I32(x)) => Some(Cow::Borrowed(x.as_slice())),
            MetaValue::Array(a) => a.integers().map(Cow::Owned),
            _ => None,
        }
    }
    accessors! {
        /// An array of integers of any type that all fit a usize.
        usize_array, opt_usize_array, Vec<usize>, "an array of integers that are not negative", |v| match v {
            MetaValue::Array(a) => a.integers(),
            _ => None,
        }
    }
    accessors! {
        /// An array of f32.
        f32_array, opt_f32_array, &[f32], "an array of f32", |v| match v {
            MetaValue::Array(MetaArray::F32(x)) => Some(x.as_slice()),
            _ => None,
        }
    }
}
