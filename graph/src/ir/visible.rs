//! Which cached positions a query of attention sees.

use super::op::AttentionAttrs;

impl AttentionAttrs {
    /// The first position that a query at `position` sees: by its window and its chunk.
    #[must_use]
    pub fn first_visible(&self, position: usize) -> usize {
        let window = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
        window.max(self.chunk.map_or(0, |chunk| position / chunk.max(1) * chunk))
    }

    /// The most positions that a query sees, its own among them; `None` where there is no bound.
    #[must_use]
    pub fn reach(&self) -> Option<usize> {
        self.window.into_iter().chain(self.chunk).min()
    }

    /// Query heads that share one KV head.
    #[must_use]
    pub fn group_size(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }
}
