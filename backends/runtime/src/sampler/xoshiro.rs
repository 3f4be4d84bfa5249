//! The sampler's random numbers. Input: a seed. Output: the same numbers on every machine.

/// xoshiro256++ 1.0 (Blackman and Vigna, prng.di.unimi.it, public domain), its state filled by splitmix64 as they advise.
#[derive(Debug, Clone)]
pub(super) struct Xoshiro256PlusPlus {
    pub(super) state: [u64; 4],
}

impl Xoshiro256PlusPlus {
    pub(super) fn from_seed(seed: u64) -> Self {
        let mut split = seed;
        let mut next = || {
            split = split.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = split;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        Xoshiro256PlusPlus { state: [next(), next(), next(), next()] }
    }

    pub(super) fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// In [0, 1): the upper 53 bits, all that an f64 below 1 can hold evenly.
    pub(super) fn next_unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}
