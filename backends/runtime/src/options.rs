//! What an executable is compiled for: precisions, sizes, taps, device.

use crate::error::BackendError;
use crate::executable::{Backend, ExecutableInfo};
use crate::placed::PlaceRequest;
use moe_run_graph::ir::Graph;
use moe_run_graph::passes::TapSelection;
use moe_run_graph::quant::{ActBlock, ActProfile};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;

/// The precision of the activations that a quantized matmul reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// 32-bit floats; no 16-bit matrix units.
    F32,
    /// Rounded to 16-bit floats.
    F16,
    /// 8-bit blocks as `graph/quant/activation.rs` defines them.
    Q8,
}

/// The largest T of a step where none is asked for, on a backend that has no choice of its own: enough tokens to meet every
/// expert's weights with some tiles of them.
pub const MICRO_BATCH: usize = 512;

/// How the KV cache stores its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// IEEE half: the default.
    #[default]
    F16,
    /// As computed.
    F32,
    /// Q8_0 blocks of 32: see [`KvType::round_row`].
    #[serde(rename = "q8_0")]
    Q8_0,
}

macro_rules! named_enum {
    ($ty:ident { $($variant:ident = $name:literal),* }) => {
        impl $ty {
            /// All values.
            pub const ALL: &'static [$ty] = &[$($ty::$variant),*];

            /// The name on the command line and in JSON.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $($ty::$variant => $name),* }
            }

            /// The value of a name.
            #[must_use]
            pub fn parse(name: &str) -> Option<$ty> {
                $ty::ALL.iter().copied().find(|v| v.name() == name)
            }
        }

        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

impl From<ActProfile> for Activations {
    fn from(profile: ActProfile) -> Activations {
        match profile {
            ActProfile::F32 => Activations::F32,
            ActProfile::F16 => Activations::F16,
            ActProfile::Q8 { .. } => Activations::Q8,
        }
    }
}

named_enum!(Activations { F32 = "f32", F16 = "f16", Q8 = "q8" });
named_enum!(KvType { F16 = "f16", F32 = "f32", Q8_0 = "q8_0" });

impl KvType {
    /// Bytes of a row of `elems` elements (a multiple of 32 for q8_0, which [`Executable::new_state`](crate::Executable::new_state) checks).
    #[must_use]
    pub fn row_bytes(self, elems: usize) -> usize {
        match self {
            KvType::F32 => elems * 4,
            KvType::F16 => elems * 2,
            KvType::Q8_0 => elems / 32 * 34,
        }
    }

    /// What a row is read back as after it has been stored. This is the definition for every backend.
    ///
    /// f16: rounded to nearest even. q8_0: blocks of 32; d = f16(amax / 127), q = round-ties-even(x · (127 / amax)),
    /// read back as q · d; a block with a non-finite element reads back as NaN, an all-zero one as 0.
    pub fn round_row(self, row: &mut [f32]) {
        match self {
            KvType::F32 => {}
            KvType::F16 => row.iter_mut().for_each(|x| *x = half::f16::from_f32(*x).to_f32()),
            KvType::Q8_0 => {
                let mut blocks = [moe_run_graph::quant::ActQ8x32 { scale: 0.0, q: [0; 32] }];
                for chunk in row.chunks_exact_mut(32) {
                    moe_run_graph::quant::activation::quantize_x32(chunk, &mut blocks);
                    let d = half::f16::from_f32(blocks[0].scale).to_f32();
                    for (x, q) in chunk.iter_mut().zip(blocks[0].q) {
                        *x = f32::from(q) * d;
                    }
                }
            }
        }
    }
}

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes (or kernels) done.
    pub done: u64,
    /// In all.
    pub total: u64,
    /// What is being done: "uploading weights", "compiling shaders".
    pub what: &'static str,
}

/// What a backend has opened, once nothing that it can foresee is in the way, and before it loads anything.
#[derive(Debug, Clone)]
pub struct Opened<'a> {
    /// Backend, device, precisions, threads.
    pub info: &'a ExecutableInfo,
    /// More of the device, for people: "avx2", "compute capability 9.0".
    pub details: String,
    /// Layers of the graph: all of them run there, unless it is a part.
    pub num_layers: usize,
    /// The part of a model on several devices that runs there, for people: "layers 0-11 of 48 on cuda:0"; `None`: the whole.
    pub part: Option<&'a str>,
    /// Tokens that the context holds.
    pub ctx_size: usize,
    /// Threads that were asked for; `info` has those that run.
    pub asked_threads: Option<usize>,
    /// What it will take of the device's memory.
    pub memory: MemoryNeed,
}

/// Memory that a model takes, and the device has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Weights as the device holds them; on the host, those of the mapped file.
    pub weight_bytes: u64,
    /// The KV cache of the whole context.
    pub kv_cache_bytes: u64,
    /// How its rows lie there: the reference keeps what an f16 is read back as, in f32.
    pub kv_stored: KvType,
    /// Values between launches, scratch, tables.
    pub working_bytes: u64,
    /// What is free for all that, weights that are loaded counted in; `None` where the driver does not tell.
    pub available_bytes: Option<u64>,
}

impl MemoryNeed {
    /// Everything together.
    #[must_use]
    pub fn wanted_bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.kv_cache_bytes).saturating_add(self.working_bytes)
    }

    /// Whether it fits; `None` where the driver does not tell what there is.
    #[must_use]
    pub fn fits(&self) -> Option<bool> {
        self.available_bytes.map(|available| self.wanted_bytes() <= available)
    }
}

/// What is called with what a backend has opened.
pub type OnOpened = Arc<dyn Fn(&Opened<'_>) + Send + Sync>;

/// What an executable is compiled for.
#[derive(Clone)]
pub struct CompileOptions {
    /// `None`: the backend's fastest.
    pub activations: Option<Activations>,
    /// Elements of an 8-bit activation block for super-block formats, 32 or 256; `None`: the backend's own. (The
    /// 32-element formats always take 32.) It lets the reference, or a CPU, follow another backend's definition.
    pub q8_super_block: Option<ActBlock>,
    /// How the KV cache is stored.
    pub kv_type: KvType,
    /// The largest number of cached positions.
    pub ctx_size: usize,
    /// The largest T of a prefill step; `None`: the backend's own.
    pub micro_batch: Option<usize>,
    /// The largest R of a step.
    pub max_logits_rows: usize,
    /// Taps to keep.
    pub taps: TapSelection,
    /// Threads; `None`: the physical cores. Only the CPU looks at it.
    pub threads: Option<usize>,
    /// Index or name of the device; `None`: the backend's choice.
    pub device: Option<String>,
    /// Several devices that are to share the model, in place of `device`: `moe_run_backends::placement` makes a backend of it. No
    /// backend by itself looks at it.
    pub place: Option<Arc<PlaceRequest>>,
    /// Told what has been opened, before weights are loaded, or memory for steps is taken.
    pub opened: Option<OnOpened>,
    /// Told how loading goes.
    pub progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
}

impl CompileOptions {
    /// What any backend refuses before it opens a device: a context whose positions cannot be counted, and a block of
    /// 8-bit activations that it does not take.
    ///
    /// # Errors
    /// [`BackendError::Option`].
    pub fn check(&self, backend: &dyn Backend) -> Result<(), BackendError> {
        let wrong = |option, found: String, wanted: String| {
            Err(BackendError::Option { backend: backend.name(), option, found, wanted })
        };
        if u32::try_from(self.ctx_size).is_err() {
            let wanted = format!("{} at most, for positions are numbers of 32 bits", u32::MAX);
            return wrong("--ctx-size", self.ctx_size.to_string(), wanted);
        }
        let blocks = backend.q8_super_blocks();
        if let ActProfile::Q8 { k_block } = backend.profile(self)
            && !blocks.contains(&k_block)
        {
            let known: Vec<String> = blocks.iter().map(|b| b.elems().to_string()).collect();
            let option = "the 8-bit activation block of super-block formats";
            return wrong(option, k_block.elems().to_string(), known.join(" or "));
        }
        Ok(())
    }

    /// Says what has been opened, to whoever wants to know.
    pub fn tell_opened(
        &self,
        info: &ExecutableInfo,
        details: impl Into<String>,
        graph: &Graph,
        memory: MemoryNeed,
    ) {
        if let Some(opened) = &self.opened {
            opened(&Opened {
                info,
                details: details.into(),
                num_layers: graph.num_layers,
                part: None,
                ctx_size: self.ctx_size,
                asked_threads: self.threads,
                memory,
            });
        }
    }

    /// Whether `--device` names the one device, called `name`, of a backend that has no other.
    ///
    /// # Errors
    /// [`BackendError::Option`] for another.
    pub fn check_only_device(&self, backend: &'static str, name: &str) -> Result<(), BackendError> {
        match self.device.as_deref() {
            Some(found) if found != name && found != "0" => Err(BackendError::Option {
                backend,
                option: "--device",
                found: found.to_owned(),
                wanted: format!("0 or {name:?}"),
            }),
            _ => Ok(()),
        }
    }

    /// The activation profile, given what the backend does where nothing is asked for.
    #[must_use]
    pub fn profile(&self, default: Activations, default_block: ActBlock) -> ActProfile {
        match self.activations.unwrap_or(default) {
            Activations::F32 => ActProfile::F32,
            Activations::F16 => ActProfile::F16,
            Activations::Q8 => ActProfile::Q8 { k_block: self.q8_super_block.unwrap_or(default_block) },
        }
    }
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions {
            activations: None,
            q8_super_block: None,
            kv_type: KvType::F16,
            ctx_size: 4096,
            micro_batch: None,
            max_logits_rows: 1,
            taps: TapSelection::None,
            threads: None,
            device: None,
            place: None,
            opened: None,
            progress: None,
        }
    }
}
