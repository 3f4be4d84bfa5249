//! What the keys say of attention and of RoPE.

use super::{
    AttentionConfig, AttentionDefaults, ConfigError, IndexerConfig, LatentConfig, ModelConfig, Reader,
    RopeConfig,
};
use crate::gguf::keys;
use crate::ir::{PositionScaleAttrs, RopePairing, RopeScaling};

impl Reader<'_> {
    /// Attention of every layer that runs.
    ///
    /// # Errors
    /// [`ConfigError`] for dimensions that do not fit each other.
    pub fn attention(&self, defaults: &AttentionDefaults) -> Result<Vec<AttentionConfig>, ConfigError> {
        let heads = self.per_layer(keys::arch::HEAD_COUNT, None)?;
        let kv_heads = self.per_layer(keys::arch::HEAD_COUNT_KV, Some(&heads))?;
        heads.into_iter().zip(kv_heads).map(|(h, g)| self.layer_attention(defaults, h, g)).collect()
    }

    pub(super) fn layer_attention(
        &self,
        defaults: &AttentionDefaults,
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
            None => {
                let hidden_size = self.dimension(keys::arch::EMBEDDING_LENGTH)?;
                self.plausible(keys::arch::KEY_LENGTH, hidden_size / num_attention_heads)?
            }
        };
        Ok(AttentionConfig {
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            value_head_dim: self.opt_dimension(keys::arch::VALUE_LENGTH)?.unwrap_or(head_dim),
            scale: (1.0 / (head_dim as f64).sqrt()) as f32,
            value_scale: None,
            sliding_window: None,
            chunk: None,
            qkv_bound: None,
            plain_qk_norm: false,
            rope: Some(self.rope(defaults, head_dim)?),
            latent: None,
            indexer: None,
            kv_layer: None,
            temperature: None,
        })
    }

    /// Latent attention in every layer that runs, as one KV head over latents.
    ///
    /// # Errors
    /// [`ConfigError`] for dimensions that do not fit each other.
    pub fn latent_attention(&self) -> Result<Vec<AttentionConfig>, ConfigError> {
        use keys::arch as k;
        // In files with a tensor for k and one for v these speak of the latents.
        self.without_effect(&[k::HEAD_COUNT_KV, k::KEY_LENGTH, k::VALUE_LENGTH]);
        let either = |mla, plain| match self.opt_dimension(mla)? {
            Some(n) => Ok(n),
            None => self.dimension(plain),
        };
        let head_dim = either(k::KEY_LENGTH_MLA, k::KEY_LENGTH)?;
        let v_head_dim = either(k::VALUE_LENGTH_MLA, k::VALUE_LENGTH)?;
        let kv_lora_rank = self.dimension(k::KV_LORA_RANK)?;
        let mut rope = self.rope(&AttentionDefaults::INTERLEAVED, head_dim)?;
        let rope_dims = self.dimension(k::ROPE_DIMENSION_COUNT)?;
        if rope_dims >= head_dim {
            let wanted = format!("fewer than the {head_dim} elements of a head");
            return Err(self.wrong(k::ROPE_DIMENSION_COUNT, rope_dims, wanted));
        }
        // Files without attn_q_a have queries without a latent, whatever the key says.
        let layers = self.num_hidden_layers()?;
        let direct = !(0..layers).any(|layer| self.has(&keys::blk(layer, keys::layer::ATTN_Q_A)));
        let q_lora_rank = Some(self.count(k::Q_LORA_RANK)?).filter(|n| *n > 0 && !direct);
        let stretch = self.without_stretched_angles(&mut rope)?;
        let latent = LatentConfig {
            q_lora_rank,
            kv_lora_rank,
            qk_nope_head_dim: head_dim - rope_dims,
            qk_rope_head_dim: rope_dims,
            v_head_dim,
            norm_eps: None,
        };
        let temperature = self.temperature()?;
        let layer = |num_attention_heads| AttentionConfig {
            num_attention_heads,
            num_key_value_heads: 1,
            head_dim: kv_lora_rank + rope_dims,
            value_head_dim: kv_lora_rank,
            scale: (stretch * stretch / (head_dim as f64).sqrt()) as f32,
            value_scale: None,
            sliding_window: None,
            chunk: None,
            qkv_bound: None,
            plain_qk_norm: false,
            rope: Some(rope.clone()),
            latent: Some(latent),
            indexer: None,
            kv_layer: None,
            temperature,
        };
        Ok(self.per_layer(k::HEAD_COUNT, None)?.into_iter().map(layer).collect())
    }

    /// Gives each layer an indexer, of its own where `own` says so, else the choice of the last before it that has.
    ///
    /// # Errors
    /// [`ConfigError`] for dimensions that do not fit each other, and where the first layer has none.
    pub fn indexers(
        &self,
        model: &mut ModelConfig,
        pairing: RopePairing,
        own: &[bool],
    ) -> Result<(), ConfigError> {
        use keys::arch as k;
        let num_heads = self.dimension(k::INDEXER_HEAD_COUNT)?;
        let head_dim = self.dimension(k::INDEXER_KEY_LENGTH)?;
        let top_k = self.dimension(k::INDEXER_TOP_K)?;
        let mut last = None;
        for (i, (layer, own)) in model.layers.iter_mut().zip(own).enumerate() {
            let dims = layer.attention.rope.as_ref().map_or(0, |rope| rope.dims);
            if dims > head_dim {
                let wanted = format!("at least the {dims} elements that are rotated");
                return Err(self.wrong(k::INDEXER_KEY_LENGTH, head_dim, wanted));
            }
            let of_layer = if *own { None } else { last };
            if *own {
                last = Some(i);
            } else if last.is_none() {
                return Err(self.wrong(k::INDEXER_TYPES, "false", "true for the first layer"));
            }
            layer.attention.indexer = Some(IndexerConfig { num_heads, head_dim, top_k, pairing, of_layer });
        }
        Ok(())
    }

    /// Takes YaRN's factor off cosines and sines where the file says what stands in its place: by how much a score's two sides
    /// are stretched, which is given; 1 where it does not say.
    ///
    /// # Errors
    /// [`ConfigError`] where the key's value is no number.
    pub fn without_stretched_angles(&self, rope: &mut RopeConfig) -> Result<f64, ConfigError> {
        use keys::arch as k;
        let log_multiplier = self.opt_factor(k::ROPE_SCALING_YARN_LOG_MULTIPLIER)?;
        let cosines = self.opt_positive(k::ROPE_SCALING_ATTN_FACTOR)?.map_or(1.0, f64::from);
        let mut stretch = 1.0;
        if let (RopeScaling::Yarn { factor, attention_factor, .. }, Some(multiplier)) =
            (&mut rope.scaling, log_multiplier)
        {
            stretch = 1.0 + f64::from(multiplier) * factor.ln();
            *attention_factor = cosines;
        }
        Ok(stretch)
    }

    /// How queries grow with their position: 1 + scale · ln(1 + ⌊position / length⌋).
    ///
    /// # Errors
    /// [`ConfigError`] where there is a scale and no length.
    pub fn temperature(&self) -> Result<Option<PositionScaleAttrs>, ConfigError> {
        let length = self.opt_dimension(keys::arch::TEMPERATURE_LENGTH)?;
        let Some(scale) = self.opt_factor(keys::arch::TEMPERATURE_SCALE)? else { return Ok(None) };
        let length = match length {
            Some(length) => length,
            None => self.dimension(keys::arch::TEMPERATURE_LENGTH)?,
        };
        Ok(Some(PositionScaleAttrs { scale, length, offset: 0 }))
    }

    fn rope(&self, defaults: &AttentionDefaults, head_dim: usize) -> Result<RopeConfig, ConfigError> {
        let dims =
            self.opt_dimension(keys::arch::ROPE_DIMENSION_COUNT)?.unwrap_or(head_dim / defaults.rope_one_in);
        if dims > head_dim || dims % 2 != 0 {
            return Err(self.wrong(
                keys::arch::ROPE_DIMENSION_COUNT,
                dims,
                format!("an even number up to head_dim {head_dim}"),
            ));
        }
        let theta = self.opt_positive(keys::arch::ROPE_FREQ_BASE)?;
        Ok(RopeConfig {
            theta: theta.map_or(defaults.rope_theta, f64::from),
            dims,
            pairing: defaults.rope_pairing,
            scaling: self.rope_scaling()?,
        })
    }

    fn rope_scaling(&self) -> Result<RopeScaling, ConfigError> {
        use keys::arch as k;
        let kind = self.metadata.opt_str(&self.key(k::ROPE_SCALING_TYPE))?.unwrap_or("linear");
        let old = self.opt_positive(k::ROPE_SCALE_LINEAR)?;
        let factor = self.opt_factor(k::ROPE_SCALING_FACTOR)?.or(old).map_or(1.0, f64::from);
        let original = self.opt_dimension(k::ROPE_SCALING_ORIG_CTX)?;
        if factor <= 0.0 {
            return Err(self.wrong(k::ROPE_SCALING_FACTOR, factor, "a positive number"));
        }
        match kind {
            "none" => Ok(RopeScaling::None),
            "linear" if factor == 1.0 => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor }),
            "yarn" => {
                let number = |rest, default| -> Result<f64, ConfigError> {
                    Ok(self.opt_positive(rest)?.map_or(default, f64::from))
                };
                // ext_factor mixes stretched and plain angles; 1 is YaRN as it was published.
                let mix: f64 = number(k::ROPE_SCALING_YARN_EXT_FACTOR, 1.0)?;
                if mix != 1.0 {
                    return Err(self.wrong(k::ROPE_SCALING_YARN_EXT_FACTOR, mix, "1"));
                }
                let stretched = number(k::ROPE_SCALING_YARN_ATTN_FACTOR, 1.0 + 0.1 * factor.ln())?;
                Ok(RopeScaling::Yarn {
                    factor,
                    original_max_position_embeddings: match original {
                        Some(n) => n,
                        None => self.dimension(k::CONTEXT_LENGTH)?,
                    },
                    beta_fast: number(k::ROPE_SCALING_YARN_BETA_FAST, 32.0)?,
                    beta_slow: number(k::ROPE_SCALING_YARN_BETA_SLOW, 1.0)?,
                    attention_factor: stretched * number(k::ROPE_SCALING_ATTN_FACTOR, 1.0)?,
                    // No key says otherwise: an architecture does.
                    truncate: true,
                })
            }
            other => Err(self.wrong(k::ROPE_SCALING_TYPE, other, "none, linear or yarn")),
        }
    }
}
