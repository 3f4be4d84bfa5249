//! Stages 1 to 3 in one call: a file → dimensions, lowered graph and the mapped weights.

use crate::architectures::{LowerError, lower_file};
use crate::config::ModelConfig;
use crate::gguf::{GgufError, GgufFile, Metadata};
use crate::ir::Graph;
use crate::shown::shown;
use std::path::Path;
use std::sync::Arc;

/// A file that is no model that can be run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file itself.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// What it describes.
    #[error("{}: {}", shown(file), source.without_file())]
    Lower {
        /// The file.
        file: String,
        /// What is wrong.
        source: Box<LowerError>,
    },
}

/// A model that has been read and lowered. Cheap to clone: the file is shared.
#[derive(Debug, Clone)]
pub struct Model {
    /// Dimensions.
    pub config: ModelConfig,
    /// The op graph, with a tap at every stage.
    pub graph: Graph,
    /// Metadata and weights.
    pub file: Arc<GgufFile>,
}

impl Model {
    /// Reads and lowers a model file (any part of a split one).
    ///
    /// # Errors
    /// [`ModelError`] naming file, key or tensor, what was found and what was wanted.
    pub fn open(path: &Path) -> Result<Model, ModelError> {
        Model::from_file(GgufFile::open(path)?)
    }

    /// Lowers a file that is open.
    ///
    /// # Errors
    /// [`ModelError::Lower`].
    pub fn from_file(file: GgufFile) -> Result<Model, ModelError> {
        let (config, graph) = lower_file(&file).map_err(|source| ModelError::Lower {
            file: file.metadata().origin().to_owned(),
            source: Box::new(source),
        })?;
        Ok(Model { config, graph, file: Arc::new(file) })
    }

    /// The file's metadata.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        self.file.metadata()
    }
}
