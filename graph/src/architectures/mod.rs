//! Stage 3: ModelConfig + tensors → Graph of ops, with a tap at every stage.
//!
//! Input: metadata and the tensor table. Output: the model's dimensions and a verified [`Graph`]. An architecture is one
//! file: its row, how its keys become a [`ModelConfig`], and its lowering from `blocks/`; the table [`ARCHITECTURES`] lists
//! the rows, and no other place asks for a name (docs/adding.md has the steps). A tensor of the file that lowering did not
//! use is an error: a model with a part that is silently left out is worse than one that is refused. What is left out on
//! purpose is named with a reason ([`Lowering::leave_out`]).

pub mod blocks;
mod error;
mod lowering;

mod afmoe;
mod bailingmoe2;
mod bailingmoe3;
mod cohere2moe;
mod dbrx;
mod deepseek2;
mod deepseek32;
mod deepseek4;
mod dots1;
mod ernie4_5_moe;
mod exaone_moe;
mod gemma4;
mod glm4moe;
mod glm_dsa;
mod gpt_oss;
mod granitehybrid;
mod granitemoe;
mod grovemoe;
mod hunyuan_moe;
mod hy_v3;
mod jamba;
mod kimi_linear;
mod laguna;
mod lfm2moe;
mod llama;
mod llama4;
mod mimo2;
mod minimax_m2;
mod mistral3;
mod mistral4;
mod nemotron_h_moe;
mod olmoe;
mod phimoe;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen35moe;
mod qwen3moe;
mod qwen3next;
mod qwen3vlmoe;
mod smallthinker;
mod step35;

pub use error::LowerError;
pub use lowering::Lowering;

use crate::config::{ConfigError, ModelConfig, Reader};
use crate::gguf::{GgufFile, MetaArray, Metadata, keys};
use crate::ir::{Graph, ValueId};
use crate::quant::{Format, GgmlType};
use crate::verify::verify;
use std::collections::BTreeMap;

/// One architecture.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// Reads its keys.
    pub configure: fn(&Reader<'_>) -> Result<ModelConfig, ConfigError>,
    /// Lowers a model.
    pub lower: fn(&mut Lowering<'_>) -> Result<(), LowerError>,
}

/// The table of architectures.
pub const ARCHITECTURES: &[Architecture] = &[
    qwen3moe::ROW,
    qwen3::ROW,
    qwen3vlmoe::ROW,
    grovemoe::ROW,
    qwen2moe::ROW,
    glm4moe::ROW,
    llama::ROW,
    olmoe::ROW,
    dots1::ROW,
    minimax_m2::ROW,
    hunyuan_moe::ROW,
    hy_v3::ROW,
    ernie4_5_moe::ROW,
    exaone_moe::ROW,
    mimo2::ROW,
    gpt_oss::ROW,
    granitemoe::ROW,
    bailingmoe2::ROW,
    qwen2::ROW,
    deepseek2::ROW,
    deepseek32::ROW,
    deepseek4::ROW,
    glm_dsa::ROW,
    mistral4::ROW,
    mistral3::ROW,
    gemma4::ROW,
    smallthinker::ROW,
    phimoe::ROW,
    dbrx::ROW,
    step35::ROW,
    afmoe::ROW,
    laguna::ROW,
    cohere2moe::ROW,
    llama4::ROW,
    lfm2moe::ROW,
    qwen35moe::ROW,
    qwen35moe::DENSE_ROW,
    qwen3next::ROW,
    granitehybrid::ROW,
    nemotron_h_moe::ROW,
    jamba::ROW,
    kimi_linear::ROW,
    bailingmoe3::ROW,
];

/// Shape and type of the tensors in a file, by name.
pub type TensorTable = BTreeMap<String, (Vec<usize>, GgmlType)>;

/// The tensor table of a file.
#[must_use]
pub fn tensor_table(file: &GgufFile) -> TensorTable {
    file.tensors().iter().map(|t| (t.name.clone(), (t.shape.clone(), t.ggml_type))).collect()
}

/// The row of the architecture that the metadata names.
///
/// # Errors
/// [`ConfigError`] for a missing key or an unlisted architecture.
pub fn architecture(metadata: &Metadata) -> Result<&'static Architecture, ConfigError> {
    let name = metadata.str(keys::GENERAL_ARCHITECTURE)?;
    ARCHITECTURES.iter().find(|row| row.name == name).ok_or_else(|| ConfigError::Architecture {
        found: name.to_owned(),
        near: near(name),
        known: ARCHITECTURES.len(),
    })
}

/// Listed names that share most with `name`: at least three letters in front, the longest first; at most four.
fn near(name: &str) -> Vec<&'static str> {
    let letters = |name: &'_ str| -> Vec<char> {
        name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).take(64).collect()
    };
    let wanted = letters(name);
    let shared = |row: &str| letters(row).iter().zip(&wanted).take_while(|(a, b)| a == b).count();
    let mut near: Vec<_> = ARCHITECTURES.iter().map(|row| (shared(row.name), row.name)).collect();
    near.retain(|(shared, _)| *shared >= 3);
    near.sort_by_key(|(shared, _)| std::cmp::Reverse(*shared));
    near.into_iter().take(4).map(|(_, name)| name).collect()
}

/// Lowers the model in a file.
///
/// # Errors
/// [`LowerError`] naming the key or tensor, what was found and what was wanted.
pub fn lower_file(file: &GgufFile) -> Result<(ModelConfig, Graph), LowerError> {
    let vectors = |name: &str| {
        let entry = file.tensor(name)?;
        if entry.ggml_type == GgmlType::I32 {
            // Ids: f32 holds those below 2^24 exactly, and none above it for one below.
            let words = file.data(entry).as_chunks::<4>().0;
            return Some(words.iter().map(|word| i32::from_le_bytes(*word) as f32).collect());
        }
        let mut values = vec![0.0; entry.elems()];
        entry.format().ok()?.decode_row(file.data(entry), &mut values);
        Some(values)
    };
    lower(file.metadata(), &tensor_table(file), &vectors)
}

/// Lowers a model of which metadata and tensor table are known; `vectors` gives the values of those few tensors that
/// become part of the graph itself.
///
/// # Errors
/// [`LowerError`] naming the key or tensor, what was found and what was wanted.
pub fn lower(
    metadata: &Metadata,
    tensors: &TensorTable,
    vectors: &dyn Fn(&str) -> Option<Vec<f32>>,
) -> Result<(ModelConfig, Graph), LowerError> {
    let row = architecture(metadata)?;
    // Tables of ids are for who asks for them by name; one that nobody asks for is told as any other tensor.
    for (name, (_, ggml_type)) in tensors.iter().filter(|(_, (_, ggml_type))| *ggml_type != GgmlType::I32) {
        format_of(name, *ggml_type)?;
    }
    let config = ModelConfig::read(metadata, tensors)?;
    let mut lowering = Lowering::new(&config, tensors, vectors);
    (row.lower)(&mut lowering)?;
    let mut graph = lowering.finish()?;
    graph.num_tokens = padded_vocabulary(metadata, config.vocab_size)?;
    verify(&graph, "lower")?;
    Ok((config, graph))
}

/// How many tokens there are, where they are fewer than the embedding table's `rows`.
///
/// # Errors
/// [`LowerError::TokensBeyondRows`]. A file without tokens has nothing to compare.
fn padded_vocabulary(metadata: &Metadata, rows: usize) -> Result<Option<usize>, LowerError> {
    match metadata.opt_array(keys::TOKENIZER_TOKENS).ok().flatten().map(MetaArray::len) {
        Some(tokens) if tokens > rows => Err(LowerError::TokensBeyondRows { tokens, rows }),
        Some(tokens) if (1..rows).contains(&tokens) => Ok(Some(tokens)),
        _ => Ok(None),
    }
}

/// The format of a tensor, which must be one that is decoded here.
fn format_of(name: &str, ggml_type: GgmlType) -> Result<Format, LowerError> {
    ggml_type.format().map_err(|source| LowerError::TensorType { name: name.to_owned(), source })
}

/// The one result of a node that has one.
pub(crate) fn only(outputs: Vec<ValueId>) -> ValueId {
    outputs[0]
}
