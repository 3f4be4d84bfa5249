//! Stage 2: metadata → [`ModelConfig`]: typed dimensions, per layer.
//!
//! Input: a file's metadata and the architecture's row in the table ([`crate::architectures::ARCHITECTURES`]), whose
//! `configure` reads the keys through a [`Reader`] and gives the defaults. Names are Hugging Face's. Nothing is guessed
//! from a file's or a model's name, and no key of the architecture is passed over: what `configure` did not look at is
//! refused where it would change the results, and listed in [`ModelConfig::unused_keys`] where nobody here knows it.

mod attention;
mod hybrid;
mod reader;

pub use reader::{AttentionDefaults, MoeDefaults, Reader};

use crate::architectures::{TensorTable, architecture};
use crate::gguf::{GgufError, Metadata};
use crate::ir::{ExpertGroups, GateKind, HeadMap, PositionScaleAttrs, RopePairing, RopeScaling};
use crate::shown::shown;
use serde::Serialize;
use std::fmt;

/// Metadata that does not describe a model that can be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A key that is missing or has the wrong type.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// An architecture without a row in the table.
    #[error(
        "architecture '{}' is not supported; {}; `moe-run inspect --help` and docs/models.md list all {known}",
        shown(found),
        match near.as_slice() {
            [] => "none that is has a name near it".to_owned(),
            near => format!("near it and supported: {}", near.join(", ")),
        }
    )]
    Architecture {
        /// `general.architecture`.
        found: String,
        /// The rows of the table with names most like it, best first.
        near: Vec<&'static str>,
        /// How many rows the table has.
        known: usize,
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
    /// Layers that run.
    pub num_hidden_layers: usize,
    /// Layers behind those that only predict further tokens for a draft; they are left out.
    pub num_nextn_predict_layers: usize,
    /// Positions that the model was trained for.
    pub max_position_embeddings: usize,
    /// Which norm whole rows have.
    #[serde(skip_serializing_if = "NormKind::is_rms")]
    pub norm: NormKind,
    /// Added to the mean square, or the variance, of every norm.
    pub rms_norm_eps: f32,
    /// Multiplies the embedding's rows; `None` is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_scale: Option<f32>,
    /// Multiplies what each block adds to the residual stream; `None` is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residual_scale: Option<f32>,
    /// Multiplies the logits; `None` is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logits_scale: Option<f32>,
    /// Logits are cap · tanh(logits / cap).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logits_soft_cap: Option<f32>,
    /// Elements of a further input of every layer; `None`: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_layer_input_size: Option<usize>,
    /// Residual streams, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hyper: Option<HyperConfig>,
    /// One entry a layer: real files differ by layer.
    pub layers: Vec<LayerConfig>,
    /// Keys of the architecture that nothing here knows: they had no effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unused_keys: Vec<String>,
}

/// One layer's dimensions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerConfig {
    /// Attention. A layer without it has here the numbers of the first that has it.
    pub attention: AttentionConfig,
    /// What mixes tokens.
    #[serde(skip_serializing_if = "MixerConfig::is_attention")]
    pub mixer: MixerConfig,
    /// Dense or experts.
    pub ffn: FfnConfig,
    /// What bounds the routed experts' SwiGLU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_limit: Option<f32>,
    /// What bounds that of a dense layer or of the shared expert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<f32>,
}

/// The norms of whole rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// RMSNorm.
    #[default]
    Rms,
    /// LayerNorm without bias.
    Layer,
    /// LayerNorm with a bias.
    LayerBiased,
}

impl NormKind {
    fn is_rms(&self) -> bool {
        *self == NormKind::Rms
    }
}

/// What mixes tokens in a layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MixerConfig {
    /// Attention, as the layer's `attention` says.
    Attention,
    /// A causal convolution between two gates.
    ShortConv {
        /// Tokens that it reaches back over, its own included.
        kernel: usize,
    },
    /// A gated delta net.
    DeltaNet(DeltaNetConfig),
    /// Kimi's delta attention: a gated delta net in which each element of a key decays by itself.
    Kda {
        /// Its shapes: as many key heads as value heads.
        net: DeltaNetConfig,
        /// The least that a decay's logarithm comes to.
        decay_bound: Option<f32>,
    },
    /// Attention over a window of positions and over entries that earlier ones were compressed to.
    Compressed(CompressedConfig),
    /// Mamba1.
    Mamba1(Mamba1Config),
    /// Mamba2.
    Mamba2(Mamba2Config),
    /// Nothing: the layer is a feed-forward part alone.
    Absent,
}

impl MixerConfig {
    /// Whether it is attention.
    #[must_use]
    pub fn is_attention(&self) -> bool {
        matches!(self, MixerConfig::Attention)
    }
}

/// One layer's gated delta net.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeltaNetConfig {
    /// Hk.
    pub num_key_heads: usize,
    /// Hv.
    pub num_value_heads: usize,
    /// dk.
    pub key_head_dim: usize,
    /// dv.
    pub value_head_dim: usize,
    /// Tokens that its convolution reaches back over, its own included.
    pub conv_kernel: usize,
    /// Whose query and key a value head takes.
    pub head_map: HeadMap,
}

impl DeltaNetConfig {
    /// Elements of a token's queries, or of its keys.
    #[must_use]
    pub fn key_width(&self) -> usize {
        self.num_key_heads * self.key_head_dim
    }

    /// Elements of a token's values.
    #[must_use]
    pub fn value_width(&self) -> usize {
        self.num_value_heads * self.value_head_dim
    }
}

/// One layer's compressed attention, beside the heads, the window and the rotation that the layer's attention says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CompressedConfig {
    /// Elements of the queries' latent.
    pub q_lora_rank: usize,
    /// Groups of heads that o_proj's first part has rows for.
    pub o_groups: usize,
    /// Rows that it has for each.
    pub o_lora_rank: usize,
    /// Positions of an entry; `None`: the window is all that is seen.
    pub ratio: Option<usize>,
    /// An entry is of the window before, too.
    pub overlap: bool,
}

/// Residual streams that are mixed around each block.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct HyperConfig {
    /// n.
    pub streams: usize,
    /// How often their mixing is brought to sums of 1.
    pub iterations: usize,
    /// Added to gates and sums.
    pub eps: f32,
}

/// One layer's mamba1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mamba1Config {
    /// I: its channels.
    pub inner_size: usize,
    /// N of each.
    pub state_size: usize,
    /// R: what their time steps are made of.
    pub time_step_rank: usize,
    /// Tokens that its convolution reaches back over, its own included.
    pub conv_kernel: usize,
}

/// One layer's mamba2.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mamba2Config {
    /// n.
    pub num_heads: usize,
    /// P.
    pub head_dim: usize,
    /// N.
    pub state_size: usize,
    /// G.
    pub n_groups: usize,
    /// Tokens that its convolution reaches back over, its own included.
    pub conv_kernel: usize,
}

impl LayerConfig {
    /// What mixes its tokens, in a few words.
    #[must_use]
    pub fn mixer_text(&self) -> String {
        match &self.mixer {
            MixerConfig::Attention => format!(
                "{} heads over {} of keys and values, each of {}",
                self.attention.num_attention_heads,
                self.attention.num_key_value_heads,
                self.attention.head_dim
            ),
            MixerConfig::ShortConv { kernel } => format!("a short convolution over {kernel} tokens"),
            MixerConfig::DeltaNet(net) => format!(
                "a gated delta net of {} heads over {} of keys, each of {}",
                net.num_value_heads, net.num_key_heads, net.value_head_dim
            ),
            MixerConfig::Kda { net, decay_bound: _ } => {
                format!(
                    "Kimi delta attention of {} heads, each of {}",
                    net.num_value_heads, net.value_head_dim
                )
            }
            MixerConfig::Compressed(CompressedConfig { ratio, .. }) => {
                let heads = self.attention.num_attention_heads;
                let entries = match ratio {
                    Some(ratio) => format!(" and on entries of {ratio} positions"),
                    None => String::new(),
                };
                format!(
                    "{heads} heads of {} on a window of {}{entries}",
                    self.attention.head_dim,
                    self.attention.sliding_window.unwrap_or(0)
                )
            }
            MixerConfig::Absent => "nothing that mixes tokens".to_owned(),
            MixerConfig::Mamba1(mamba1) => {
                format!("mamba1 of {} channels, {} elements of each", mamba1.inner_size, mamba1.state_size)
            }
            MixerConfig::Mamba2(mamba2) => format!(
                "mamba2 of {} heads over {} groups, each of {}",
                mamba2.num_heads, mamba2.n_groups, mamba2.head_dim
            ),
        }
    }
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
    /// Multiplies the scores; 1/√head_dim where the model does not say otherwise.
    pub scale: f32,
    /// Multiplies the values; `None` is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_scale: Option<f32>,
    /// Only the last so many positions are seen, the query's own included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<usize>,
    /// Only positions of the query's own chunk of so many are seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk: Option<usize>,
    /// Bound of q, k and v on both sides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qkv_bound: Option<f32>,
    /// RMSNorm of the heads of q and k without weight, behind RoPE.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub plain_qk_norm: bool,
    /// How positions are told; `None`: not at all.
    pub rope: Option<RopeConfig>,
    /// Keys and values are made of a latent, which alone is kept; heads are then what attention over latents has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latent: Option<LatentConfig>,
    /// Only the positions are seen that an indexer chose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub indexer: Option<IndexerConfig>,
    /// The earlier layer whose keys and values this one reads; `None`: it has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_layer: Option<usize>,
    /// Queries grow with their position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<PositionScaleAttrs>,
}

/// What chooses the positions that a layer's queries see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct IndexerConfig {
    /// Heads of its queries, on one key head.
    pub num_heads: usize,
    /// d of both.
    pub head_dim: usize,
    /// Positions that a query sees.
    pub top_k: usize,
    /// Which elements of its heads are rotated together.
    pub pairing: RopePairing,
    /// The earlier layer whose choice this one takes; `None`: it has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_layer: Option<usize>,
}

/// Multi-head latent attention.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatentConfig {
    /// The queries' own latent; `None`: they are a product of the hidden state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub q_lora_rank: Option<usize>,
    /// Elements of the latent.
    pub kv_lora_rank: usize,
    /// Elements of a query's and key's head that are not rotated.
    pub qk_nope_head_dim: usize,
    /// Those that are: of one key for all heads.
    pub qk_rope_head_dim: usize,
    /// d of values.
    pub v_head_dim: usize,
    /// Added to the mean square of the latents' norms; `None`: what every norm has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f32>,
}

/// One layer's rotary position embedding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RopeConfig {
    /// The base.
    pub theta: f64,
    /// Elements of a head that are rotated; the rest pass through.
    pub dims: usize,
    /// Which two elements are rotated together.
    pub pairing: RopePairing,
    /// Stretching.
    pub scaling: RopeScaling,
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
    Moe(MoeConfig),
    /// Nothing: the layer is a mixer alone.
    Absent,
}

impl fmt::Display for FfnConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FfnConfig::Dense { intermediate_size } => write!(f, "dense of width {intermediate_size}"),
            FfnConfig::Absent => f.write_str("no feed-forward part"),
            FfnConfig::Moe(moe) => {
                let (experts, width) = (moe.num_experts, moe.moe_intermediate_size);
                write!(f, "{experts} experts of width {width}, {} for a token", moe.num_experts_per_tok)?;
                match moe.shared_expert_intermediate_size {
                    Some(width) => write!(f, ", and one of width {width} for all"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// A layer's experts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MoeConfig {
    /// E.
    pub num_experts: usize,
    /// K.
    pub num_experts_per_tok: usize,
    /// F.
    pub moe_intermediate_size: usize,
    /// The router's gate.
    pub gate: GateKind,
    /// Divide the chosen weights by their sum.
    pub norm_topk_prob: bool,
    /// Multiplies the weights: Hugging Face's routed_scaling_factor.
    pub scale: f32,
    /// Only the experts of the best groups are chosen from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<ExpertGroups>,
    /// Each has a gate; one without is up_proj, a squared ReLU and down_proj.
    #[serde(skip_serializing_if = "is_true")]
    pub gated: bool,
    /// What they read and give has so many elements, by a product in front and one behind; `None`: D.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latent_size: Option<usize>,
    /// Small experts that runs of experts share, where there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks: Option<ChunkConfig>,
    /// A table says which of them a token takes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub by_token: bool,
    /// Width of the shared expert, or of all of them side by side, where there is one.
    pub shared_expert_intermediate_size: Option<usize>,
}

/// Small experts, each of which a run of experts shares.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ChunkConfig {
    /// Experts of a run.
    pub experts_per_group: usize,
    /// Their width.
    pub intermediate_size: usize,
    /// Multiplies what they give.
    pub scale: f32,
}

fn is_true(flag: &bool) -> bool {
    *flag
}

impl ModelConfig {
    /// Reads the dimensions of a model: of the architecture that the metadata names, with these tensors.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key, what was found and what was wanted.
    pub fn read(metadata: &Metadata, tensors: &TensorTable) -> Result<ModelConfig, ConfigError> {
        let row = architecture(metadata)?;
        let reader = Reader::new(metadata, tensors, row.name);
        let mut config = (row.configure)(&reader)?;
        config.unused_keys = reader.finish()?;
        Ok(config)
    }
}
