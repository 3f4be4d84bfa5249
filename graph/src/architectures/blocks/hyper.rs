//! Hyper-connections: several residual streams side by side, of which a block reads a mixture, and which it writes to and
//! mixes anew, all by gates that the streams themselves give.
//!
//! Definition: Hugging Face transformers, `models/deepseek_v4/modeling_deepseek_v4.py`.

use crate::architectures::{LowerError, Lowering, only};
use crate::config::HyperConfig;
use crate::gguf::keys::tensor;
use crate::ir::{HyperGatesAttrs, LayerIdx, Op, ValueId};

/// What the nodes around a block are called, and its three tensors.
pub struct HyperSpec {
    /// Of norm, product, gates, what is read, what is written.
    pub names: [&'static str; 5],
    /// `[(2 + n)·n, n·D]`, `[(2 + n)·n]`, `[3]`.
    pub tensors: [String; 3],
}

/// How a block's result comes back to the streams.
#[derive(Debug, Clone, Copy)]
pub struct Gates {
    post: ValueId,
    comb: ValueId,
}

/// The streams [T, n·D] that the embedding [T, D] begins: all are it.
///
/// # Errors
/// [`LowerError::Graph`].
pub fn begin(l: &mut Lowering<'_>, x: ValueId, config: &HyperConfig) -> Result<ValueId, LowerError> {
    (1..config.streams).try_fold(x, |streams, _| {
        Ok(only(l.graph.push(None, "streams", Op::Concat { heads: 1 }, &[streams, x])?))
    })
}

/// What a block reads of the streams [T, n·D]: [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn enter(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    x: ValueId,
    config: &HyperConfig,
    spec: &HyperSpec,
) -> Result<(ValueId, Gates), LowerError> {
    let (read, gates) = read(l, Some(layer), x, config, Some(config.iterations), spec)?;
    Ok((read, Gates { post: gates[1], comb: gates[2] }))
}

/// The streams behind a block that gave `y` [T, D].
///
/// # Errors
/// [`LowerError::Graph`].
pub fn leave(
    l: &mut Lowering<'_>,
    layer: LayerIdx,
    [x, y]: [ValueId; 2],
    gates: Gates,
    config: &HyperConfig,
    spec: &HyperSpec,
) -> Result<ValueId, LowerError> {
    let op = Op::HyperConnect { streams: config.streams };
    Ok(only(l.graph.push(Some(layer), spec.names[4], op, &[x, y, gates.post, gates.comb])?))
}

/// What the streams come to at the end [T, D].
///
/// # Errors
/// [`LowerError`] for missing or misshapen tensors.
pub fn end(l: &mut Lowering<'_>, x: ValueId, config: &HyperConfig) -> Result<ValueId, LowerError> {
    let spec = HyperSpec {
        names: ["output_hc_norm", "output_hc_fn", "output_hc_gates", "output_hc_pre", ""],
        tensors: [tensor::OUTPUT_HC_FN, tensor::OUTPUT_HC_BASE, tensor::OUTPUT_HC_SCALE].map(str::to_owned),
    };
    Ok(read(l, None, x, config, None, &spec)?.0)
}

/// Gates, and the mixture that the first of them is for.
fn read(
    l: &mut Lowering<'_>,
    at: Option<LayerIdx>,
    x: ValueId,
    config: &HyperConfig,
    iterations: Option<usize>,
    spec: &HyperSpec,
) -> Result<(ValueId, Vec<ValueId>), LowerError> {
    let HyperConfig { streams, iterations: _, eps } = *config;
    let [norm, product, gates, pre, _] = spec.names;
    let [weight, base, scale] = &spec.tensors;
    let op = Op::RmsNorm { weight: None, eps: l.config.rms_norm_eps, heads: 1 };
    let normed = only(l.graph.push(at, norm, op, &[x])?);
    let width = if iterations.is_some() { (2 + streams) * streams } else { streams };
    let attrs = HyperGatesAttrs {
        streams,
        iterations,
        eps,
        scale: l.vector(scale, if iterations.is_some() { 3 } else { 1 })?,
        base: l.vector(base, width)?,
    };
    let weight = l.matrix(weight, width, streams * l.config.hidden_size)?;
    let w = only(l.graph.push(at, product, Op::MatMul { weight, bias: None, scale: None }, &[normed])?);
    let gates = l.graph.push(at, gates, Op::HyperGates(attrs), &[w])?;
    let read = only(l.graph.push(at, pre, Op::ExpertCombine, &[x, gates[0]])?);
    Ok((read, gates))
}
