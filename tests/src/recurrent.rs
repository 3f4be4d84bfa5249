//! A small architecture with a recurrent layer, for the tests of states that cannot go back: a mixer of a causal convolution,
//! then one of attention, and logits; weights at random.
//!
//! x = embed(t); x += W_o · silu-conv(W_i · norm(x)); x += W_o · attention(q, k, v of norm(x)); logits = W · norm(x).

use moe_run_backends::WeightSource;
use moe_run_graph::ir::{
    ActivationFn, AttentionAttrs, CausalConvAttrs, Graph, LayerIdx, Lifetime, Op, StateRole, ValueId,
    WeightHome, WeightId, WeightSlice,
};
use moe_run_graph::quant::Format;
use moe_run_graph::synth::{Random, fill};
use moe_run_graph::verify::GraphError;
use std::collections::HashMap;
use std::sync::Arc;

/// Tokens of its vocabulary.
pub const VOCAB: usize = 96;
const HIDDEN: usize = 64;
const CHANNELS: usize = 96;
const KERNEL: usize = 4;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;

struct Model {
    graph: Graph,
    weights: HashMap<String, Vec<u8>>,
    random: Random,
}

impl Model {
    fn weight(&mut self, name: &str, shape: &[usize], format: Format, rms: f32) -> WeightId {
        let elems: usize = shape.iter().product();
        let mut bytes = vec![0; elems / format.block_elems() * format.block_bytes()];
        fill(format, rms, &mut self.random, &mut bytes);
        self.weights.insert(name.to_owned(), bytes);
        self.graph.add_weight(name, shape.to_vec(), format)
    }

    fn matrix(&mut self, name: &'static str, out: usize, inner: usize) -> WeightSlice {
        let tensor = self.weight(name, &[out, inner], Format::Q8_0, (inner as f32).powf(-0.5));
        WeightSlice { tensor, rows: 0..out, experts: None, home: WeightHome::Device }
    }

    fn node(
        &mut self,
        layer: Option<LayerIdx>,
        name: &'static str,
        op: Op,
        inputs: &[ValueId],
    ) -> Result<ValueId, GraphError> {
        Ok(self.graph.push(layer, name, op, inputs)?[0])
    }

    fn product(
        &mut self,
        layer: Option<LayerIdx>,
        name: &'static str,
        out: usize,
        inner: usize,
        x: ValueId,
    ) -> Result<ValueId, GraphError> {
        let weight = self.matrix(name, out, inner);
        self.node(layer, name, Op::MatMul { weight, bias: None, scale: None }, &[x])
    }

    fn norm(
        &mut self,
        layer: Option<LayerIdx>,
        name: &'static str,
        x: ValueId,
    ) -> Result<ValueId, GraphError> {
        let weight = self.weight(name, &[HIDDEN], Format::F32, 1.0);
        self.node(layer, name, Op::RmsNorm { weight: Some(weight), eps: 1e-6, heads: 1 }, &[x])
    }
}

/// The graph and its weights.
///
/// # Errors
/// None: what is built here fits.
pub fn model() -> Result<(Graph, Arc<dyn WeightSource>), GraphError> {
    let mut m = Model { graph: Graph::new(), weights: HashMap::new(), random: Random::new(&[5, 7]) };
    m.graph.num_layers = 2;
    let inputs = m.graph.inputs;
    let table = m.matrix("embed", VOCAB, HIDDEN);
    let mut x = m.node(None, "embed_tokens", Op::Embed { table, scale: None }, &[inputs.tokens])?;

    let (layer, at) = (LayerIdx(0), Some(LayerIdx(0)));
    let normed = m.norm(at, "mixer_norm", x)?;
    let projected = m.product(at, "in_proj", CHANNELS, HIDDEN, normed)?;
    let state = m.graph.add_state(StateRole::Conv, layer, CHANNELS, KERNEL - 1, Lifetime::PerSequence);
    let weight = m.weight("conv", &[CHANNELS, KERNEL], Format::F32, 0.5);
    let bias = Some(m.weight("conv_bias", &[CHANNELS], Format::F32, 0.1));
    let attrs = CausalConvAttrs { weight, bias, activation: Some(ActivationFn::Silu), state };
    let conv_inputs = [projected, inputs.positions, inputs.sequence];
    let mixed = m.node(at, "conv", Op::CausalConv(attrs), &conv_inputs)?;
    let out = m.product(at, "out_proj", HIDDEN, CHANNELS, mixed)?;
    x = m.node(at, "residual", Op::Add, &[x, out])?;

    let (layer, at) = (LayerIdx(1), Some(LayerIdx(1)));
    let normed = m.norm(at, "attn_norm", x)?;
    let q = m.product(at, "q_proj", HEADS * HEAD_DIM, HIDDEN, normed)?;
    let k = m.product(at, "k_proj", KV_HEADS * HEAD_DIM, HIDDEN, normed)?;
    let v = m.product(at, "v_proj", KV_HEADS * HEAD_DIM, HIDDEN, normed)?;
    let rows = Lifetime::PerToken { window: None };
    let key = m.graph.add_state(StateRole::Key, layer, KV_HEADS, HEAD_DIM, rows);
    let value = m.graph.add_state(StateRole::Value, layer, KV_HEADS, HEAD_DIM, rows);
    let cache =
        m.graph.push(at, "kv_write", Op::KvWrite { key, value: Some(value) }, &[k, v, inputs.kv_slots])?;
    let attrs = AttentionAttrs {
        num_attention_heads: HEADS,
        num_key_value_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        value_head_dim: HEAD_DIM,
        scale: (HEAD_DIM as f32).powf(-0.5),
        window: None,
        chunk: None,
        soft_cap: None,
        sinks: None,
        value_in_key: false,
        masked: false,
    };
    let seen = [q, cache[0], cache[1], inputs.positions, inputs.sequence];
    let attended = m.node(at, "attention", Op::Attention(attrs), &seen)?;
    let out = m.product(at, "o_proj", HIDDEN, HEADS * HEAD_DIM, attended)?;
    x = m.node(at, "attn_residual", Op::Add, &[x, out])?;

    x = m.node(None, "logits_rows", Op::GetRows, &[x, inputs.logits_rows])?;
    x = m.norm(None, "norm", x)?;
    x = m.product(None, "lm_head", VOCAB, HIDDEN, x)?;
    m.graph.outputs = vec![x];
    Ok((m.graph, Arc::new(m.weights)))
}
