//! Saved tensors: the sink that writes stages to files, whole or not at all.
//!
//! Shapes are known before the first step, so each file gets its full length at once and every micro-batch writes its
//! rows in place: nothing is held in memory. All files have temporary names until [`SaveSink::finish`] renames them and
//! writes the manifest last; a sink that is dropped before that removes them. The values are verbatim, NaN bits included.

use super::states::changed_states;
use super::tensor_file::{FileFormat, aprt_header, npy_header, safetensors_header};
use super::{RowAxis, RunSettings, floats};
use moe_run_graph::fnv::Fnv1a;
use moe_run_graph::gguf::GgufFile;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::{Graph, LayerIdx, Stage, StepSizes};
use moe_run_graph::passes::{Launch, Plan, TapSelection};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{ExecutableInfo, Observer, TapValue, ValueAccess};
use moe_run_runtime::partial_file::{self, NewDirs, PartialFile, finish_all};
use moe_run_runtime::session::LogitsRows;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The manifest's name in the directory.
pub const MANIFEST: &str = "manifest.json";
/// The file that holds everything in the format safetensors.
const SAFETENSORS_FILE: &str = "stages.safetensors";
/// The version of the manifest's layout.
const SCHEMA_VERSION: u32 = 1;

/// Tensors that cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The file system.
    #[error("{}: cannot write: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why: full, read-only …
        source: io::Error,
    },
    /// Something is already there.
    #[error(
        "{}: already exists; choose another --save-tensor-dir, or replace what an earlier run saved with --save-tensor-overwrite",
        path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The directory's name is a file's.
    #[error("{}: is not a directory; choose another --save-tensor-dir", path.display())]
    NotADirectory {
        /// The file.
        path: PathBuf,
    },
    /// More elements than APRT can count.
    #[error(
        "{stage}: {elems} elements, more than the 2^32 − 1 of APRT; use --save-tensor-format npy or safetensors"
    )]
    TooLong {
        /// The stage.
        stage: String,
        /// Its elements.
        elems: usize,
    },
    /// The run gave something else than was planned.
    #[error("{stage}: {detail}")]
    Unexpected {
        /// The stage.
        stage: String,
        /// Found and wanted.
        detail: String,
    },
}

impl From<SaveError> for BackendError {
    fn from(error: SaveError) -> BackendError {
        BackendError::Observer(Box::new(error))
    }
}

/// Which model file: its name, size, and a hash of its metadata plus samples of its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelIdentity {
    /// The file's name without its directory.
    pub file: String,
    /// Of all parts.
    pub size_bytes: u64,
    /// FNV-1a, 64 bits, of every part's header and of the first and last 256 bytes of every tensor.
    pub sample_hash: String,
}

impl ModelIdentity {
    /// Whether both have the same size and hash; names do not count. Models that differ only inside of a tensor's middle
    /// are the same by this.
    #[must_use]
    pub fn is_same_as(&self, other: &ModelIdentity) -> bool {
        (self.size_bytes, &self.sample_hash) == (other.size_bytes, &other.sample_hash)
    }

    /// Of an open file.
    #[must_use]
    pub fn of(file: &GgufFile) -> ModelIdentity {
        const SAMPLE_BYTES: usize = 256;
        let mut hash = Fnv1a::default();
        file.parts().iter().for_each(|p| hash.add(p.header()));
        for tensor in file.tensors() {
            let data = file.data(tensor);
            hash.add(&data[..data.len().min(SAMPLE_BYTES)]);
            hash.add(&data[data.len().saturating_sub(SAMPLE_BYTES)..]);
        }
        let origin = Path::new(file.metadata().origin());
        ModelIdentity {
            file: origin
                .file_name()
                .map_or_else(|| origin.display().to_string(), |n| n.to_string_lossy().into()),
            size_bytes: file.len_bytes(),
            sample_hash: hash.text(),
        }
    }
}

/// Where tensors go, and what is recorded with them.
#[derive(Debug, Clone)]
pub struct SaveOptions {
    /// The directory; made if absent.
    pub dir: PathBuf,
    /// How.
    pub format: FileFormat,
    /// Replace what an earlier run saved there.
    pub overwrite: bool,
}

/// The run that is captured.
#[derive(Debug, Clone)]
pub struct Capture<'a> {
    /// The lowered graph.
    pub graph: &'a Graph,
    /// The taps that are saved: those that the executable was compiled with, or some of them.
    pub taps: &'a TapSelection,
    /// All tokens of the captured pass, which starts at position 0.
    pub tokens: &'a [TokenId],
    /// The rows of logits that it asks for: all, where stages of the logits' rows are saved.
    pub logits_rows: LogitsRows,
    /// Which model.
    pub model: ModelIdentity,
    /// `general.architecture`.
    pub architecture: &'a str,
    /// What runs it.
    pub executable: &'a ExecutableInfo,
}

#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    file: String,
    stage: Stage,
    layer: Option<usize>,
    shape: Vec<usize>,
    positions: [usize; 2],
    /// `production` or `recomputed`; written when the value arrives.
    source: &'static str,
    #[serde(skip)]
    target: usize,
    #[serde(skip)]
    data_offset_bytes: u64,
    #[serde(skip)]
    rows_done: usize,
}

#[derive(Debug, Serialize)]
struct Manifest<'a> {
    schema_version: u32,
    format: FileFormat,
    model: &'a ModelIdentity,
    architecture: &'a str,
    #[serde(flatten)]
    settings: RunSettings<'a>,
    tokens: &'a [TokenId],
    logits_rows: &'static str,
    moe_run_version: &'static str,
    tensors: &'a [Entry],
}

/// Writes taps to files.
#[derive(Debug)]
pub struct SaveSink {
    options: SaveOptions,
    entries: Vec<Entry>,
    index: HashMap<(Stage, Option<usize>), usize>,
    targets: Vec<PartialFile>,
    dirs: NewDirs,
    /// Files of an earlier run that this one does not write.
    stale: BTreeSet<PathBuf>,
    info: OwnedInfo,
}

#[derive(Debug)]
struct OwnedInfo {
    model: ModelIdentity,
    architecture: String,
    executable: ExecutableInfo,
    tokens: Vec<TokenId>,
    logits_rows: &'static str,
}

/// What can be said about a directory before any model is read.
///
/// # Errors
/// [`SaveError`] for a file in its place, for tensors that it already holds, and for a file in it that this process reads
/// and that a run could write over.
pub fn check_dir(dir: &Path, overwrite: bool) -> Result<(), SaveError> {
    if !dir.exists() {
        return Ok(());
    }
    if !dir.is_dir() {
        return Err(SaveError::NotADirectory { path: dir.to_owned() });
    }
    let manifest = dir.join(MANIFEST);
    if manifest.exists() && !overwrite {
        return Err(SaveError::Exists { path: manifest });
    }
    for folder in std::iter::once(dir.to_owned()).chain(entries(dir).filter(|path| path.is_dir())) {
        for path in entries(&folder).filter(|path| may_be_written(path)) {
            partial_file::check_target(&path).map_err(|source| SaveError::Io { path, source })?;
        }
    }
    Ok(())
}

/// What is in a directory, as far as it can be read.
fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Whether a run can give a file this name.
fn may_be_written(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_stage = |stem: &str| Stage::ALL.iter().any(|stage| stage.name() == stem);
    [MANIFEST, SAFETENSORS_FILE].contains(&name)
        || name.rsplit_once('.').is_some_and(|(stem, _)| is_stage(stem))
}

impl SaveSink {
    /// Lays out and creates the files under temporary names.
    ///
    /// # Errors
    /// [`SaveError`]; nothing is left behind.
    pub fn create(options: SaveOptions, capture: &Capture<'_>) -> Result<SaveSink, SaveError> {
        check_dir(&options.dir, options.overwrite)?;
        let tokens = capture.tokens.len();
        let sizes = StepSizes { tokens, logits_rows: tokens, cached: tokens };
        let mut sink = SaveSink {
            options,
            entries: Vec::new(),
            index: HashMap::new(),
            targets: Vec::new(),
            dirs: NewDirs::default(),
            stale: BTreeSet::new(),
            info: OwnedInfo {
                model: capture.model.clone(),
                architecture: capture.architecture.to_owned(),
                executable: capture.executable.clone(),
                tokens: capture.tokens.to_vec(),
                logits_rows: match capture.logits_rows {
                    LogitsRows::All => "all",
                    LogitsRows::Last => "last",
                },
            },
        };
        for (node, stage) in capture.graph.taps() {
            let layer = node.layer.map(|l| l.index());
            if !capture.taps.contains(stage, layer) {
                continue;
            }
            let mut shape = capture.graph.value(node.inputs[0]).shape.resolve(sizes);
            if let Some(last) = shape.last_mut() {
                let width = |v| capture.graph.value(v).shape.width();
                *last = node.inputs.iter().map(|v| width(*v).unwrap_or(*last)).sum();
            }
            sink.add(stage, layer, shape);
        }
        for state in capture.graph.state_stages() {
            let layer = Some(state.layer.index());
            if capture.taps.contains(state.stage, layer) {
                sink.add(state.stage, layer, state.shape);
            }
        }
        sink.lay_out()?;
        sink.new_file(MANIFEST, &[], 0)?; // the last of the targets
        sink.find_stale();
        Ok(sink)
    }

    /// One more tensor.
    fn add(&mut self, stage: Stage, layer: Option<usize>, shape: Vec<usize>) {
        let tokens = self.info.tokens.len();
        let name = stage.path(layer);
        let folder = if stage == Stage::Embedding { "layer-0/" } else { "" };
        let file = match self.options.format {
            FileFormat::Aprt => format!("{folder}{name}.bin"),
            FileFormat::Npy => format!("{folder}{name}.npy"),
            FileFormat::Safetensors => SAFETENSORS_FILE.to_owned(),
        };
        self.index.insert((stage, layer), self.entries.len());
        self.entries.push(Entry {
            name,
            file,
            stage,
            layer,
            shape,
            positions: [0, tokens],
            source: "production",
            target: 0,
            data_offset_bytes: 0,
            rows_done: 0,
        });
    }

    /// Creates every file with its header and its full length.
    fn lay_out(&mut self) -> Result<(), SaveError> {
        let elems = |e: &Entry| e.shape.iter().product::<usize>();
        if self.options.format == FileFormat::Safetensors {
            let tensors: Vec<_> = self.entries.iter().map(|e| (e.name.clone(), e.shape.clone())).collect();
            let header = safetensors_header(&tensors, &self.metadata());
            let mut offset = header.len() as u64;
            for entry in &mut self.entries {
                entry.data_offset_bytes = offset;
                offset += elems(entry) as u64 * 4;
            }
            return self.new_file(SAFETENSORS_FILE, &header, offset).map(drop);
        }
        for i in 0..self.entries.len() {
            let entry = &self.entries[i];
            let layer = if entry.stage == Stage::Embedding { Some(0) } else { entry.layer };
            let header = match self.options.format {
                FileFormat::Npy => npy_header(&entry.shape),
                _ => aprt_header(layer, elems(entry))
                    .ok_or_else(|| SaveError::TooLong { stage: entry.name.clone(), elems: elems(entry) })?
                    .to_vec(),
            };
            let (file, len) = (entry.file.clone(), header.len() as u64 + elems(entry) as u64 * 4);
            let target = self.new_file(&file, &header, len)?;
            (self.entries[i].target, self.entries[i].data_offset_bytes) = (target, header.len() as u64);
        }
        Ok(())
    }

    fn new_file(&mut self, relative: &str, header: &[u8], len: u64) -> Result<usize, SaveError> {
        let path = self.options.dir.join(relative);
        let parent = path.parent().unwrap_or(&self.options.dir).to_owned();
        self.dirs.create(&parent).map_err(|source| SaveError::Io { path: parent, source })?;
        if path.exists() && !self.options.overwrite {
            return Err(SaveError::Exists { path });
        }
        let made = || -> io::Result<PartialFile> {
            let mut target = PartialFile::create(&path)?;
            target.file()?.write_all(header)?;
            target.file()?.set_len(len)?;
            target.close(); // a model has more stages than a process may open files
            Ok(target)
        };
        self.targets.push(made().map_err(|source| SaveError::Io { path, source })?);
        Ok(self.targets.len() - 1)
    }

    /// The files that the old manifest lists and this run does not write.
    fn find_stale(&mut self) {
        let manifest = std::fs::read(self.options.dir.join(MANIFEST)).unwrap_or_default();
        let Ok(manifest) = serde_json::from_slice::<serde_json::Value>(&manifest) else { return };
        let files = manifest["tensors"].as_array().into_iter().flatten().filter_map(|e| e["file"].as_str());
        // Only names that a run of this program can have written: below the directory, of a known stage.
        let known = |file: &&str| {
            *file == SAFETENSORS_FILE || (!file.contains("..") && may_be_written(Path::new(file)))
        };
        self.stale = files.filter(known).map(|f| self.options.dir.join(f)).collect();
        for target in &self.targets {
            self.stale.remove(target.path());
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        let (info, executable) = (&self.info, &self.info.executable);
        let tokens: Vec<u32> = info.tokens.iter().map(|t| t.0).collect();
        let mut metadata = vec![
            ("moe_run_version", env!("CARGO_PKG_VERSION").to_owned()),
            ("model", info.model.file.clone()),
            ("model_size_bytes", info.model.size_bytes.to_string()),
            ("model_sample_hash", info.model.sample_hash.clone()),
            ("architecture", info.architecture.clone()),
            ("backend", executable.backend.to_owned()),
            ("device", executable.device.clone()),
            ("activations", executable.activations.name().to_owned()),
            ("kv_type", executable.kv_type.name().to_owned()),
            ("tokens", serde_json::json!(tokens).to_string()),
        ];
        metadata.extend(executable.q8_super_block.map(|b| ("q8_super_block", b.elems().to_string())));
        metadata
    }

    fn write(&mut self, tap: &TapValue<'_>, at: usize) -> Result<(), SaveError> {
        let entry = &mut self.entries[at];
        let unexpected = |detail: String| SaveError::Unexpected { stage: entry.name.clone(), detail };
        let total = entry.positions[1];
        let first = tap.positions.first().map_or(0, |p| *p as usize);
        let data = tap.tensor.floats();
        let target = &self.targets[entry.target];
        let fail = |source| SaveError::Io { path: target.path().to_owned(), source };
        let mut file = target.reopen().map_err(fail)?;
        let mut put = |elem: usize, elems: &[f32]| {
            file.seek(SeekFrom::Start(entry.data_offset_bytes + elem as u64 * 4))?;
            file.write_all(&le_bytes(elems))
        };
        let rows = if RowAxis::of(entry.stage) == RowAxis::HeadsTokensCached {
            let &[heads, tokens, cached] = tap.tensor.shape else {
                return Err(unexpected(format!("shape {:?}, wanted three axes", tap.tensor.shape)));
            };
            if first + tokens > total || cached > total {
                return Err(unexpected(format!("{cached} positions, wanted {total}")));
            }
            for row in 0..heads * tokens {
                // Positions that were not cached yet are written too, as the zeros that the stage has there.
                let mut elems = data[row * cached..(row + 1) * cached].to_vec();
                elems.resize(total, 0.0);
                let (head, token) = (row / tokens, row % tokens);
                put((head * total + first + token) * total, &elems).map_err(fail)?;
            }
            tokens
        } else {
            let rows = tap.tensor.shape.first().copied().unwrap_or(0);
            if rows != tap.positions.len() || first + rows > total {
                return Err(unexpected(format!(
                    "{rows} rows from position {first} on, wanted {total} in all"
                )));
            }
            put(first * data.len() / rows.max(1), &data).map_err(fail)?;
            rows
        };
        entry.rows_done += rows;
        entry.source = if tap.production { "production" } else { "recomputed" };
        Ok(())
    }

    /// Gives every file its name and writes the manifest.
    ///
    /// # Errors
    /// [`SaveError`] for a stage that was not delivered whole, or what the file system reports.
    pub fn finish(self) -> Result<PathBuf, SaveError> {
        if let Some(entry) = self.entries.iter().find(|e| e.rows_done != e.positions[1]) {
            let detail = format!("{} of {} rows were computed", entry.rows_done, entry.positions[1]);
            return Err(SaveError::Unexpected { stage: entry.name.clone(), detail });
        }
        partial_file::check_mapped().map_err(|changed| SaveError::Io {
            path: self.options.dir.clone(),
            source: io::Error::other(changed),
        })?;
        let manifest = Manifest {
            schema_version: SCHEMA_VERSION,
            format: self.options.format,
            model: &self.info.model,
            architecture: &self.info.architecture,
            settings: (&self.info.executable).into(),
            tokens: &self.info.tokens,
            logits_rows: self.info.logits_rows,
            moe_run_version: env!("CARGO_PKG_VERSION"),
            tensors: &self.entries,
        };
        let path = self.options.dir.join(MANIFEST);
        let fail = |source| SaveError::Io { path: path.clone(), source };
        let mut bytes = serde_json::to_vec_pretty(&manifest).map_err(|e| fail(e.into()))?;
        bytes.push(b'\n');
        if let Some(manifest) = self.targets.last() {
            manifest.reopen().and_then(|mut file| file.write_all(&bytes)).map_err(fail)?;
        }
        for target in &self.targets {
            // A disk may report that it is full only now.
            target.sync().map_err(|source| SaveError::Io { path: target.path().to_owned(), source })?;
        }
        finish_all(self.targets, &self.stale).map_err(|(path, source)| SaveError::Io { path, source })?;
        self.dirs.keep();
        Ok(self.options.dir)
    }
}

impl Observer for SaveSink {
    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        _elapsed: Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        let at = |stage, layer: LayerIdx| self.index.get(&(stage, Some(layer.index()))).copied();
        for (stage, layer, held) in changed_states(plan, launch, values, |s, l| at(s, l).is_some())? {
            let Some(at) = at(stage, layer) else { continue };
            // What a later step leaves takes its place.
            let row = floats(&held.data);
            let entry = &mut self.entries[at];
            let target = &self.targets[entry.target];
            let put = |mut file: std::fs::File| {
                file.seek(SeekFrom::Start(entry.data_offset_bytes))?;
                file.write_all(&le_bytes(&row))
            };
            let fail = |source| SaveError::Io { path: target.path().to_owned(), source };
            target.reopen().and_then(put).map_err(fail)?;
            entry.rows_done = values.sizes().cached;
        }
        Ok(())
    }

    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        if let Some(at) = self.index.get(&(tap.stage, tap.layer)).copied() {
            self.write(tap, at)?;
        }
        Ok(())
    }
}

fn le_bytes(elems: &[f32]) -> Vec<u8> {
    elems.iter().flat_map(|x| x.to_le_bytes()).collect()
}
