//! The importance of columns: for each matrix, how large what it is multiplied by was on a text.
//!
//! Input and output: a GGUF file as llama.cpp's `llama-imatrix` writes it, so that such files go both ways. For a tensor `X`:
//! `X.in_sum2` F32 `[experts, columns]` (`[columns]` of a tensor that is one matrix), the sums of squares of each column's
//! input, and `X.counts` F32 `[experts, 1]`, how many inputs they are sums over. An expert that no token chose has count 0:
//! nothing is known of it, and its columns are all alike. Deliberately absent: the older format that is no GGUF file.

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

use super::Entry;
use crate::fnv::Fnv1a;
use crate::gguf::writer::{TensorSpec, WriteError, to_vec};
use crate::gguf::{GgufError, GgufFile, MetaArray, MetaValue, Metadata, keys};
use crate::quant::Format;

/// `general.type` of such a file.
pub const IMPORTANCE_TYPE: &str = "imatrix";

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
/// A column's importance is never less than this share of the mean: a text that never met it proves little.
const LEAST_SHARE: f32 = 1e-3;

/// What is known of one tensor: sums of squares and how many inputs they are of.
#[derive(Clone, PartialEq, Debug)]
pub struct TensorImportance {
    /// Experts · columns, one expert behind the other; one "expert" of a tensor that is one matrix.
    pub sums: Vec<f32>,
    /// One for each expert.
    pub counts: Vec<f32>,
}

impl TensorImportance {
    /// Elements of a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.sums.len() / self.counts.len().max(1)
    }

    /// Experts that nothing is known of.
    #[must_use]
    pub fn unseen(&self) -> usize {
        self.counts.iter().filter(|count| **count == 0.0).count()
    }

    /// The mean square of each column's input for an expert (the one there is, of a tensor with one), never far below their
    /// mean; `None` where nothing is known of it.
    #[must_use]
    pub fn weights(&self, expert: usize) -> Option<Vec<f32>> {
        let cols = self.cols();
        let expert = if self.counts.len() == 1 { 0 } else { expert };
        let count = *self.counts.get(expert)?;
        let sums = self.sums.get(expert * cols..(expert + 1) * cols)?;
        let mean = (sums.iter().map(|sum| f64::from(*sum)).sum::<f64>() / cols as f64) as f32 / count;
        (count > 0.0 && mean > 0.0 && mean.is_finite())
            .then(|| sums.iter().map(|sum| sum / count + LEAST_SHARE * mean).collect())
    }
}

/// An importance file that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImportanceError {
    /// It is another sort of file, or not as such files are.
    #[error("{file}: {what}: found {found}, wanted {wanted}; `moe-run importance` makes one")]
    Invalid {
        /// The file.
        file: String,
        /// Key or tensor.
        what: String,
        /// What is there.
        found: String,
        /// What would be right.
        wanted: String,
    },
    /// It is of another model.
    #[error("{file}: {tensor}: found {found}, wanted {wanted}: it is of another model")]
    OtherModel {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Columns and experts there.
        found: String,
        /// Columns and experts of the model.
        wanted: String,
    },
    /// The file itself.
    #[error(transparent)]
    Gguf(#[from] GgufError),
}

/// An importance file, read.
#[derive(Clone, Debug, Default)]
pub struct Importance {
    file: String,
    tensors: BTreeMap<String, Arc<TensorImportance>>,
    datasets: Vec<String>,
    chunks: u32,
}

impl Importance {
    /// Reads an opened file.
    ///
    /// # Errors
    /// [`ImportanceError::Invalid`].
    pub fn read(gguf: &GgufFile) -> Result<Importance, ImportanceError> {
        let (metadata, file) = (gguf.metadata(), gguf.metadata().origin());
        let invalid = |what: &str, found: String, wanted: &str| ImportanceError::Invalid {
            file: file.to_owned(),
            what: what.to_owned(),
            found,
            wanted: wanted.to_owned(),
        };
        let found = metadata.get(keys::GENERAL_TYPE).map_or("nothing".to_owned(), MetaValue::describe);
        if !matches!(metadata.get(keys::GENERAL_TYPE), Some(MetaValue::String(kind)) if kind == IMPORTANCE_TYPE)
        {
            return Err(invalid(keys::GENERAL_TYPE, found, "\"imatrix\""));
        }
        let floats = |name: &str| -> Result<Vec<f32>, ImportanceError> {
            let Some(tensor) = gguf.tensor(name) else {
                return Err(invalid(name, "nothing".into(), "a tensor"));
            };
            if tensor.ggml_type != Format::F32 {
                return Err(invalid(name, tensor.ggml_type.to_string(), "F32"));
            }
            let mut values = vec![0.0; tensor.elems()];
            Format::F32.decode_row(gguf.data(tensor), &mut values);
            match values.iter().find(|x| !x.is_finite() || **x < 0.0) {
                Some(bad) => Err(invalid(name, bad.to_string(), "finite numbers, 0 or more")),
                None => Ok(values),
            }
        };
        let mut tensors = BTreeMap::new();
        for tensor in gguf.tensors() {
            let name = match (tensor.name.strip_suffix(SUMS), tensor.name.strip_suffix(COUNTS)) {
                (Some(name), _) => name,
                (None, Some(name)) => {
                    floats(&format!("{name}{SUMS}"))?;
                    continue;
                }
                _ => {
                    return Err(invalid(
                        &tensor.name,
                        "a tensor".into(),
                        "names that end in .in_sum2 or .counts",
                    ));
                }
            };
            let found =
                TensorImportance { sums: floats(&tensor.name)?, counts: floats(&format!("{name}{COUNTS}"))? };
            let rows: usize = tensor.shape.iter().rev().skip(1).product();
            if found.counts.len() != rows {
                let counts = format!("{} counts", found.counts.len());
                return Err(invalid(&tensor.name, counts, &format!("{rows}, one a row")));
            }
            tensors.insert(name.to_owned(), Arc::new(found));
        }
        let datasets = match metadata.get(keys::IMPORTANCE_DATASETS) {
            Some(MetaValue::Array(MetaArray::String(names))) => names.clone(),
            _ => Vec::new(),
        };
        let chunks = metadata.opt_u32(keys::IMPORTANCE_CHUNK_COUNT)?.unwrap_or(0);
        Ok(Importance { file: file.to_owned(), tensors, datasets, chunks })
    }

    /// What is known of a tensor.
    #[must_use]
    pub fn get(&self, tensor: &str) -> Option<&Arc<TensorImportance>> {
        self.tensors.get(tensor)
    }

    /// Checks that what it says of these tensors is of their shapes.
    ///
    /// # Errors
    /// [`ImportanceError::OtherModel`]; it says nothing of any.
    pub fn check<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> Result<(), ImportanceError> {
        let mut known = 0;
        for entry in entries {
            let Some(found) = self.get(&entry.name) else { continue };
            known += 1;
            let (cols, experts) = (found.cols(), found.counts.len());
            if cols != entry.cols() || (experts != 1 && experts != entry.matrices()) {
                return Err(ImportanceError::OtherModel {
                    file: self.file.clone(),
                    tensor: entry.name.clone(),
                    found: format!("{cols} columns, {experts} experts"),
                    wanted: format!("{} columns, {} experts or 1", entry.cols(), entry.matrices()),
                });
            }
        }
        if known == 0 {
            return Err(ImportanceError::Invalid {
                file: self.file.clone(),
                what: "tensors".into(),
                found: format!("{} that the model does not have", self.tensors.len()),
                wanted: "those of this model".into(),
            });
        }
        Ok(())
    }

    /// What a model's file says of it.
    pub(super) fn about(&self) -> Vec<(String, MetaValue)> {
        let pair = |key: &str, value| (key.to_owned(), value);
        vec![
            pair(keys::QUANTIZE_IMPORTANCE_FILE, MetaValue::String(self.file.clone())),
            pair(keys::QUANTIZE_IMPORTANCE_DATASET, MetaValue::String(self.datasets.join(", "))),
            pair(keys::QUANTIZE_IMPORTANCE_ENTRIES, MetaValue::U32(self.tensors.len() as u32)),
            pair(keys::QUANTIZE_IMPORTANCE_CHUNKS, MetaValue::U32(self.chunks)),
        ]
    }

    pub(super) fn add_to(&self, fingerprint: &mut Fnv1a) {
        for (name, tensor) in &self.tensors {
            fingerprint.add(name.as_bytes());
            fingerprint.add(bytemuck::cast_slice(&tensor.sums));
            fingerprint.add(bytemuck::cast_slice(&tensor.counts));
        }
    }

    /// One that was just taken, not read.
    #[must_use]
    pub fn taken(
        file: &str,
        tensors: BTreeMap<String, TensorImportance>,
        dataset: &str,
        chunks: u32,
    ) -> Importance {
        let tensors = tensors.into_iter().map(|(name, tensor)| (name, Arc::new(tensor))).collect();
        Importance { file: file.to_owned(), tensors, datasets: vec![dataset.to_owned()], chunks }
    }
}

/// The bytes of an importance file.
///
/// # Errors
/// [`WriteError`]: a name that is too long.
pub fn importance_file(
    tensors: &BTreeMap<String, TensorImportance>,
    dataset: &str,
    chunks: u32,
    chunk_tokens: u32,
) -> Result<Vec<u8>, WriteError> {
    let pairs = [
        (keys::GENERAL_TYPE, MetaValue::String(IMPORTANCE_TYPE.into())),
        (keys::IMPORTANCE_DATASETS, MetaValue::Array(MetaArray::String(vec![dataset.to_owned()]))),
        (keys::IMPORTANCE_CHUNK_COUNT, MetaValue::U32(chunks)),
        (keys::IMPORTANCE_CHUNK_SIZE, MetaValue::U32(chunk_tokens)),
    ];
    let metadata = Metadata::from_pairs("the importance file", pairs)?;
    let (mut specs, mut data) = (Vec::new(), Vec::new());
    for (name, tensor) in tensors {
        let experts = tensor.counts.len();
        let shape = |last: usize| if experts == 1 { vec![last] } else { vec![experts, last] };
        for (ending, values, cols) in [(SUMS, &tensor.sums, tensor.cols()), (COUNTS, &tensor.counts, 1)] {
            specs.push(TensorSpec {
                name: format!("{name}{ending}"),
                shape: shape(cols),
                format: Format::F32.into(),
            });
            data.push(values);
        }
    }
    to_vec(&metadata, &specs, |i| data[i].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> BTreeMap<String, TensorImportance> {
        let experts =
            TensorImportance { sums: vec![2.0, 4.0, 0.0, 0.0, 30.0, 0.0], counts: vec![2.0, 0.0, 10.0] };
        let one = TensorImportance { sums: vec![5.0; 4], counts: vec![5.0] };
        [("experts.weight".to_owned(), experts), ("one.weight".to_owned(), one)].into()
    }

    fn read(bytes: Vec<u8>) -> Result<Importance, ImportanceError> {
        Importance::read(&GgufFile::from_bytes("i.gguf", bytes).unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        let importance = read(importance_file(&two(), "text", 3, 512).unwrap()).unwrap();
        for (name, tensor) in two() {
            assert_eq!(**importance.get(&name).unwrap(), tensor);
        }
        let experts = importance.get("experts.weight").unwrap();
        assert_eq!((experts.cols(), experts.unseen()), (2, 1));
        assert_eq!(experts.weights(0).unwrap(), [1.0 + 1.5e-3, 2.0 + 1.5e-3]);
        assert_eq!(experts.weights(1), None, "nobody chose it");
        assert_eq!(experts.weights(2).unwrap()[1], 1.5e-3, "never quite nothing");
        assert_eq!(importance.get("one.weight").unwrap().weights(7).unwrap().len(), 4, "one matrix for all");
        assert_eq!((importance.chunks, importance.datasets.as_slice()), (3, &["text".to_owned()][..]));
    }

    #[test]
    fn other_files_and_other_models_are_refused() {
        let entry = |shape: &[usize]| Entry {
            name: "experts.weight".into(),
            shape: shape.to_vec(),
            from: Format::F32,
            to: Format::F32,
            why: super::super::Why::Base,
            bytes: 0,
        };
        let importance = read(importance_file(&two(), "", 1, 1).unwrap()).unwrap();
        assert!(importance.check([entry(&[3, 8, 2])].iter()).is_ok());
        let text = importance.check([entry(&[4, 8, 2])].iter()).unwrap_err().to_string();
        assert!(text.contains("3 experts") && text.contains("another model"), "{text}");
        let text = importance.check([].into_iter()).unwrap_err().to_string();
        assert!(text.contains("2 that the model does not have"), "{text}");

        let mut bad = two();
        bad.get_mut("one.weight").unwrap().sums[2] = -1.0;
        let text = read(importance_file(&bad, "", 1, 1).unwrap()).unwrap_err().to_string();
        assert!(text.contains("one.weight.in_sum2") && text.contains("-1"), "{text}");
        let model =
            Metadata::from_pairs("m", [(keys::GENERAL_TYPE, MetaValue::String("model".into()))]).unwrap();
        let text = read(to_vec(&model, &[], |_| unreachable!()).unwrap()).unwrap_err().to_string();
        assert!(text.contains("general.type") && text.contains("model"), "{text}");
    }
}
