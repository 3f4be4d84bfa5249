//! The attributes of the ops that carry a matrix from token to token.

use super::graph::{StateId, WeightId};
use serde::Serialize;

/// Which key head a value head reads, of Hv value heads on Hk key heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadMap {
    /// p mod Hk: Qwen3.5, whose converter moves the value heads.
    Tiled,
    /// p div (Hv / Hk): Qwen3-Next.
    Grouped,
}

/// The attributes of [`Op::DeltaRule`](super::Op::DeltaRule).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeltaRuleAttrs {
    /// Hk.
    pub num_key_heads: usize,
    /// Hv, a multiple of Hk.
    pub num_value_heads: usize,
    /// dk of queries and keys.
    pub key_head_dim: usize,
    /// dv of values.
    pub value_head_dim: usize,
    /// Whose query and key a value head takes.
    pub head_map: HeadMap,
    /// Added to the sum of squares by which q and k are normed.
    pub eps: f32,
    /// Multiplies the normed q.
    pub scale: f32,
    /// S of each sequence: Hv heads of [dk, dv].
    pub state: StateId,
}

impl DeltaRuleAttrs {
    /// The key head of a value head.
    #[must_use]
    pub fn key_head(&self, value_head: usize) -> usize {
        match self.head_map {
            HeadMap::Tiled => value_head % self.num_key_heads,
            HeadMap::Grouped => value_head / (self.num_value_heads / self.num_key_heads),
        }
    }

    /// Elements of a token's queries, or of its keys.
    #[must_use]
    pub fn key_width(&self) -> usize {
        self.num_key_heads * self.key_head_dim
    }

    /// Elements of a token's values.
    #[must_use]
    pub fn value_width(&self) -> usize {
        self.num_value_heads * self.value_head_dim
    }
}

/// What a decay of [`Op::SsmScan`](super::Op::SsmScan) is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DecayOf {
    /// A head: mamba2.
    Head,
    /// An element of a head's one row: mamba1, whose heads are its channels, all on one group.
    Element,
}

/// The attributes of [`Op::SsmScan`](super::Op::SsmScan).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SsmScanAttrs {
    /// n.
    pub num_heads: usize,
    /// P.
    pub head_dim: usize,
    /// N.
    pub state_size: usize,
    /// G, of which n is a multiple; head j takes B and C of group j div (n / G).
    pub n_groups: usize,
    /// What a decay is of.
    pub decay_of: DecayOf,
    /// a `[n]`, or `[n, N]` where each element decays by itself; negative: −exp(A_log); F32.
    pub a: WeightId,
    /// d `[n]`, F32.
    pub d: WeightId,
    /// Added to dt before its softplus: `[n]`, F32.
    pub dt_bias: WeightId,
    /// S of each sequence: n heads of [P, N].
    pub state: StateId,
}

impl SsmScanAttrs {
    /// The group of a head.
    #[must_use]
    pub fn group(&self, head: usize) -> usize {
        head / (self.num_heads / self.n_groups)
    }

    /// Elements of a token's x.
    #[must_use]
    pub fn x_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Elements of a token's B, or of its C.
    #[must_use]
    pub fn group_width(&self) -> usize {
        self.n_groups * self.state_size
    }
}
