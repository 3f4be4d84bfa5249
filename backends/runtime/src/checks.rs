//! Stage 5: what every backend refuses before it compiles, beside what its own kernels lack.

use crate::error::BackendError;
use crate::options::KvType;
use moe_run_graph::ir::{Graph, Node, OpKind, StateDecl, StepInputs, ValueId};

/// Refuses a node that is told where its tokens stand by anything but the step's own inputs: a backend may find positions,
/// sequences and slots without reading the operands.
///
/// # Errors
/// [`BackendError::Unsupported`] naming the operand.
pub fn check_step_operands(backend: &'static str, graph: &Graph, node: &Node) -> Result<(), BackendError> {
    let StepInputs { tokens: _, positions, sequence, kv_slots, logits_rows: _ } = graph.inputs;
    let slots_at = node.op.written_states().len();
    let wanted: &[(&str, usize, ValueId)] = match node.op.kind() {
        OpKind::Rope | OpKind::PositionScale => &[("positions", 1, positions)],
        OpKind::KvWrite => &[("kv_slots", slots_at, kv_slots)],
        OpKind::Attention => &[("positions", 3, positions), ("sequence", 4, sequence)],
        OpKind::AttentionScores => &[("positions", 2, positions), ("sequence", 3, sequence)],
        OpKind::CausalConv | OpKind::AttentionSoftmax | OpKind::IndexSelect => {
            &[("positions", 1, positions), ("sequence", 2, sequence)]
        }
        OpKind::DeltaRule | OpKind::CompressedAttention => {
            &[("positions", 3, positions), ("sequence", 4, sequence)]
        }
        OpKind::IndexScores => &[("positions", 3, positions), ("sequence", 4, sequence)],
        OpKind::SsmScan | OpKind::Compress => &[("positions", 2, positions), ("sequence", 3, sequence)],
        OpKind::Embed
        | OpKind::RmsNorm
        | OpKind::LayerNorm
        | OpKind::MatMul
        | OpKind::HeadMatMul
        | OpKind::Router
        | OpKind::GivenExperts
        | OpKind::ExpertMatMul
        | OpKind::GatedAct
        | OpKind::ExpertCombine
        | OpKind::DeltaGates
        | OpKind::HyperGates
        | OpKind::HyperConnect
        | OpKind::Add
        | OpKind::Mul
        | OpKind::MulHeads
        | OpKind::Pointwise
        | OpKind::Concat
        | OpKind::Slice
        | OpKind::GetRows
        | OpKind::Tap => &[],
    };
    match wanted.iter().find(|(_, at, value)| node.inputs.get(*at) != Some(value)) {
        None => Ok(()),
        Some((name, at, _)) => Err(BackendError::Unsupported {
            backend,
            node: node.path(),
            op: node.op.stem(),
            detail: format!("its {name} are {:?}; wanted the step's own", node.inputs.get(*at)),
        }),
    }
}

/// Refuses a cache whose rows are no whole blocks of the KV type.
///
/// # Errors
/// [`BackendError::Option`].
pub fn check_kv_rows(backend: &'static str, graph: &Graph, kv_type: KvType) -> Result<(), BackendError> {
    let is_odd = |s: &&StateDecl| s.is_per_token() && !s.row_elems().is_multiple_of(32);
    match graph.states.iter().find(|s| kv_type == KvType::Q8_0 && is_odd(s)) {
        None => Ok(()),
        Some(state) => Err(BackendError::Option {
            backend,
            option: "--kv-type",
            found: "q8_0".into(),
            wanted: format!("rows of a multiple of 32 elements; this model's have {}", state.row_elems()),
        }),
    }
}
