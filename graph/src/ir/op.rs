//! The closed set of operations, with formula, shapes and dtypes on each variant.
//!
//! T tokens in the step, R rows whose logits are asked for, S cached positions, D hidden_size, H/G query/KV heads,
//! d head_dim, E experts, K experts per token, F moe_intermediate_size. Shapes are outermost-first. Everything that
//! differs between models is an attribute here or the shape of the graph; no backend ever sees an architecture's name.

use super::compressed::{CompressAttrs, CompressedAttentionAttrs, HyperGatesAttrs};
use super::graph::{RopeTableId, StateId, WeightId};
use super::recurrent::{DeltaRuleAttrs, SsmScanAttrs};
use super::rope::RopePairing;
pub use super::routing::{ExpertGroups, GateKind, GivenExpertsAttrs, GroupScore, RouterAttrs};
pub use super::shape::{Dim, Shape, StepSizes};
use super::stage::Stage;
use serde::Serialize;
use std::ops::Range;

/// What a value's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit floats: every activation that crosses a launch.
    F32,
    /// Unsigned 32-bit integers: token ids, positions, rows, expert ids.
    U32,
    /// Rows of a declared state; stored as the session's KV type says, read back as f32.
    State,
}

/// Where a weight's bytes are to live. One place today; offload and sharding are other values of this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightHome {
    /// On the device that runs the op.
    Device,
}

/// The part of a tensor that an op reads: fused tensors, offload and sharding are slices.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct WeightSlice {
    /// The tensor.
    pub tensor: WeightId,
    /// Output rows, of each expert where there are experts.
    pub rows: Range<usize>,
    /// Experts, for a tensor [E, out, in]; `None` for [out, in].
    pub experts: Option<Range<usize>>,
    /// Where the bytes live.
    pub home: WeightHome,
}

/// The attributes that Attention and its recomputed stages share.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttentionAttrs {
    /// H.
    pub num_attention_heads: usize,
    /// G; query head h reads KV head h / (H/G).
    pub num_key_value_heads: usize,
    /// Elements of a query or key head.
    pub head_dim: usize,
    /// Elements of a value head.
    pub value_head_dim: usize,
    /// Multiplies q·k: 1/√head_dim unless the model says otherwise.
    pub scale: f32,
    /// Only the last `window` positions are seen.
    pub window: Option<usize>,
    /// Only positions of the query's own chunk are seen: of `[i·chunk, (i+1)·chunk)` that which holds it.
    pub chunk: Option<usize>,
    /// scores = cap · tanh(scores / cap).
    pub soft_cap: Option<f32>,
    /// One extra logit a head `[H]` in the softmax's denominator; F32.
    pub sinks: Option<WeightId>,
    /// A value is the first `value_head_dim` elements of its position's key: latent attention, whose state holds one row
    /// for both.
    pub value_in_key: bool,
    /// A further operand `[1, T, S]` says which positions are seen of those that all else leaves: those at which it is not 0. The
    /// scores by themselves are shown without it.
    pub masked: bool,
}

/// The function of the gate half.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationFn {
    /// x · sigmoid(x).
    Silu,
    /// c · sigmoid(alpha · c) with c = min(x, limit): gpt-oss's. [`Op::GatedAct`] multiplies it by
    /// clamp(up, −limit, limit) + 1 in place of up.
    ClampedSwiglu {
        /// Steepness of the sigmoid.
        alpha: f32,
        /// Bound of the gate from above, of up on both sides.
        limit: f32,
    },
    /// x · ½ (1 + tanh(√(2/π) (x + 0.044715 x³))): GELU by its tanh form.
    GeluTanh,
    /// sigmoid(x): attention's output gates.
    Sigmoid,
    /// max(x, 0).
    Relu,
    /// ln(1 + e^x).
    Softplus,
    /// min(silu(x), limit). [`Op::GatedAct`] multiplies it by clamp(up, −limit, limit) in place of up.
    LimitedSwiglu {
        /// Bound of the gate from above, of up on both sides.
        limit: f32,
    },
    /// silu(min(x, limit)). [`Op::GatedAct`] multiplies it by clamp(up, −limit, limit) in place of up.
    BoundedSwiglu {
        /// Bound of the gate from above, of up on both sides.
        limit: f32,
    },
}

/// The attributes of [`Op::IndexScores`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct IndexScoresAttrs {
    /// H, all on one key head.
    pub num_heads: usize,
    /// d.
    pub head_dim: usize,
}

/// The attributes of [`Op::PositionScale`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PositionScaleAttrs {
    /// Multiplies the logarithm.
    pub scale: f32,
    /// Positions that share a factor.
    pub length: usize,
    /// Added to the position.
    pub offset: usize,
}

impl PositionScaleAttrs {
    /// The factor at a position, in f64 up to the result.
    #[must_use]
    pub fn factor(&self, position: u32) -> f32 {
        let steps = (position as usize + self.offset) / self.length.max(1);
        (1.0 + f64::from(self.scale) * (steps as f64).ln_1p()) as f32
    }
}

/// The function of [`Op::Pointwise`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PointwiseFn {
    /// factor · x.
    Scale(f32),
    /// cap · tanh(x / cap).
    SoftCap(f32),
    /// min(max(x, −limit), limit).
    Clamp(f32),
    /// max(x, 0)²: experts without a gate.
    ReluSquared,
}

/// The attributes of [`Op::CausalConv`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CausalConvAttrs {
    /// w `[C, k]`, k ≥ 2; F32. The last column meets the current token.
    pub weight: WeightId,
    /// b `[C]`, F32.
    pub bias: Option<WeightId>,
    /// act; `None`: the sum itself.
    pub activation: Option<ActivationFn>,
    /// The last k − 1 inputs of each sequence: C heads of k − 1 elements.
    pub state: StateId,
}

/// Makes [`Op`], [`OpKind`] and the stems of one list: an op that is added there is in all of them.
macro_rules! ops {
    ($($(#[$doc:meta])* $variant:ident = $stem:literal $({ $($fields:tt)* })? $(($attrs:ty))?;)*) => {
        /// An operation. The stem of each variant ([`Op::stem`]) names its file in every backend.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Op { $($(#[$doc])* $variant $({ $($fields)* })? $(($attrs))?,)* }

        /// Which operation, without its attributes: what lists, cases and tables go by.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum OpKind { $(#[doc = concat!("[`Op::", stringify!($variant), "`].")] $variant,)* }

        impl OpKind {
            /// All of them.
            pub const ALL: &'static [OpKind] = &[$(OpKind::$variant,)*];

            /// The stems of all of them, in the same order.
            pub const STEMS: &'static [&'static str] = &[$($stem,)*];

            /// The op's one stem across the tree: IR, reference, CPU, kernel, shader and test files.
            #[must_use]
            pub fn stem(self) -> &'static str {
                match self { $(OpKind::$variant => $stem,)* }
            }

            /// The op of a stem.
            #[must_use]
            pub fn parse(stem: &str) -> Option<OpKind> {
                match stem { $($stem => Some(OpKind::$variant),)* _ => None }
            }
        }

        impl Op {
            /// Which op it is.
            #[must_use]
            pub fn kind(&self) -> OpKind {
                match self { $(Op::$variant { .. } => OpKind::$variant,)* }
            }
        }
    };
}

ops! {
    /// ids `[T]` U32 → rows of the table `[vocab, D]` (· scale) → `[T, D]`.
    Embed = "embed" {
        /// The table.
        table: WeightSlice,
        /// Multiplies each element, decoded: one product in f32.
        scale: Option<f32>,
    };
    /// x / sqrt(mean(x²) + eps) · w over the last axis. With `heads = n` the last axis holds n heads, each normed by
    /// itself: all with the same w `[d]`, the per-head Q/K norm, or each with its own part of w `[width]`.
    RmsNorm = "rms_norm" {
        /// w, `[width]` or `[d]`, F32; `None`: 1.
        weight: Option<WeightId>,
        /// Added to the mean square.
        eps: f32,
        /// Heads in the last axis; 1 norms the whole axis.
        heads: usize,
    };
    /// (x − mean(x)) / sqrt(var(x) + eps) · w (+ b) over the last axis; var is the mean of squares.
    LayerNorm = "layer_norm" {
        /// w, `[width]`; F32.
        weight: WeightId,
        /// b, `[width]`; F32.
        bias: Option<WeightId>,
        /// Added to the variance.
        eps: f32,
    };
    /// x [.., in] · Wᵀ (· scale) (+ bias), W [out, in] of any format → [.., out].
    MatMul = "matmul" {
        /// W.
        weight: WeightSlice,
        /// `[out]`, F32.
        bias: Option<WeightId>,
        /// Multiplies the product, before the bias.
        scale: Option<f32>,
    };
    /// x `[T, H·in]` → `[T, H·out]`, each head through a matrix of its own: W [H, out, in] of any format. Transposed, W is
    /// [H, in, out], and a head's result the sum of the rows of its matrix, each times an element of x, first to last in
    /// f64: x is then taken as it is, under any activations.
    HeadMatMul = "head_matmul" {
        /// W; its experts are the heads.
        weight: WeightSlice,
        /// Rows of W meet elements of x.
        transposed: bool,
    };
    /// Turns pairs of each head by the angle of its position: x `[T, heads·d]`, positions `[T]` → the same shape.
    /// (a, b) → (a·cos − b·sin, b·cos + a·sin).
    Rope = "rope" {
        /// cos and sin.
        table: RopeTableId,
        /// Which two elements are a pair.
        pairing: RopePairing,
        /// Heads in the last axis.
        heads: usize,
    };
    /// x `[T, n]`, positions `[T]` → x · (1 + scale · ln(1 + ⌊(position + offset) / length⌋)): queries that grow with their
    /// position. The factor is rounded to f32 once.
    PositionScale = "position_scale" (PositionScaleAttrs);
    /// k `[T, G·d]`, v `[T, G·dv]`, kv_slots `[T]` → the two states, written at the slots (a state of which only a window is
    /// read: in its ring), rounded to the KV type. Without a values' state: k, kv_slots → the one.
    KvWrite = "kv_write" {
        /// The keys' state.
        key: StateId,
        /// The values' state; `None` where values are parts of keys.
        value: Option<StateId>,
    };
    /// q `[T, H·d]`, key state, value state, positions `[T]`, sequence `[T]` → softmax(scale · q·kᵀ)·v, causal: `[T, H·dv]`.
    /// The current token's k and v are read back as the state rounded them. Where values are parts of keys, the value state is
    /// the key state. With a mask, it comes last: `[1, T, S]`.
    Attention = "attention" (AttentionAttrs);
    /// The scores inside Attention, for looking at: q, key state, positions, sequence → [H, T, S]; entries after the
    /// query's position are 0. Always recomputed: it feeds taps and [`Op::AttentionSoftmax`] only.
    AttentionScores = "attention_scores" (AttentionAttrs);
    /// scores `[H, T, S]`, positions `[T]`, sequence `[T]` → softmax over the visible positions `[H, T, S]`; 0 elsewhere. With a
    /// mask, it comes last: `[1, T, S]`.
    AttentionSoftmax = "attention_softmax" (AttentionAttrs);
    /// q `[T, H·d]`, w `[T, H]`, key state of one head of d, positions `[T]`, sequence `[T]` → Σ_h w_h · max(q_h·k, 0) for each
    /// cached position up to the token's own, 0 behind it: `[1, T, S]`. Both sums are of f32 by fused multiply-adds, first to last.
    IndexScores = "index_scores" (IndexScoresAttrs);
    /// scores `[1, T, S]`, positions `[T]`, sequence `[T]` → 1 at the `top_k` positions up to the token's own whose scores are
    /// largest, at all where they are no more; 0 elsewhere: `[1, T, S]`. Ties go to the earlier position, NaN ranks last. Only
    /// positions p count of which p + 1 is a multiple of `every`.
    IndexSelect = "index_select" {
        /// How many are chosen.
        top_k: usize,
        /// 1: all positions count.
        every: usize,
    };
    /// logits [T, E] → ids [T, K] U32 best first, weights [T, K] as applied. Ties go to the lower id, NaN ranks last;
    /// ids are distinct and below E.
    Router = "router" (RouterAttrs);
    /// logits [T, E], ids [T, n] U32 → ids [T, K] U32, the first K of n, each divided by `divisor`, and weights [T, K] as
    /// applied, the gate's values of the logits at the new ids. An id may come twice, and counts twice. With a table: logits,
    /// tokens `[T]` U32, whose ids are its rows.
    GivenExperts = "given_experts" (GivenExpertsAttrs);
    /// x [T, in] or [T, K, in], ids [T, K] → [T, K, out] with W [E, out, in].
    ExpertMatMul = "expert_matmul" {
        /// W.
        weight: WeightSlice,
        /// [E, out], F32.
        bias: Option<WeightId>,
    };
    /// gate, up (same shape) → two outputs: act(gate), and act(gate) · up. SwiGLU with [`ActivationFn::Silu`]; with
    /// [`ActivationFn::ClampedSwiglu`] the second is act(gate) · (clamp(up, −limit, limit) + 1).
    GatedAct = "gated_act" {
        /// act.
        activation: ActivationFn,
    };
    /// y [T, K, D], weights [T, K] → Σ_k weight_k · y_k, k ascending: [T, D]. y may also be [T, K·D]: with K = 1 a row times
    /// its own factor, else the streams of hyper-connections side by side.
    ExpertCombine = "expert_combine";
    /// x `[T, C]`, positions `[T]`, sequence `[T]` → a causal convolution of each channel by itself, of kernel size k:
    /// `y[t, c] = act(Σ_j w[c, j] · x[t − (k−1) + j, c] (+ b[c]))`, summed in f32 by fused multiply-adds, the oldest first; `[T, C]`.
    /// Inputs of earlier steps come from the sequence's state, `[C, k−1]`, oldest first; in front of position 0 they are 0.
    CausalConv = "causal_conv" (CausalConvAttrs);
    /// b `[T, H]`, dt `[T, H·w]` → β = sigmoid(b) `[T, H]`, and what is left of the state, decay = e^g `[T, H·w]`, a of its head:
    /// the gates of [`Op::DeltaRule`]. g = a · softplus(dt + dt_bias), or, with a bound, bound · sigmoid(a · (dt + dt_bias)).
    /// softplus(x) = ln(1 + e^x), of x where it is large.
    DeltaGates = "delta_gates" {
        /// a `[H]`, F32; negative without a bound: −exp(A_log).
        a: WeightId,
        /// `[H·w]`, F32.
        dt_bias: WeightId,
        /// The least that g comes to, below 0.
        bound: Option<f32>,
    };
    /// qkv `[T, 2·Hk·dk + Hv·dv]` (all heads' q, then k, then v), β `[T, Hv]`, decay e `[T, Hv]` or, for each element of a key,
    /// `[T, Hv·dk]`, positions `[T]`, sequence `[T]` → `[T, Hv·dv]`: the gated delta rule. q and k of a head are divided by
    /// √(Σ² + eps), q is multiplied by `scale`; then for each token in order, with S [dk, dv] of the sequence and value head,
    /// which is 0 in front of position 0: S ← e · S; S ← S + k ⊗ β·(v − Sᵀk); out = Sᵀq. Sums over dk are of f32 by fused
    /// multiply-adds in its order: `r_j = Σ_i (k_i·e_i)·S_ij`, `S_ij ← k_i·(β·(v_j − r_j)) + e_i·S_ij`,
    /// `out_j = Σ_i q_i·S_ij`, so that no cut of a prompt changes a bit. (A form by chunks of tokens would.)
    DeltaRule = "delta_rule" (DeltaRuleAttrs);
    /// xBC `[T, n·P + 2·G·N]` (all heads' x, all groups' B, all groups' C), dt `[T, n]`, positions `[T]`, sequence `[T]` →
    /// `[T, n·P]`: mamba2's scan, and mamba1's, in which a is of each element of S. For each token in order, with S [P, N] of the sequence and head, which is 0 in front of
    /// position 0: δ = softplus(dt + dt_bias); S ← e^(a·δ) · S + δ·x ⊗ B; out = S·C + d·x. Sums over N are of f32 by fused
    /// multiply-adds in 16 lanes, element i in lane i mod 16, which are then added up by halves.
    SsmScan = "ssm_scan" (SsmScanAttrs);
    /// w `[T, (2 + n)·n]` → how n streams meet a block: pre `[T, n]`, post `[T, n]`, comb `[T, n·n]`; without mixing w is `[T, n]`
    /// and pre is all. pre = sigmoid(w·scale₀ + base) + ε; post = 2·sigmoid(w·scale₁ + base); comb, row j first, is
    /// softmax over k of (w·scale₂ + base)_jk, + ε; then its columns are divided by their sums + ε, and `iterations` − 1 times its
    /// rows, then its columns. All in f64 up to the results.
    HyperGates = "hyper_gates" (HyperGatesAttrs);
    /// x `[T, n·D]`, y `[T, D]`, post `[T, n]`, comb `[T, n·n]` → x'_k = post_k·y + Σ_j comb_jk·x_j: `[T, n·D]`; summed in f32 by fused
    /// multiply-adds in this order.
    HyperConnect = "hyper_connect" {
        /// n.
        streams: usize,
    };
    /// a `[T, c·d]`, b `[T, c·d]`, positions `[T]`, sequence `[T]` → `[T, d]`: what a window of `ratio` positions comes to, at the last of
    /// them; 0 at the others. Of each channel the softmax of b + bias[position mod ratio] over the window's positions weighs a.
    /// With `overlap` c is 2: the first d channels are of the window before (which the first has not), the last d of the
    /// window itself. Earlier positions' a and b come from the sequence's state. Sums are of f32 by fused multiply-adds, oldest
    /// first, exponentials those of attention.
    Compress = "compress" (CompressAttrs);
    /// q `[T, H·d]`, key state, entry state (each of one head of d), positions `[T]`, sequence `[T]` → softmax(scale · q·kᵀ)·k:
    /// `[T, H·d]`. k are the keys of the last `window` positions, the token's own the last, and behind them the entries at
    /// positions p up to the token's own of which p + 1 is a multiple of `ratio`. With a mask `[1, T, S]`, which comes last,
    /// those entries are seen at which it is not 0. Summed as [`Op::Attention`] sums, in this order.
    CompressedAttention = "compressed_attention" (CompressedAttentionAttrs);
    /// a + b.
    Add = "add";
    /// a · b, element by element.
    Mul = "mul";
    /// x `[T, H·d]`, factors `[T, H]` → each head times its factor.
    MulHeads = "mul_heads";
    /// A function of each element: x → the same shape.
    Pointwise = "pointwise" {
        /// Which.
        function: PointwiseFn,
    };
    /// a [.., heads·n], b [.., heads·m] → of each head its elements of a, then those of b: [.., heads·(n + m)].
    Concat = "concat" {
        /// Heads in the last axis of both.
        heads: usize,
    };
    /// x [.., heads·w] → of each head of width w its elements from `start` on, `len` of them: [.., heads·len]. Tensors that
    /// hold a part of each head beside another (queries and their output gates) come apart by it.
    Slice = "slice" {
        /// Heads in the last axis.
        heads: usize,
        /// The first element of a head that is taken.
        start: usize,
        /// How many are.
        len: usize,
    };
    /// x `[T, D]`, rows `[R]` → `[R, D]`.
    GetRows = "get_rows";
    /// Identity with a name: hands its inputs, side by side along the last axis, to whoever asked.
    Tap = "tap" {
        /// The stage's name.
        stage: Stage,
    };
}

impl Op {
    /// The op's stem: [`OpKind::stem`].
    #[must_use]
    pub fn stem(&self) -> &'static str {
        self.kind().stem()
    }

    /// The weight slice that the op streams, if it has one.
    #[must_use]
    pub fn weight_slice(&self) -> Option<&WeightSlice> {
        match self {
            Op::Embed { table, scale: _ } => Some(table),
            Op::MatMul { weight, bias: _, scale: _ }
            | Op::HeadMatMul { weight, transposed: _ }
            | Op::ExpertMatMul { weight, bias: _ } => Some(weight),
            Op::RmsNorm { .. }
            | Op::LayerNorm { .. }
            | Op::Rope { .. }
            | Op::PositionScale(_)
            | Op::KvWrite { .. }
            | Op::Attention(_)
            | Op::AttentionScores(_)
            | Op::AttentionSoftmax(_)
            | Op::Router(_)
            | Op::GivenExperts(_)
            | Op::IndexScores(_)
            | Op::IndexSelect { .. }
            | Op::GatedAct { .. }
            | Op::ExpertCombine
            | Op::CausalConv(_)
            | Op::DeltaGates { .. }
            | Op::DeltaRule(_)
            | Op::SsmScan(_)
            | Op::HyperGates(_)
            | Op::HyperConnect { .. }
            | Op::Compress(_)
            | Op::CompressedAttention(_)
            | Op::Add
            | Op::Mul
            | Op::MulHeads
            | Op::Pointwise { .. }
            | Op::Concat { .. }
            | Op::Slice { .. }
            | Op::GetRows
            | Op::Tap { .. } => None,
        }
    }

    /// The stage that a tap shows; `None` for any other op.
    #[must_use]
    pub fn tapped(&self) -> Option<Stage> {
        let Op::Tap { stage } = self else { return None };
        Some(*stage)
    }

    /// The states that the op changes: it is production, whatever becomes of its results.
    #[must_use]
    pub fn written_states(&self) -> Vec<StateId> {
        match self {
            Op::KvWrite { key, value } => std::iter::once(*key).chain(*value).collect(),
            Op::CausalConv(c) => vec![c.state],
            Op::DeltaRule(d) => vec![d.state],
            Op::SsmScan(s) => vec![s.state],
            Op::Compress(c) => vec![c.state],
            Op::Embed { .. }
            | Op::RmsNorm { .. }
            | Op::LayerNorm { .. }
            | Op::MatMul { .. }
            | Op::HeadMatMul { .. }
            | Op::Rope { .. }
            | Op::PositionScale(_)
            | Op::Attention(_)
            | Op::AttentionScores(_)
            | Op::AttentionSoftmax(_)
            | Op::Router(_)
            | Op::GivenExperts(_)
            | Op::IndexScores(_)
            | Op::IndexSelect { .. }
            | Op::ExpertMatMul { .. }
            | Op::GatedAct { .. }
            | Op::ExpertCombine
            | Op::DeltaGates { .. }
            | Op::HyperGates(_)
            | Op::HyperConnect { .. }
            | Op::CompressedAttention(_)
            | Op::Add
            | Op::Mul
            | Op::MulHeads
            | Op::Pointwise { .. }
            | Op::Concat { .. }
            | Op::Slice { .. }
            | Op::GetRows
            | Op::Tap { .. } => Vec::new(),
        }
    }

    /// Every weight that the op reads.
    #[must_use]
    pub fn weights(&self) -> Vec<WeightId> {
        match self {
            Op::Embed { table, scale: _ } => vec![table.tensor],
            Op::RmsNorm { weight, eps: _, heads: _ } => weight.iter().copied().collect(),
            Op::LayerNorm { weight, bias, eps: _ } => std::iter::once(*weight).chain(*bias).collect(),
            Op::HeadMatMul { weight, transposed: _ } => vec![weight.tensor],
            Op::MatMul { weight, bias, scale: _ } | Op::ExpertMatMul { weight, bias } => {
                std::iter::once(weight.tensor).chain(*bias).collect()
            }
            // The scores come before the sinks do.
            Op::Attention(a) | Op::AttentionSoftmax(a) => a.sinks.into_iter().collect(),
            Op::Router(r) => r.selection_bias.into_iter().chain(r.expert_scale).collect(),
            Op::CausalConv(c) => std::iter::once(c.weight).chain(c.bias).collect(),
            Op::DeltaGates { a, dt_bias, bound: _ } => vec![*a, *dt_bias],
            Op::SsmScan(s) => vec![s.a, s.d, s.dt_bias],
            Op::GivenExperts(g) => g.table.into_iter().collect(),
            Op::HyperGates(h) => vec![h.scale, h.base],
            Op::Compress(c) => vec![c.bias],
            Op::CompressedAttention(a) => a.sinks.into_iter().collect(),
            Op::Rope { table: _, pairing: _, heads: _ }
            | Op::PositionScale(_)
            | Op::KvWrite { key: _, value: _ }
            | Op::AttentionScores(_)
            | Op::IndexScores(_)
            | Op::IndexSelect { top_k: _, every: _ }
            | Op::GatedAct { activation: _ }
            | Op::ExpertCombine
            | Op::DeltaRule(_)
            | Op::HyperConnect { streams: _ }
            | Op::Add
            | Op::Mul
            | Op::MulHeads
            | Op::Pointwise { function: _ }
            | Op::Concat { heads: _ }
            | Op::Slice { heads: _, start: _, len: _ }
            | Op::GetRows
            | Op::Tap { stage: _ } => Vec::new(),
        }
    }
}
