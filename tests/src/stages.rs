//! Reference values of every stage, from a `.stages.safetensors` file.

use moe_run_graph::ids::TokenId;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;

/// A stage file: token ids, and the values by `layer-<N>/<stage>` or `<stage>`.
#[derive(Debug)]
pub struct StageFile {
    /// The prompt.
    pub tokens: Vec<TokenId>,
    /// Shape and values.
    pub values: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl StageFile {
    /// Reads a stage file; a fixture that cannot be read is a broken checkout, so this panics.
    ///
    /// # Panics
    /// If the file is not a stage file.
    #[must_use]
    pub fn read(path: &Path) -> StageFile {
        let bytes = std::fs::read(path).expect("stage file");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("safetensors header");
        let metadata = header.metadata().as_ref().expect("metadata");
        let ids: Vec<u32> = serde_json::from_str(&metadata["tokens"]).expect("tokens");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let values = file.iter().map(|(name, view)| {
            let floats =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            (name.to_owned(), (view.shape().to_vec(), floats))
        });
        StageFile { tokens: ids.into_iter().map(TokenId).collect(), values: values.collect() }
    }
}
