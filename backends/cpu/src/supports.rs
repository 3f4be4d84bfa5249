//! What the CPU's launches can run: each op with every attribute that they read, so that one more does not compile here.

use super::NAME;
use super::ops::router;
use moe_run_graph::ir::{
    ActivationFn, AttentionAttrs, CausalConvAttrs, CompressAttrs, CompressedAttentionAttrs, DType, DecayOf,
    DeltaRuleAttrs, Dim, GateKind, GivenExpertsAttrs, Graph, HeadMap, HyperGatesAttrs, IndexScoresAttrs,
    Node, Op, PointwiseFn, PositionScaleAttrs, RopePairing, Shape, SsmScanAttrs, StateDecl, ValueId,
    WeightHome, WeightSlice,
};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{KvType, check_step_operands};

/// Whether the launches can run a node.
///
/// # Errors
/// [`BackendError::Unsupported`] naming what they lack.
pub fn supports(graph: &Graph, node: &Node) -> Result<(), BackendError> {
    check_step_operands(NAME, graph, node)?;
    match &node.op {
        Op::Embed { table, scale: _ } => on_device(table),
        Op::RmsNorm { weight: _, eps: _, heads: _ } => {}
        Op::LayerNorm { weight: _, bias: _, eps: _ } => {}
        Op::PositionScale(PositionScaleAttrs { scale: _, length: _, offset: _ }) => {}
        Op::MulHeads => {}
        Op::MatMul { weight, bias: _, scale: _ }
        | Op::HeadMatMul { weight, transposed: _ }
        | Op::ExpertMatMul { weight, bias: _ } => on_device(weight),
        Op::Rope { table: _, pairing: RopePairing::Half | RopePairing::Interleaved, heads: _ } => {}
        Op::KvWrite { key: _, value: _ } => {}
        Op::Attention(attrs) | Op::AttentionScores(attrs) | Op::AttentionSoftmax(attrs) => any_heads(attrs),
        Op::Router(attrs) => {
            if let Some(detail) = router::lacking(attrs) {
                let (node, op) = (node.path(), node.op.stem());
                return Err(BackendError::Unsupported { backend: NAME, node, op, detail });
            }
        }
        Op::IndexScores(IndexScoresAttrs { num_heads: _, head_dim: _ }) => {}
        Op::IndexSelect { top_k: _, every: _ } => {}
        Op::GivenExperts(GivenExpertsAttrs {
            num_experts: _,
            num_experts_per_tok: _,
            gate:
                GateKind::Softmax
                | GateKind::Sigmoid
                | GateKind::SoftmaxAfterTopK
                | GateKind::SparseMixer
                | GateKind::SqrtSoftplus,
            norm_topk_prob: _,
            scale: _,
            divisor: _,
            table: _,
        }) => {}
        Op::GatedAct { activation } => any_activation(*activation),
        Op::CausalConv(CausalConvAttrs { weight: _, bias: _, activation, state: _ }) => {
            activation.iter().copied().for_each(any_activation)
        }
        Op::DeltaGates { a: _, dt_bias: _, bound: _ } => {}
        Op::DeltaRule(DeltaRuleAttrs {
            num_key_heads: _,
            num_value_heads: _,
            key_head_dim: _,
            value_head_dim: _,
            head_map: HeadMap::Tiled | HeadMap::Grouped,
            eps: _,
            scale: _,
            state: _,
        }) => {}
        Op::SsmScan(SsmScanAttrs {
            num_heads: _,
            head_dim: _,
            state_size: _,
            n_groups: _,
            decay_of: DecayOf::Head | DecayOf::Element,
            a: _,
            d: _,
            dt_bias: _,
            state: _,
        }) => {}
        Op::HyperGates(HyperGatesAttrs { streams: _, iterations: _, eps: _, scale: _, base: _ }) => {}
        Op::HyperConnect { streams: _ } => {}
        Op::Compress(CompressAttrs { ratio: _, overlap: _, bias: _, state: _ }) => {}
        Op::CompressedAttention(CompressedAttentionAttrs {
            num_attention_heads: _,
            head_dim: _,
            scale: _,
            window: _,
            ratio: _,
            sinks: _,
            masked: _,
        }) => {}
        Op::Pointwise {
            function:
                PointwiseFn::Scale(_) | PointwiseFn::SoftCap(_) | PointwiseFn::Clamp(_) | PointwiseFn::ReluSquared,
        } => {}
        Op::Concat { heads: _ } => {}
        Op::Slice { heads: _, start: _, len: _ } => {}
        Op::ExpertCombine | Op::Add | Op::Mul | Op::GetRows => {}
        Op::Tap { stage: _ } => {}
    }
    let per_head = matches!(
        node.op,
        Op::AttentionScores(_)
            | Op::AttentionSoftmax(_)
            | Op::Attention(_)
            | Op::IndexScores(_)
            | Op::IndexSelect { top_k: _, every: _ }
            | Op::CompressedAttention(_)
            | Op::Tap { stage: _ }
    );
    let laid_out = |value: &&ValueId| {
        let value = graph.value(**value);
        value.dtype == DType::State || has_rows(&value.shape) || (per_head && is_per_head(&value.shape))
    };
    match node.inputs.iter().chain(&node.outputs).find(|v| !laid_out(v)) {
        None => Ok(()),
        Some(value) => Err(BackendError::Unsupported {
            backend: NAME,
            node: node.path(),
            op: node.op.stem(),
            detail: format!(
                "{value} is {}; wanted rows of a fixed width, one for each token or row of logits",
                graph.value(*value).shape
            ),
        }),
    }
}

/// Each of the functions is computed.
fn any_activation(activation: ActivationFn) {
    match activation {
        ActivationFn::Silu
        | ActivationFn::ClampedSwiglu { alpha: _, limit: _ }
        | ActivationFn::GeluTanh
        | ActivationFn::Sigmoid
        | ActivationFn::Relu
        | ActivationFn::Softplus
        | ActivationFn::LimitedSwiglu { limit: _ }
        | ActivationFn::BoundedSwiglu { limit: _ } => {}
    }
}

/// Refuses a cache whose heads are no whole blocks of the KV type: they are stored head by head.
///
/// # Errors
/// [`BackendError::Option`].
pub fn check_kv_heads(graph: &Graph, kv_type: KvType) -> Result<(), BackendError> {
    let is_odd = |s: &&StateDecl| s.is_per_token() && !s.width.is_multiple_of(32);
    // A part of a key that is a value is decoded by itself.
    let is_odd_part = |n: &&Node| matches!(&n.op, Op::Attention(a) if a.value_in_key && !a.value_head_dim.is_multiple_of(32));
    if kv_type == KvType::Q8_0 && graph.nodes.iter().any(|n| is_odd_part(&n)) {
        return Err(BackendError::Option {
            backend: NAME,
            option: "--kv-type",
            found: "q8_0".into(),
            wanted: "f16 or f32, for values that are parts of keys are no whole blocks of 32".into(),
        });
    }
    match graph.states.iter().find(|s| kv_type == KvType::Q8_0 && is_odd(s)) {
        None => Ok(()),
        Some(state) => Err(BackendError::Option {
            backend: NAME,
            option: "--kv-type",
            found: "q8_0".into(),
            wanted: format!("f16 or f32, for heads of {} elements are no whole blocks of 32", state.width),
        }),
    }
}

/// Any rows of any experts.
fn on_device(slice: &WeightSlice) {
    let WeightSlice { tensor: _, rows: _, experts: _, home: WeightHome::Device } = slice;
}

/// Heads of any number and size, and everything that bends their scores.
fn any_heads(attrs: &AttentionAttrs) {
    let AttentionAttrs {
        num_attention_heads: _,
        num_key_value_heads: _,
        head_dim: _,
        value_head_dim: _,
        scale: _,
        window: _,
        chunk: _,
        soft_cap: _,
        sinks: _,
        value_in_key: _,
        masked: _,
    } = attrs;
}

/// What `memory::Val` describes: a leading T or R, fixed sizes behind it.
fn has_rows(shape: &Shape) -> bool {
    matches!(shape.0[..], [Dim::Tokens | Dim::LogitsRows, ref rest @ ..]
        if rest.iter().all(|d| matches!(d, Dim::Fixed(_))))
}

/// [H, T, S].
fn is_per_head(shape: &Shape) -> bool {
    matches!(shape.0[..], [Dim::Fixed(_), Dim::Tokens, Dim::Cached])
}
