//! `--target-bits`: formats by what each costs on a text.

use std::{collections::HashMap, num::NonZeroUsize, time::Instant};

use moe_run_backends::{CompileOptions, registry};
use moe_run_graph::{
    Model,
    quant::Format,
    quantize::{Entry, Importance, QuantizePlan, Why},
};
use moe_run_inspect::sensitivity::{self, Options, TensorCosts};
use serde::Serialize;

use crate::{CliError, output, perplexity::chunks_of, progress};

/// Formats to choose from: of blocks of 256, and of 32 for rows that are no whole number of those.
const FORMATS: [Format; 10] = [
    Format::Q2K,
    Format::Q3K,
    Format::Iq4Xs,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
    Format::Q8_0,
    Format::Iq4Nl,
    Format::Q5_0,
    Format::Q5_1,
];

/// The backend that measures: its weights stay where the file is mapped, so another format of one matrix loads nothing.
const BACKEND: &str = "cpu";

/// What was asked for.
pub struct Wanted {
    /// A weight, of all tensors together.
    pub bits: f64,
    /// Of the text, at most.
    pub chunks: usize,
    /// Of a chunk.
    pub chunk_tokens: usize,
    /// For encoding and running.
    pub threads: NonZeroUsize,
}

/// What was chosen, and by what.
#[derive(Debug, Serialize)]
pub struct Target {
    /// Asked for.
    pub bits_per_weight: f64,
    /// A format for each matrix.
    #[serde(skip)]
    pub formats: HashMap<String, Format>,
    /// What each matrix costs in each format.
    pub costs: Vec<TensorCosts>,
    /// The sum of what was chosen, in nats a token.
    pub estimated_kl: f64,
    /// Of the text.
    pub tokens: usize,
    /// Passes of the whole model that measuring was worth.
    pub passes: f64,
    /// That it took.
    pub seconds: f64,
}

impl Target {
    /// What a tensor costs in the format that was chosen for it.
    pub fn cost(&self, name: &str) -> Option<f64> {
        let format = self.formats.get(name)?;
        let costs = &self.costs.iter().find(|tensor| tensor.name == name)?.costs;
        costs.iter().find(|cost| cost.format == *format).map(|cost| cost.kl)
    }
}

/// Measures and chooses. What a recipe decides stays as it is decided; of `plan` that is what is not the base's.
///
/// Errors: a number of bits that cannot be met, a text that is too short, what running reports.
pub fn choose(
    model: &Model,
    plan: &QuantizePlan,
    importance: Option<&Importance>,
    text: &str,
    wanted: &Wanted,
) -> Result<Target, CliError> {
    let started = Instant::now();
    if !wanted.bits.is_finite() || wanted.bits <= 0.0 {
        return Err(CliError::bad_input(format!("--target-bits {}: wanted a number above 0", wanted.bits)));
    }
    let chunks = chunks_of(text, model, wanted.chunk_tokens, Some(wanted.chunks))?;
    let chunks: Vec<_> = (0..chunks.len()).map(|chunk| chunks.evaluated(chunk)).collect();
    let backend = registry::by_name(BACKEND)?;
    let free: Vec<&Entry> = plan.matrices().filter(|entry| entry.why == Why::Kept).collect();
    let options = Options {
        chunks: &chunks,
        formats: &FORMATS,
        probe: probe(wanted.bits),
        importance,
        backend: backend.as_ref(),
        compile: CompileOptions { threads: Some(wanted.threads.get()), ..CompileOptions::default() },
        threads: wanted.threads,
    };
    output::note(&format!(
        "measuring {} matrices in {} formats on {} chunks of {} tokens",
        free.len(),
        FORMATS.len(),
        chunks.len(),
        wanted.chunk_tokens
    ));
    let bar = progress::bar(free.len() as u64, "{wide_bar} matrix {pos}/{len}  {eta}");
    let measured = sensitivity::measure(model, &free, &options, |done| {
        bar.set_position(done as u64);
        Ok(())
    });
    bar.finish_and_clear();
    let measured = measured?;
    let (elems, fixed) = plan.entries.iter().fold((0, 0), |(elems, fixed), entry| {
        let is_free = entry.why == Why::Kept && free.iter().any(|free| free.name == entry.name);
        (elems + entry.elems(), fixed + if is_free { 0 } else { entry.bytes })
    });
    let bytes = (wanted.bits * elems as f64 / 8.0) as usize;
    let too_few = |least: usize| {
        CliError::bad_input(format!(
            "--target-bits {}: the smallest formats come to {:.3} bits a weight; ask for more",
            wanted.bits,
            least as f64 * 8.0 / elems.max(1) as f64
        ))
    };
    let for_matrices = bytes.checked_sub(fixed).ok_or_else(|| too_few(fixed))?;
    let formats = sensitivity::choose(&measured.tensors, for_matrices)
        .map_err(|error| too_few(fixed + error.least_bytes))?;
    let mut target = Target {
        bits_per_weight: wanted.bits,
        formats,
        costs: measured.tensors,
        estimated_kl: 0.0,
        tokens: measured.tokens,
        passes: measured.passes,
        seconds: started.elapsed().as_secs_f64(),
    };
    target.estimated_kl = target.formats.keys().filter_map(|name| target.cost(name)).sum();
    Ok(target)
}

/// The format near the wanted bits: what errors come to is measured with one that is made as large.
fn probe(bits: f64) -> Format {
    match bits {
        b if b < 3.0 => Format::Q2K,
        b if b < 4.0 => Format::Q3K,
        b if b < 5.0 => Format::Q4K,
        b if b < 6.0 => Format::Q5K,
        _ => Format::Q6K,
    }
}
