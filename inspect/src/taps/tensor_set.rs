//! Saved stages by name: a directory of tensor files (with or without a manifest), or one safetensors file.

use super::RowAxis;
use super::save::{MANIFEST, ModelIdentity};
use super::tensor_file::{self, TensorFile, TensorFileError, TensorRef};
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::Stage;
use moe_run_graph::quant::ActBlock;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The directory depth that is searched: `layer-<N>/<stage>.bin`.
const MAX_DEPTH: usize = 2;

/// Tensors by name: `layer-3/attn_norm`, `final_norm`; a lone tensor file has the name "".
#[derive(Debug)]
pub struct TensorSet {
    /// Where they were found.
    pub path: PathBuf,
    /// The tensors.
    pub tensors: BTreeMap<String, TensorRef>,
    /// manifest.json, or the metadata of a safetensors file.
    pub info: Map<String, Value>,
}

impl TensorSet {
    /// Opens a tensor file, a safetensors file or a directory. Headers are checked; elements are read later.
    ///
    /// # Errors
    /// [`TensorFileError`] for what cannot be read and for a directory without tensor files.
    pub fn open(path: &Path) -> Result<TensorSet, TensorFileError> {
        let mut set = TensorSet { path: path.to_owned(), tensors: BTreeMap::new(), info: Map::new() };
        if !path.is_dir() {
            match tensor_file::open(path)? {
                TensorFile::One(mut tensor) => {
                    if !tensor.shaped {
                        shape_of_lone(&mut tensor);
                    }
                    set.tensors.insert(String::new(), tensor);
                }
                TensorFile::Many(tensors, info) => {
                    set.tensors.extend(tensors);
                    set.info = info;
                }
            }
            return Ok(set);
        }
        let mut files = Vec::new();
        list(path, MAX_DEPTH, &mut files)?;
        files.sort();
        for file in files {
            let relative = file.strip_prefix(path).unwrap_or(&file);
            let name = relative.with_extension("").to_string_lossy().replace('\\', "/");
            match tensor_file::open(&file)? {
                TensorFile::One(tensor) => {
                    // The embedding is stored as layer 0's, and is the whole model's.
                    let name = if name == "layer-0/embedding" { "embedding".to_owned() } else { name };
                    set.tensors.insert(name, tensor);
                }
                TensorFile::Many(tensors, info) => {
                    set.tensors.extend(tensors);
                    set.info = info;
                }
            }
        }
        if set.tensors.is_empty() {
            return Err(TensorFileError::format(path, "no tensor files (.bin, .npy or .safetensors) in it"));
        }
        set.read_manifest()?;
        Ok(set)
    }

    /// The shapes that APRT files lack, and where the tensors come from.
    fn read_manifest(&mut self) -> Result<(), TensorFileError> {
        let path = self.path.join(MANIFEST);
        if !path.is_file() {
            return Ok(());
        }
        let bytes = std::fs::read(&path).map_err(|e| TensorFileError::io(&path, e))?;
        let manifest: Map<String, Value> = serde_json::from_slice(&bytes)
            .map_err(|e| TensorFileError::format(&path, format!("not a manifest: {e}")))?;
        for entry in manifest.get("tensors").and_then(Value::as_array).into_iter().flatten() {
            let (Some(name), Some(shape)) = (entry["name"].as_str(), entry["shape"].as_array()) else {
                return Err(TensorFileError::format(&path, "an entry without name or shape"));
            };
            let shape: Option<Vec<usize>> = shape.iter().map(|d| d.as_u64().map(|d| d as usize)).collect();
            let Some(tensor) = self.tensors.get_mut(name) else { continue };
            let fits =
                |s: &Vec<usize>| s.iter().try_fold(1usize, |n, d| n.checked_mul(*d)) == Some(tensor.elems());
            let Some(shape) = shape.filter(fits) else {
                let detail = format!("{name}: shape {} for {} elements", entry["shape"], tensor.elems());
                return Err(TensorFileError::format(&path, detail));
            };
            (tensor.shape, tensor.shaped) = (shape, true);
        }
        self.info = manifest;
        Ok(())
    }

    /// The tokens that the tensors were computed from, if that is recorded: a list, or its text in a safetensors file.
    #[must_use]
    pub fn tokens(&self) -> Option<Vec<TokenId>> {
        let list = match self.info.get("tokens")? {
            Value::String(text) => serde_json::from_str(text).ok()?,
            list => list.clone(),
        };
        let ids = list.as_array()?.iter().map(|v| v.as_u64().and_then(|v| u32::try_from(v).ok()));
        ids.map(|id| id.map(TokenId)).collect()
    }

    /// The model that the tensors were computed from, if that is recorded whole: an object, or texts in a safetensors file.
    #[must_use]
    pub fn model(&self) -> Option<ModelIdentity> {
        let field = |name: &str| match self.info.get("model")? {
            Value::Object(model) => model.get(name),
            _ if name == "file" => self.info.get("model"),
            _ => self.info.get(&format!("model_{name}")),
        };
        let text = |name| field(name)?.as_str().map(str::to_owned);
        let size = field("size_bytes")?;
        Some(ModelIdentity {
            file: text("file")?,
            size_bytes: size.as_u64().or_else(|| size.as_str()?.parse().ok())?,
            sample_hash: text("sample_hash")?,
        })
    }

    /// The recorded 8-bit block of super-block formats; `None` where activations were not 8-bit, or none is recorded.
    #[must_use]
    pub fn q8_super_block(&self) -> Option<ActBlock> {
        let elems = match self.info.get("q8_super_block")? {
            Value::String(text) => text.parse().ok()?,
            number => number.as_u64()?,
        };
        [ActBlock::X32, ActBlock::X256].into_iter().find(|b| b.elems() as u64 == elems)
    }

    /// A recorded setting, such as `activations`.
    #[must_use]
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.info.get(key)?.as_str()
    }
}

/// Gives an APRT file by itself the shape that the manifest of its directory, or of the one above, records for it. Scores
/// and probabilities stay flat: what their axes are is known by name alone. A manifest that does not fit is of another run,
/// and says nothing of this file.
fn shape_of_lone(tensor: &mut TensorRef) {
    for dir in tensor.path.ancestors().skip(1).take(2) {
        let Ok(file) = tensor.path.strip_prefix(dir) else { continue };
        let Ok(bytes) = std::fs::read(dir.join(MANIFEST)) else { continue };
        let Ok(manifest) = serde_json::from_slice::<Value>(&bytes) else { continue };
        let entry = manifest["tensors"].as_array().into_iter().flatten().find(|e| {
            let stage = e["stage"].as_str().and_then(Stage::parse);
            let scores = stage.is_some_and(|stage| RowAxis::of(stage) == RowAxis::HeadsTokensCached);
            !scores && e["file"].as_str().is_some_and(|f| Path::new(f) == file)
        });
        let axes = entry.and_then(|e| e["shape"].as_array());
        let shape: Option<Vec<usize>> =
            axes.and_then(|a| a.iter().map(|d| d.as_u64().map(|d| d as usize)).collect());
        if let Some(shape) = shape
            && shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)) == Some(tensor.elems())
        {
            (tensor.shape, tensor.shaped) = (shape, true);
            return;
        }
    }
}

fn list(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), TensorFileError> {
    let fail = |e| TensorFileError::io(dir, e);
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.is_dir() && depth > 1 {
            list(&path, depth - 1, files)?;
        } else if path.extension().is_some_and(|e| e == "bin" || e == "npy" || e == "safetensors") {
            files.push(path);
        }
    }
    Ok(())
}
