//! The arithmetic that both sides of a comparison have: found before anything is compiled, or refused. A difference in it
//! would be blamed on the first product.
//!
//! Input: the options, the judged backend, the other side. Output: the 8-bit block of super-block formats; the refusal of
//! saved stages that the run does not match. Absent: limits, which are in [`crate::tolerance`].

use super::{Against, Options, ParityError};
use crate::taps::tensor_set::TensorSet;
use moe_run_graph::ids::TokenId;
use moe_run_graph::ir::Graph;
use moe_run_graph::quant::ActBlock;
use moe_run_runtime::executable::{Activations, Backend, ExecutableInfo, KvType};
use std::collections::HashSet;

/// Whether a weight is in super-blocks; in the other formats there is one block only.
fn has_super_blocks(graph: &Graph) -> bool {
    graph.weights.iter().any(|w| w.format.is_quantized() && w.format.block_elems() == ActBlock::X256.elems())
}

/// The 8-bit block of super-block formats for both sides: what is asked for, what saved stages record, or the judged
/// backend's first that the other one has, too. `None` leaves it to the judged backend.
pub(super) fn q8_super_block(
    graph: &Graph,
    backend: &dyn Backend,
    against: Against<'_>,
    options: &Options,
) -> Result<Option<ActBlock>, ParityError> {
    if options.compile.q8_super_block.is_some() || !has_super_blocks(graph) {
        return Ok(options.compile.q8_super_block);
    }
    let ours = backend.q8_super_blocks();
    let (set, backends) = match against {
        Against::Backend(other, _) => {
            return Ok(ours.iter().copied().find(|b| other.q8_super_blocks().contains(b)));
        }
        Against::Saved(set, backends) => (set, backends),
    };
    let is_q8 = options.compile.activations.is_none_or(|a| a == Activations::Q8);
    match set.q8_super_block() {
        Some(saved) if is_q8 && !ours.contains(&saved) => {
            let able: Vec<&str> =
                backends.iter().filter(|b| b.q8_super_blocks().contains(&saved)).map(|b| b.name()).collect();
            Err(ParityError::SavedBlock {
                path: set.path.clone(),
                saved: saved.elems(),
                backend: backend.name(),
                found: ours.iter().map(|b| b.elems().to_string()).collect::<Vec<_>>().join(" or "),
                able: able.join(" or "),
            })
        }
        saved => Ok(saved.filter(|_| is_q8)),
    }
}

/// Refuses saved stages that record other tokens than the run's: every stage would differ, and no op be at fault.
pub(super) fn check_tokens(set: &TensorSet, tokens: &[TokenId]) -> Result<(), ParityError> {
    let Some(saved) = set.tokens() else { return Ok(()) };
    let detail = match saved.iter().zip(tokens).position(|(a, b)| a != b) {
        Some(at) => format!("token {at} is {} there and {} here", saved[at], tokens[at]),
        None if saved.len() != tokens.len() => {
            format!("{} tokens there and {} here", saved.len(), tokens.len())
        }
        None => return Ok(()),
    };
    Err(ParityError::SavedTokens { path: set.path.clone(), detail })
}

/// Saved tensors that are no stage of the graph.
pub(super) fn unknown_tensors(graph: &Graph, set: &TensorSet) -> Vec<String> {
    let states = graph.state_stages().into_iter().map(|s| s.stage.path(Some(s.layer.index())));
    let taps = graph.taps().map(|(n, s)| s.path(n.layer.map(|l| l.index())));
    let stages: HashSet<String> = taps.chain(states).collect();
    set.tensors.keys().filter(|name| !stages.contains(*name)).cloned().collect()
}

/// Whether a run is defined to give the saved stages bit by bit: this version saved them from a backend that computes as
/// the judged one does, with the same activations, block and KV type.
pub(super) fn has_bits_of(
    graph: &Graph,
    set: &TensorSet,
    backends: &[Box<dyn Backend>],
    info: &ExecutableInfo,
) -> bool {
    let is = |key, value| set.setting(key) == Some(value);
    let saved_by = set.setting("backend");
    backends.iter().find(|b| Some(b.name()) == saved_by).is_some_and(|b| b.has_reference_bits())
        && is("moe_run_version", env!("CARGO_PKG_VERSION"))
        && is("activations", info.activations.name())
        && is("kv_type", info.kv_type.name())
        && (!has_super_blocks(graph) || set.q8_super_block() == info.q8_super_block)
}

/// Refuses saved stages that were rounded otherwise than this run rounds. Stages of f32, and those that record nothing, are
/// exact: any run may be compared with them, within limits that say by how much it rounds.
pub(super) fn check_saved(set: &TensorSet, info: &ExecutableInfo) -> Result<(), ParityError> {
    let refuse = |option, saved: &str, found: &str| {
        Err(ParityError::SavedSetting {
            path: set.path.clone(),
            option,
            saved: saved.to_owned(),
            found: found.to_owned(),
        })
    };
    match set.setting("activations").and_then(Activations::parse) {
        Some(saved) if saved != Activations::F32 && saved != info.activations => {
            return refuse("--activations", saved.name(), info.activations.name());
        }
        _ => {}
    }
    match set.setting("kv_type").and_then(KvType::parse) {
        Some(saved) if saved != KvType::F32 && saved != info.kv_type => {
            refuse("--kv-type", saved.name(), info.kv_type.name())
        }
        _ => Ok(()),
    }
}
