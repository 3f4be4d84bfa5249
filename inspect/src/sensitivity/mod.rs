//! What it costs to keep a matrix in a format: the divergence of the model's next-token distributions from its own, on a text,
//! with that one matrix changed; and the cheapest choice of formats within a size.
//!
//! Input: a lowered model, chunks of a text, formats to choose from. Output: [`Sensitivity`], a cost in nats for each matrix and
//! format, and by [`choose()`] a format for each. The model is cut into its embedding, its layers and its head (`parts.rs`). One pass
//! of the whole model saves what each part reads and gives; then
//!
//! - each matrix in each format costs one pass of its part, from the saved inputs, and gives the part's error, relative to what
//!   it gives;
//! - of each part one more pass of the whole model, with the error that all its matrices in one middling format make added to
//!   what it gives, tells what divergence an error there comes to, per unit of its square. Small errors add up in squares and
//!   the divergence is square in them, so one number a part is enough;
//! - the head's matrices are measured as they are: what the head gives are the logits.
//!
//! So n matrices in f formats take about n·f / (parts) + (parts) passes of the text, in place of n·f. Deliberately absent:
//! interactions of two matrices' errors, and any backend but one whose weights stay where the file is mapped, so that another
//! format of one matrix costs no loading.

mod choose;
mod parts;
mod passes;

pub use choose::{ChooseError, choose};

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::quant::Format;
use moe_run_graph::quantize::{Entry, Importance, JobError, encode_tensor};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{Backend, CompileOptions};
use serde::Serialize;

use parts::parts;
use passes::{Baseline, Overlay, mean_square_ratio};

/// A matrix in a format.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// The format.
    pub format: Format,
    /// Bytes of the tensor in it.
    pub bytes: usize,
    /// The divergence from the model as it is, in nats a token: estimated, of the head measured.
    pub kl: f64,
}

/// A matrix in all formats.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorCosts {
    /// The tensor.
    pub name: String,
    /// By ascending bytes; the last is the file's own format, at no cost.
    pub costs: Vec<Cost>,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// Every matrix, in the order of the file.
    pub tensors: Vec<TensorCosts>,
    /// Passes of a whole model over the text that the measurement is worth.
    pub passes: f64,
    /// Tokens of the text.
    pub tokens: usize,
}

/// A model whose sensitivity cannot be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SensitivityError {
    /// A part reads what another part keeps between steps.
    #[error(
        "{part} reads a cache that another layer writes: no layer can be run alone, so no bits can be chosen; give --format \
         or --recipe"
    )]
    SharedState {
        /// The part.
        part: String,
    },
    /// What a part gives never leaves a launch of the backend.
    #[error("{part}: what it gives is not to be had between launches of backend {backend}")]
    Fused {
        /// The part.
        part: String,
        /// The backend.
        backend: &'static str,
    },
    /// A row that a format cannot hold.
    #[error(transparent)]
    Encode(#[from] JobError),
    /// Running a part or the model.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// What is measured, and how.
pub struct Options<'a> {
    /// Chunks of the text, of one length.
    pub chunks: &'a [Vec<TokenId>],
    /// Formats to choose from; where their blocks do not divide a tensor's rows they are left out.
    pub formats: &'a [Format],
    /// The format whose error tells what a part's errors come to.
    pub probe: Format,
    /// For the encoders.
    pub importance: Option<&'a Importance>,
    /// A backend whose weights stay mapped.
    pub backend: &'a dyn Backend,
    /// Activations, KV type, threads.
    pub compile: CompileOptions,
    /// For the encoders.
    pub threads: NonZeroUsize,
}

/// Measures every matrix of `entries` in every format. `progress` hears how many matrices are done, and may stop the work.
///
/// # Errors
/// [`SensitivityError`].
pub fn measure(
    model: &Model,
    entries: &[&Entry],
    options: &Options<'_>,
    mut progress: impl FnMut(usize) -> Result<(), BackendError>,
) -> Result<Sensitivity, SensitivityError> {
    let parts = parts(&model.graph)?;
    let baseline = Baseline::run(model, &parts, options)?;
    let by_name: HashMap<&str, &Entry> = entries.iter().map(|entry| (entry.name.as_str(), *entry)).collect();
    let mut costs: HashMap<&str, Vec<Cost>> = HashMap::new();
    let (mut passes, mut done) = (1.0, 0);
    let share = 1.0 / parts.len() as f64;
    for part in &parts {
        let matrices: Vec<&Entry> =
            part.matrices(&model.graph).into_iter().filter_map(|name| by_name.get(name).copied()).collect();
        if matrices.is_empty() {
            continue;
        }
        let encoded = |entry: &Entry, format: Format| encode(model, entry, format, options);
        // What a unit of this part's squared error comes to.
        let gain = if part.is_head {
            1.0
        } else {
            let mut probe = Overlay::new(Arc::clone(&model.file));
            for entry in &matrices {
                let format = nearest_fit(options.probe, entry);
                if format.block_bytes() * entry.from.block_elems()
                    < entry.from.block_bytes() * format.block_elems()
                {
                    probe.change(&entry.name, format, encoded(entry, format)?);
                }
            }
            let errors = baseline.part_errors(part, Arc::new(probe), options)?;
            let size = mean_square_ratio(&errors, &baseline, part);
            let kl = baseline.divergence_with(model, part, &errors, options)?;
            passes += share + 1.0;
            if size > 0.0 { kl / size } else { 0.0 }
        };
        for entry in &matrices {
            let known = costs.entry(entry.name.as_str()).or_default();
            for (i, format) in formats(entry, options.formats).into_iter().enumerate() {
                let mut overlay = Overlay::new(Arc::clone(&model.file));
                let bytes = encoded(entry, format)?;
                let len = bytes.len();
                overlay.change(&entry.name, format, bytes);
                let overlay = Arc::new(overlay);
                let kl = if part.is_head {
                    baseline.head_divergence(part, overlay, options)?
                } else {
                    let errors = baseline.part_errors(part, overlay, options)?;
                    gain * mean_square_ratio(&errors, &baseline, part)
                };
                passes += share;
                // A table that is embedding and head at once costs both.
                match known.get_mut(i) {
                    Some(cost) => cost.kl += kl,
                    None => known.push(Cost { format, bytes: len, kl }),
                }
            }
            done += 1;
            progress(done)?;
        }
    }
    let tensors = entries
        .iter()
        .map(|entry| {
            let mut costs = costs.remove(entry.name.as_str()).unwrap_or_default();
            costs.sort_by_key(|cost| cost.bytes);
            let row = entry.from.row_bytes(entry.cols()).unwrap_or(0);
            let bytes = row * (entry.elems() / entry.cols().max(1));
            costs.push(Cost { format: entry.from, bytes, kl: 0.0 });
            TensorCosts { name: entry.name.clone(), costs }
        })
        .collect();
    let tokens = options.chunks.iter().map(Vec::len).sum();
    Ok(Sensitivity { tensors, passes, tokens })
}

/// The formats that make a tensor smaller and whose blocks divide its rows.
fn formats(entry: &Entry, formats: &[Format]) -> Vec<Format> {
    let bits = |format: Format| format.block_bytes() * 8 * 256 / format.block_elems();
    let fits = |format: &Format| entry.cols().is_multiple_of(format.block_elems());
    formats.iter().copied().filter(fits).filter(|format| bits(*format) < bits(entry.from)).collect()
}

/// The probe's format, or one of the same bits whose blocks divide a tensor's rows.
fn nearest_fit(probe: Format, entry: &Entry) -> Format {
    let fits = |format: &Format| entry.cols().is_multiple_of(format.block_elems());
    [probe, Format::Q4_0].into_iter().find(fits).unwrap_or(entry.from)
}

/// A tensor in another format, rows shared among threads.
fn encode(
    model: &Model,
    entry: &Entry,
    format: Format,
    options: &Options<'_>,
) -> Result<Vec<u8>, SensitivityError> {
    let rows = entry.elems() / entry.cols().max(1);
    let each = rows.div_ceil(options.threads.get()).max(1);
    let pieces: Vec<Result<Vec<u8>, JobError>> = thread::scope(|scope| {
        let work: Vec<_> = (0..rows)
            .step_by(each)
            .map(|first| {
                let rows = first..(first + each).min(rows);
                scope.spawn(move || encode_tensor(&model.file, entry, format, options.importance, rows))
            })
            .collect();
        work.into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut bytes = Vec::new();
    for piece in pieces {
        bytes.extend(piece?);
    }
    Ok(bytes)
}
