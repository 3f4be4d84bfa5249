//! What models with recurrent layers state.

use super::{AttentionConfig, AttentionDefaults, ConfigError, Mamba1Config, Mamba2Config, Reader};
use crate::gguf::{MetaValue, keys};

/// The longest causal convolution that is believed; released models have 3 and 4.
const MAX_CONV_KERNEL: usize = 256;

impl Reader<'_> {
    /// Attention of a model in which some layers have none: those of 0 KV heads. They get the numbers of the first that has
    /// it, and a no in the second list.
    ///
    /// # Errors
    /// As [`Reader::attention`], and where no layer has it.
    pub fn attention_where_heads(
        &self,
        defaults: &AttentionDefaults,
    ) -> Result<(Vec<AttentionConfig>, Vec<bool>), ConfigError> {
        let heads = self.counts(keys::arch::HEAD_COUNT)?;
        let kv_heads = self.counts(keys::arch::HEAD_COUNT_KV)?;
        let attends: Vec<bool> = heads.iter().zip(&kv_heads).map(|(h, g)| *h > 0 && *g > 0).collect();
        let Some(first) = attends.iter().position(|attends| *attends) else {
            return Err(self.wrong(keys::arch::HEAD_COUNT_KV, "0 in every layer", "a layer with attention"));
        };
        let layers = attends.iter().enumerate().map(|(i, attends)| {
            let i = if *attends { i } else { first };
            self.layer_attention(defaults, heads[i], kv_heads[i])
        });
        Ok((layers.collect::<Result<_, _>>()?, attends))
    }

    /// As [`Reader::per_layer`], of numbers that may be 0.
    ///
    /// # Errors
    /// [`ConfigError`] where the key is absent, or its value of another length or no sizes.
    pub fn counts(&self, rest: &str) -> Result<Vec<usize>, ConfigError> {
        let key = self.key(rest);
        let Some(MetaValue::Array(_)) = self.metadata.get(&key) else { return self.per_layer(rest, None) };
        let array = self.one_a_layer(rest, self.metadata.usize_array(&key)?)?;
        array.into_iter().map(|n| if n == 0 { Ok(0) } else { self.plausible(rest, n) }).collect()
    }

    /// The tokens that a convolution reaches back over: at least 2.
    ///
    /// # Errors
    /// [`ConfigError`] where the key is absent, or its value no such number.
    pub fn conv_kernel(&self, rest: &str) -> Result<usize, ConfigError> {
        match self.dimension(rest)? {
            kernel @ 2..=MAX_CONV_KERNEL => Ok(kernel),
            other => Err(self.wrong(rest, other, format!("2 to {MAX_CONV_KERNEL}"))),
        }
    }

    /// Mamba1's dimensions.
    ///
    /// # Errors
    /// [`ConfigError`] where one is absent or no size.
    pub fn mamba1(&self) -> Result<Mamba1Config, ConfigError> {
        use keys::arch as k;
        Ok(Mamba1Config {
            inner_size: self.dimension(k::SSM_INNER_SIZE)?,
            state_size: self.dimension(k::SSM_STATE_SIZE)?,
            time_step_rank: self.dimension(k::SSM_TIME_STEP_RANK)?,
            conv_kernel: self.conv_kernel(k::SSM_CONV_KERNEL)?,
        })
    }

    /// Mamba2's dimensions.
    ///
    /// # Errors
    /// [`ConfigError`] for numbers that do not fit each other.
    pub fn mamba2(&self) -> Result<Mamba2Config, ConfigError> {
        use keys::arch as k;
        let (heads, inner) = (self.dimension(k::SSM_TIME_STEP_RANK)?, self.dimension(k::SSM_INNER_SIZE)?);
        let groups = self.dimension(k::SSM_GROUP_COUNT)?;
        if !inner.is_multiple_of(heads) {
            return Err(self.wrong(k::SSM_INNER_SIZE, inner, format!("a multiple of {heads} heads")));
        }
        if !heads.is_multiple_of(groups) {
            return Err(self.wrong(k::SSM_GROUP_COUNT, groups, format!("a divisor of {heads} heads")));
        }
        Ok(Mamba2Config {
            num_heads: heads,
            head_dim: inner / heads,
            state_size: self.dimension(k::SSM_STATE_SIZE)?,
            n_groups: groups,
            conv_kernel: self.conv_kernel(k::SSM_CONV_KERNEL)?,
        })
    }

    /// A yes or no, where the key is there.
    ///
    /// # Errors
    /// [`ConfigError`] where its value is neither.
    pub fn opt_flag(&self, rest: &str) -> Result<Option<bool>, ConfigError> {
        Ok(self.metadata.opt_bool(&self.key(rest))?)
    }
}
