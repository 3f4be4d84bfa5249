//! States of which only a window is read.

use super::*;

/// A state that holds a window is not read beyond it.
#[test]
fn a_window_holds_what_is_seen() {
    let mut b = Bench::new();
    let (key, value) = b.states();
    for state in [key, value] {
        b.graph.states[state.index()].lifetime = Lifetime::PerToken { window: Some(8) };
    }
    let (k, v) = (b.f32(&[Tokens, Fixed(16)]), b.f32(&[Tokens, Fixed(32)]));
    let inputs = b.graph.inputs;
    let (p, s, q) = (inputs.positions, inputs.sequence, b.f32(&[Tokens, Fixed(32)]));
    let write = Op::KvWrite { key, value: Some(value) };
    let cache = b.graph.push(None, "kv_write", write, &[k, v, inputs.kv_slots]).unwrap();
    let attrs = |window, chunk| AttentionAttrs {
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        value_head_dim: 16,
        scale: 0.5,
        window,
        chunk,
        soft_cap: None,
        sinks: None,
        value_in_key: false,
        masked: false,
    };
    for (window, chunk) in [(Some(8), None), (Some(3), None), (None, Some(8)), (Some(20), Some(8))] {
        let attrs = attrs(window, chunk);
        b.accepts(Op::Attention(attrs.clone()), &[q, cache[0], cache[1], p, s], &[&[Tokens, Fixed(64)]]);
        b.accepts(Op::AttentionScores(attrs), &[q, cache[0], p, s], &[&[Fixed(4), Tokens, Cached]]);
    }
    for (window, chunk) in [(None, None), (Some(9), None), (None, Some(9)), (Some(9), Some(10))] {
        let (attrs, said) = (attrs(window, chunk), "no more than 8 positions to see");
        b.refuses(Op::Attention(attrs.clone()), &[q, cache[0], cache[1], p, s], said);
        b.refuses(Op::AttentionScores(attrs), &[q, cache[0], p, s], said);
    }
    let key =
        b.graph.add_state(StateRole::IndexKey, LayerIdx(0), 1, 8, Lifetime::PerToken { window: Some(8) });
    let (k, w) = (b.f32(&[Tokens, Fixed(8)]), b.f32(&[Tokens, Fixed(4)]));
    let write = Op::KvWrite { key, value: None };
    let cache = b.graph.push(None, "index_kv_write", write, &[k, inputs.kv_slots]).unwrap();
    let scores = Op::IndexScores(IndexScoresAttrs { num_heads: 4, head_dim: 8 });
    b.refuses(scores, &[q, w, cache[0], p, s], "no more than 8 positions to see");
}
