//! FNV-1a, 64 bits: tells files, jobs and models apart, and damage from what was written. No protection against anybody.

/// A hash that is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Fnv1a {
        Fnv1a(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Fnv1a {
        let mut hash = Fnv1a::default();
        hash.add(bytes);
        hash
    }

    /// Bytes that follow.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// The hash of all bytes so far.
    #[must_use]
    pub fn value(self) -> u64 {
        self.0
    }

    /// The same in 16 hexadecimal digits.
    #[must_use]
    pub fn text(self) -> String {
        format!("{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Fnv1a;

    #[test]
    fn published_values_are_met() {
        // From the test suite of draft-eastlake-fnv.
        assert_eq!(Fnv1a::of(b"").value(), 0xcbf2_9ce4_8422_2325);
        assert_eq!(Fnv1a::of(b"a").value(), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(Fnv1a::of(b"foobar").value(), 0x8594_4171_f739_67e8);
        assert_eq!(Fnv1a::of(b"foobar").text(), "85944171f73967e8");
    }
}
