//! Presets: dimensions, metadata and tensor table of real models, as their Q4_K_M files have them.

use crate::{
    gguf::{
        GgufError, MetaValue, Metadata,
        keys::{self, arch, arch_key, blk, layer, tensor},
        writer::TensorSpec,
    },
    quant::Format,
};

/// A real model's dimensions.
#[derive(Clone, Copy, PartialEq, Debug)]
#[allow(missing_docs, reason = "Hugging Face's names, as in the model's config.json")]
pub struct Preset {
    /// As the command line has it.
    pub name: &'static str,
    /// What its weights are named after.
    pub base_name: &'static str,
    /// "128x1.8B" and the like.
    pub size_label: &'static str,
    /// `general.architecture`.
    pub architecture: &'static str,
    pub num_hidden_layers: usize,
    pub hidden_size: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub num_experts: usize,
    pub num_experts_per_tok: usize,
    pub moe_intermediate_size: usize,
    /// Stated by the metadata, used by no layer.
    pub intermediate_size: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rope_theta: f32,
    pub rms_norm_eps: f32,
}

const QWEN3_30B: Preset = Preset {
    name: "qwen3-30b-a3b",
    base_name: "Qwen3-30B-A3B-Instruct-2507",
    size_label: "128x1.8B",
    architecture: "qwen3moe",
    num_hidden_layers: 48,
    hidden_size: 2048,
    num_attention_heads: 32,
    num_key_value_heads: 4,
    head_dim: 128,
    num_experts: 128,
    num_experts_per_tok: 8,
    moe_intermediate_size: 768,
    intermediate_size: 6144,
    vocab_size: 151_936,
    max_position_embeddings: 262_144,
    rope_theta: 1e7,
    rms_norm_eps: 1e-6,
};

/// Every preset.
pub const PRESETS: [Preset; 3] = [
    Preset {
        name: "qwen3-coder-30b-a3b",
        base_name: "Qwen3-Coder-30B-A3B-Instruct",
        intermediate_size: 5472,
        ..QWEN3_30B
    },
    QWEN3_30B,
    Preset {
        name: "qwen3-235b-a22b",
        base_name: "Qwen3-235B-A22B-Instruct-2507",
        size_label: "128x10B",
        num_hidden_layers: 94,
        hidden_size: 4096,
        num_attention_heads: 64,
        moe_intermediate_size: 1536,
        intermediate_size: 12288,
        rope_theta: 5e6,
        ..QWEN3_30B
    },
];

/// A tensor and the root mean square of its values.
pub(super) struct SynthTensor {
    pub spec: TensorSpec,
    pub values: Values,
}

/// What a tensor's values are.
#[derive(Clone, Copy)]
pub(super) enum Values {
    /// Around 0, with this root mean square.
    Rms(f32),
    /// A norm's weights, around 1.
    Norm,
}

impl Preset {
    /// The preset of this name.
    pub fn by_name(name: &str) -> Option<&'static Preset> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// The metadata of a file with the first `num_hidden_layers` layers. The tokenizer's keys come from `vocabulary`,
    /// where given; else the file says that it has none.
    pub(super) fn metadata(
        &self,
        num_hidden_layers: usize,
        seed: u64,
        vocabulary: Option<&Metadata>,
    ) -> Result<Metadata, GgufError> {
        const Q4_K_M: u32 = 15;
        let string = |text: &str| MetaValue::String(text.to_owned());
        let count = |n: usize| MetaValue::U32(n as u32); // all dimensions are far below 2^32
        let name =
            format!("{} with random weights ({num_hidden_layers} layers, seed {seed})", self.base_name);
        let mut pairs = vec![
            (keys::GENERAL_ARCHITECTURE.to_owned(), string(self.architecture)),
            (keys::GENERAL_TYPE.to_owned(), string("model")),
            (keys::GENERAL_NAME.to_owned(), string(&name)),
            (keys::GENERAL_BASENAME.to_owned(), string(self.base_name)),
            (keys::GENERAL_SIZE_LABEL.to_owned(), string(self.size_label)),
        ];
        let dimensions = [
            (arch::BLOCK_COUNT, count(num_hidden_layers)),
            (arch::CONTEXT_LENGTH, count(self.max_position_embeddings)),
            (arch::EMBEDDING_LENGTH, count(self.hidden_size)),
            (arch::FEED_FORWARD_LENGTH, count(self.intermediate_size)),
            (arch::HEAD_COUNT, count(self.num_attention_heads)),
            (arch::HEAD_COUNT_KV, count(self.num_key_value_heads)),
            (arch::ROPE_FREQ_BASE, MetaValue::F32(self.rope_theta)),
            (arch::RMS_EPS, MetaValue::F32(self.rms_norm_eps)),
            (arch::KEY_LENGTH, count(self.head_dim)),
            (arch::VALUE_LENGTH, count(self.head_dim)),
            (arch::EXPERT_COUNT, count(self.num_experts)),
            (arch::EXPERT_USED_COUNT, count(self.num_experts_per_tok)),
            (arch::EXPERT_FEED_FORWARD_LENGTH, count(self.moe_intermediate_size)),
        ];
        pairs.extend(dimensions.map(|(rest, value)| (arch_key(self.architecture, rest), value)));
        match vocabulary {
            Some(from) => {
                let tokenizer = from.iter().filter(|(key, _)| key.starts_with(keys::TOKENIZER_PREFIX));
                pairs.extend(tokenizer.map(|(key, value)| (key.to_owned(), value.clone())));
            }
            // Without the key, other runtimes refuse the file.
            None => pairs.extend([
                (arch_key(self.architecture, arch::VOCAB_SIZE), count(self.vocab_size)),
                (keys::TOKENIZER_MODEL.to_owned(), string(keys::TOKENIZER_MODEL_NONE[0])),
            ]),
        }
        pairs.push((keys::GENERAL_QUANTIZATION_VERSION.to_owned(), MetaValue::U32(2)));
        pairs.push((keys::GENERAL_FILE_TYPE.to_owned(), MetaValue::U32(Q4_K_M)));
        Metadata::from_pairs("the synthetic model", pairs)
    }

    /// Whether layer `i` of `n` has its v_proj and its experts' down_proj in Q6_K: the first and the last eighth, and
    /// every third layer between; half of 48.
    fn more_bits(i: usize, n: usize) -> bool {
        i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
    }

    /// The tensors in the order of real files.
    ///
    /// Spreads: a matmul of normalised activations with weights of root mean square 1 / √in gives values around 1, so
    /// the residual stream grows with the root of the number of layers. The router's are twice that, so that a token's
    /// choice of experts is a firm one, and lm_head's four times, so that the next token is not a plain draw. o_proj's
    /// are a fifth: random attention adds to every token much the same mean of all, which would draw the tokens of deep
    /// layers to the same few experts.
    pub(super) fn tensors(&self, num_hidden_layers: usize) -> Vec<SynthTensor> {
        let (d, h, g) = (self.hidden_size, self.num_attention_heads, self.num_key_value_heads);
        let (q_dim, kv_dim) = (h * self.head_dim, g * self.head_dim);
        let (e, f) = (self.num_experts, self.moe_intermediate_size);
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize], format, values| {
            tensors.push(SynthTensor { spec: TensorSpec { name, shape: shape.to_vec(), format }, values });
        };
        let matmul = |gain: f32, fan_in: usize| Values::Rms(gain / (fan_in as f32).sqrt());

        add(tensor::OUTPUT.into(), &[self.vocab_size, d], Format::Q6K, matmul(4.0, d));
        add(tensor::OUTPUT_NORM.into(), &[d], Format::F32, Values::Norm);
        add(tensor::TOKEN_EMBD.into(), &[self.vocab_size, d], Format::Q4K, Values::Rms(1.0));
        for i in 0..num_hidden_layers {
            let mixed = if Preset::more_bits(i, num_hidden_layers) { Format::Q6K } else { Format::Q4K };
            let mut layer =
                |rest: &str, shape: &[usize], format, values| add(blk(i, rest), shape, format, values);
            layer(layer::ATTN_K, &[kv_dim, d], Format::Q4K, matmul(1.0, d));
            layer(layer::ATTN_K_NORM, &[self.head_dim], Format::F32, Values::Norm);
            layer(layer::ATTN_NORM, &[d], Format::F32, Values::Norm);
            layer(layer::ATTN_OUTPUT, &[d, q_dim], Format::Q4K, matmul(0.2, q_dim));
            layer(layer::ATTN_Q, &[q_dim, d], Format::Q4K, matmul(1.0, d));
            layer(layer::ATTN_Q_NORM, &[self.head_dim], Format::F32, Values::Norm);
            layer(layer::ATTN_V, &[kv_dim, d], mixed, matmul(1.0, d));
            layer(layer::FFN_DOWN_EXPS, &[e, d, f], mixed, matmul(1.0, f));
            layer(layer::FFN_GATE_EXPS, &[e, f, d], Format::Q4K, matmul(1.0, d));
            layer(layer::FFN_GATE_INP, &[e, d], Format::F32, matmul(2.0, d));
            layer(layer::FFN_NORM, &[d], Format::F32, Values::Norm);
            layer(layer::FFN_UP_EXPS, &[e, f, d], Format::Q4K, matmul(1.0, d));
        }
        tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_48_layers_have_more_bits() {
        let layers: Vec<usize> = (0..48).filter(|&i| Preset::more_bits(i, 48)).collect();
        let wanted = (0..48).filter(|&i| !(6..42).contains(&i) || (i - 6) % 3 == 2);
        assert!(layers.iter().copied().eq(wanted));
        assert_eq!(layers.len(), 24);
        // The tiny model's four layers, which llama.cpp quantized.
        assert_eq!([0, 1, 2, 3].map(|i| Preset::more_bits(i, 4)), [false, false, true, true]);
    }

    #[test]
    fn shapes_are_those_of_the_real_file() {
        let preset = Preset::by_name("qwen3-coder-30b-a3b").unwrap();
        let tensors = preset.tensors(48);
        let of = |name: &str| {
            let spec = &tensors.iter().find(|t| t.spec.name == name).unwrap().spec;
            (spec.shape.clone(), spec.format)
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
                    t.spec.format.row_bytes(*cols).unwrap() * rows.iter().product::<usize>()
                })
                .sum()
        };
        assert_eq!(bytes(false) / 10_000_000, 1855);
        assert_eq!(bytes(true) / 10_000_000, 1755);
    }

    #[test]
    fn names_are_unique_and_layers_within_the_rule() {
        for (i, preset) in PRESETS.iter().enumerate() {
            assert_eq!(Preset::by_name(preset.name), Some(&PRESETS[i]));
        }
        assert_eq!(Preset::by_name("qwen3"), None);
    }
}
