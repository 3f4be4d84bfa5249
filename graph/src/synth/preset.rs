//! A preset: a real model's dimensions, from which its file's metadata and tensor table follow.

use super::family::{Family, common_keys, model_tensors};
use super::presets::PRESETS;
use crate::gguf::writer::TensorSpec;
use crate::gguf::{
    GgufError, MetaValue, Metadata,
    keys::{self, arch, arch_key, blk, layer, tensor},
};
use crate::quant::{Format, GgmlType};
use crate::quantize::more_bits;

/// A real model's dimensions.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "Hugging Face's names, as in the model's config.json")]
pub struct Preset {
    /// As the command line has it.
    pub name: &'static str,
    /// What its weights are named after.
    pub base_name: &'static str,
    /// "128x1.8B" and the like.
    pub size_label: &'static str,
    /// Which keys and tensors there are.
    pub family: &'static Family,
    /// Which tensor has which format.
    pub mixture: Mixture,
    /// Without layers that only serve drafting.
    pub num_hidden_layers: usize,
    pub hidden_size: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub num_experts: usize,
    pub num_experts_per_tok: usize,
    pub moe_intermediate_size: usize,
    /// Of dense layers; where there are none, it is stated all the same.
    pub intermediate_size: usize,
    /// Shared experts of the routed ones' width.
    pub n_shared_experts: usize,
    /// Width of a shared expert that has its own.
    pub shared_expert_intermediate_size: usize,
    /// Layers in front without experts.
    pub first_k_dense_replace: usize,
    pub routed_scaling_factor: f32,
    /// The embedding table serves as lm_head.
    pub tie_word_embeddings: bool,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rope_theta: f32,
    pub rms_norm_eps: f32,
}

/// A mixture of formats, as files of the models mostly have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mixture {
    /// Q4_K with Q6_K where it matters; where rows are no multiple of 256, Q5_0 and Q8_0 in their place.
    Q4KM,
    /// Experts in MXFP4, all other matrices in Q8_0.
    Mxfp4Experts,
}

/// A tensor and what its values are like.
pub(super) struct SynthTensor {
    pub spec: TensorSpec,
    /// Of its blocks; ids have the size of F32.
    pub format: Format,
    pub values: Values,
}

/// What a tensor's values are.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Values {
    /// Around 0, with this root mean square.
    Rms(f32),
    /// A norm's weights, around 1.
    Norm,
    /// What multiplies or divides, around 1; lowering reads some of them.
    Factor,
    /// How fast a recurrence forgets: around −1.
    Decay,
    /// Numbers below this one, as 32-bit integers.
    Ids(usize),
}

impl Mixture {
    /// `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            Mixture::Q4KM => 15,
            Mixture::Mxfp4Experts => 38,
        }
    }

    /// The format of a matrix, by its name behind `blk.<i>.` as llama-quantize decides. `more_bits`: the layer is one of
    /// those whose v_proj and down_proj get more.
    fn format(self, name: &str, cols: usize, num_experts: usize, more_bits: bool) -> Format {
        match self {
            Mixture::Mxfp4Experts if name.contains("_exps.") => Format::Mxfp4,
            Mixture::Mxfp4Experts => Format::Q8_0,
            Mixture::Q4KM => {
                let q6 = match name {
                    tensor::OUTPUT => true,
                    // Of eight experts v and k are small beside the rest.
                    layer::ATTN_K | layer::ATTN_V if num_experts == 8 => return Format::Q8_0,
                    layer::ATTN_V | layer::FFN_DOWN_EXPS | layer::FFN_DOWN_SHEXP | layer::FFN_DOWN => {
                        more_bits
                    }
                    _ => false,
                };
                match (q6, cols.is_multiple_of(Format::Q4K.block_elems())) {
                    (false, true) => Format::Q4K,
                    (true, true) => Format::Q6K,
                    (false, false) => Format::Q5_0,
                    (true, false) => Format::Q8_0,
                }
            }
        }
    }
}

/// Matrices that no mixture quantizes: routers, norms of groups, convolutions and what recurrences are made of.
fn stays_float(name: &str) -> bool {
    let small = [layer::SSM_A, layer::SSM_D, layer::SSM_CONV1D, layer::SHORTCONV_CONV, layer::INDEXER_PROJ];
    let of_streams = name.contains("hc_") || name.contains("_ape");
    small.contains(&name) || of_streams || name.contains("ffn_gate_inp") || name.ends_with("norm.weight")
}

/// Spreads: a matmul of normalised activations with weights of root mean square 1 / √in gives values around 1, so the
/// residual stream grows with the root of the number of layers. The router's are twice that, so that a token's choice of
/// experts is a firm one, and lm_head's four times, so that the next token is not a plain draw. o_proj's are a fifth:
/// random attention adds to every token much the same mean of all, which would draw the tokens of deep layers to the
/// same few experts.
fn values(name: &str, fan_in: usize) -> Values {
    let matmul = |gain: f32| Values::Rms(gain / (fan_in as f32).sqrt());
    match name {
        tensor::TOKEN_EMBD | layer::ATTN_SINKS => Values::Rms(1.0),
        tensor::OUTPUT => matmul(4.0),
        layer::FFN_GATE_INP => matmul(2.0),
        layer::ATTN_OUTPUT => matmul(0.2),
        layer::SSM_A => Values::Decay,
        // What multiplies or divides.
        tensor::ROPE_FREQS
        | tensor::ROPE_FACTORS_SHORT
        | tensor::ROPE_FACTORS_LONG
        | layer::LAYER_OUTPUT_SCALE
        | layer::FFN_GATE_INP_SCALE
        | layer::FFN_DOWN_EXPS_SCALE => Values::Factor,
        _ if name.ends_with("norm.weight") => Values::Norm,
        _ if name.ends_with(".bias") => Values::Rms(0.1),
        _ => matmul(1.0),
    }
}

impl Preset {
    /// The preset of this name.
    pub fn by_name(name: &str) -> Option<&'static Preset> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// Elements of all heads' queries.
    pub(super) fn q_dim(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Elements of all heads' keys.
    pub(super) fn kv_dim(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The metadata of a file with the first `num_hidden_layers` layers. The tokenizer's keys come from `vocabulary`,
    /// where given; else the file says that it has none. `format` is what takes the mixture's place.
    pub(super) fn metadata(
        &self,
        num_hidden_layers: usize,
        seed: u64,
        vocabulary: Option<&Metadata>,
        format: Option<Format>,
    ) -> Result<Metadata, GgufError> {
        let string = |text: &str| MetaValue::String(text.to_owned());
        let name =
            format!("{} with random weights ({num_hidden_layers} layers, seed {seed})", self.base_name);
        let architecture = self.family.architecture;
        let mut pairs = vec![
            (keys::GENERAL_ARCHITECTURE.to_owned(), string(architecture)),
            (keys::GENERAL_TYPE.to_owned(), string("model")),
            (keys::GENERAL_NAME.to_owned(), string(&name)),
            (keys::GENERAL_BASENAME.to_owned(), string(self.base_name)),
            (keys::GENERAL_SIZE_LABEL.to_owned(), string(self.size_label)),
        ];
        let common = common_keys(self, num_hidden_layers);
        let own = (self.family.keys)(self, num_hidden_layers);
        // Where an architecture says a common key in its own way, that holds.
        let said = |key: &str| {
            let layer_norm = key == arch::RMS_EPS && own.iter().any(|(own, _)| *own == arch::LAYER_NORM_EPS);
            layer_norm || own.iter().any(|(own, _)| *own == key)
        };
        let common = common.into_iter().filter(|(key, _)| !said(key));
        pairs.extend(common.chain(own.clone()).map(|(rest, value)| (arch_key(architecture, rest), value)));
        match vocabulary {
            Some(from) => {
                let tokenizer = from.iter().filter(|(key, _)| key.starts_with(keys::TOKENIZER_PREFIX));
                pairs.extend(tokenizer.map(|(key, value)| (key.to_owned(), value.clone())));
            }
            // Without the key, other runtimes refuse the file.
            None => pairs.extend([
                (arch_key(architecture, arch::VOCAB_SIZE), MetaValue::U32(self.vocab_size as u32)),
                (keys::TOKENIZER_MODEL.to_owned(), string(keys::TOKENIZER_MODEL_NONE[0])),
            ]),
        }
        pairs.push((keys::GENERAL_QUANTIZATION_VERSION.to_owned(), MetaValue::U32(2)));
        // The key names mixtures; of one that nobody has it says nothing.
        if format.is_none() {
            pairs.push((keys::GENERAL_FILE_TYPE.to_owned(), MetaValue::U32(self.mixture.file_type())));
        }
        Metadata::from_pairs("the synthetic model", pairs)
    }

    /// The tensor called `rest`, in the file `name`; a `format` takes the mixture's place where the rows are whole blocks.
    fn tensor(
        &self,
        name: String,
        rest: &str,
        shape: Vec<usize>,
        more_bits: bool,
        format: Option<Format>,
    ) -> SynthTensor {
        let fan_in = shape.last().copied().unwrap_or(1);
        let float = shape.len() == 1 || rest.ends_with(".bias") || stays_float(rest);
        let format = format.filter(|format| fan_in.is_multiple_of(format.block_elems()));
        let format = match (float, format) {
            (true, _) => Format::F32,
            (false, Some(format)) => format,
            (false, None) => self.mixture.format(rest, fan_in, self.num_experts, more_bits),
        };
        if rest == layer::FFN_GATE_TID2EID {
            let spec = TensorSpec { name, shape, format: GgmlType::I32 };
            return SynthTensor { spec, format: Format::F32, values: Values::Ids(self.num_experts) };
        }
        let spec = TensorSpec { name, shape, format: format.into() };
        SynthTensor { spec, format, values: values(rest, fan_in) }
    }

    /// The tensors in the order of real files: by name within a layer.
    pub(super) fn tensors(&self, num_hidden_layers: usize, format: Option<Format>) -> Vec<SynthTensor> {
        let mut tensors: Vec<SynthTensor> = model_tensors(self)
            .into_iter()
            .map(|(name, shape)| self.tensor(name.to_owned(), name, shape, false, format))
            .collect();
        for i in 0..num_hidden_layers {
            let mut layer = (self.family.layer)(self, i);
            layer.sort_unstable_by_key(|(name, _)| *name);
            let more_bits = more_bits(i, num_hidden_layers);
            tensors.extend(
                layer
                    .into_iter()
                    .map(|(rest, shape)| self.tensor(blk(i, rest), rest, shape, more_bits, format)),
            );
        }
        tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_48_layers_have_more_bits() {
        let layers: Vec<usize> = (0..48).filter(|&i| more_bits(i, 48)).collect();
        let wanted = (0..48).filter(|&i| !(6..42).contains(&i) || (i - 6) % 3 == 2);
        assert!(layers.iter().copied().eq(wanted));
        assert_eq!(layers.len(), 24);
        // The tiny model's four layers, which llama.cpp quantized.
        assert_eq!([0, 1, 2, 3].map(|i| more_bits(i, 4)), [false, false, true, true]);
    }

    #[test]
    fn shapes_are_those_of_the_real_file() {
        let preset = Preset::by_name("qwen3-coder-30b-a3b").unwrap();
        let tensors = preset.tensors(48, None);
        let of = |name: &str| {
            let spec = &tensors.iter().find(|t| t.spec.name == name).unwrap().spec;
            (spec.shape.clone(), spec.format.format().unwrap())
        };
        assert_eq!(of("blk.7.attn_q.weight"), (vec![4096, 2048], Format::Q4K));
        assert_eq!(of("blk.7.attn_v.weight"), (vec![512, 2048], Format::Q4K));
        assert_eq!(of("blk.8.attn_v.weight"), (vec![512, 2048], Format::Q6K));
        assert_eq!(of("blk.47.ffn_down_exps.weight"), (vec![128, 2048, 768], Format::Q6K));
        assert_eq!(of("blk.6.ffn_up_exps.weight"), (vec![128, 768, 2048], Format::Q4K));
        assert_eq!(of("output.weight"), (vec![151_936, 2048], Format::Q6K));
        assert_eq!(tensors.len(), 3 + 48 * 12);
        // 18.55 GB, 17.55 GB of it experts.
        let bytes = |exps: bool| -> usize {
            let sized = tensors.iter().filter(|t| !exps || t.spec.name.contains("_exps"));
            sized
                .map(|t| {
                    let (cols, rows) = t.spec.shape.split_last().unwrap();
                    t.format.row_bytes(*cols).unwrap() * rows.iter().product::<usize>()
                })
                .sum()
        };
        assert_eq!(bytes(false) / 10_000_000, 1855);
        assert_eq!(bytes(true) / 10_000_000, 1755);
    }

    #[test]
    fn names_are_unique_and_layers_within_the_rule() {
        for (i, preset) in PRESETS.iter().enumerate() {
            assert!(std::ptr::eq(Preset::by_name(preset.name).unwrap(), &PRESETS[i]));
        }
        assert!(Preset::by_name("qwen3").is_none());
    }
}
