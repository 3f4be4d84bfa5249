//! The keys of one architecture, read with bounds, and what most architectures make of them.

use super::{
    AttentionConfig, ConfigError, FfnConfig, LayerConfig, MixerConfig, ModelConfig, MoeConfig, NormKind,
};
use crate::architectures::TensorTable;
use crate::gguf::{MetaArray, MetaValue, Metadata, keys};
use crate::ir::{ExpertGroups, GateKind, GroupScore, RopePairing};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;

/// More layers than any model has: a damaged count is refused before anything is sized by it.
const MAX_LAYERS: usize = 4096;
/// The largest dimension that is believed.
const MAX_DIMENSION: usize = 1 << 24;

/// Keys that change the results, with the values that do not: an architecture that does not look at one refuses any
/// other value.
const NEUTRAL: &[(&str, &[f64])] = &[
    (keys::arch::EXPERT_GROUP_COUNT, &[0.0, 1.0]),
    (keys::arch::EXPERT_GROUP_USED_COUNT, &[0.0, 1.0]),
    (keys::arch::EXPERT_SHARED_COUNT, &[0.0]),
    (keys::arch::EXPERT_SHARED_FEED_FORWARD_LENGTH, &[0.0]),
    (keys::arch::LEADING_DENSE_BLOCK_COUNT, &[0.0]),
    (keys::arch::INTERLEAVE_MOE_LAYER_STEP, &[0.0, 1.0]),
    (keys::arch::SLIDING_WINDOW, &[0.0]),
    (keys::arch::ATTENTION_SCALE, &[0.0]),
    (keys::arch::ATTENTION_VALUE_SCALE, &[0.0, 1.0]),
    (keys::arch::CLAMP_KQV, &[0.0]),
    (keys::arch::MAX_ALIBI_BIAS, &[0.0]),
    (keys::arch::ATTN_LOGIT_SOFTCAPPING, &[0.0]),
    (keys::arch::FINAL_LOGIT_SOFTCAPPING, &[0.0]),
    (keys::arch::EMBEDDING_SCALE, &[0.0, 1.0]),
    (keys::arch::RESIDUAL_SCALE, &[0.0, 1.0]),
    (keys::arch::LOGIT_SCALE, &[0.0, 1.0]),
    (keys::arch::TEMPERATURE_SCALE, &[0.0]),
    (keys::arch::SHARED_KV_LAYERS, &[0.0]),
    (keys::arch::EMBEDDING_LENGTH_PER_LAYER_INPUT, &[0.0]),
];

/// Keys that files of any architecture may have and that say nothing about a forward pass without training.
const WITHOUT_EFFECT: &[&str] =
    &[keys::arch::FEED_FORWARD_LENGTH, keys::arch::ROPE_SCALING_FINETUNED, keys::arch::TENSOR_DATA_LAYOUT];

/// Metadata through the eyes of one architecture. It keeps count of what was looked at.
#[derive(Debug)]
pub struct Reader<'a> {
    pub(super) metadata: &'a Metadata,
    tensors: &'a TensorTable,
    architecture: &'static str,
    looked_at: RefCell<BTreeSet<String>>,
}

/// What an architecture's attention has where the file is silent.
#[derive(Debug, Clone, Copy)]
pub struct AttentionDefaults {
    /// RoPE's base.
    pub rope_theta: f64,
    /// Which elements it pairs; no key says it.
    pub rope_pairing: RopePairing,
    /// It rotates one in so many elements of a head: 1 the whole head, 2 its first half.
    pub rope_one_in: usize,
}

impl AttentionDefaults {
    /// Half pairing over the whole head, base 10000.
    pub const HALF: AttentionDefaults =
        AttentionDefaults { rope_theta: 1e4, rope_pairing: RopePairing::Half, rope_one_in: 1 };
    /// Interleaved pairing over the whole head, base 10000.
    pub const INTERLEAVED: AttentionDefaults =
        AttentionDefaults { rope_pairing: RopePairing::Interleaved, ..AttentionDefaults::HALF };
}

/// What an architecture's experts have where the file is silent.
#[derive(Debug, Clone, Copy)]
pub struct MoeDefaults {
    /// The router's gate.
    pub gate: GateKind,
    /// Divide the chosen weights by their sum.
    pub norm_topk_prob: bool,
}

impl<'a> Reader<'a> {
    /// A reader that has looked at nothing.
    #[must_use]
    pub fn new(metadata: &'a Metadata, tensors: &'a TensorTable, architecture: &'static str) -> Reader<'a> {
        Reader { metadata, tensors, architecture, looked_at: RefCell::default() }
    }

    /// The keys of the architecture that were not looked at.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for one that changes the results.
    pub fn finish(self) -> Result<Vec<String>, ConfigError> {
        self.without_effect(WITHOUT_EFFECT);
        let looked_at = self.looked_at.borrow().clone();
        let prefix = keys::arch_key(self.architecture, "");
        let mut unused = Vec::new();
        for (key, value) in self.metadata.iter() {
            let Some(rest) = key.strip_prefix(&prefix).filter(|_| !looked_at.contains(key)) else { continue };
            match NEUTRAL.iter().find(|(known, _)| *known == rest) {
                Some((_, neutral)) if !number(value).is_some_and(|n| neutral.contains(&n)) => {
                    let neutral: Vec<String> = neutral.iter().map(f64::to_string).collect();
                    let wanted = format!(
                        "{} or no such key in architecture {}",
                        neutral.join(" or "),
                        self.architecture
                    );
                    return Err(self.wrong(rest, value.describe(), wanted));
                }
                Some(_) => {}
                None => unused.push(key.to_owned()),
            }
        }
        Ok(unused)
    }

    /// Says that keys are known and that what they say has no effect here.
    pub fn without_effect(&self, rests: &[&str]) {
        rests.iter().for_each(|rest| drop(self.key(rest)));
    }

    pub(super) fn key(&self, rest: &str) -> String {
        let key = keys::arch_key(self.architecture, rest);
        self.looked_at.borrow_mut().insert(key.clone());
        key
    }

    /// The error for a key's value.
    #[must_use]
    pub fn wrong(&self, rest: &str, found: impl ToString, wanted: impl Into<String>) -> ConfigError {
        ConfigError::Value { key: self.key(rest), found: found.to_string(), wanted: wanted.into() }
    }

    /// Whether the file has a tensor.
    #[must_use]
    pub fn has(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    /// The rows of a matrix in the file.
    #[must_use]
    pub fn rows(&self, tensor: &str) -> Option<usize> {
        self.tensors.get(tensor).and_then(|(shape, _)| shape.iter().rev().nth(1).copied())
    }

    pub(super) fn plausible(&self, rest: &str, n: usize) -> Result<usize, ConfigError> {
        if n == 0 || n > MAX_DIMENSION {
            return Err(self.wrong(rest, n, format!("1 to {MAX_DIMENSION}")));
        }
        Ok(n)
    }

    /// A size: at least 1.
    ///
    /// # Errors
    /// [`ConfigError`] where the key is absent, or its value no size.
    pub fn dimension(&self, rest: &str) -> Result<usize, ConfigError> {
        self.plausible(rest, self.metadata.usize(&self.key(rest))?)
    }

    /// A size: at least 1, where the key is there.
    ///
    /// # Errors
    /// [`ConfigError`] where its value is no size.
    pub fn opt_dimension(&self, rest: &str) -> Result<Option<usize>, ConfigError> {
        self.metadata.opt_usize(&self.key(rest))?.map(|n| self.plausible(rest, n)).transpose()
    }

    /// A count, 0 where the key is absent.
    ///
    /// # Errors
    /// [`ConfigError`] where its value is no count.
    pub fn count(&self, rest: &str) -> Result<usize, ConfigError> {
        match self.metadata.opt_usize(&self.key(rest))? {
            None | Some(0) => Ok(0),
            Some(n) => self.plausible(rest, n),
        }
    }

    /// A count that may have one value only, where the key is there.
    ///
    /// # Errors
    /// [`ConfigError`] for another value.
    pub fn only(&self, rest: &str, wanted: usize) -> Result<(), ConfigError> {
        match self.metadata.opt_usize(&self.key(rest))? {
            Some(found) if found != wanted => Err(self.wrong(rest, found, wanted.to_string())),
            _ => Ok(()),
        }
    }

    /// A number, where the key is there.
    ///
    /// # Errors
    /// [`ConfigError`] where its value is not finite.
    pub fn opt_number(&self, rest: &str) -> Result<Option<f32>, ConfigError> {
        match self.metadata.opt_f32(&self.key(rest))? {
            Some(x) if !x.is_finite() => Err(self.wrong(rest, x, "a finite number")),
            x => Ok(x),
        }
    }

    /// A positive number, where the key is there.
    ///
    /// # Errors
    /// [`ConfigError`] where its value is no positive number.
    pub fn opt_positive(&self, rest: &str) -> Result<Option<f32>, ConfigError> {
        match self.metadata.opt_f32(&self.key(rest))? {
            Some(x) if !(x.is_finite() && x > 0.0) => Err(self.wrong(rest, x, "a positive number")),
            x => Ok(x),
        }
    }

    /// A positive number.
    ///
    /// # Errors
    /// [`ConfigError`] where the key is absent, or its value no positive number.
    pub fn positive(&self, rest: &str) -> Result<f32, ConfigError> {
        match self.opt_positive(rest)? {
            Some(x) => Ok(x),
            None => Err(self.metadata.missing(&self.key(rest), "a positive number").into()),
        }
    }

    /// A factor: `None` where the key is absent or 0, which stands for "not stated".
    ///
    /// # Errors
    /// [`ConfigError`] where its value is not finite.
    pub fn opt_factor(&self, rest: &str) -> Result<Option<f32>, ConfigError> {
        Ok(self.opt_number(rest)?.filter(|x| *x != 0.0))
    }

    /// Layers that run.
    ///
    /// # Errors
    /// [`ConfigError`] for a count that no model has.
    pub fn num_hidden_layers(&self) -> Result<usize, ConfigError> {
        let blocks = self.num_blocks()?;
        let draft = self.count(keys::arch::NEXTN_PREDICT_LAYERS)?;
        if draft >= blocks {
            let wanted = format!("fewer than the {blocks} layers");
            return Err(self.wrong(keys::arch::NEXTN_PREDICT_LAYERS, draft, wanted));
        }
        Ok(blocks - draft)
    }

    /// Layers that run, and those behind them that draft.
    ///
    /// # Errors
    /// [`ConfigError`] for a count that no model has.
    pub fn num_blocks(&self) -> Result<usize, ConfigError> {
        let blocks = self.dimension(keys::arch::BLOCK_COUNT)?;
        if blocks > MAX_LAYERS {
            return Err(self.wrong(keys::arch::BLOCK_COUNT, blocks, format!("1 to {MAX_LAYERS}")));
        }
        Ok(blocks)
    }

    /// One number for all layers that run, or an array with one a layer; layers for drafts may be counted there or not.
    ///
    /// # Errors
    /// [`ConfigError`] where the key is absent without a default, or its value of another length or no sizes.
    pub fn per_layer(&self, rest: &str, default: Option<&[usize]>) -> Result<Vec<usize>, ConfigError> {
        let key = self.key(rest);
        let array = match (self.metadata.get(&key), default) {
            (Some(MetaValue::Array(_)), _) => self.metadata.usize_array(&key)?,
            (None, Some(default)) => return Ok(default.to_vec()),
            _ => return Ok(vec![self.dimension(rest)?; self.num_hidden_layers()?]),
        };
        self.one_a_layer(rest, array)?.into_iter().map(|n| self.plausible(rest, n)).collect()
    }

    /// An array with a yes or no for each layer that runs; numbers that are not 0 are a yes.
    ///
    /// # Errors
    /// [`ConfigError`] where the key is absent, or its value no such array.
    pub fn flags(&self, rest: &str) -> Result<Vec<bool>, ConfigError> {
        match self.opt_flags(rest)? {
            Some(flags) => Ok(flags),
            None => Err(self.metadata.missing(&self.key(rest), "an array with a yes or no a layer").into()),
        }
    }

    /// As [`Reader::flags`], `None` where the key is absent.
    ///
    /// # Errors
    /// [`ConfigError`] where its value is no such array.
    pub fn opt_flags(&self, rest: &str) -> Result<Option<Vec<bool>>, ConfigError> {
        let key = self.key(rest);
        let flags = match self.metadata.get(&key) {
            None => return Ok(None),
            Some(MetaValue::Array(MetaArray::Bool(flags))) => flags.clone(),
            Some(_) => self.metadata.usize_array(&key)?.into_iter().map(|n| n != 0).collect(),
        };
        self.one_a_layer(rest, flags).map(Some)
    }

    /// A yes or no for each layer that runs: an array, or a period, of whose layers the last is a no. `default` is the
    /// period where the key is absent.
    ///
    /// # Errors
    /// [`ConfigError`] where its value is neither.
    pub fn flags_or_period(&self, rest: &str, default: usize) -> Result<Vec<bool>, ConfigError> {
        if let Some(MetaValue::Array(_)) = self.metadata.get(&self.key(rest)) {
            return self.flags(rest);
        }
        let period = self.opt_dimension(rest)?.unwrap_or(default);
        Ok((1..=self.num_hidden_layers()?).map(|layer| !layer.is_multiple_of(period)).collect())
    }

    /// A yes or no for each layer that runs: an array, or a period, of whose layers the first is a no. `default` is the
    /// period where the key is absent.
    ///
    /// # Errors
    /// [`ConfigError`] where its value is neither.
    pub fn flags_or_first(&self, rest: &str, default: usize) -> Result<Vec<bool>, ConfigError> {
        if let Some(MetaValue::Array(_)) = self.metadata.get(&self.key(rest)) {
            return self.flags(rest);
        }
        let period = self.opt_dimension(rest)?.unwrap_or(default);
        Ok((0..self.num_hidden_layers()?).map(|layer| !layer.is_multiple_of(period)).collect())
    }

    /// A bound for each layer that runs, `None` where it is 0; `None` where the key is absent.
    ///
    /// # Errors
    /// [`ConfigError`] where its value is no array with one a layer, or no bounds.
    pub fn opt_limits(&self, rest: &str) -> Result<Option<Vec<Option<f32>>>, ConfigError> {
        let key = self.key(rest);
        let limits = match self.metadata.get(&key) {
            None => return Ok(None),
            Some(MetaValue::Array(MetaArray::F32(limits))) => limits.clone(),
            Some(MetaValue::Array(MetaArray::F64(limits))) => limits.iter().map(|x| *x as f32).collect(),
            Some(_) => self.metadata.usize_array(&key)?.into_iter().map(|n| n as f32).collect(),
        };
        let limits = self.one_a_layer(rest, limits)?;
        if let Some(bad) = limits.iter().find(|x| !(x.is_finite() && **x >= 0.0)) {
            return Err(self.wrong(rest, bad, "positive numbers, or 0 for none"));
        }
        Ok(Some(limits.into_iter().map(|x| Some(x).filter(|x| *x > 0.0)).collect()))
    }

    /// Puts the bounds of each layer's SwiGLU into a model, of the routed experts and of the rest.
    ///
    /// # Errors
    /// As [`Reader::opt_limits`].
    pub fn swiglu_limits(&self, model: &mut ModelConfig) -> Result<(), ConfigError> {
        let limits = |rest| Ok::<_, ConfigError>(self.opt_limits(rest)?.unwrap_or_default().into_iter());
        let mut experts = limits(keys::arch::SWIGLU_CLAMP_EXP)?;
        let mut others = limits(keys::arch::SWIGLU_CLAMP_SHEXP)?;
        for layer in &mut model.layers {
            layer.expert_limit = experts.next().flatten();
            layer.limit = others.next().flatten();
        }
        Ok(())
    }

    /// Numbers for each layer that runs, of which an array may have more than there are layers.
    ///
    /// # Errors
    /// [`ConfigError`] where the key is absent, or its value no array, or one of fewer.
    pub fn at_least_one_a_layer(&self, rest: &str) -> Result<Vec<usize>, ConfigError> {
        let (mut array, layers) = (self.metadata.usize_array(&self.key(rest))?, self.num_hidden_layers()?);
        if array.len() < layers {
            let wanted = format!("one a layer: {layers}");
            return Err(self.wrong(rest, format!("{} numbers", array.len()), wanted));
        }
        array.truncate(layers);
        Ok(array)
    }

    pub(super) fn one_a_layer<T>(&self, rest: &str, mut array: Vec<T>) -> Result<Vec<T>, ConfigError> {
        let layers = self.num_hidden_layers()?;
        if array.len() != layers && array.len() != self.num_blocks()? {
            let wanted = format!("one a layer: {layers}");
            return Err(self.wrong(rest, format!("{} numbers", array.len()), wanted));
        }
        array.truncate(layers);
        Ok(array)
    }

    /// Rows of the embedding table. The table itself says it; metadata may speak of a smaller vocabulary.
    ///
    /// # Errors
    /// [`ConfigError`] where what states it is no size.
    pub fn vocab_size(&self) -> Result<usize, ConfigError> {
        let stated = self.opt_dimension(keys::arch::VOCAB_SIZE)?;
        let table = self.tensors.get(keys::tensor::TOKEN_EMBD).map(|(shape, _)| shape.as_slice());
        if let Some([outer @ .., vocab_size, _]) = table
            && outer.iter().all(|n| *n == 1)
        {
            return Ok(*vocab_size);
        }
        match (stated, self.metadata.get(keys::TOKENIZER_TOKENS)) {
            (Some(n), _) => Ok(n),
            (None, Some(MetaValue::Array(tokens))) => self.plausible(keys::arch::VOCAB_SIZE, tokens.len()),
            _ => Ok(0),
        }
    }

    /// The model of these layers.
    ///
    /// # Errors
    /// [`ConfigError`] for what all models state.
    pub fn model(
        &self,
        attention: Vec<AttentionConfig>,
        ffn: Vec<FfnConfig>,
    ) -> Result<ModelConfig, ConfigError> {
        // Nemotron-H states the RMS norms' under the key of the other norm.
        let eps = match self.opt_positive(keys::arch::RMS_EPS)? {
            Some(eps) => eps,
            None if self.metadata.get(&self.key(keys::arch::LAYER_NORM_EPS)).is_some() => {
                self.positive(keys::arch::LAYER_NORM_EPS)?
            }
            None => self.positive(keys::arch::RMS_EPS)?,
        };
        self.model_with(attention, ffn, NormKind::Rms, eps)
    }

    /// The model of these layers, with norms of this kind and epsilon.
    ///
    /// # Errors
    /// [`ConfigError`] for what all models state.
    pub fn model_with(
        &self,
        attention: Vec<AttentionConfig>,
        ffn: Vec<FfnConfig>,
        norm: NormKind,
        rms_norm_eps: f32,
    ) -> Result<ModelConfig, ConfigError> {
        let layers = attention.into_iter().zip(ffn);
        Ok(ModelConfig {
            architecture: self.architecture.to_owned(),
            name: self.metadata.opt_display(keys::GENERAL_NAME)?.map(Cow::into_owned),
            vocab_size: self.vocab_size()?,
            hidden_size: self.dimension(keys::arch::EMBEDDING_LENGTH)?,
            num_hidden_layers: self.num_hidden_layers()?,
            num_nextn_predict_layers: self.count(keys::arch::NEXTN_PREDICT_LAYERS)?,
            max_position_embeddings: self.dimension(keys::arch::CONTEXT_LENGTH)?,
            norm,
            rms_norm_eps,
            embedding_scale: None,
            residual_scale: None,
            logits_scale: None,
            logits_soft_cap: None,
            per_layer_input_size: None,
            hyper: None,
            layers: layers
                .map(|(attention, ffn)| LayerConfig {
                    attention,
                    mixer: MixerConfig::Attention,
                    ffn,
                    expert_limit: None,
                    limit: None,
                })
                .collect(),
            unused_keys: Vec::new(),
        })
    }

    /// One SwiGLU in every layer that runs.
    ///
    /// # Errors
    /// [`ConfigError`] where the widths are missing.
    pub fn dense(&self) -> Result<Vec<FfnConfig>, ConfigError> {
        let widths = self.per_layer(keys::arch::FEED_FORWARD_LENGTH, None)?;
        Ok(widths.into_iter().map(|intermediate_size| FfnConfig::Dense { intermediate_size }).collect())
    }

    /// Experts in the layers of which `routed` says so, one SwiGLU in the others.
    ///
    /// # Errors
    /// [`ConfigError`] where there are others, and their widths are missing.
    pub fn moe_where(
        &self,
        routed: impl Fn(usize) -> bool,
        moe: MoeConfig,
    ) -> Result<Vec<FfnConfig>, ConfigError> {
        let (layers, moe) = (self.num_hidden_layers()?, FfnConfig::Moe(moe));
        if (0..layers).all(&routed) {
            return Ok(vec![moe; layers]);
        }
        let pick = |(i, dense)| if routed(i) { moe.clone() } else { dense };
        Ok(self.dense()?.into_iter().enumerate().map(pick).collect())
    }

    /// Groups of experts, each ranked by its `score`; `None` where there is one, or all are chosen from.
    ///
    /// # Errors
    /// [`ConfigError`] for counts that do not fit each other.
    pub fn expert_groups(&self, score: GroupScore) -> Result<Option<ExpertGroups>, ConfigError> {
        let n_group = self.count(keys::arch::EXPERT_GROUP_COUNT)?;
        let topk_group = self.count(keys::arch::EXPERT_GROUP_USED_COUNT)?;
        if n_group <= 1 {
            return Ok(None);
        }
        if !(1..=n_group).contains(&topk_group) {
            let wanted = format!("1 to {n_group} groups");
            return Err(self.wrong(keys::arch::EXPERT_GROUP_USED_COUNT, topk_group, wanted));
        }
        let groups = ExpertGroups { n_group, topk_group, score };
        Ok(Some(groups).filter(|_| topk_group < n_group))
    }

    /// A layer's experts, each `moe_intermediate_size` wide, and a shared expert where it is not 0 wide.
    ///
    /// # Errors
    /// [`ConfigError`] for counts that do not fit each other or a gate that is not known.
    pub fn moe(
        &self,
        defaults: &MoeDefaults,
        moe_intermediate_size: usize,
        shared_expert_intermediate_size: usize,
    ) -> Result<MoeConfig, ConfigError> {
        let per_tok = self.dimension(keys::arch::EXPERT_USED_COUNT)?;
        self.moe_of(defaults, per_tok, moe_intermediate_size, shared_expert_intermediate_size)
    }

    /// As [`Reader::moe`], where the key of the experts that a token takes is read elsewhere.
    ///
    /// # Errors
    /// As [`Reader::moe`].
    pub fn moe_of(
        &self,
        defaults: &MoeDefaults,
        num_experts_per_tok: usize,
        moe_intermediate_size: usize,
        shared_expert_intermediate_size: usize,
    ) -> Result<MoeConfig, ConfigError> {
        let num_experts = self.dimension(keys::arch::EXPERT_COUNT)?;
        if num_experts_per_tok > num_experts {
            return Err(self.wrong(
                keys::arch::EXPERT_USED_COUNT,
                num_experts_per_tok,
                format!("at most {num_experts} experts"),
            ));
        }
        let norm = self.metadata.opt_bool(&self.key(keys::arch::EXPERT_WEIGHTS_NORM))?;
        let gating = self.metadata.opt_u32(&self.key(keys::arch::EXPERT_GATING_FUNC))?;
        let gate = match gating {
            None | Some(0) => defaults.gate,
            Some(1) => GateKind::Softmax,
            Some(2) => GateKind::Sigmoid,
            Some(3) => GateKind::SoftmaxAfterTopK,
            Some(4) => GateKind::SqrtSoftplus,
            Some(n) => return Err(self.wrong(keys::arch::EXPERT_GATING_FUNC, n, "0 to 4")),
        };
        Ok(MoeConfig {
            num_experts,
            num_experts_per_tok,
            moe_intermediate_size,
            gate,
            norm_topk_prob: norm.unwrap_or(defaults.norm_topk_prob),
            scale: self.opt_factor(keys::arch::EXPERT_WEIGHTS_SCALE)?.unwrap_or(1.0),
            groups: None,
            gated: true,
            latent_size: None,
            chunks: None,
            by_token: false,
            shared_expert_intermediate_size: Some(shared_expert_intermediate_size).filter(|n| *n > 0),
        })
    }
}

/// A value as a number: a bool is 0 or 1.
fn number(value: &MetaValue) -> Option<f64> {
    match value {
        MetaValue::U8(n) => Some(f64::from(*n)),
        MetaValue::I8(n) => Some(f64::from(*n)),
        MetaValue::U16(n) => Some(f64::from(*n)),
        MetaValue::I16(n) => Some(f64::from(*n)),
        MetaValue::U32(n) => Some(f64::from(*n)),
        MetaValue::I32(n) => Some(f64::from(*n)),
        MetaValue::U64(n) => Some(*n as f64),
        MetaValue::I64(n) => Some(*n as f64),
        MetaValue::F32(x) => Some(f64::from(*x)),
        MetaValue::F64(x) => Some(*x),
        MetaValue::Bool(b) => Some(f64::from(u8::from(*b))),
        MetaValue::String(_) | MetaValue::Bytes(_) | MetaValue::Array(_) => None,
    }
}
