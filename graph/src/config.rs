//! Stage 2: metadata → [`ModelConfig`]: typed dimensions, per layer.
//!
//! Input: a file's metadata and the architecture's row in the table ([`crate::architectures::ARCHITECTURES`]), which gives the
//! default where a key is missing. Names are Hugging Face's. Nothing is guessed from a file's or a model's name.

use crate::architectures::Architecture;
use crate::gguf::{GgufError, MetaValue, Metadata, keys};
use crate::ir::{GateKind, RopePairing, RopeScaling};
use crate::shown::shown;
use serde::Serialize;
use std::borrow::Cow;

/// Metadata that does not describe a model that can be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A key that is missing or has the wrong type.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// An architecture without a row in the table.
    #[error("architecture '{}' is not supported; supported are {}", shown(found), known.join(", "))]
    Architecture {
        /// `general.architecture`.
        found: String,
        /// The rows of the table.
        known: Vec<&'static str>,
    },
    /// A value that no model can have, or that is not supported.
    #[error(
        "{}: found {}, wanted {wanted}; the file may be damaged or need a newer moe-run",
        shown(key),
        shown(found)
    )]
    Value {
        /// The key.
        key: String,
        /// What the file says.
        found: String,
        /// What it may say.
        wanted: String,
    },
}

/// A model's dimensions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelConfig {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, where the file has it.
    pub name: Option<String>,
    /// Rows of the embedding table and of lm_head.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Positions that the model was trained for.
    pub max_position_embeddings: usize,
    /// Added to the mean square of every RMSNorm.
    pub rms_norm_eps: f32,
    /// One entry a layer: real files differ by layer.
    pub layers: Vec<LayerConfig>,
}

/// One layer's dimensions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerConfig {
    /// Attention.
    pub attention: AttentionConfig,
    /// Dense or experts.
    pub ffn: FfnConfig,
}

/// One layer's attention.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttentionConfig {
    /// H.
    pub num_attention_heads: usize,
    /// G.
    pub num_key_value_heads: usize,
    /// d of queries and keys.
    pub head_dim: usize,
    /// d of values.
    pub value_head_dim: usize,
    /// RoPE's base.
    pub rope_theta: f64,
    /// Elements of a head that RoPE turns.
    pub rope_dims: usize,
    /// Which two elements it turns together.
    pub rope_pairing: RopePairing,
    /// Stretching.
    pub rope_scaling: RopeScaling,
    /// Per-head RMSNorm of q and k before RoPE.
    pub qk_norm: bool,
}

/// One layer's feed-forward part.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FfnConfig {
    /// One SwiGLU.
    Dense {
        /// Its width.
        intermediate_size: usize,
    },
    /// Experts behind a router.
    Moe {
        /// E.
        num_experts: usize,
        /// K.
        num_experts_per_tok: usize,
        /// F.
        moe_intermediate_size: usize,
        /// The router's gate.
        gate: GateKind,
        /// Divide the chosen weights by their sum.
        norm_topk_prob: bool,
        /// Multiplies the weights.
        scale: f32,
    },
}

/// More layers than any model has: a damaged count is refused before anything is sized by it.
const MAX_LAYERS: usize = 4096;
/// The largest dimension that is believed.
const MAX_DIMENSION: usize = 1 << 24;

impl ModelConfig {
    /// Reads the dimensions of a model of the given architecture.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key, what was found and what was wanted.
    pub fn from_metadata(metadata: &Metadata, row: &Architecture) -> Result<ModelConfig, ConfigError> {
        let read = Reader { metadata, architecture: row.name };
        let num_hidden_layers = read.dimension(keys::arch::BLOCK_COUNT)?;
        if num_hidden_layers > MAX_LAYERS {
            return Err(read.wrong(keys::arch::BLOCK_COUNT, num_hidden_layers, format!("1 to {MAX_LAYERS}")));
        }
        let hidden_size = read.dimension(keys::arch::EMBEDDING_LENGTH)?;
        let rms_norm_eps = metadata.f32(&read.key(keys::arch::RMS_EPS))?;
        if !(rms_norm_eps.is_finite() && rms_norm_eps > 0.0) {
            return Err(read.wrong(keys::arch::RMS_EPS, rms_norm_eps, "a small positive number".into()));
        }
        let heads = read.per_layer(keys::arch::HEAD_COUNT, num_hidden_layers, None)?;
        let kv_heads = read.per_layer(keys::arch::HEAD_COUNT_KV, num_hidden_layers, Some(&heads))?;
        let mut layers = Vec::with_capacity(num_hidden_layers);
        let widths = match row.ffn {
            FfnKind::Dense => read.per_layer(keys::arch::FEED_FORWARD_LENGTH, num_hidden_layers, None)?,
            FfnKind::Moe { .. } => Vec::new(),
        };
        for i in 0..num_hidden_layers {
            let attention = read.attention(row, hidden_size, heads[i], kv_heads[i])?;
            let ffn = match row.ffn {
                FfnKind::Dense => FfnConfig::Dense { intermediate_size: widths[i] },
                FfnKind::Moe { gate, norm_topk_prob } => read.moe(gate, norm_topk_prob)?,
            };
            layers.push(LayerConfig { attention, ffn });
        }
        Ok(ModelConfig {
            architecture: row.name.to_owned(),
            name: metadata.opt_display(keys::GENERAL_NAME)?.map(Cow::into_owned),
            vocab_size: read.vocab_size()?,
            hidden_size,
            num_hidden_layers,
            max_position_embeddings: read.dimension(keys::arch::CONTEXT_LENGTH)?,
            rms_norm_eps,
            layers,
        })
    }

    /// Bytes of KV cache that one token takes when a row of `n` elements takes `row_bytes(n)`.
    #[must_use]
    pub fn kv_bytes_per_token(&self, row_bytes: impl Fn(usize) -> usize) -> usize {
        let row = |a: &AttentionConfig| {
            row_bytes(a.num_key_value_heads * a.head_dim)
                + row_bytes(a.num_key_value_heads * a.value_head_dim)
        };
        self.layers.iter().map(|l| row(&l.attention)).sum()
    }
}

/// What a layer's feed-forward part is, in an architecture's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FfnKind {
    /// One SwiGLU.
    Dense,
    /// Experts behind a router; the metadata may say otherwise for both attributes.
    Moe {
        /// The router's gate.
        gate: GateKind,
        /// Divide the chosen weights by their sum.
        norm_topk_prob: bool,
    },
}

struct Reader<'a> {
    metadata: &'a Metadata,
    architecture: &'static str,
}

impl Reader<'_> {
    fn key(&self, rest: &str) -> String {
        keys::arch_key(self.architecture, rest)
    }

    fn wrong(&self, rest: &str, found: impl ToString, wanted: String) -> ConfigError {
        ConfigError::Value { key: self.key(rest), found: found.to_string(), wanted }
    }

    fn plausible(&self, rest: &str, n: usize) -> Result<usize, ConfigError> {
        if n == 0 || n > MAX_DIMENSION {
            return Err(self.wrong(rest, n, format!("1 to {MAX_DIMENSION}")));
        }
        Ok(n)
    }

    fn dimension(&self, rest: &str) -> Result<usize, ConfigError> {
        self.plausible(rest, self.metadata.usize(&self.key(rest))?)
    }

    fn opt_dimension(&self, rest: &str) -> Result<Option<usize>, ConfigError> {
        self.metadata.opt_usize(&self.key(rest))?.map(|n| self.plausible(rest, n)).transpose()
    }

    /// One number for all layers, or an array with one a layer.
    fn per_layer(
        &self,
        rest: &str,
        layers: usize,
        default: Option<&[usize]>,
    ) -> Result<Vec<usize>, ConfigError> {
        let key = self.key(rest);
        let array = match self.metadata.get(&key) {
            Some(MetaValue::Array(_)) => self.metadata.usize_array(&key)?,
            None if default.is_some() => return Ok(default.unwrap_or_default().to_vec()),
            _ => return Ok(vec![self.dimension(rest)?; layers]),
        };
        if array.len() != layers {
            return Err(self.wrong(
                rest,
                format!("{} numbers", array.len()),
                format!("one a layer: {layers}"),
            ));
        }
        array.into_iter().map(|n| self.plausible(rest, n)).collect()
    }

    fn vocab_size(&self) -> Result<usize, ConfigError> {
        if let Some(n) = self.opt_dimension(keys::arch::VOCAB_SIZE)? {
            return Ok(n);
        }
        match self.metadata.get(keys::TOKENIZER_TOKENS) {
            Some(MetaValue::Array(tokens)) => self.plausible(keys::arch::VOCAB_SIZE, tokens.len()),
            _ => Ok(0),
        }
    }

    fn attention(
        &self,
        row: &Architecture,
        hidden_size: usize,
        num_attention_heads: usize,
        num_key_value_heads: usize,
    ) -> Result<AttentionConfig, ConfigError> {
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(self.wrong(
                keys::arch::HEAD_COUNT_KV,
                num_key_value_heads,
                format!("a divisor of {num_attention_heads} heads"),
            ));
        }
        // The file states head_dim; hidden_size / heads is the default of the format, and wrong for many models.
        let head_dim = match self.opt_dimension(keys::arch::KEY_LENGTH)? {
            Some(n) => n,
            None => self.plausible(keys::arch::KEY_LENGTH, hidden_size / num_attention_heads)?,
        };
        let value_head_dim = self.opt_dimension(keys::arch::VALUE_LENGTH)?.unwrap_or(head_dim);
        let rope_dims = self.opt_dimension(keys::arch::ROPE_DIMENSION_COUNT)?.unwrap_or(head_dim);
        if rope_dims > head_dim || rope_dims % 2 != 0 {
            return Err(self.wrong(
                keys::arch::ROPE_DIMENSION_COUNT,
                rope_dims,
                format!("an even number up to head_dim {head_dim}"),
            ));
        }
        let theta_key = self.key(keys::arch::ROPE_FREQ_BASE);
        let rope_theta = self.metadata.opt_f32(&theta_key)?.map_or(row.rope_theta_default, f64::from);
        if !(rope_theta.is_finite() && rope_theta > 0.0) {
            return Err(self.wrong(keys::arch::ROPE_FREQ_BASE, rope_theta, "a positive number".into()));
        }
        Ok(AttentionConfig {
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            value_head_dim,
            rope_theta,
            rope_dims,
            rope_pairing: row.rope_pairing,
            rope_scaling: self.rope_scaling()?,
            qk_norm: row.qk_norm,
        })
    }

    fn rope_scaling(&self) -> Result<RopeScaling, ConfigError> {
        let kind = self.metadata.opt_str(&self.key(keys::arch::ROPE_SCALING_TYPE))?.unwrap_or("none");
        match kind {
            "none" => Ok(RopeScaling::None),
            "linear" => {
                let factor = f64::from(self.metadata.f32(&self.key(keys::arch::ROPE_SCALING_FACTOR))?);
                if !(factor.is_finite() && factor > 0.0) {
                    return Err(self.wrong(
                        keys::arch::ROPE_SCALING_FACTOR,
                        factor,
                        "a positive number".into(),
                    ));
                }
                Ok(RopeScaling::Linear { factor })
            }
            other => Err(self.wrong(keys::arch::ROPE_SCALING_TYPE, other, "none or linear".into())),
        }
    }

    fn moe(&self, gate: GateKind, norm_topk_prob: bool) -> Result<FfnConfig, ConfigError> {
        let num_experts = self.dimension(keys::arch::EXPERT_COUNT)?;
        let num_experts_per_tok = self.dimension(keys::arch::EXPERT_USED_COUNT)?;
        if num_experts_per_tok > num_experts {
            return Err(self.wrong(
                keys::arch::EXPERT_USED_COUNT,
                num_experts_per_tok,
                format!("at most {num_experts} experts"),
            ));
        }
        let norm = self.metadata.opt_bool(&self.key(keys::arch::EXPERT_WEIGHTS_NORM))?;
        let scale = self.metadata.opt_f32(&self.key(keys::arch::EXPERT_WEIGHTS_SCALE))?;
        // 0 stands for "not stated" in converters' output.
        let scale = scale.filter(|s| *s != 0.0).unwrap_or(1.0);
        if !scale.is_finite() {
            return Err(self.wrong(keys::arch::EXPERT_WEIGHTS_SCALE, scale, "a finite number".into()));
        }
        let gating = self.metadata.opt_u32(&self.key(keys::arch::EXPERT_GATING_FUNC))?;
        let gate = match gating {
            None | Some(0) => gate,
            Some(1) => GateKind::Softmax,
            Some(2) => GateKind::Sigmoid,
            Some(3) => GateKind::SoftmaxAfterTopK,
            Some(n) => return Err(self.wrong(keys::arch::EXPERT_GATING_FUNC, n, "0 to 3".into())),
        };
        Ok(FfnConfig::Moe {
            num_experts,
            num_experts_per_tok,
            moe_intermediate_size: self.dimension(keys::arch::EXPERT_FEED_FORWARD_LENGTH)?,
            gate,
            norm_topk_prob: norm.unwrap_or(norm_topk_prob),
            scale,
        })
    }
}
