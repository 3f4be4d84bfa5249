//! Stage 5: tensors on the host, owned or borrowed: what is read back from a device, put in place of a value, or shown.

use std::borrow::Cow;

/// Elements on the host.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// Floats.
    F32(Vec<f32>),
    /// Ids.
    U32(Vec<u32>),
}

impl TensorData {
    /// Elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            TensorData::F32(v) => v.len(),
            TensorData::U32(v) => v.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as floats; ids are converted.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            TensorData::F32(v) => v.clone(),
            TensorData::U32(v) => v.iter().map(|x| *x as f32).collect(),
        }
    }
}

/// A tensor on the host, outermost axis first.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Sizes.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: TensorData,
}

impl HostTensor {
    /// A tensor of floats.
    #[must_use]
    pub fn f32(shape: Vec<usize>, data: Vec<f32>) -> HostTensor {
        HostTensor { shape, data: TensorData::F32(data) }
    }

    /// A tensor of ids.
    #[must_use]
    pub fn u32(shape: Vec<usize>, data: Vec<u32>) -> HostTensor {
        HostTensor { shape, data: TensorData::U32(data) }
    }
}

impl HostTensor {
    /// The tensor where it lies.
    #[must_use]
    pub fn view(&self) -> TensorView<'_> {
        let data = match &self.data {
            TensorData::F32(data) => ViewData::F32(data),
            TensorData::U32(data) => ViewData::U32(data),
        };
        TensorView { shape: &self.shape, data }
    }
}

/// Borrowed elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ViewData<'a> {
    /// Floats.
    F32(&'a [f32]),
    /// Ids.
    U32(&'a [u32]),
}

/// A tensor on the host that somebody else holds, outermost axis first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorView<'a> {
    /// Sizes.
    pub shape: &'a [usize],
    /// Elements, row-major.
    pub data: ViewData<'a>,
}

impl<'a> TensorView<'a> {
    /// Elements.
    #[must_use]
    pub fn elems(self) -> usize {
        match self.data {
            ViewData::F32(data) => data.len(),
            ViewData::U32(data) => data.len(),
        }
    }

    /// The elements as floats; ids are converted.
    #[must_use]
    pub fn floats(self) -> Cow<'a, [f32]> {
        match self.data {
            ViewData::F32(data) => Cow::Borrowed(data),
            ViewData::U32(data) => Cow::Owned(data.iter().map(|x| *x as f32).collect()),
        }
    }

    /// A copy of one's own.
    #[must_use]
    pub fn to_tensor(self) -> HostTensor {
        let shape = self.shape.to_vec();
        match self.data {
            ViewData::F32(data) => HostTensor::f32(shape, data.to_vec()),
            ViewData::U32(data) => HostTensor::u32(shape, data.to_vec()),
        }
    }
}
