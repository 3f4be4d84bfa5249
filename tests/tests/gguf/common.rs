//! A small file with every metadata type and several formats, and a way to damage it.

use std::borrow::Cow;

use moe_run_graph::{
    gguf::{
        MetaArray as A, MetaValue as V, Metadata,
        writer::{self, TensorSpec},
    },
    quant::Format,
};

/// One pair of every metadata type, one array of every element type, and arrays of arrays.
pub fn metadata() -> Metadata {
    let words = || vec!["a".to_owned(), String::new(), "zwölf".to_owned()];
    let pairs = [
        ("general.architecture", V::String("qwen3moe".into())),
        ("general.alignment", V::U32(64)),
        ("u8", V::U8(200)),
        ("i8", V::I8(-100)),
        ("u16", V::U16(60000)),
        ("i16", V::I16(-30000)),
        ("u32", V::U32(4_000_000_000)),
        ("i32", V::I32(-2_000_000_000)),
        ("u64", V::U64(u64::MAX)),
        ("i64", V::I64(i64::MIN)),
        ("f32", V::F32(1.5e-6)),
        ("f64", V::F64(1.0 / 3.0)),
        ("bool", V::Bool(true)),
        ("string", V::String("Grüße, 世界 \u{0}\n".into())),
        ("array.u8", V::Array(A::U8(vec![1, 2, 255]))),
        ("array.i8", V::Array(A::I8(vec![-1, 2]))),
        ("array.u16", V::Array(A::U16(vec![1, 65535]))),
        ("array.i16", V::Array(A::I16(vec![-1]))),
        ("array.u32", V::Array(A::U32(vec![0, u32::MAX]))),
        ("array.i32", V::Array(A::I32(vec![-7, 7]))),
        ("array.u64", V::Array(A::U64(vec![u64::MAX]))),
        ("array.i64", V::Array(A::I64(vec![-9]))),
        ("array.f32", V::Array(A::F32(vec![0.5, -0.25]))),
        ("array.f64", V::Array(A::F64(vec![0.1]))),
        ("array.bool", V::Array(A::Bool(vec![true, false]))),
        ("array.string", V::Array(A::String(words()))),
        ("array.empty", V::Array(A::String(vec![]))),
        ("array.array", V::Array(A::Array(vec![A::String(words()), A::Array(vec![A::U8(vec![3])])]))),
    ];
    Metadata::from_pairs("sample", pairs).unwrap()
}

pub fn spec(name: &str, shape: &[usize], format: Format) -> TensorSpec {
    TensorSpec { name: name.to_owned(), shape: shape.to_vec(), format: format.into() }
}

/// A tensor of every format, of one to four dimensions.
pub fn tensors() -> Vec<TensorSpec> {
    let mut tensors = vec![spec("scalar", &[1], Format::F32), spec("four", &[2, 3, 2, 32], Format::Q8_0)];
    for (i, format) in Format::ALL.into_iter().enumerate() {
        tensors.push(spec(&format!("blk.{i}.weight"), &[3, format.block_elems()], format));
    }
    tensors
}

/// Bytes that tell tensor and position apart.
pub fn data(index: usize, tensors: &[TensorSpec]) -> Vec<u8> {
    let tensor = &tensors[index];
    let (cols, rows) = (tensor.shape.last().unwrap(), tensor.shape.iter().rev().skip(1).product::<usize>());
    let count = tensor.format.format().unwrap().row_bytes(*cols).unwrap() * rows;
    (0..count).map(|i| (i * 7 + index * 31) as u8).collect()
}

/// The sample file.
pub fn file() -> Vec<u8> {
    file_of(&metadata(), &tensors())
}

pub fn file_of(metadata: &Metadata, tensors: &[TensorSpec]) -> Vec<u8> {
    writer::to_vec(metadata, tensors, |i| Cow::Owned(data(i, tensors))).unwrap()
}

/// `bytes` with the first occurrence of `old` replaced by as many bytes `new`.
pub fn patched(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let at = bytes.windows(old.len()).position(|w| w == old).expect("the bytes to be replaced occur");
    let mut out = bytes.to_vec();
    out[at..at + new.len()].copy_from_slice(new);
    out
}

/// xorshift64*: the same numbers everywhere, for ever.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n.max(1)
    }
}
