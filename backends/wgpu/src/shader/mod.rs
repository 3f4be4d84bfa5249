//! Stage 5, wgpu: (op, formats, features) → WGSL, a pure function.
//!
//! Input: a [`Variant`]. Output: the text of one compute shader, made of `shaders/<op>.wgsl` and the parts of
//! `shaders/common/` that it names. Deliberately absent: anything that touches a device; what the driver makes of the
//! text is `pipelines`' business.
//!
//! The directives that a shader file may use, each on its own line:
//! - `#include PART [NAME]`: the part's text, once for each NAME; `$W` in it becomes NAME. `decode`, `dot`, `tile` and `kv`
//!   stand for the parts that fit the variant's format of that binding.
//! - `#if FLAG`, `#else`, `#endif`: `subgroups`, `f16`, `dot4`, `q8`, `round_f16`, `fused`, `first_f32`,
//!   `last_f32`, `kv_native`, `kv_f16`, `kv_f32`, `kv_q8_0`.
//!
//! `$LANE_PARAMS` and `$LANE` are the entry point's lane arguments and the value made of them.

mod sources;
#[cfg(test)]
mod tests;

use moe_run_graph::quant::Format;
use std::collections::BTreeMap;
use std::fmt;

use moe_run_runtime::KvType;

/// The optional features that a shader may use; all off is the plain path, which WebGPU's core has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Features {
    /// Subgroup functions: sums by the hardware.
    pub subgroups: bool,
    /// `enable f16`: native conversions of the KV cache's numbers.
    pub f16: bool,
    /// `dot4I8Packed` in hardware.
    pub dot4: bool,
}

impl Features {
    /// Every combination.
    pub fn combinations() -> impl Iterator<Item = Features> {
        (0..8u8).map(|bits| Features { subgroups: bits & 1 != 0, f16: bits & 2 != 0, dot4: bits & 4 != 0 })
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on: Vec<&str> = [(self.subgroups, "subgroups"), (self.f16, "f16"), (self.dot4, "dot4")]
            .into_iter()
            .filter_map(|(on, name)| on.then_some(name))
            .collect();
        f.write_str(if on.is_empty() { "plain" } else { "" })?;
        f.write_str(&on.join("+"))
    }
}

/// What a quantized matmul reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Input {
    /// f32 rows.
    F32,
    /// f32 rows, rounded to binary16 as they are read.
    F16,
    /// The blocks of 32 that `quantize_q8` made.
    Q8,
}

/// One shader.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Variant {
    /// The stem of the file in `shaders/`.
    pub op: &'static str,
    /// The format of each weight binding.
    pub weights: Vec<(&'static str, Format)>,
    /// What a matmul's activations are.
    pub input: Input,
    /// How the KV cache is stored, for the shaders that touch it.
    pub kv_type: Option<KvTypeKey>,
    /// Whether the shader also does what goes before its op.
    pub fused: bool,
    /// Sizes that the shader is built for, by name.
    pub sizes: BTreeMap<&'static str, u32>,
    /// The optional features in use.
    pub features: Features,
}

/// [`KvType`] with an order, so that variants have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KvTypeKey {
    /// [`KvType::F16`]
    F16,
    /// [`KvType::F32`]
    F32,
    /// [`KvType::Q8_0`]
    Q8_0,
}

impl From<KvType> for KvTypeKey {
    fn from(kv_type: KvType) -> Self {
        match kv_type {
            KvType::F16 => KvTypeKey::F16,
            KvType::F32 => KvTypeKey::F32,
            KvType::Q8_0 => KvTypeKey::Q8_0,
        }
    }
}

impl KvTypeKey {
    fn flag(self) -> &'static str {
        match self {
            KvTypeKey::F16 => "kv_f16",
            KvTypeKey::F32 => "kv_f32",
            KvTypeKey::Q8_0 => "kv_q8_0",
        }
    }
}

impl Variant {
    /// A shader that reads no weights and no cache.
    pub fn new(op: &'static str, features: Features, sizes: &[(&'static str, u32)]) -> Variant {
        Variant {
            op,
            weights: Vec::new(),
            input: Input::F32,
            kv_type: None,
            fused: false,
            sizes: sizes.iter().copied().collect(),
            features,
        }
    }

    /// With a weight binding of a format.
    pub fn weight(mut self, binding: &'static str, format: Format) -> Variant {
        self.weights.push((binding, format));
        self
    }

    /// With activations of a kind.
    pub fn input(mut self, input: Input) -> Variant {
        self.input = input;
        self
    }

    /// With a cache of a type.
    pub fn kv(mut self, kv_type: KvType) -> Variant {
        self.kv_type = Some(kv_type.into());
        self
    }

    /// Doing also what goes before the op.
    pub fn fused(mut self) -> Variant {
        self.fused = true;
        self
    }

    /// Whether a matrix is of floats where activations are rounded.
    fn is_of_floats(&self, weight: Option<&(&'static str, Format)>) -> bool {
        self.input != Input::F32 && weight.is_some_and(|(_, format)| !format.is_quantized())
    }

    fn flag(&self, name: &str) -> Option<bool> {
        Some(match name {
            "subgroups" => self.features.subgroups,
            "f16" => self.features.f16,
            "dot4" => self.features.dot4,
            "q8" => self.input == Input::Q8,
            "fused" => self.fused,
            // One matrix takes its row as it is, others theirs rounded.
            "first_f32" => self.is_of_floats(self.weights.first()),
            "last_f32" => self.is_of_floats(self.weights.last()),
            // A cache that the shader also writes is bound as words.
            "kv_native" => self.features.f16 && !self.fused,
            "round_f16" => self.input == Input::F16,
            "kv_f16" | "kv_f32" | "kv_q8_0" => self.kv_type.is_some_and(|k| k.flag() == name),
            _ => return None,
        })
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.op)?;
        for (_, format) in &self.weights {
            write!(f, "_{}", format.name().to_lowercase())?;
        }
        match self.input {
            Input::F32 => {}
            Input::F16 => f.write_str("_f16")?,
            Input::Q8 => f.write_str("_q8")?,
        }
        if let Some(kv) = self.kv_type {
            write!(f, "_{}", kv.flag())?;
        }
        if self.fused {
            f.write_str("_fused")?;
        }
        for (name, size) in &self.sizes {
            write!(f, " {name}={size}")?;
        }
        write!(f, " [{}]", self.features)
    }
}

/// A shader source that names a part, a flag or a directive that does not exist: a defect of `shaders/`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("shader {shader}, part {part}, line {line}: {detail}")]
pub struct ComposeError {
    /// The variant.
    pub shader: String,
    /// The file.
    pub part: String,
    /// Its line.
    pub line: usize,
    /// What is wrong with it.
    pub detail: String,
}

/// The WGSL of a variant.
///
/// # Errors
/// [`ComposeError`] where the sources name something that is not there; tests compose every variant.
pub fn compose(variant: &Variant) -> Result<String, ComposeError> {
    let mut composer = Composer { variant, text: String::new(), included: Vec::new() };
    // naga 30 has the subgroup functions without WGSL's `enable subgroups`, which it refuses.
    if variant.features.f16 {
        composer.text.push_str("enable f16;\n");
    }
    composer.text.push_str(&format!("// {variant}\n"));
    for (name, size) in &variant.sizes {
        composer.text.push_str(&format!("const {name}: u32 = {size}u;\n"));
    }
    composer.file(variant.op, "")?;
    Ok(composer.text)
}

struct Composer<'a> {
    variant: &'a Variant,
    text: String,
    included: Vec<(String, String)>,
}

impl Composer<'_> {
    fn file(&mut self, part: &str, binding: &str) -> Result<(), ComposeError> {
        let wrong = |line: usize, detail: String| ComposeError {
            shader: self.variant.to_string(),
            part: part.to_owned(),
            line,
            detail,
        };
        let Some(source) = sources::source(part) else {
            return Err(wrong(0, "no such part in shaders/".into()));
        };
        // Whether each enclosing branch is taken.
        let mut branches: Vec<bool> = Vec::new();
        for (i, line) in source.lines().enumerate() {
            let wrong = |detail: String| ComposeError {
                shader: self.variant.to_string(),
                part: part.to_owned(),
                line: i + 1,
                detail,
            };
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["#if", flag] => {
                    let on = self.variant.flag(flag).ok_or_else(|| wrong(format!("no flag {flag}")))?;
                    branches.push(on);
                }
                ["#else"] => {
                    let last = branches.last_mut().ok_or_else(|| wrong("#else without #if".into()))?;
                    *last = !*last;
                }
                ["#endif"] => {
                    branches.pop().ok_or_else(|| wrong("#endif without #if".into()))?;
                }
                _ if branches.contains(&false) => {}
                ["#include", name] => self.include(name, binding)?,
                ["#include", name, binding] => self.include(name, binding)?,
                [directive, ..] if directive.starts_with('#') => {
                    return Err(wrong(format!("unknown directive {line}")));
                }
                _ => {
                    self.text.push_str(&self.substitute(line, binding));
                    self.text.push('\n');
                }
            }
        }
        if branches.is_empty() {
            Ok(())
        } else {
            Err(wrong(source.lines().count(), "#if without #endif".into()))
        }
    }

    fn include(&mut self, name: &str, binding: &str) -> Result<(), ComposeError> {
        let mut parts = vec![name.to_owned()];
        if name == "decode" {
            let format = self.variant.weights.iter().find(|(n, _)| *n == binding).map(|(_, f)| *f);
            let Some(format) = format else {
                return Err(ComposeError {
                    shader: self.variant.to_string(),
                    part: name.to_owned(),
                    line: 0,
                    detail: format!("no weight binding {binding}"),
                });
            };
            parts = vec![format!("decode_{}", format.name().to_lowercase())];
            if format.is_quantized() {
                parts.push("group_quantized".to_owned());
            }
        } else if name == "dot" {
            parts = vec!["row_dot".to_owned()];
        } else if name == "kv" {
            parts = self.variant.kv_type.iter().map(|k| k.flag().to_owned()).collect();
        }
        for part in parts {
            let names_binding = sources::source(&part).is_some_and(|s| s.contains("$W"));
            let key = (part.clone(), if names_binding { binding.to_owned() } else { String::new() });
            if !self.included.contains(&key) {
                self.included.push(key);
                self.file(&part, binding)?;
            }
        }
        Ok(())
    }

    fn substitute(&self, line: &str, binding: &str) -> String {
        if !line.contains('$') {
            return line.to_owned();
        }
        let (params, value) = if self.variant.features.subgroups {
            (
                "@builtin(local_invocation_index) lane_index: u32, @builtin(subgroup_invocation_id) in_subgroup: u32, \
                 @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32",
                "Lane(lane_index, in_subgroup, subgroup, subgroups)",
            )
        } else {
            ("@builtin(local_invocation_index) lane_index: u32", "Lane(lane_index)")
        };
        line.replace("$LANE_PARAMS", params).replace("$LANE", value).replace("$W", binding)
    }
}
