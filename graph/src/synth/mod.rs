//! Synthetic models: GGUF files of real shapes, formats and metadata, with seeded random weights.
//!
//! Input: a [`Preset`], a number of layers, a seed, perhaps a file to take the tokenizer from. Output: a file that the
//! reader takes for a model of that kind, written from front to back in pieces, so that memory does not grow with it.
//! Every piece is a function of seed, tensor and position: the file does not depend on the number of threads.
//! The weights mean nothing; they are scaled so that activations stay finite and tokens choose different experts.

mod blocks;
mod family;
mod family_compressed;
mod family_hybrid;
mod family_latent;
mod family_windows;
mod preset;
mod presets;
mod presets_more;
mod presets_windows;
mod write;

pub use blocks::fill;
pub use family::Family;
pub use preset::{Mixture, Preset};
pub use presets::PRESETS;
pub use write::{Synth, SynthError, SynthOptions};

/// SplitMix64: a seeded stream of 64-bit numbers, the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream that depends on all of `seeds`.
    pub fn new(seeds: &[u64]) -> Random {
        seeds.iter().fold(Random(0), |random, &seed| Random(random.0 ^ seed).jumped())
    }

    fn jumped(mut self) -> Random {
        Random(self.next_u64())
    }

    /// The next 64 bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in −1..1, of 24 bits.
    #[inline]
    pub fn signed_unit(&mut self) -> f32 {
        (self.next_u64() >> 39) as f32 / (1u32 << 24) as f32 - 1.0
    }

    /// Overwrites `out` with random bytes.
    pub fn bytes(&mut self, out: &mut [u8]) {
        let (words, rest) = out.as_chunks_mut::<8>();
        for word in words {
            *word = self.next_u64().to_le_bytes();
        }
        let last = self.next_u64().to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}
