//! Every shape rule: what it accepts, and each operand or attribute that it refuses.

mod compressed;
mod windows;

use moe_run_graph::ir::{
    ActivationFn, AttentionAttrs, DType, DecayOf, DeltaRuleAttrs, Dim, ExpertGroups, GateKind,
    GivenExpertsAttrs, Graph, GroupScore, HeadMap, IndexScoresAttrs, LayerIdx, Lifetime, Op, PointwiseFn,
    PositionScaleAttrs, RopePairing, RopeScaling, RopeSpec, RouterAttrs, Shape, SsmScanAttrs, Stage, StateId,
    StateRole, ValueId, WeightHome, WeightId, WeightSlice,
};
use moe_run_graph::quant::Format;
use moe_run_graph::verify::GraphError;

use Dim::{Cached, Fixed, LogitsRows, Tokens};

/// A graph with one of everything that an operand can be.
struct Bench {
    graph: Graph,
}

impl Bench {
    fn new() -> Bench {
        Bench { graph: Graph::new() }
    }

    fn f32(&mut self, dims: &[Dim]) -> ValueId {
        self.graph.add_boundary(Shape::new(dims), DType::F32)
    }

    fn u32(&mut self, dims: &[Dim]) -> ValueId {
        self.graph.add_boundary(Shape::new(dims), DType::U32)
    }

    fn slice(&mut self, shape: &[usize], format: Format) -> WeightSlice {
        let tensor = self.graph.add_weight("w", shape.to_vec(), format);
        let experts = (shape.len() == 3).then(|| 0..shape[0]);
        WeightSlice { tensor, rows: 0..shape[shape.len() - 2], experts, home: WeightHome::Device }
    }

    fn vector(&mut self, len: usize) -> WeightId {
        self.graph.add_weight("vector", vec![len], Format::F32)
    }

    fn states(&mut self) -> (StateId, StateId) {
        let layer = LayerIdx(0);
        let key = self.graph.add_state(StateRole::Key, layer, 2, 8, Lifetime::PerToken { window: None });
        (key, self.graph.add_state(StateRole::Value, layer, 2, 16, Lifetime::PerToken { window: None }))
    }

    fn push(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<Shape>, GraphError> {
        let outputs = self.graph.push(None, "node", op, inputs)?;
        Ok(outputs.into_iter().map(|v| self.graph.value(v).shape.clone()).collect())
    }

    fn accepts(&mut self, op: Op, inputs: &[ValueId], shapes: &[&[Dim]]) {
        let wanted: Vec<Shape> = shapes.iter().map(|s| Shape::new(s)).collect();
        assert_eq!(self.push(op, inputs).unwrap(), wanted);
    }

    /// The refusal names the node and what was wanted; the graph stays as it was.
    fn refuses(&mut self, op: Op, inputs: &[ValueId], said: &str) {
        let before = self.graph.clone();
        let stem = op.stem();
        let error = self.push(op, inputs).expect_err(said);
        assert!(matches!(error, GraphError::Operands { op, .. } if op == stem), "{error}");
        let text = error.to_string();
        assert!(text.starts_with("node (") && text.contains(said), "{said:?} is not in {text:?}");
        assert_eq!(self.graph, before);
    }
}

fn matmul(weight: WeightSlice) -> Op {
    Op::MatMul { weight, bias: None, scale: None }
}

#[test]
fn embed() {
    let mut b = Bench::new();
    let table = b.slice(&[100, 32], Format::Q4_0);
    let tokens = b.graph.inputs.tokens;
    let op = Op::Embed { table: table.clone(), scale: None };
    b.accepts(op.clone(), &[tokens], &[&[Tokens, Fixed(32)]]);
    let floats = b.f32(&[Tokens]);
    b.refuses(op.clone(), &[floats], "[T] U32");
    b.refuses(op.clone(), &[], "1 operands");
    b.refuses(op, &[ValueId(999)], "values of this graph");
    let foreign = WeightSlice { tensor: WeightId(77), ..table };
    b.refuses(Op::Embed { table: foreign, scale: None }, &[tokens], "weights of this graph");
    let cube = WeightSlice { experts: None, ..b.slice(&[2, 100, 32], Format::Q4_0) };
    b.refuses(Op::Embed { table: cube, scale: None }, &[tokens], "[out, in]");
}

#[test]
fn rms_norm() {
    let mut b = Bench::new();
    let (w32, w8) = (b.vector(32), b.vector(8));
    let x = b.f32(&[Tokens, Fixed(32)]);
    let op = |weight, heads| Op::RmsNorm { weight: Some(weight), eps: 1e-6, heads };
    b.accepts(op(w32, 1), &[x], &[&[Tokens, Fixed(32)]]);
    b.accepts(op(w8, 4), &[x], &[&[Tokens, Fixed(32)]]);
    b.accepts(op(w32, 4), &[x], &[&[Tokens, Fixed(32)]]);
    b.accepts(Op::RmsNorm { weight: None, eps: 1e-6, heads: 4 }, &[x], &[&[Tokens, Fixed(32)]]);
    b.refuses(op(w8, 1), &[x], "F32 [32]");
    b.refuses(op(w8, 3), &[x], "divisible by 3 heads");
    b.refuses(op(w8, 0), &[x], "divisible by 0 heads");
    let half = b.graph.add_weight("half", vec![32], Format::F16);
    b.refuses(op(half, 1), &[x], "F32 [32]");
    let (open, ids) = (b.f32(&[Fixed(32), Tokens]), b.u32(&[Tokens, Fixed(32)]));
    b.refuses(op(w32, 1), &[open], "last axis of fixed size");
    b.refuses(op(w32, 1), &[ids], "last axis of fixed size");
}

#[test]
fn layer_norm() {
    let mut b = Bench::new();
    let (w32, w8) = (b.vector(32), b.vector(8));
    let x = b.f32(&[Tokens, Fixed(32)]);
    let op = |weight, bias| Op::LayerNorm { weight, bias, eps: 1e-5 };
    b.accepts(op(w32, None), &[x], &[&[Tokens, Fixed(32)]]);
    b.accepts(op(w32, Some(w32)), &[x], &[&[Tokens, Fixed(32)]]);
    b.refuses(op(w8, None), &[x], "F32 [32]");
    b.refuses(op(w32, Some(w8)), &[x], "F32 [32]");
    b.refuses(op(w32, None), &[x, x], "1 operands");
}

#[test]
fn matmul_and_its_slices() {
    let mut b = Bench::new();
    let w = b.slice(&[64, 32], Format::Q8_0);
    let x = b.f32(&[LogitsRows, Fixed(32)]);
    b.accepts(matmul(w.clone()), &[x], &[&[LogitsRows, Fixed(64)]]);
    b.accepts(matmul(WeightSlice { rows: 8..24, ..w.clone() }), &[x], &[&[LogitsRows, Fixed(16)]]);
    let wide = b.f32(&[Tokens, Fixed(33)]);
    b.refuses(matmul(w.clone()), &[wide], "a last axis of 32");
    b.refuses(matmul(WeightSlice { rows: 8..65, ..w.clone() }), &[x], "a slice inside tensor w");
    b.refuses(matmul(WeightSlice { rows: 8..8, ..w.clone() }), &[x], "a slice inside tensor w");
    b.refuses(matmul(WeightSlice { experts: Some(0..1), ..w.clone() }), &[x], "a slice inside tensor w");
    let (short, right) = (b.vector(63), b.vector(64));
    let biased = |bias| Op::MatMul { weight: w.clone(), bias: Some(bias), scale: Some(0.5) };
    b.refuses(biased(short), &[x], "F32 [64]");
    b.refuses(biased(WeightId(99)), &[x], "weights of this graph");
    b.accepts(biased(right), &[x], &[&[LogitsRows, Fixed(64)]]);
}

#[test]
fn rope() {
    let mut b = Bench::new();
    let mut table = |dims| {
        b.graph.add_rope_table(RopeSpec {
            theta: 1e6,
            dims,
            scaling: RopeScaling::None,
            divisors: Vec::new(),
            behind: 0,
            back: false,
        })
    };
    let (eight, odd, none) = (table(8), table(7), table(0));
    let op = |table, heads| Op::Rope { table, pairing: RopePairing::Half, heads };
    let (x, positions) = (b.f32(&[Tokens, Fixed(32)]), b.graph.inputs.positions);
    b.accepts(op(eight, 4), &[x, positions], &[&[Tokens, Fixed(32)]]);
    b.refuses(op(eight, 8), &[x, positions], "8 heads of at least 8");
    b.refuses(op(eight, 3), &[x, positions], "3 heads");
    b.refuses(op(eight, 0), &[x, positions], "0 heads");
    b.refuses(op(odd, 4), &[x, positions], "(even)");
    b.refuses(op(none, 4), &[x, positions], "(even)");
    b.refuses(op(moe_run_graph::ir::RopeTableId(9), 4), &[x, positions], "a RoPE table of the graph");
    let rows = b.graph.inputs.logits_rows;
    b.refuses(op(eight, 4), &[x, rows], "positions [T] U32");
}

#[test]
fn cache_and_attention() {
    let mut b = Bench::new();
    let (key, value) = b.states();
    let (k, v) = (b.f32(&[Tokens, Fixed(16)]), b.f32(&[Tokens, Fixed(32)]));
    let inputs = b.graph.inputs;
    let write = Op::KvWrite { key, value: Some(value) };
    b.refuses(write.clone(), &[v, v, inputs.kv_slots], "a last axis of 16");
    b.refuses(write.clone(), &[k, k, inputs.kv_slots], "a last axis of 32");
    b.refuses(write.clone(), &[k, v, inputs.logits_rows], "kv_slots [T]");
    b.refuses(Op::KvWrite { key, value: Some(StateId(9)) }, &[k, v, inputs.kv_slots], "states of this graph");
    let cache = b.graph.push(None, "kv_write", write, &[k, v, inputs.kv_slots]).unwrap();

    let attrs = AttentionAttrs {
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        value_head_dim: 16,
        scale: 0.5,
        window: None,
        chunk: None,
        soft_cap: None,
        sinks: None,
        value_in_key: false,
        masked: false,
    };
    let q = b.f32(&[Tokens, Fixed(32)]);
    let (p, s) = (inputs.positions, inputs.sequence);
    let attention = |change: &dyn Fn(&mut AttentionAttrs)| {
        let mut attrs = attrs.clone();
        change(&mut attrs);
        Op::Attention(attrs)
    };
    let plain = || attention(&|_| ());
    b.accepts(plain(), &[q, cache[0], cache[1], p, s], &[&[Tokens, Fixed(64)]]);
    b.refuses(plain(), &[q, cache[1], cache[1], p, s], "a state [S, 2, 8]");
    b.refuses(plain(), &[q, cache[0], cache[0], p, s], "a state [S, 2, 16]");
    b.refuses(plain(), &[q, k, cache[1], p, s], "a state [S, 2, 8]");
    let in_key = |width| {
        attention(&move |a| {
            a.value_in_key = true;
            a.value_head_dim = width;
        })
    };
    b.accepts(in_key(6), &[q, cache[0], cache[0], p, s], &[&[Tokens, Fixed(24)]]);
    b.refuses(in_key(6), &[q, cache[0], cache[1], p, s], "values in the keys' state");
    b.refuses(in_key(9), &[q, cache[0], cache[0], p, s], "values within keys of 8");
    let alone = Op::KvWrite { key, value: None };
    b.accepts(alone.clone(), &[k, inputs.kv_slots], &[&[Cached, Fixed(2), Fixed(8)]]);
    b.refuses(alone, &[k, v, inputs.kv_slots], "2 operands");
    b.refuses(plain(), &[k, cache[0], cache[1], p, s], "queries [T, 32]");
    b.refuses(plain(), &[q, cache[0], cache[1], q, s], "positions [T]");
    b.refuses(plain(), &[q, cache[0], cache[1], p, inputs.logits_rows], "sequence [T]");
    b.refuses(plain(), &[q, cache[0], cache[1], p], "5 operands");
    let odd = attention(&|a| a.num_key_value_heads = 3);
    b.refuses(odd, &[q, cache[0], cache[1], p, s], "a multiple of num_key_value_heads");
    let none = attention(&|a| a.num_key_value_heads = 0);
    b.refuses(none, &[q, cache[0], cache[1], p, s], "a multiple of num_key_value_heads");
    let sinks = b.vector(3);
    let sunk = attention(&|a| a.sinks = Some(sinks));
    b.refuses(sunk, &[q, cache[0], cache[1], p, s], "F32 [4]");

    let masked = || attention(&|a| a.masked = true);
    let mask = b.f32(&[Fixed(1), Tokens, Cached]);
    b.accepts(masked(), &[q, cache[0], cache[1], p, s, mask], &[&[Tokens, Fixed(64)]]);
    b.refuses(masked(), &[q, cache[0], cache[1], p, s], "6 operands");
    b.refuses(masked(), &[q, cache[0], cache[1], p, s, q], "a mask [1, T, S]");

    let scores = Op::AttentionScores(attrs.clone());
    b.refuses(scores.clone(), &[q, cache[1], p, s], "a state [S, 2, 8]");
    b.refuses(scores.clone(), &[k, cache[0], p, s], "queries [T, 32]");
    b.refuses(scores.clone(), &[q, cache[0], s, q], "sequence [T]");
    let scores = b.graph.push(None, "scores", scores, &[q, cache[0], p, s]).unwrap();
    let softmax = Op::AttentionSoftmax(attrs.clone());
    b.refuses(softmax.clone(), &[q, p, s], "scores [H, T, S]");
    b.refuses(softmax.clone(), &[scores[0], q, s], "positions [T]");
    b.accepts(softmax, &[scores[0], p, s], &[&[Fixed(4), Tokens, Cached]]);
}

#[test]
fn router_and_experts() {
    let mut b = Bench::new();
    let attrs = |num_experts, num_experts_per_tok| RouterAttrs {
        num_experts,
        num_experts_per_tok,
        gate: GateKind::Softmax,
        norm_topk_prob: true,
        scale: 1.0,
        selection_bias: None,
        groups: None,
        expert_scale: None,
    };
    let logits = b.f32(&[Tokens, Fixed(16)]);
    b.refuses(Op::Router(attrs(16, 0)), &[logits], "1 to 16 experts per token");
    b.refuses(Op::Router(attrs(16, 17)), &[logits], "1 to 16 experts per token");
    b.refuses(Op::Router(attrs(8, 2)), &[logits], "a last axis of 8");
    let cube = b.f32(&[Tokens, Fixed(2), Fixed(16)]);
    b.refuses(Op::Router(attrs(16, 2)), &[cube], "logits [T, E]");
    let bias = b.vector(15);
    b.refuses(Op::Router(RouterAttrs { selection_bias: Some(bias), ..attrs(16, 2) }), &[logits], "F32 [16]");
    b.refuses(Op::Router(RouterAttrs { expert_scale: Some(bias), ..attrs(16, 2) }), &[logits], "F32 [16]");
    let groups = |n_group, topk_group, score| {
        let groups = Some(ExpertGroups { n_group, topk_group, score });
        Op::Router(RouterAttrs { groups, ..attrs(16, 5) })
    };
    b.refuses(groups(3, 2, GroupScore::Best), &[logits], "16 experts in equal groups");
    b.refuses(groups(0, 0, GroupScore::Best), &[logits], "16 experts in equal groups");
    b.refuses(groups(4, 0, GroupScore::Best), &[logits], "1 or more of them to choose from");
    b.refuses(groups(4, 5, GroupScore::Best), &[logits], "1 or more of them to choose from");
    b.refuses(groups(4, 1, GroupScore::Best), &[logits], "and 5 in all");
    b.refuses(groups(16, 8, GroupScore::BestTwo), &[logits], "2 or more experts a group");
    let shape: &[Dim] = &[Tokens, Fixed(5)];
    b.accepts(groups(16, 8, GroupScore::Best), &[logits], &[shape, shape]);
    b.accepts(groups(4, 2, GroupScore::BestTwo), &[logits], &[shape, shape]);
    let routed = b.graph.push(None, "router", Op::Router(attrs(16, 2)), &[logits]).unwrap();
    let (ids, weights) = (routed[0], routed[1]);
    assert_eq!(b.graph.value(ids).dtype, DType::U32);

    let w = b.slice(&[16, 64, 32], Format::Q4_0);
    let op = |weight: &WeightSlice| Op::ExpertMatMul { weight: weight.clone(), bias: None };
    let x = b.f32(&[Tokens, Fixed(32)]);
    b.accepts(op(&w), &[x, ids], &[&[Tokens, Fixed(2), Fixed(64)]]);
    let each = b.f32(&[Tokens, Fixed(2), Fixed(32)]);
    b.accepts(op(&w), &[each, ids], &[&[Tokens, Fixed(2), Fixed(64)]]);
    let (three, rows) = (b.f32(&[Tokens, Fixed(3), Fixed(32)]), b.f32(&[LogitsRows, Fixed(32)]));
    b.refuses(op(&w), &[three, ids], "x [T, 32]");
    b.refuses(op(&w), &[rows, ids], "x [T, 32]");
    b.refuses(op(&w), &[logits, ids], "a last axis of 32");
    b.refuses(op(&w), &[x, weights], "expert ids [T, K]");
    let flat = b.slice(&[64, 32], Format::Q4_0);
    b.refuses(op(&flat), &[x, ids], "[E, out, in]");
    b.refuses(op(&WeightSlice { experts: None, ..w.clone() }), &[x, ids], "a slice inside tensor w");
    b.refuses(op(&WeightSlice { experts: Some(8..17), ..w.clone() }), &[x, ids], "a slice inside tensor w");
    let bias = b.graph.add_weight("bias", vec![16, 63], Format::F32);
    b.refuses(Op::ExpertMatMul { weight: w, bias: Some(bias) }, &[x, ids], "F32 [16, 64]");

    b.accepts(Op::ExpertCombine, &[each, weights], &[&[Tokens, Fixed(32)]]);
    let one = b.f32(&[Tokens, Fixed(1)]);
    b.accepts(Op::ExpertCombine, &[x, one], &[&[Tokens, Fixed(32)]]);
    b.refuses(Op::ExpertCombine, &[each, ids], "last axis of fixed size");
    let wanted = "y [T, K, D] or [T, K·D] and weights [T, K]";
    b.refuses(Op::ExpertCombine, &[three, weights], wanted);
    let odd = b.f32(&[Tokens, Fixed(33)]);
    b.refuses(Op::ExpertCombine, &[odd, weights], wanted);
}

#[test]
fn delta_gates_and_delta_rule() {
    let mut b = Bench::new();
    let (beta, dt, dts) =
        (b.f32(&[Tokens, Fixed(4)]), b.f32(&[Tokens, Fixed(4)]), b.f32(&[Tokens, Fixed(32)]));
    let (w4, w8, w32) = (b.vector(4), b.vector(8), b.vector(32));
    let bounded = |a, dt_bias, bound| Op::DeltaGates { a, dt_bias, bound };
    let gates = |a, dt_bias| bounded(a, dt_bias, None);
    b.accepts(gates(w4, w4), &[beta, dt], &[&[Tokens, Fixed(4)], &[Tokens, Fixed(4)]]);
    b.accepts(gates(w4, w32), &[beta, dts], &[&[Tokens, Fixed(4)], &[Tokens, Fixed(32)]]);
    b.refuses(gates(w8, w4), &[beta, dt], "F32 [4]");
    b.refuses(gates(w4, w8), &[beta, dts], "F32 [32]");
    let odd = b.f32(&[Tokens, Fixed(6)]);
    b.refuses(gates(w4, w4), &[beta, odd], "b [T, H] and dt [T, H·w]");
    b.refuses(gates(w4, w4), &[beta], "2 operands");
    b.accepts(bounded(w4, w4, Some(-5.0)), &[beta, dt], &[&[Tokens, Fixed(4)], &[Tokens, Fixed(4)]]);
    b.refuses(bounded(w4, w4, Some(0.0)), &[beta, dt], "a bound below 0");
    b.refuses(bounded(w4, w4, Some(f32::NAN)), &[beta, dt], "a bound below 0");

    let layer = LayerIdx(0);
    let state = b.graph.add_state(StateRole::Ssm, layer, 4, 8 * 3, Lifetime::PerSequence);
    let attrs = DeltaRuleAttrs {
        num_key_heads: 2,
        num_value_heads: 4,
        key_head_dim: 8,
        value_head_dim: 3,
        head_map: HeadMap::Tiled,
        eps: 1e-6,
        scale: 1.0,
        state,
    };
    let (qkv, inputs) = (b.f32(&[Tokens, Fixed(2 * 16 + 12)]), b.graph.inputs);
    let at = [inputs.positions, inputs.sequence];
    let operands = |qkv, beta, g| [qkv, beta, g, at[0], at[1]];
    b.accepts(Op::DeltaRule(attrs.clone()), &operands(qkv, beta, dt), &[&[Tokens, Fixed(12)]]);
    b.accepts(Op::DeltaRule(attrs.clone()), &operands(qkv, beta, dts), &[&[Tokens, Fixed(12)]]);
    b.refuses(Op::DeltaRule(attrs.clone()), &operands(dts, beta, dt), "q, k and v [T, 44]");
    b.refuses(Op::DeltaRule(attrs.clone()), &operands(qkv, odd, dt), "β [T, 4]");
    b.refuses(Op::DeltaRule(attrs.clone()), &operands(qkv, beta, odd), "decay [T, 32]");
    b.refuses(Op::DeltaRule(attrs.clone()), &[qkv, beta, dt, at[0], qkv], "sequence [T]");
    b.refuses(Op::DeltaRule(attrs.clone()), &[qkv, beta, dt, qkv, at[1]], "positions [T]");
    b.refuses(Op::DeltaRule(attrs.clone()), &[qkv], "5 operands");
    for heads in [0, 3] {
        let attrs = DeltaRuleAttrs { num_key_heads: heads, ..attrs.clone() };
        b.refuses(Op::DeltaRule(attrs), &operands(qkv, beta, dt), "a multiple of heads");
    }
    let (key, _) = b.states();
    for state in [key, b.graph.add_state(StateRole::Ssm, layer, 4, 8, Lifetime::PerSequence)] {
        let attrs = DeltaRuleAttrs { state, ..attrs.clone() };
        b.refuses(Op::DeltaRule(attrs), &operands(qkv, beta, dt), "a state of each sequence, [4, 24]");
    }
}

#[test]
fn ssm_scan() {
    let mut b = Bench::new();
    let (w4, w8) = (b.vector(4), b.vector(8));
    let state = b.graph.add_state(StateRole::Ssm, LayerIdx(0), 4, 8 * 3, Lifetime::PerSequence);
    let attrs = SsmScanAttrs {
        num_heads: 4,
        head_dim: 8,
        state_size: 3,
        n_groups: 2,
        decay_of: DecayOf::Head,
        a: w4,
        d: w4,
        dt_bias: w4,
        state,
    };
    let (xbc, dt) = (b.f32(&[Tokens, Fixed(32 + 12)]), b.f32(&[Tokens, Fixed(4)]));
    let inputs = b.graph.inputs;
    let operands = [xbc, dt, inputs.positions, inputs.sequence];
    b.accepts(Op::SsmScan(attrs.clone()), &operands, &[&[Tokens, Fixed(32)]]);
    b.refuses(Op::SsmScan(attrs.clone()), &[dt, dt, operands[2], operands[3]], "x, B and C [T, 44]");
    b.refuses(Op::SsmScan(attrs.clone()), &[xbc, xbc, operands[2], operands[3]], "dt [T, 4]");
    b.refuses(Op::SsmScan(attrs.clone()), &[xbc, dt, dt, operands[3]], "positions [T]");
    b.refuses(Op::SsmScan(attrs.clone()), &[xbc, dt, operands[2], dt], "sequence [T]");
    b.refuses(Op::SsmScan(attrs.clone()), &[xbc, dt], "4 operands");
    b.refuses(Op::SsmScan(SsmScanAttrs { d: w8, ..attrs.clone() }), &operands, "F32 [4]");
    b.refuses(Op::SsmScan(SsmScanAttrs { n_groups: 3, ..attrs.clone() }), &operands, "a multiple of heads");
    b.refuses(
        Op::SsmScan(SsmScanAttrs { state: StateId(9), ..attrs.clone() }),
        &operands,
        "states of this graph",
    );
    let narrow = b.graph.add_state(StateRole::Ssm, LayerIdx(0), 4, 8, Lifetime::PerSequence);
    let narrow = SsmScanAttrs { state: narrow, ..attrs.clone() };
    b.refuses(Op::SsmScan(narrow), &operands, "a state of each sequence, [4, 24]");

    let decay_of = DecayOf::Element;
    let rows = SsmScanAttrs { decay_of, ..attrs.clone() };
    b.refuses(Op::SsmScan(rows), &operands, "heads of one row on one group");
    let state = b.graph.add_state(StateRole::Ssm, LayerIdx(0), 4, 3, Lifetime::PerSequence);
    let a = b.graph.add_weight("a", vec![4, 3], Format::F32);
    let channels = SsmScanAttrs { head_dim: 1, n_groups: 1, decay_of, a, state, ..attrs };
    let operands = [b.f32(&[Tokens, Fixed(4 + 6)]), dt, inputs.positions, inputs.sequence];
    b.accepts(Op::SsmScan(channels.clone()), &operands, &[&[Tokens, Fixed(4)]]);
    b.refuses(Op::SsmScan(SsmScanAttrs { a: w4, ..channels.clone() }), &operands, "F32 [4, 3]");
    b.refuses(Op::SsmScan(SsmScanAttrs { decay_of: DecayOf::Head, ..channels }), &operands, "F32 [4]");
}

#[test]
fn given_experts() {
    let mut b = Bench::new();
    let attrs = GivenExpertsAttrs {
        num_experts: 8,
        num_experts_per_tok: 3,
        gate: GateKind::Softmax,
        norm_topk_prob: true,
        scale: 1.0,
        divisor: 2,
        table: None,
    };
    let logits = b.f32(&[Tokens, Fixed(8)]);
    let ids = b.graph.add_boundary(Shape::new(&[Tokens, Fixed(4)]), DType::U32);
    let few = b.graph.add_boundary(Shape::new(&[Tokens, Fixed(2)]), DType::U32);
    let two = [Tokens, Fixed(3)];
    b.accepts(Op::GivenExperts(attrs.clone()), &[logits, ids], &[&two, &two]);
    b.refuses(Op::GivenExperts(attrs.clone()), &[logits, few], "n of at least 3");
    b.refuses(Op::GivenExperts(attrs.clone()), &[logits, logits], "ids [T, n]");
    b.refuses(Op::GivenExperts(attrs.clone()), &[logits], "2 operands");
    let divisor = GivenExpertsAttrs { divisor: 0, ..attrs.clone() };
    b.refuses(Op::GivenExperts(divisor), &[logits, ids], "a divisor of at least 1");
    let gate = GivenExpertsAttrs { gate: GateKind::SparseMixer, ..attrs.clone() };
    b.refuses(Op::GivenExperts(gate), &[logits, ids], "a softmax, a sigmoid or a sqrt-softplus");
    let table = b.graph.add_weight("table", vec![100, 4], Format::F32);
    let narrow = b.graph.add_weight("narrow", vec![100, 2], Format::F32);
    let halves = b.graph.add_weight("halves", vec![100, 4], Format::F16);
    let of = |table| {
        Op::GivenExperts(GivenExpertsAttrs {
            gate: GateKind::SqrtSoftplus,
            table: Some(table),
            ..attrs.clone()
        })
    };
    let tokens = b.graph.inputs.tokens;
    b.accepts(of(table), &[logits, tokens], &[&two, &two]);
    b.refuses(of(table), &[logits, ids], "tokens [T]");
    b.refuses(of(narrow), &[logits, tokens], "n of at least 3");
    b.refuses(of(halves), &[logits, tokens], "of 32 bits an element");
}

#[test]
fn head_matmul() {
    let mut b = Bench::new();
    let w = b.slice(&[4, 16, 32], Format::F16);
    let op = |weight: &WeightSlice, transposed| Op::HeadMatMul { weight: weight.clone(), transposed };
    let (x, y) = (b.f32(&[Tokens, Fixed(128)]), b.f32(&[Tokens, Fixed(64)]));
    b.accepts(op(&w, false), &[x], &[&[Tokens, Fixed(64)]]);
    b.accepts(op(&w, true), &[y], &[&[Tokens, Fixed(128)]]);
    let part = WeightSlice { rows: 2..10, experts: Some(1..3), ..w.clone() };
    b.accepts(op(&part, false), &[y], &[&[Tokens, Fixed(16)]]);
    b.refuses(op(&w, false), &[y], "a last axis of 128");
    b.refuses(op(&w, true), &[x], "a last axis of 64");
    b.refuses(op(&w, true), &[y, y], "1 operands");
    let cube = b.f32(&[Tokens, Fixed(4), Fixed(128)]);
    b.refuses(op(&w, false), &[cube], "x [T, heads · in]");
    let flat = b.slice(&[64, 32], Format::F16);
    b.refuses(op(&flat, false), &[x], "[E, out, in]");
    b.refuses(op(&WeightSlice { experts: Some(2..5), ..w }, false), &[x], "a slice inside tensor w");
}

#[test]
fn small_ops() {
    let mut b = Bench::new();
    let (x, y) = (b.f32(&[Tokens, Fixed(32)]), b.f32(&[Tokens, Fixed(16)]));
    let ids = b.u32(&[Tokens, Fixed(32)]);
    let gated = Op::GatedAct { activation: ActivationFn::Silu };
    b.accepts(gated.clone(), &[x, x], &[&[Tokens, Fixed(32)], &[Tokens, Fixed(32)]]);
    for op in [gated, Op::Add, Op::Mul] {
        b.refuses(op.clone(), &[x, y], "two values of one shape");
        b.refuses(op.clone(), &[x, ids], "last axis of fixed size");
        b.refuses(op, &[x], "2 operands");
    }
    b.accepts(Op::Add, &[x, x], &[&[Tokens, Fixed(32)]]);
    let heads = b.f32(&[Tokens, Fixed(4)]);
    b.accepts(Op::MulHeads, &[x, heads], &[&[Tokens, Fixed(32)]]);
    b.refuses(Op::MulHeads, &[heads, x], "factors [T, heads]");
    let temperature = |length, scale| Op::PositionScale(PositionScaleAttrs { scale, length, offset: 1 });
    let positions = b.graph.inputs.positions;
    b.accepts(temperature(8, 0.1), &[x, positions], &[&[Tokens, Fixed(32)]]);
    b.refuses(temperature(0, 0.1), &[x, positions], "a length of 1 or more");
    b.refuses(temperature(8, f32::INFINITY), &[x, positions], "a finite scale");
    b.refuses(temperature(8, 0.1), &[x, x], "positions [T]");
    let pointwise = |function| Op::Pointwise { function };
    b.accepts(pointwise(PointwiseFn::Scale(-2.0)), &[x], &[&[Tokens, Fixed(32)]]);
    b.refuses(pointwise(PointwiseFn::Scale(f32::NAN)), &[x], "a finite factor");
    b.refuses(pointwise(PointwiseFn::SoftCap(0.0)), &[x], "a positive bound");
    b.refuses(pointwise(PointwiseFn::Clamp(-1.0)), &[x], "a positive bound");
    b.refuses(pointwise(PointwiseFn::Clamp(1.0)), &[ids], "last axis of fixed size");
    b.refuses(pointwise(PointwiseFn::Clamp(1.0)), &[x, x], "1 operands");
    let concat = |heads| Op::Concat { heads };
    b.accepts(concat(4), &[x, y], &[&[Tokens, Fixed(48)]]);
    b.refuses(concat(3), &[x, y], "divisible by 3 heads");
    b.refuses(concat(0), &[x, y], "divisible by 0 heads");
    b.refuses(concat(1), &[x, ids], "last axis of fixed size");
    let other = b.f32(&[LogitsRows, Fixed(16)]);
    b.refuses(concat(1), &[x, other], "the same rows");
    let slice = |heads, start, len| Op::Slice { heads, start, len };
    b.accepts(slice(4, 2, 6), &[x], &[&[Tokens, Fixed(24)]]);
    b.accepts(slice(1, 31, 1), &[x], &[&[Tokens, Fixed(1)]]);
    for (heads, start, len) in [(4, 3, 6), (4, 0, 0), (3, 0, 1), (0, 0, 1), (4, usize::MAX, 2)] {
        b.refuses(slice(heads, start, len), &[x], "elements inside each of");
    }
    b.refuses(slice(1, 0, 1), &[ids], "last axis of fixed size");
    let rows = b.graph.inputs.logits_rows;
    b.accepts(Op::GetRows, &[x, rows], &[&[LogitsRows, Fixed(32)]]);
    b.refuses(Op::GetRows, &[x, x], "rows [R]");
    b.refuses(Op::GetRows, &[ids, rows], "x [T, D]");
}

#[test]
fn tap() {
    let mut b = Bench::new();
    let (x, y) = (b.f32(&[Tokens, Fixed(32)]), b.f32(&[Tokens, Fixed(16)]));
    let op = Op::Tap { stage: Stage::QkvMatmul };
    b.accepts(op.clone(), &[x, y], &[]);
    b.refuses(op.clone(), &[], "at least one value");
    let (rows, ids, scalar) = (b.f32(&[LogitsRows, Fixed(16)]), b.u32(&[Tokens, Fixed(16)]), b.f32(&[]));
    b.refuses(op.clone(), &[x, rows], "values like [T, 32]");
    b.refuses(op.clone(), &[x, ids], "values like [T, 32]");
    b.refuses(op.clone(), &[scalar], "a value with axes");
    b.refuses(op.clone(), &[ValueId(999)], "values of this graph");
    let (key, value) = b.states();
    let (k, v, slots) = (b.f32(&[Tokens, Fixed(16)]), b.f32(&[Tokens, Fixed(32)]), b.graph.inputs.kv_slots);
    let write = Op::KvWrite { key, value: Some(value) };
    let cache = b.graph.push(None, "kv_write", write, &[k, v, slots]).unwrap();
    b.refuses(op, &[cache[0]], "is no state");
}

#[test]
fn indexers() {
    let mut b = Bench::new();
    let rows = Lifetime::PerToken { window: None };
    let key = b.graph.add_state(StateRole::IndexKey, LayerIdx(0), 1, 8, rows);
    let (k, slots) = (b.f32(&[Tokens, Fixed(8)]), b.graph.inputs.kv_slots);
    let keys = b.graph.push(None, "kv_write", Op::KvWrite { key, value: None }, &[k, slots]).unwrap()[0];
    let (q, w) = (b.f32(&[Tokens, Fixed(32)]), b.f32(&[Tokens, Fixed(4)]));
    let (p, s) = (b.graph.inputs.positions, b.graph.inputs.sequence);
    let op = |num_heads| Op::IndexScores(IndexScoresAttrs { num_heads, head_dim: 8 });
    b.accepts(op(4), &[q, w, keys, p, s], &[&[Fixed(1), Tokens, Cached]]);
    b.refuses(op(4), &[w, w, keys, p, s], "q [T, 32]");
    b.refuses(op(4), &[q, q, keys, p, s], "w [T, 4]");
    b.refuses(op(4), &[q, w, k, p, s], "a state [S, 1, 8]");
    b.refuses(op(4), &[q, w, keys, s, q], "sequence [T]");
    b.refuses(op(0), &[q, w, keys, p, s], "a multiple of heads");

    let scores = b.f32(&[Fixed(1), Tokens, Cached]);
    b.accepts(Op::IndexSelect { top_k: 3, every: 4 }, &[scores, p, s], &[&[Fixed(1), Tokens, Cached]]);
    b.refuses(Op::IndexSelect { top_k: 0, every: 1 }, &[scores, p, s], "at least 1 position");
    b.refuses(Op::IndexSelect { top_k: 1, every: 0 }, &[scores, p, s], "at least every 1st");
    b.refuses(Op::IndexSelect { top_k: 3, every: 4 }, &[q, p, s], "scores [1, T, S]");
    b.refuses(Op::IndexSelect { top_k: 3, every: 4 }, &[scores, q, s], "positions [T]");
}
