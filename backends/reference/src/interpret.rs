//! One step: evaluates node after node on host tensors.

use super::ReferenceState;
use super::{
    add, attention, attention_scores, attention_softmax, causal_conv, compress, compressed_attention, concat,
    delta_gates, delta_rule, embed, expert_combine, expert_matmul, head_matmul, hyper_connect, hyper_gates,
};
use super::{
    gated_act, get_rows, given_experts, index_scores, index_select, kv_write, layer_norm, matmul, mul,
    mul_heads, pointwise, position_scale,
};
use super::{rms_norm, rope, router, slice, ssm_scan};
use attention::{Beside, Mask, Rows};
use matmul::{Matrix, Rounded};
use moe_run_graph::ir::{
    AttentionAttrs, CausalConvAttrs, DType, Graph, Node, Op, StateId, StepSizes, ValueId, WeightId,
    WeightSlice,
};
use moe_run_graph::quant::ActProfile;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{HostTensor, KvType, StepInput, TensorData, WeightSource};

/// A step in progress.
pub(super) struct Interpreter<'a> {
    pub graph: &'a Graph,
    pub weights: &'a dyn WeightSource,
    pub profile: ActProfile,
    pub kv_type: KvType,
    pub sizes: StepSizes,
    pub input: &'a StepInput<'a>,
    pub state: &'a mut ReferenceState,
    /// By id; the inputs are there.
    pub values: &'a mut Vec<Option<HostTensor>>,
}

impl<'a> Interpreter<'a> {
    fn tensor(&self, value: ValueId) -> Result<&HostTensor, BackendError> {
        self.values[value.index()].as_ref().ok_or_else(|| BackendError::Value {
            value: value.to_string(),
            detail: "not computed yet, or a boundary input that was not given".into(),
        })
    }

    fn f32(&self, value: ValueId) -> Result<&[f32], BackendError> {
        match &self.tensor(value)?.data {
            TensorData::F32(data) => Ok(data),
            TensorData::U32(_) => Err(wrong_type(value, "F32")),
        }
    }

    fn u32(&self, value: ValueId) -> Result<&[u32], BackendError> {
        match &self.tensor(value)?.data {
            TensorData::U32(data) => Ok(data),
            TensorData::F32(_) => Err(wrong_type(value, "U32")),
        }
    }

    fn bytes(&self, id: WeightId) -> Result<&'a [u8], BackendError> {
        let decl = self.graph.weight(id);
        self.weights.weight(decl).ok_or_else(|| BackendError::Weight {
            name: decl.name.clone(),
            wanted_bytes: 1,
            found_bytes: 0,
        })
    }

    fn vector(&self, id: WeightId) -> Result<Vec<f32>, BackendError> {
        let decl = self.graph.weight(id);
        let mut out = vec![0.0; decl.shape.iter().product()];
        decl.format.decode_row(self.bytes(id)?, &mut out);
        Ok(out)
    }

    fn opt_vector(&self, id: Option<WeightId>) -> Result<Option<Vec<f32>>, BackendError> {
        id.map(|id| self.vector(id)).transpose()
    }

    fn matrix(&self, slice: &WeightSlice) -> Result<Matrix<'a>, BackendError> {
        let decl = self.graph.weight(slice.tensor);
        let inner = decl.shape.last().copied().unwrap_or(0);
        Ok(Matrix { format: decl.format, bytes: self.bytes(slice.tensor)?, inner })
    }

    /// Evaluates one node.
    pub(super) fn node(&mut self, node: &Node) -> Result<(), BackendError> {
        let input = |i: usize| node.inputs[i];
        let mut outputs: Vec<TensorData> = node
            .outputs
            .iter()
            .map(|id| {
                let value = self.graph.value(*id);
                match value.dtype {
                    DType::F32 => TensorData::F32(vec![0.0; value.shape.elems(self.sizes)]),
                    DType::U32 => TensorData::U32(vec![0; value.shape.elems(self.sizes)]),
                    DType::State => TensorData::F32(Vec::new()),
                }
            })
            .collect();
        match (&node.op, outputs.as_mut_slice()) {
            (Op::Embed { table, scale }, [TensorData::F32(out)]) => {
                let mut matrix = self.matrix(table)?;
                let row_bytes = matrix.inner / matrix.format.block_elems() * matrix.format.block_bytes();
                matrix.bytes = &matrix.bytes[table.rows.start * row_bytes..];
                embed::embed(self.u32(input(0))?, matrix, *scale, out);
            }
            (Op::RmsNorm { weight, eps, heads }, [TensorData::F32(out)]) => {
                let width = self.graph.value(input(0)).shape.width().unwrap_or(1) / heads;
                let weight = self.opt_vector(*weight)?;
                rms_norm::rms_norm(self.f32(input(0))?, width, weight.as_deref(), *eps, out);
            }
            (Op::LayerNorm { weight, bias, eps }, [TensorData::F32(out)]) => {
                let (weight, bias) = (self.vector(*weight)?, self.opt_vector(*bias)?);
                layer_norm::layer_norm(self.f32(input(0))?, &weight, bias.as_deref(), *eps, out);
            }
            (Op::MatMul { weight, bias, scale }, [TensorData::F32(out)]) => {
                let matrix = self.matrix(weight)?;
                let x = Rounded::new(self.f32(input(0))?, self.profile.for_weights(matrix.format));
                let bias = self.opt_vector(*bias)?;
                matmul::matmul(&x, matrix, weight.rows.clone(), bias.as_deref(), *scale, out);
            }
            (Op::HeadMatMul { weight, transposed }, [TensorData::F32(out)]) => {
                let matrix = self.matrix(weight)?;
                let shape = &self.graph.weight(weight.tensor).shape;
                let part = head_matmul::Heads {
                    heads: weight.experts.clone().unwrap_or(0..shape[0]),
                    rows: weight.rows.clone(),
                    rows_stored: shape[1],
                };
                let x = self.f32(input(0))?;
                match transposed {
                    true => head_matmul::head_matmul_transposed(x, matrix, &part, out),
                    false => {
                        let x = Rounded::new(x, self.profile.for_weights(matrix.format));
                        head_matmul::head_matmul(&x, matrix, &part, out);
                    }
                }
            }
            (Op::Rope { table, pairing, heads }, [TensorData::F32(out)]) => {
                out.copy_from_slice(self.f32(input(0))?);
                let spec = &self.graph.rope_tables[table.index()];
                rope::rope(out, self.u32(input(1))?, *heads, spec, *pairing);
            }
            (Op::PositionScale(attrs), [TensorData::F32(out)]) => {
                position_scale::position_scale(self.f32(input(0))?, self.u32(input(1))?, attrs, out);
            }
            (Op::KvWrite { key, value }, _) => {
                for (i, state) in std::iter::once(*key).chain(*value).enumerate() {
                    let (width, slots) = (self.graph.state(state).row_elems(), self.slots(state));
                    let rows = self.f32(input(i))?.to_vec();
                    let stored = &mut self.state.rows[state.index()];
                    kv_write::kv_write(&rows, &slots, width, self.kv_type, stored);
                }
            }
            (Op::Attention(attrs), [TensorData::F32(out)]) => {
                let (keys, values) = (self.state_rows(input(1))?, self.state_rows(input(2))?);
                let sinks = self.opt_vector(attrs.sinks)?;
                let rows = self.rows(input(1), input(3), input(4))?;
                let beside = Beside { sinks: sinks.as_deref(), mask: self.mask(attrs, node, 5)? };
                attention::attention(self.f32(input(0))?, keys, values, rows, attrs, beside, out);
            }
            (Op::AttentionScores(attrs), [TensorData::F32(out)]) => {
                let keys = self.state_rows(input(1))?;
                let (q, rows) = (self.f32(input(0))?, self.rows(input(1), input(2), input(3))?);
                attention_scores::attention_scores(q, keys, rows, attrs, self.sizes.cached, out);
            }
            (Op::AttentionSoftmax(attrs), [TensorData::F32(out)]) => {
                let (scores, positions) = (self.f32(input(0))?, self.u32(input(1))?);
                let sinks = self.opt_vector(attrs.sinks)?;
                let beside = Beside { sinks: sinks.as_deref(), mask: self.mask(attrs, node, 3)? };
                attention_softmax::attention_softmax(
                    scores,
                    positions,
                    attrs,
                    beside,
                    self.sizes.cached,
                    out,
                );
            }
            (Op::Router(attrs), [TensorData::U32(ids), TensorData::F32(weights)]) => {
                let bias = self.opt_vector(attrs.selection_bias)?;
                let scale = self.opt_vector(attrs.expert_scale)?;
                let logits = self.f32(input(0))?;
                router::router(logits, attrs, bias.as_deref(), scale.as_deref(), ids, weights);
            }
            (Op::IndexScores(attrs), [TensorData::F32(out)]) => {
                let (q, w) = (self.f32(input(0))?, self.f32(input(1))?);
                let (keys, rows) = (self.state_rows(input(2))?, self.rows(input(2), input(3), input(4))?);
                index_scores::index_scores(q, w, keys, rows, attrs, self.sizes.cached, out);
            }
            (Op::IndexSelect { top_k, every }, [TensorData::F32(out)]) => {
                let (scores, positions) = (self.f32(input(0))?, self.u32(input(1))?);
                index_select::index_select(scores, positions, (*top_k, *every), self.sizes.cached, out);
            }
            (Op::GivenExperts(attrs), [TensorData::U32(ids), TensorData::F32(weights)]) => {
                let table = self.opt_vector(attrs.table)?;
                let (logits, given) = (self.f32(input(0))?, self.u32(input(1))?);
                let width = attrs.table.and_then(|table| self.graph.weight(table).shape.last().copied());
                let table = table.as_deref().zip(width);
                given_experts::given_experts(logits, given, attrs, table, ids, weights);
            }
            (Op::ExpertMatMul { weight, bias }, [TensorData::F32(out)]) => {
                let matrix = self.matrix(weight)?;
                let shape = &self.graph.weight(weight.tensor).shape;
                let experts = weight.experts.clone().unwrap_or(0..shape[0]);
                let x = Rounded::new(self.f32(input(0))?, self.profile.for_weights(matrix.format));
                let bias = self.opt_vector(*bias)?;
                let ids = self.u32(input(1))?;
                let rows = weight.rows.clone();
                expert_matmul::expert_matmul(&x, ids, matrix, experts, shape[1], rows, bias.as_deref(), out);
            }
            (Op::GatedAct { activation }, [TensorData::F32(activated), TensorData::F32(gated)]) => {
                gated_act::gated_act(self.f32(input(0))?, self.f32(input(1))?, *activation, activated, gated);
            }
            (Op::ExpertCombine, [TensorData::F32(out)]) => {
                let per_tok = self.graph.value(input(1)).shape.width().unwrap_or(1);
                expert_combine::expert_combine(self.f32(input(0))?, self.f32(input(1))?, per_tok, out);
            }
            (Op::CausalConv(attrs), [TensorData::F32(out)]) => {
                let CausalConvAttrs { weight, bias, activation, state } = attrs;
                let (weight, bias) = (self.vector(*weight)?, self.opt_vector(*bias)?);
                let channels = out.len() / self.sizes.tokens;
                let x = self.f32(input(0))?.to_vec();
                for run in self.input.runs() {
                    let elems = run.rows.start * channels..run.rows.end * channels;
                    let state = self.sequence_row(*state, run.sequence);
                    let (x, out) = (&x[elems.clone()], &mut out[elems]);
                    causal_conv::causal_conv(x, &run, &weight, bias.as_deref(), *activation, state, out);
                }
            }
            (Op::DeltaGates { a, dt_bias, bound }, [TensorData::F32(beta), TensorData::F32(decay)]) => {
                let (a, dt_bias) = (self.vector(*a)?, self.vector(*dt_bias)?);
                let (b, dt) = (self.f32(input(0))?, self.f32(input(1))?);
                delta_gates::delta_gates(b, dt, &a, &dt_bias, *bound, beta, decay);
            }
            (Op::DeltaRule(attrs), [TensorData::F32(out)]) => {
                let tokens = self.sizes.tokens;
                let [qkv, beta, decay] = [0, 1, 2].map(|i| self.f32(input(i)).map(<[f32]>::to_vec));
                let (qkv, beta, decay) = (qkv?, beta?, decay?);
                for run in self.input.runs() {
                    let of = |all: usize| run.rows.start * all / tokens..run.rows.end * all / tokens;
                    let out = &mut out[of(attrs.value_width() * tokens)];
                    let (qkv, beta) = (&qkv[of(qkv.len())], &beta[of(beta.len())]);
                    let decay = &decay[of(decay.len())];
                    let state = self.sequence_row(attrs.state, run.sequence);
                    delta_rule::delta_rule(qkv, beta, decay, attrs, run.first_position, state, out);
                }
            }
            (Op::SsmScan(attrs), [TensorData::F32(out)]) => {
                let tokens = self.sizes.tokens;
                let (xbc, dt) = (self.f32(input(0))?.to_vec(), self.f32(input(1))?.to_vec());
                let [a, d, dt_bias] = [attrs.a, attrs.d, attrs.dt_bias].map(|weight| self.vector(weight));
                let (a, d, dt_bias) = (a?, d?, dt_bias?);
                let weights = ssm_scan::Heads { a: &a, d: &d, dt_bias: &dt_bias };
                for run in self.input.runs() {
                    let of = |all: usize| run.rows.start * all / tokens..run.rows.end * all / tokens;
                    let out = &mut out[of(attrs.x_width() * tokens)];
                    let (xbc, dt) = (&xbc[of(xbc.len())], &dt[of(dt.len())]);
                    let state = self.sequence_row(attrs.state, run.sequence);
                    ssm_scan::ssm_scan(xbc, dt, attrs, &weights, run.first_position, state, out);
                }
            }
            (Op::HyperGates(attrs), [TensorData::F32(pre), mixed @ ..]) => {
                let (scale, base) = (self.vector(attrs.scale)?, self.vector(attrs.base)?);
                let mixed = match mixed {
                    [TensorData::F32(post), TensorData::F32(comb)] => Some([&mut post[..], &mut comb[..]]),
                    _ => None,
                };
                hyper_gates::hyper_gates(self.f32(input(0))?, attrs, &scale, &base, pre, mixed);
            }
            (Op::HyperConnect { streams }, [TensorData::F32(out)]) => {
                let [x, y, post, comb] = [0, 1, 2, 3].map(|i| self.f32(input(i)));
                hyper_connect::hyper_connect(x?, y?, post?, comb?, *streams, out);
            }
            (Op::Compress(attrs), [TensorData::F32(out)]) => {
                let bias = self.vector(attrs.bias)?;
                let (a, b) = (self.f32(input(0))?.to_vec(), self.f32(input(1))?.to_vec());
                let (wide, width) = (a.len() / self.sizes.tokens, out.len() / self.sizes.tokens);
                for run in self.input.runs() {
                    let of = |width: usize| run.rows.start * width..run.rows.end * width;
                    let state = self.sequence_row(attrs.state, run.sequence);
                    let (a, b, out) = (&a[of(wide)], &b[of(wide)], &mut out[of(width)]);
                    compress::compress(a, b, &run, attrs, &bias, state, out);
                }
            }
            (Op::CompressedAttention(attrs), [TensorData::F32(out)]) => {
                let (keys, entries) = (self.state_rows(input(1))?, self.state_rows(input(2))?);
                let [key_rows, entry_rows] = [1, 2].map(|at| self.rows(input(at), input(3), input(4)));
                let (keys, entries) = ((keys, key_rows?), (entries, entry_rows?));
                let sinks = self.opt_vector(attrs.sinks)?;
                let mask = match attrs.masked {
                    true => Some(Mask { mask: self.f32(input(5))?, cached: self.sizes.cached }),
                    false => None,
                };
                let beside = Beside { sinks: sinks.as_deref(), mask };
                let q = self.f32(input(0))?;
                compressed_attention::compressed_attention(q, keys, entries, attrs, beside, out);
            }
            (Op::Add, [TensorData::F32(out)]) => add::add(self.f32(input(0))?, self.f32(input(1))?, out),
            (Op::Mul, [TensorData::F32(out)]) => mul::mul(self.f32(input(0))?, self.f32(input(1))?, out),
            (Op::MulHeads, [TensorData::F32(out)]) => {
                mul_heads::mul_heads(self.f32(input(0))?, self.f32(input(1))?, out);
            }
            (Op::Pointwise { function }, [TensorData::F32(out)]) => {
                pointwise::pointwise(*function, self.f32(input(0))?, out);
            }
            (Op::Concat { heads }, [TensorData::F32(out)]) => {
                let width = |i: usize| self.graph.value(input(i)).shape.width().unwrap_or(1) / heads;
                concat::concat(self.f32(input(0))?, self.f32(input(1))?, (width(0), width(1)), out);
            }
            (Op::Slice { heads, start, len }, [TensorData::F32(out)]) => {
                let width = self.graph.value(input(0)).shape.width().unwrap_or(1) / heads;
                slice::slice(self.f32(input(0))?, width, *start..start + len, out);
            }
            (Op::GetRows, [TensorData::F32(out)]) => {
                let width = self.graph.value(input(0)).shape.width().unwrap_or(1);
                get_rows::get_rows(self.f32(input(0))?, self.u32(input(1))?, width, out);
            }
            (
                op @ (Op::Embed { .. }
                | Op::RmsNorm { .. }
                | Op::LayerNorm { .. }
                | Op::MatMul { .. }
                | Op::HeadMatMul { .. }
                | Op::Rope { .. }
                | Op::PositionScale(_)
                | Op::Attention(_)
                | Op::AttentionScores(_)
                | Op::AttentionSoftmax(_)
                | Op::Router(_)
                | Op::GivenExperts(_)
                | Op::IndexScores(_)
                | Op::IndexSelect { .. }
                | Op::ExpertMatMul { .. }
                | Op::GatedAct { .. }
                | Op::ExpertCombine
                | Op::CausalConv(_)
                | Op::DeltaGates { .. }
                | Op::DeltaRule(_)
                | Op::SsmScan(_)
                | Op::HyperGates(_)
                | Op::HyperConnect { .. }
                | Op::Compress(_)
                | Op::CompressedAttention(_)
                | Op::Add
                | Op::Mul
                | Op::MulHeads
                | Op::Pointwise { .. }
                | Op::Concat { .. }
                | Op::Slice { .. }
                | Op::GetRows
                | Op::Tap { .. }),
                _,
            ) => {
                return Err(BackendError::Unsupported {
                    backend: super::NAME,
                    node: node.path(),
                    op: op.stem(),
                    detail: "results of unexpected types".into(),
                });
            }
        }
        for (id, data) in node.outputs.iter().zip(outputs) {
            let shape = self.graph.value(*id).shape.resolve(self.sizes);
            self.values[id.index()] = Some(HostTensor { shape, data });
        }
        Ok(())
    }

    /// The row of a sequence of the step, for a state that has one for each.
    fn sequence_row(&mut self, state: StateId, sequence: usize) -> &mut [f32] {
        let row_elems = self.graph.state(state).row_elems();
        let place = self.input.sequences[sequence].place as usize;
        &mut self.state.rows[state.index()][place * row_elems..][..row_elems]
    }

    fn state_of(&self, value: ValueId) -> Result<StateId, BackendError> {
        self.graph.value(value).state.ok_or_else(|| wrong_type(value, "State"))
    }

    fn state_rows(&self, value: ValueId) -> Result<&[f32], BackendError> {
        Ok(&self.state.rows[self.state_of(value)?.index()])
    }

    /// Where the step's rows go in a state that has a row for every token, or is a ring.
    fn slots(&self, state: StateId) -> Vec<usize> {
        let StepInput { positions, sequence, sequences, .. } = self.input;
        let ring = self.state.rings[state.index()];
        let places = positions.iter().zip(*sequence);
        places.map(|(p, of)| sequences[*of as usize].slot_in(ring, *p as usize)).collect()
    }

    /// What says which positions are seen, where something does.
    fn mask(&self, attrs: &AttentionAttrs, node: &Node, at: usize) -> Result<Option<Mask<'_>>, BackendError> {
        let of = |value: &ValueId| Ok(Mask { mask: self.f32(*value)?, cached: self.sizes.cached });
        node.inputs.get(at).filter(|_| attrs.masked).map(of).transpose()
    }

    /// Where the step's rows stand, and what they see of a state.
    fn rows(&self, cache: ValueId, positions: ValueId, sequence: ValueId) -> Result<Rows<'_>, BackendError> {
        let ring = self.state.rings[self.state_of(cache)?.index()];
        let (positions, sequence) = (self.u32(positions)?, self.u32(sequence)?);
        Ok(Rows { positions, sequence, sequences: self.input.sequences, ring })
    }
}

fn wrong_type(value: ValueId, wanted: &str) -> BackendError {
    BackendError::Value { value: value.to_string(), detail: format!("is not of type {wanted}") }
}
