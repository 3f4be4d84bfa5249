//! The embedded code: PTX of every kernel for three generations of chips, deflated.
//!
//! NVRTC 12.2 wrote it (scripts/nvrtc-check.py), so that any driver from CUDA 12.2 on translates it; the driver keeps the
//! result on disk. Each generation's text may use what its chips have: 8.0 the matrix units, 9.0 overlapping launches.
//! Deliberately absent: machine code, which would suit one chip each.

use std::collections::HashMap;
use std::sync::OnceLock;

/// The PTX of one generation: a line `//sources HASH`, then modules, each behind a line `//module NAME`.
struct Embedded {
    capability: (i32, i32),
    deflated: &'static [u8],
    text: OnceLock<Option<String>>,
    /// The module of each kernel, by the kernel's name.
    kernels: OnceLock<HashMap<&'static str, Module>>,
}

/// A module: what it is called, and its PTX.
pub type Module = (&'static str, &'static str);

macro_rules! embedded {
    ($major:literal, $minor:literal) => {
        Embedded {
            capability: ($major, $minor),
            deflated: include_bytes!(concat!("../../../../kernels/ptx/compute_", $major, $minor, ".ptx.z")),
            text: OnceLock::new(),
            kernels: OnceLock::new(),
        }
    };
}

/// Newest first.
static EMBEDDED: [Embedded; 3] = [embedded!(9, 0), embedded!(8, 0), embedded!(7, 5)];

/// The oldest chips that any of it runs on: compute capability 7.5 (Turing).
pub const OLDEST_CAPABILITY: (i32, i32) = (7, 5);
/// From here on kernels use the matrix units (`mma` of 8-bit and 16-bit tiles).
pub const MATRIX_CAPABILITY: (i32, i32) = (8, 0);
/// From here on a kernel may start before the one in front has ended (`griddepcontrol`).
pub const OVERLAP_CAPABILITY: (i32, i32) = (9, 0);
/// More than any text is long: a damaged stream does not fill the memory.
const MOST_BYTES: usize = 64 << 20;

/// The code of one generation of chips.
#[derive(Clone, Copy)]
pub struct Code(&'static Embedded);

impl Code {
    /// The newest code that a chip of this compute capability runs.
    #[must_use]
    pub fn for_capability(capability: (i32, i32)) -> Option<Code> {
        EMBEDDED.iter().find(|e| e.capability <= capability).map(Code)
    }

    /// All of it, newest first.
    #[cfg(test)]
    pub fn all() -> impl Iterator<Item = Code> {
        EMBEDDED.iter().map(Code)
    }

    /// The compute capability that it was made for.
    #[must_use]
    pub fn capability(&self) -> (i32, i32) {
        self.0.capability
    }

    /// The text; `None` if it does not inflate.
    #[must_use]
    pub fn text(&self) -> Option<&'static str> {
        let inflate = || {
            let bytes =
                miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(self.0.deflated, MOST_BYTES).ok()?;
            String::from_utf8(bytes).ok()
        };
        self.0.text.get_or_init(inflate).as_deref()
    }

    /// The hash of the sources that it was made from.
    #[must_use]
    pub fn sources(&self) -> Option<&'static str> {
        self.text()?.lines().next()?.strip_prefix("//sources ")
    }

    /// The modules.
    pub fn modules(&self) -> impl Iterator<Item = Module> {
        self.text().unwrap_or_default().split("//module ").skip(1).filter_map(|m| m.split_once('\n'))
    }

    /// The module that defines a kernel.
    #[must_use]
    pub fn module_of(&self, kernel: &str) -> Option<Module> {
        let index = || {
            let entries = |module: Module| {
                let names = module.1.split(".entry ").skip(1).filter_map(|e| e.split_once('('));
                names.map(move |(name, _)| (name, module))
            };
            self.modules().flat_map(entries).collect()
        };
        self.0.kernels.get_or_init(index).get(kernel).copied()
    }
}
