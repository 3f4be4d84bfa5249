//! Stage 2: a model's weights by name: format, shape and a view of the mapped bytes.
//!
//! Input: an opened [`GgufFile`]. Output: [`Weights`], a handle that is cheap to clone and shared by threads and
//! backends. Deliberately absent: decoded copies, and any repacking; a backend makes its own from these views.

use std::sync::Arc;

use crate::{
    gguf::{GgufError, GgufFile, TensorEntry},
    quant::{Format, UnknownFormat},
};

/// A model's weights. Clones share the mapped file.
#[derive(Clone, Debug)]
pub struct Weights {
    file: Arc<GgufFile>,
}

/// One weight: shape, format and bytes as the file holds them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WeightView<'a> {
    /// Outermost-first; the last dimension is a row.
    pub shape: &'a [usize],
    /// How the values are stored.
    pub format: Format,
    /// All rows, each [`WeightView::row_bytes`] long, without gaps; they begin at a multiple of 8.
    pub bytes: &'a [u8],
}

impl Weights {
    /// The weights of an opened file.
    pub fn new(file: Arc<GgufFile>) -> Weights {
        Weights { file }
    }

    /// The file that holds the weights.
    pub fn file(&self) -> &Arc<GgufFile> {
        &self.file
    }

    /// The weight of this name, `None` where the file lacks it or has it in no format that is decoded here.
    pub fn get(&self, name: &str) -> Option<WeightView<'_>> {
        self.file.tensor(name).and_then(|entry| self.view(entry).ok())
    }

    /// The weight of this name.
    ///
    /// Errors: the file lacks it, or has it in no format that is decoded here.
    pub fn require(&self, name: &str) -> Result<WeightView<'_>, GgufError> {
        let file = || self.file.metadata().origin().to_owned();
        let Some(entry) = self.file.tensor(name) else {
            return Err(GgufError::MissingTensor { file: file(), tensor: name.to_owned() });
        };
        self.view(entry).map_err(|source| GgufError::TensorType {
            file: file(),
            tensor: name.to_owned(),
            source,
        })
    }

    /// Names and weights in the file's order, without those in no format that is decoded here.
    pub fn iter(&self) -> impl Iterator<Item = (&str, WeightView<'_>)> {
        self.file.tensors().iter().filter_map(|entry| Some((entry.name.as_str(), self.view(entry).ok()?)))
    }

    fn view<'a>(&'a self, entry: &'a TensorEntry) -> Result<WeightView<'a>, UnknownFormat> {
        Ok(WeightView { shape: &entry.shape, format: entry.format()?, bytes: self.file.data(entry) })
    }
}

impl<'a> WeightView<'a> {
    /// Elements of a row: the last dimension.
    pub fn cols_elems(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.cols_elems() / self.format.block_elems() * self.format.block_bytes()
    }

    /// How many rows there are: the product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// The bytes of row `row`, counted over all outer dimensions.
    pub fn row(&self, row: usize) -> &'a [u8] {
        let row_bytes = self.row_bytes();
        &self.bytes[row * row_bytes..][..row_bytes]
    }

    /// Decodes row `row` into `out`, of [`WeightView::cols_elems`] elements.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        self.format.decode_row(self.row(row), out);
    }

    /// The values in place, where the format is F32.
    pub fn as_f32(&self) -> Option<&'a [f32]> {
        match self.format {
            Format::F32 => bytemuck::try_cast_slice(self.bytes).ok(),
            _ => None,
        }
    }
}

const _: () = {
    const fn shareable<T: Send + Sync>() {}
    shareable::<Weights>();
};
