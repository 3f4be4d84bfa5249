//! The attributes of the ops of compressed attention and of hyper-connections.
//!
//! Definition: DeepSeek-V4, Hugging Face transformers, `models/deepseek_v4/modeling_deepseek_v4.py`; Zhu et al. 2024
//! (hyper-connections, arXiv 2409.19606).

use super::graph::{StateId, WeightId};
use serde::Serialize;

/// The attributes of [`Op::HyperGates`](super::Op::HyperGates).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HyperGatesAttrs {
    /// n.
    pub streams: usize,
    /// How often comb's columns are brought to a sum of 1, at least once; `None`: pre is all that is made.
    pub iterations: Option<usize>,
    /// ε.
    pub eps: f32,
    /// `[3]`, or `[1]` without mixing; F32.
    pub scale: WeightId,
    /// `[(2 + n)·n]`, or `[n]`; F32.
    pub base: WeightId,
}

impl HyperGatesAttrs {
    /// Elements of a token's w.
    #[must_use]
    pub fn width(&self) -> usize {
        match self.iterations {
            Some(_) => (2 + self.streams) * self.streams,
            None => self.streams,
        }
    }

    /// Elements of scale.
    #[must_use]
    pub fn scales(&self) -> usize {
        if self.iterations.is_some() { 3 } else { 1 }
    }
}

/// The attributes of [`Op::Compress`](super::Op::Compress).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompressAttrs {
    /// Positions of a window.
    pub ratio: usize,
    /// The window before takes part, by channels of its own.
    pub overlap: bool,
    /// `[ratio, c·d]`, F32.
    pub bias: WeightId,
    /// Of each sequence and channel of the result what its windows' positions brought: [`CompressAttrs::slots`] a, then as many b.
    pub state: StateId,
}

impl CompressAttrs {
    /// c: channels of a and b for one of the result.
    #[must_use]
    pub fn parts(&self) -> usize {
        if self.overlap { 2 } else { 1 }
    }

    /// Places of a channel in the state: those of the window and, with `overlap`, in front of them those that the channels of
    /// the window before have, twice as many, so that a window finds the one before it still there.
    #[must_use]
    pub fn slots(&self) -> usize {
        if self.overlap { 3 * self.ratio } else { self.ratio }
    }

    /// The place of a position's channel of a part: the first with `overlap` is that of the window before.
    #[must_use]
    pub fn slot(&self, part: usize, position: usize) -> usize {
        match (self.overlap, part) {
            (true, 0) => position % (2 * self.ratio),
            (true, _) => 2 * self.ratio + position % self.ratio,
            (false, _) => position % self.ratio,
        }
    }

    /// Whether a position is the last of its window.
    #[must_use]
    pub fn completes(&self, position: usize) -> bool {
        (position + 1).is_multiple_of(self.ratio)
    }

    /// The places that make up the result at a position that completes a window, oldest first.
    pub fn window(&self, position: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        let (ratio, first, is_overlap) = (self.ratio, position + 1 - self.ratio, self.overlap);
        let before = if is_overlap && first > 0 { first - ratio..first } else { 0..0 };
        let own = if is_overlap { 2 * ratio } else { 0 };
        before.map(move |p| p % (2 * ratio)).chain(own..own + ratio)
    }
}

/// The attributes of [`Op::CompressedAttention`](super::Op::CompressedAttention).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompressedAttentionAttrs {
    /// H, all on one head of keys, which are the values too.
    pub num_attention_heads: usize,
    /// d.
    pub head_dim: usize,
    /// Multiplies q·k.
    pub scale: f32,
    /// Positions whose own keys are seen.
    pub window: usize,
    /// Positions of an entry.
    pub ratio: usize,
    /// One extra logit a head `[H]` in the softmax's denominator; F32.
    pub sinks: Option<WeightId>,
    /// A further operand says which entries are seen.
    pub masked: bool,
}

impl CompressedAttentionAttrs {
    /// The positions whose own keys a query at `position` sees.
    #[must_use]
    pub fn near(&self, position: usize) -> std::ops::Range<usize> {
        (position + 1).saturating_sub(self.window)..position + 1
    }

    /// How many entries there are up to `position`; the i-th stands at [`CompressedAttentionAttrs::entry`].
    #[must_use]
    pub fn entries(&self, position: usize) -> usize {
        (position + 1) / self.ratio
    }

    /// The position at which entry `i` stands.
    #[must_use]
    pub fn entry(&self, i: usize) -> usize {
        (i + 1) * self.ratio - 1
    }
}
