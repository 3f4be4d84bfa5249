//! The rules of hyper-connections and of compressed attention.

use super::Bench;
use moe_run_graph::ir::Dim::{Cached, Fixed, LogitsRows, Tokens};
use moe_run_graph::ir::{
    CompressAttrs, CompressedAttentionAttrs, HyperGatesAttrs, LayerIdx, Lifetime, Op, StateRole,
};
use moe_run_graph::quant::Format;

#[test]
fn hyper_connections() {
    let mut b = Bench::new();
    let (scale, one, base, few) = (b.vector(3), b.vector(1), b.vector(24), b.vector(4));
    let gates = |iterations, scale, base| {
        Op::HyperGates(HyperGatesAttrs { streams: 4, iterations, eps: 1e-6, scale, base })
    };
    let (w, v) = (b.f32(&[Tokens, Fixed(24)]), b.f32(&[LogitsRows, Fixed(4)]));
    let (pre, comb) = ([Tokens, Fixed(4)], [Tokens, Fixed(16)]);
    b.accepts(gates(Some(20), scale, base), &[w], &[&pre, &pre, &comb]);
    b.accepts(gates(None, one, few), &[v], &[&[LogitsRows, Fixed(4)]]);
    b.refuses(gates(Some(20), scale, base), &[v], "a last axis of 24");
    b.refuses(gates(Some(0), scale, base), &[w], "streams, iterations and an epsilon");
    b.refuses(gates(Some(20), one, base), &[w], "F32 [3]");
    b.refuses(gates(Some(20), scale, few), &[w], "F32 [24]");
    b.refuses(gates(None, scale, few), &[v], "F32 [1]");
    let none = HyperGatesAttrs { streams: 0, iterations: None, eps: 1e-6, scale: one, base: few };
    b.refuses(Op::HyperGates(HyperGatesAttrs { eps: f32::NAN, ..none.clone() }), &[v], "an epsilon");
    b.refuses(Op::HyperGates(none), &[v], "streams, iterations");

    let x = b.f32(&[Tokens, Fixed(32)]);
    let [y, post, comb] = [8, 4, 16].map(|n| b.f32(&[Tokens, Fixed(n)]));
    let connect = |streams| Op::HyperConnect { streams };
    b.accepts(connect(4), &[x, y, post, comb], &[&[Tokens, Fixed(32)]]);
    b.refuses(connect(4), &[y, y, post, comb], "x [T, 32]");
    b.refuses(connect(4), &[x, y, comb, comb], "post [T, 4]");
    b.refuses(connect(4), &[x, y, post, post], "comb [T, 16]");
    b.refuses(connect(2), &[x, y, post, comb], "x [T, 16]");
    b.refuses(connect(0), &[x, y, post, comb], "a multiple of heads");
    b.refuses(connect(4), &[x, y, post], "4 operands");
    // What a block reads: the streams side by side, each times its gate.
    b.accepts(Op::ExpertCombine, &[x, post], &[&[Tokens, Fixed(8)]]);
    let odd = b.f32(&[Tokens, Fixed(3)]);
    b.refuses(Op::ExpertCombine, &[x, odd], "[T, K·D]");
}

#[test]
fn compressed_attention() {
    let mut b = Bench::new();
    let layer = LayerIdx(0);
    let inputs = b.graph.inputs;
    let (p, s) = (inputs.positions, inputs.sequence);
    let state = b.graph.add_state(StateRole::Window, layer, 8, 2 * 12, Lifetime::PerSequence);
    let apart = b.graph.add_state(StateRole::Window, layer, 8, 2 * 4, Lifetime::PerSequence);
    let (bias, narrow) = (
        b.graph.add_weight("ape", vec![4, 16], Format::F32),
        b.graph.add_weight("ape", vec![4, 8], Format::F32),
    );
    let (x, y, odd) = (b.f32(&[Tokens, Fixed(16)]), b.f32(&[Tokens, Fixed(8)]), b.f32(&[Tokens, Fixed(7)]));
    let compress = |overlap, bias, state| Op::Compress(CompressAttrs { ratio: 4, overlap, bias, state });
    b.accepts(compress(true, bias, state), &[x, x, p, s], &[&[Tokens, Fixed(8)]]);
    b.accepts(compress(false, narrow, apart), &[y, y, p, s], &[&[Tokens, Fixed(8)]]);
    b.refuses(compress(true, bias, state), &[x, y, p, s], "b [T, 16]");
    b.refuses(compress(true, bias, state), &[odd, odd, p, s], "2 channels for one");
    b.refuses(compress(true, narrow, state), &[x, x, p, s], "F32 [4, 16]");
    b.refuses(compress(true, bias, apart), &[x, x, p, s], "a state of each sequence, [8, 24]");
    b.refuses(compress(true, bias, state), &[x, x, s, x], "sequence [T]");
    let none = CompressAttrs { ratio: 0, overlap: false, bias, state };
    b.refuses(Op::Compress(none), &[x, x, p, s], "windows of at least 1 position");

    let rows = Lifetime::PerToken { window: None };
    let [keys, entries] = [StateRole::Key, StateRole::Entry].map(|role| {
        let key = b.graph.add_state(role, layer, 1, 8, rows);
        b.graph.push(None, "write", Op::KvWrite { key, value: None }, &[y, inputs.kv_slots]).unwrap()[0]
    });
    let (sinks, few) = (b.vector(4), b.vector(3));
    let attrs = CompressedAttentionAttrs {
        num_attention_heads: 4,
        head_dim: 8,
        scale: 1.0,
        window: 16,
        ratio: 4,
        sinks: Some(sinks),
        masked: false,
    };
    let op = |attrs: &CompressedAttentionAttrs| Op::CompressedAttention(attrs.clone());
    let q = b.f32(&[Tokens, Fixed(32)]);
    let mask = b.f32(&[Fixed(1), Tokens, Cached]);
    b.accepts(op(&attrs), &[q, keys, entries, p, s], &[&[Tokens, Fixed(32)]]);
    let masked = CompressedAttentionAttrs { masked: true, ..attrs.clone() };
    b.accepts(op(&masked), &[q, keys, entries, p, s, mask], &[&[Tokens, Fixed(32)]]);
    b.refuses(op(&masked), &[q, keys, entries, p, s], "6 operands");
    b.refuses(op(&masked), &[q, keys, entries, p, s, q], "a mask [1, T, S]");
    b.refuses(op(&attrs), &[y, keys, entries, p, s], "q [T, 32]");
    b.refuses(op(&attrs), &[q, keys, y, p, s], "a state [S, 1, 8]");
    b.refuses(op(&attrs), &[q, keys, entries, q, s], "positions [T]");
    b.refuses(op(&attrs), &[q, keys, entries, p, q], "sequence [T]");
    let sinks = CompressedAttentionAttrs { sinks: Some(few), ..attrs.clone() };
    b.refuses(op(&sinks), &[q, keys, entries, p, s], "F32 [4]");
    let window = CompressedAttentionAttrs { window: 0, ..attrs.clone() };
    b.refuses(op(&window), &[q, keys, entries, p, s], "a window and a ratio of at least 1");
    let heads = CompressedAttentionAttrs { num_attention_heads: 0, ..attrs };
    b.refuses(op(&heads), &[q, keys, entries, p, s], "a multiple of heads");
}
