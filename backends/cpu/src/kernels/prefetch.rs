//! How weights are asked for ahead of the arithmetic: into which cache, and from how far. Decided once a process, from
//! the processor's vendor and family; results never depend on it. Nothing is measured at start, where a busy neighbour
//! would decide.
//!
//! Where the choices come from (one core, GB/s of a loop over rows, `benches/RESULTS.md`):
//! - Zen 4 (family 25): into L1, reading stops at 12 at every distance; into L2 it gets 16, 26 and 28 from 2048, 4608
//!   and 8192 bytes ahead.
//! - Zen 5 (family 26): into L1 from 2048 bytes ahead, lm_head runs at the speed of a loop that only reads. Into L2 has
//!   not been tried there.
//! - Zen 3 (family 25): both caches alike from 2048 to 8192 bytes ahead, a quarter more than without.
//! - All others, Intel's among them, have not been measured: into L2, which no processor is known to dislike.
//!
//! Absent: aarch64, for which the standard library has no stable prefetch; its kernels walk one row as one stream, which
//! the hardware follows by itself.

use std::sync::OnceLock;

/// The cache that bytes are asked into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cache {
    /// The first, hint T0.
    L1,
    /// The second, hint T1.
    L2,
}

/// Where bytes go that are asked for, and how many bytes ahead of the arithmetic: hardware streams stop at the end of a
/// page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lookahead {
    /// Where they go.
    pub into: Cache,
    /// The distance in bytes, at least; whatever a kernel reads side by side is kept out of it.
    pub bytes: usize,
}

impl Lookahead {
    /// What this processor was found to like.
    pub fn of_this_processor() -> Lookahead {
        static FOUND: OnceLock<Lookahead> = OnceLock::new();
        *FOUND.get_or_init(|| Lookahead::of(processor()))
    }

    fn of(processor: Option<([u8; 12], u32)>) -> Lookahead {
        match processor {
            Some((AMD, ZEN_5)) => Lookahead { into: Cache::L1, bytes: 2048 },
            _ => Lookahead { into: Cache::L2, bytes: 8192 },
        }
    }
}

const AMD: [u8; 12] = *b"AuthenticAMD";
const ZEN_5: u32 = 26;

/// The processor's vendor and family, extended family included.
#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe, reason = "newer toolchains call it safe")]
fn processor() -> Option<([u8; 12], u32)> {
    use std::arch::x86_64::__cpuid;
    // SAFETY: x86-64 has CPUID; leaf 1 is asked for where leaf 0 says that it exists.
    let (name, version) = unsafe {
        let name = __cpuid(0);
        (name, (name.eax >= 1).then(|| __cpuid(1).eax)?)
    };
    let mut vendor = [0; 12];
    for (to, word) in vendor.chunks_exact_mut(4).zip([name.ebx, name.edx, name.ecx]) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    Some((vendor, family(version)))
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> Option<([u8; 12], u32)> {
    None
}

/// The family in CPUID's leaf 1: four bits, and eight more where those are all set.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "x86-64 has families"))]
fn family(version: u32) -> u32 {
    match version >> 8 & 0xf {
        0xf => 0xf + (version >> 20 & 0xff),
        family => family,
    }
}

/// For every byte of some rows the address to ask for when it is read: as far ahead as the processor likes, and behind the
/// rows' end in what is read next.
#[cfg(any(target_arch = "x86_64", test))]
#[derive(Clone, Copy)]
pub struct Asked {
    bytes: usize,
    end: *const u8,
    then: *const u8,
}

#[cfg(any(target_arch = "x86_64", test))]
impl Asked {
    /// While `rows` are read, which `then` follows; where `then` is empty, what lies behind the rows. Short rows ask for
    /// no more than their own length: what is read next is then asked for by what comes before it, and only once.
    pub fn new(lookahead: Lookahead, rows: &[u8], then: &[u8]) -> Asked {
        let end = rows.as_ptr_range().end;
        let then = if then.is_empty() { end } else { then.as_ptr() };
        Asked { bytes: lookahead.bytes.min(rows.len()), end, then }
    }

    /// The same, `bytes` ahead at least: as many as are read side by side.
    #[must_use]
    pub fn at_least(self, bytes: usize) -> Asked {
        Asked { bytes: self.bytes.max(bytes), ..self }
    }

    /// What to ask for when `at` is read.
    #[inline(always)]
    pub fn ahead_of(self, at: *const u8) -> *const u8 {
        let ahead = at.wrapping_add(self.bytes);
        let over = (ahead as usize).wrapping_sub(self.end as usize);
        if ahead < self.end { ahead } else { self.then.wrapping_add(over) }
    }
}

/// Rows, one behind the other, and what to ask for while they are read.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Rows {
    /// The first one's first byte.
    pub at: *const u8,
    /// Elements of a row.
    pub inner: usize,
    /// Where to ask.
    pub asked: Asked,
}

#[cfg(target_arch = "x86_64")]
impl Rows {
    /// For rows of `row_bytes` that are walked four side by side: when the first of four is at `at`, how far from each of
    /// them to ask.
    #[inline(always)]
    pub fn distance(self, at: *const u8, row_bytes: usize) -> isize {
        let ahead = self.asked.at_least(4 * row_bytes).ahead_of(at);
        (ahead as isize).wrapping_sub(at as isize)
    }
}

/// Asks for the lines of `bytes` bytes from `at` on, rounded up; `HINT` is one of `_MM_HINT_T0` and `_MM_HINT_T1`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(unused_unsafe, reason = "newer toolchains call it safe")]
pub fn ask<const HINT: i32>(at: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(64) {
        // SAFETY: a prefetch of any address is harmless, and SSE belongs to x86-64.
        unsafe { std::arch::x86_64::_mm_prefetch::<HINT>(at.wrapping_add(64 * line).cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_read_as_the_manuals_say() {
        // Zen 3, Zen 4, Zen 5, Sapphire Rapids, and Pentium 4's, the first with all four bits set.
        for (version, want) in
            [(0x00a0_0f11, 25), (0x00a1_0f11, 25), (0x00b0_0f21, 26), (0x0008_06f8, 6), (0x0000_0f29, 15)]
        {
            assert_eq!(family(version), want, "{version:#x}");
        }
    }

    #[test]
    fn only_zen_5_asks_into_the_first_cache() {
        let into = |vendor: &[u8; 12], family| Lookahead::of(Some((*vendor, family))).into;
        assert_eq!(into(b"AuthenticAMD", 26), Cache::L1);
        assert_eq!(into(b"AuthenticAMD", 25), Cache::L2);
        assert_eq!(into(b"GenuineIntel", 26), Cache::L2);
        assert_eq!(Lookahead::of(None).into, Cache::L2);
        assert_eq!(Lookahead::of_this_processor(), Lookahead::of(processor()));
    }

    #[test]
    fn asking_goes_on_in_what_is_read_next() {
        let (rows, next) = (vec![0u8; 1000], vec![0u8; 1000]);
        let lookahead = Lookahead { into: Cache::L2, bytes: 300 };
        let asked = Asked::new(lookahead, &rows, &next);
        assert_eq!(asked.ahead_of(&rows[699]), &raw const rows[999]);
        assert_eq!(asked.ahead_of(&rows[700]), next.as_ptr());
        assert_eq!(asked.ahead_of(&rows[999]), &raw const next[299]);
        // Nothing follows: what lies behind.
        assert_eq!(Asked::new(lookahead, &rows, &[]).ahead_of(&rows[700]), rows.as_ptr_range().end);
        // Short rows ask for as much as they have; rows side by side for those that come after them.
        let short = Asked::new(lookahead, &rows[..100], &next);
        assert_eq!(short.ahead_of(&rows[0]), next.as_ptr());
        assert_eq!(short.at_least(400).ahead_of(&rows[0]), &raw const next[300]);
    }
}
