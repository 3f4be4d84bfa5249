//! `GgmlType`: what a GGUF tensor table says a tensor is stored as. A file may hold types that nothing here decodes: such
//! a file can be looked at, and its tensors' extents are checked as far as the sizes of their blocks are known.

use std::{borrow::Cow, fmt};

use serde::{Serialize, Serializer};

use super::{Format, UnknownFormat};

/// A tensor type, by its number in the tensor table: one of [`Format`], one that ggml defines (or did once) and that is
/// not decoded here, or one that is newer than this program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GgmlType(u32);

/// A type of ggml that is not decoded here.
struct Other {
    number: u32,
    name: &'static str,
    /// Elements and bytes of a block.
    block: Option<(usize, usize)>,
    /// Whether ggml has taken it back.
    withdrawn: bool,
}

const fn other(number: u32, name: &'static str, block_elems: usize, block_bytes: usize) -> Other {
    Other { number, name, block: Some((block_elems, block_bytes)), withdrawn: false }
}

const fn withdrawn(number: u32, name: &'static str, block: Option<(usize, usize)>) -> Other {
    Other { number, name, block, withdrawn: true }
}

/// The types that ggml defines (ggml.h, ggml-common.h) and that are not decoded here. Q4_2 and Q4_3 were withdrawn before
/// GGUF came, so no GGUF file says how their rows lie; the interleaved forms of Q4_0 and IQ4_NL take the bytes of those.
const OTHERS: [Other; 15] = [
    withdrawn(4, "Q4_2", None),
    withdrawn(5, "Q4_3", None),
    other(9, "Q8_1", 32, 2 + 2 + 32),
    other(15, "Q8_K", 256, 4 + 256 + 16 * 2),
    other(24, "I8", 1, 1),
    other(25, "I16", 1, 2),
    other(26, "I32", 1, 4),
    other(27, "I64", 1, 8),
    other(28, "F64", 1, 8),
    withdrawn(31, "Q4_0_4_4", Some((32, 2 + 16))),
    withdrawn(32, "Q4_0_4_8", Some((32, 2 + 16))),
    withdrawn(33, "Q4_0_8_8", Some((32, 2 + 16))),
    withdrawn(36, "IQ4_NL_4_4", Some((32, 2 + 16))),
    withdrawn(37, "IQ4_NL_4_8", Some((32, 2 + 16))),
    withdrawn(38, "IQ4_NL_8_8", Some((32, 2 + 16))),
];

impl GgmlType {
    /// 32-bit integers: tables of ids.
    pub const I32: GgmlType = GgmlType(26);

    /// The type of this number.
    pub const fn from_number(number: u32) -> GgmlType {
        GgmlType(number)
    }

    /// The number in the tensor table.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The format, where it is one that is decoded here.
    ///
    /// Errors: it is not; the error names the type where ggml defines it.
    pub fn format(self) -> Result<Format, UnknownFormat> {
        Format::from_ggml_type(self.0)
    }

    /// The type's row in [`OTHERS`].
    fn other(self) -> Option<&'static Other> {
        OTHERS.iter().find(|o| o.number == self.0)
    }

    /// ggml's name ("IQ4_XS"), or "type 99" where the number is not known.
    pub fn name(self) -> Cow<'static, str> {
        match (self.format(), self.other()) {
            (Ok(format), _) => format.name().into(),
            (_, Some(other)) => other.name.into(),
            _ => format!("type {}", self.0).into(),
        }
    }

    /// What errors call a type that is not decoded here: "Q8_K", "Q4_2 (withdrawn)", "number 99".
    pub(super) fn described(self) -> String {
        match self.other() {
            Some(Other { name, withdrawn: true, .. }) => format!("{name} (withdrawn)"),
            Some(Other { name, .. }) => (*name).to_owned(),
            None => format!("number {}", self.0),
        }
    }

    /// Elements and bytes of a block; `None` where they are not known.
    pub fn block(self) -> Option<(usize, usize)> {
        match self.format() {
            Ok(format) => Some((format.block_elems(), format.block_bytes())),
            Err(_) => self.other()?.block,
        }
    }
}

impl From<Format> for GgmlType {
    fn from(format: Format) -> GgmlType {
        GgmlType(format.ggml_type())
    }
}

impl PartialEq<Format> for GgmlType {
    fn eq(&self, format: &Format) -> bool {
        self.0 == format.ggml_type()
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name())
    }
}

impl Serialize for GgmlType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_one_name_and_blocks_as_ggml_has_them() {
        let names: Vec<String> = (0..43).map(|n| GgmlType::from_number(n).name().into_owned()).collect();
        for (n, name) in names.iter().enumerate() {
            assert!(!name.starts_with("type "), "{n}");
            assert_eq!(names.iter().position(|other| other == name), Some(n), "{name}");
        }
        for format in Format::ALL {
            let t = GgmlType::from(format);
            assert_eq!(
                (t.format(), t.block()),
                (Ok(format), Some((format.block_elems(), format.block_bytes())))
            );
            assert!(t == format && t.other().is_none());
        }
        // Bits an element, as ggml's documentation states them.
        for (name, bits) in [
            ("IQ2_XXS", 2.0625),
            ("IQ2_XS", 2.3125),
            ("IQ2_S", 2.5625),
            ("IQ3_XXS", 3.0625),
            ("IQ3_S", 3.4375),
            ("IQ1_S", 1.5625),
            ("IQ1_M", 1.75),
            ("TQ1_0", 1.6875),
            ("TQ2_0", 2.0625),
            ("NVFP4", 4.5),
            ("I64", 64.0),
        ] {
            let number = names.iter().position(|n| n == name).unwrap() as u32;
            let (elems, bytes) = GgmlType::from_number(number).block().unwrap();
            assert_eq!(bytes as f64 * 8.0 / elems as f64, bits, "{name}");
        }
        let unknown = GgmlType::from_number(99);
        assert_eq!((unknown.name().as_ref(), unknown.block()), ("type 99", None));
        assert_eq!(GgmlType::from_number(4).block(), None);
    }
}
