//! Models that exist as metadata and a tensor table alone: what lowering needs, and no weights.

use moe_run_graph::architectures::{LowerError, TensorTable, lower};
use moe_run_graph::config::{ConfigError, ModelConfig};
use moe_run_graph::dump::{self, BackendView, Dump, DumpInput, KernelInfo, MeasuredTimes, Subject};
use moe_run_graph::gguf::{MetaValue as V, Metadata};
use moe_run_graph::ir::{Graph, LaunchPattern, StepSizes};
use moe_run_graph::passes::{Launch, Plan, PlanOptions, TapSelection, none_alone, plan};
use moe_run_graph::quant::Format;
use std::ops::Range;

/// Metadata pairs and tensors that a test may change before it makes a model of them.
#[derive(Clone)]
pub struct Blueprint {
    pub pairs: Vec<(String, V)>,
    pub tensors: TensorTable,
}

impl Blueprint {
    pub fn set(&mut self, key: &str, value: V) {
        self.pairs.retain(|(k, _)| k != key);
        self.pairs.push((key.to_owned(), value));
    }

    pub fn unset(&mut self, key: &str) {
        let before = self.pairs.len();
        self.pairs.retain(|(k, _)| k != key);
        assert_eq!(self.pairs.len() + 1, before, "{key} was there");
    }

    pub fn metadata(&self) -> Metadata {
        Metadata::from_pairs("blueprint.gguf", self.pairs.clone()).unwrap()
    }

    pub fn config(&self) -> Result<ModelConfig, ConfigError> {
        ModelConfig::read(&self.metadata(), &self.tensors)
    }

    pub fn try_lower(&self) -> Result<(ModelConfig, Graph), LowerError> {
        lower(&self.metadata(), &self.tensors, &|_| None)
    }

    pub fn lower(&self) -> (ModelConfig, Graph) {
        self.try_lower().unwrap()
    }
}

pub struct Sizes {
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub experts: usize,
    pub experts_per_tok: usize,
    pub intermediate: usize,
    pub vocab: usize,
}

/// A qwen3moe model of any size, in the formats of a Q4_K_M file.
pub fn qwen3moe(name: &str, s: &Sizes) -> Blueprint {
    let number = |n: usize| V::U32(n as u32);
    let pairs = [
        ("general.architecture", V::String("qwen3moe".into())),
        ("general.name", V::String(name.into())),
        ("qwen3moe.block_count", number(s.layers)),
        ("qwen3moe.context_length", number(262_144)),
        ("qwen3moe.embedding_length", number(s.hidden)),
        ("qwen3moe.attention.head_count", number(s.heads)),
        ("qwen3moe.attention.head_count_kv", number(s.kv_heads)),
        ("qwen3moe.attention.key_length", number(s.head_dim)),
        ("qwen3moe.attention.value_length", number(s.head_dim)),
        ("qwen3moe.attention.layer_norm_rms_epsilon", V::F32(1e-6)),
        ("qwen3moe.rope.freq_base", V::F32(1e7)),
        ("qwen3moe.expert_count", number(s.experts)),
        ("qwen3moe.expert_used_count", number(s.experts_per_tok)),
        ("qwen3moe.expert_feed_forward_length", number(s.intermediate)),
    ];
    let pairs = pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let mut tensors = TensorTable::new();
    let mut put =
        |name: String, shape: &[usize], format: Format| tensors.insert(name, (shape.to_vec(), format.into()));
    let (q_width, kv_width) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    put("token_embd.weight".into(), &[s.vocab, s.hidden], Format::Q4K);
    put("output_norm.weight".into(), &[s.hidden], Format::F32);
    put("output.weight".into(), &[s.vocab, s.hidden], Format::Q6K);
    for i in 0..s.layers {
        // Half of the layers hold v_proj and down_proj in Q6_K, as real Q4_K_M files do.
        let (eighth, n) = (s.layers / 8, s.layers);
        let finer = i < eighth || i >= n - eighth || (i - eighth) % 3 == 2;
        let mixed = if finer { Format::Q6K } else { Format::Q4K };
        let mut put =
            |name: &str, shape: &[usize], format| put(format!("blk.{i}.{name}.weight"), shape, format);
        put("attn_norm", &[s.hidden], Format::F32);
        put("attn_q", &[q_width, s.hidden], Format::Q4K);
        put("attn_k", &[kv_width, s.hidden], Format::Q4K);
        put("attn_v", &[kv_width, s.hidden], mixed);
        put("attn_q_norm", &[s.head_dim], Format::F32);
        put("attn_k_norm", &[s.head_dim], Format::F32);
        put("attn_output", &[s.hidden, q_width], Format::Q4K);
        put("ffn_norm", &[s.hidden], Format::F32);
        put("ffn_gate_inp", &[s.experts, s.hidden], Format::F32);
        put("ffn_gate_exps", &[s.experts, s.intermediate, s.hidden], Format::Q4K);
        put("ffn_up_exps", &[s.experts, s.intermediate, s.hidden], Format::Q4K);
        put("ffn_down_exps", &[s.experts, s.hidden, s.intermediate], mixed);
    }
    Blueprint { pairs, tensors }
}

/// One layer, small.
pub fn one_layer() -> Blueprint {
    let sizes = Sizes {
        layers: 1,
        hidden: 256,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        experts: 8,
        experts_per_tok: 2,
        intermediate: 256,
        vocab: 512,
    };
    qwen3moe("one layer", &sizes)
}

/// Qwen3-Coder-30B-A3B.
pub fn target() -> Blueprint {
    let sizes = Sizes {
        layers: 48,
        hidden: 2048,
        heads: 32,
        kv_heads: 4,
        head_dim: 128,
        experts: 128,
        experts_per_tok: 8,
        intermediate: 768,
        vocab: 151_936,
    };
    qwen3moe("Qwen3 Coder 30B A3B Instruct", &sizes)
}

/// One token behind 511 cached ones.
pub const DECODE: StepSizes = StepSizes { tokens: 1, logits_rows: 1, cached: 512 };

pub fn plan_of(graph: &Graph, taps: &TapSelection, patterns: &[LaunchPattern]) -> Plan {
    let max_sizes = StepSizes { tokens: 1, logits_rows: 1, cached: 4096 };
    plan(graph, &PlanOptions { taps, patterns, alone: &none_alone, max_sizes }).unwrap()
}

/// What a dump is made of, beside model and graph.
pub struct Dumped<'a> {
    pub subject: Subject<'a>,
    pub backend: Option<&'a str>,
    pub kernel: &'a dyn Fn(&Launch) -> Option<KernelInfo>,
    pub bandwidth_bytes_per_s: Option<f64>,
    pub layers: Option<Range<usize>>,
    pub measured: Option<MeasuredTimes>,
}

impl<'a> Dumped<'a> {
    pub fn new(subject: Subject<'a>) -> Dumped<'a> {
        Dumped {
            subject,
            backend: None,
            kernel: &|_| None,
            bandwidth_bytes_per_s: None,
            layers: None,
            measured: None,
        }
    }

    pub fn dump(&self, (config, lowered): &(ModelConfig, Graph)) -> Dump {
        let backend = self.backend.map(|name| BackendView {
            name: name.to_owned(),
            device: None,
            activations: "q8".to_owned(),
            q8_super_block: Some(32),
        });
        dump::dump(&DumpInput {
            config,
            lowered,
            subject: self.subject,
            backend: backend.as_ref(),
            kernel: self.kernel,
            sizes: DECODE,
            kv_type: "f16",
            kv_row_bytes: &|elems| elems * 2,
            bandwidth_bytes_per_s: self.bandwidth_bytes_per_s,
            layers: self.layers.as_ref(),
            measured: self.measured.as_ref(),
        })
    }
}
