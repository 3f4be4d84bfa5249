//! RoPE's table of cosines and sines: one definition, read by every backend.

use serde::Serialize;

/// Which elements of a head RoPE turns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RopePairing {
    /// Element i with element i + dims/2 (GPT-NeoX, Qwen).
    Half,
    /// Element 2i with element 2i + 1 (the original LLaMA order).
    Interleaved,
}

/// How positions are stretched beyond the training context.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// Positions as they are.
    None,
    /// Positions divided by the factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// YaRN (Peng et al. 2023): slow pairs are divided by the factor, fast ones stay, between them a ramp.
    Yarn {
        /// The divisor.
        factor: f64,
        /// C, the context before stretching.
        original_max_position_embeddings: usize,
        /// Pairs with more turns than this within C stay.
        beta_fast: f64,
        /// Pairs with fewer turns than this within C are divided fully.
        beta_slow: f64,
        /// Multiplies every cosine and sine.
        attention_factor: f64,
        /// The ramp begins and ends at whole pairs: its ends are rounded outward.
        truncate: bool,
    },
}

/// One table of cosines and sines: computed once in f64 on the host, stored f32, read by every backend.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RopeSpec {
    /// The base: frequency i is theta^(−2i/dims).
    pub theta: f64,
    /// How many elements of each head are turned; the rest pass through.
    pub dims: usize,
    /// Stretching.
    pub scaling: RopeScaling,
    /// The angle of pair i is divided by the i-th, as Llama 3 stretches; empty: by nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub divisors: Vec<f32>,
    /// A position turns as the one so many before it, or as 0 where there is none: rows that stand behind what they are of.
    #[serde(skip_serializing_if = "is_zero")]
    pub behind: u32,
    /// Pairs are turned back: sines have the other sign.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub back: bool,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl RopeSpec {
    /// cos and sin of one position: `dims/2` pairs `cos, sin` side by side, `out` of `dims` elements.
    ///
    /// angle_i = p · theta^(−2i/dims), p `behind` positions before this one, in f64 before the rounding to f32 (Su et al. 2021, eq. 15).
    pub fn fill_row(&self, position: u32, out: &mut [f32]) {
        let factor = match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            RopeScaling::None | RopeScaling::Linear { .. } => 1.0,
        };
        let (position, direction) =
            (position.saturating_sub(self.behind), if self.back { -1.0 } else { 1.0 });
        for (i, pair) in out.chunks_exact_mut(2).enumerate().take(self.dims / 2) {
            let angle = f64::from(position) * self.theta.powf(-2.0 * i as f64 / self.dims as f64);
            let angle = self.stretched(i, angle) / self.divisors.get(i).map_or(1.0, |d| f64::from(*d));
            pair[0] = (angle.cos() * factor) as f32;
            pair[1] = (direction * angle.sin() * factor) as f32;
        }
    }

    /// The angle of pair `i`, stretched.
    fn stretched(&self, i: usize, angle: f64) -> f64 {
        match self.scaling {
            RopeScaling::None => angle,
            RopeScaling::Linear { factor } => angle / factor,
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor: _,
                truncate,
            } => {
                // The pair that makes so many turns within the original context.
                let turns = original_max_position_embeddings as f64 / std::f64::consts::TAU;
                let pair = |beta: f64| self.dims as f64 * (turns / beta).ln() / (2.0 * self.theta.ln());
                let (low, high) = match truncate {
                    true => (pair(beta_fast).floor(), pair(beta_slow).ceil()),
                    false => (pair(beta_fast), pair(beta_slow)),
                };
                let (low, high) = (low.max(0.0), high.min(self.dims as f64 - 1.0));
                let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                angle * (1.0 - ramp) + angle / factor * ramp
            }
        }
    }

    /// The table for positions 0..n: shape [n, dims/2, 2].
    #[must_use]
    pub fn table(&self, positions: usize) -> Vec<f32> {
        let mut table = vec![0.0; positions * self.dims];
        for (p, row) in table.chunks_exact_mut(self.dims).enumerate() {
            self.fill_row(p as u32, row);
        }
        table
    }
}
