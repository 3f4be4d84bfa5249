//! Shape inference: operands' shapes and the op's attributes → the results' shapes, or a typed refusal.

mod rule;

use super::graph::{Graph, Lifetime, Node, StateId};
use super::op::{DType, Dim, GateKind, IndexScoresAttrs, Op, PointwiseFn, Shape};
use crate::verify::GraphError;
use rule::Rule;

/// The shape and type of one result.
#[derive(Debug, Clone, PartialEq)]
pub struct Inferred {
    /// Shape.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
    /// The state that it is.
    pub state: Option<StateId>,
}

fn f32(shape: Shape) -> Inferred {
    Inferred { shape, dtype: DType::F32, state: None }
}

/// The results of a node, from its op and inputs (its `outputs` are not looked at).
///
/// # Errors
/// [`GraphError::Operands`] naming the node, what was wanted and what was found.
pub fn infer(graph: &Graph, node: &Node) -> Result<Vec<Inferred>, GraphError> {
    let rule = Rule { graph, node };
    rule.own()?;
    match &node.op {
        Op::Embed { table, scale: _ } => {
            rule.arity(1)?;
            rule.operand(0, DType::U32, "[T]", |s| s.0.len() == 1)?;
            let (_, hidden_size) = rule.matrix(table)?;
            Ok(vec![f32(Shape::new(&[rule.shape(0).0[0], Dim::Fixed(hidden_size)]))])
        }
        Op::RmsNorm { weight, heads, .. } => {
            rule.arity(1)?;
            let width = rule.width(0)?;
            if *heads == 0 || width % heads != 0 {
                return Err(
                    rule.wrong(format!("a last axis divisible by {heads} heads"), rule.shape(0).to_string())
                );
            }
            if let Some(weight) = weight {
                // Every head its own part of w, or all the same.
                let own = *heads > 1 && graph.weight(*weight).shape == [width];
                rule.vector(*weight, if own { width } else { width / heads })?;
            }
            Ok(vec![f32(rule.shape(0).clone())])
        }
        Op::LayerNorm { weight, bias, eps: _ } => {
            rule.arity(1)?;
            let width = rule.width(0)?;
            rule.vector(*weight, width)?;
            if let Some(bias) = bias {
                rule.vector(*bias, width)?;
            }
            Ok(vec![f32(rule.shape(0).clone())])
        }
        Op::MatMul { weight, bias, .. } => {
            rule.arity(1)?;
            let (out, inner) = rule.matrix(weight)?;
            rule.inner(0, inner)?;
            if let Some(bias) = bias {
                rule.vector(*bias, out)?;
            }
            let mut shape = rule.shape(0).clone();
            shape.0.pop();
            shape.0.push(Dim::Fixed(out));
            Ok(vec![f32(shape)])
        }
        Op::HeadMatMul { weight, transposed } => {
            rule.arity(1)?;
            let (heads, rows, columns) = rule.expert_matrix(weight)?;
            let (inner, out) = if *transposed { (rows, columns) } else { (columns, rows) };
            rule.inner(0, heads * inner)?;
            rule.operand(0, DType::F32, "x [T, heads · in]", |s| s.0.len() == 2)?;
            Ok(vec![f32(Shape::new(&[rule.shape(0).0[0], Dim::Fixed(heads * out)]))])
        }
        Op::Rope { table, heads, .. } => {
            rule.arity(2)?;
            rule.per_token(1, "positions")?;
            let width = rule.width(0)?;
            let spec = graph.rope_tables.get(table.index());
            let Some(spec) = spec else {
                return Err(rule.wrong("a RoPE table of the graph".into(), table.to_string()));
            };
            if *heads == 0
                || width % heads != 0
                || spec.dims % 2 != 0
                || spec.dims == 0
                || spec.dims > width / heads
            {
                return Err(rule.wrong(
                    format!("{heads} heads of at least {} (even) elements", spec.dims),
                    rule.shape(0).to_string(),
                ));
            }
            Ok(vec![f32(rule.shape(0).clone())])
        }
        Op::PositionScale(attrs) => {
            rule.arity(2)?;
            rule.width(0)?;
            rule.per_token(1, "positions")?;
            if attrs.length == 0 || !attrs.scale.is_finite() || rule.shape(0).0[0] != Dim::Tokens {
                return Err(rule.wrong(
                    "x [T, n], a length of 1 or more and a finite scale".into(),
                    format!("{}, {} and {}", rule.shape(0), attrs.length, attrs.scale),
                ));
            }
            Ok(vec![f32(rule.shape(0).clone())])
        }
        Op::KvWrite { key, value } => {
            let states: Vec<&StateId> = std::iter::once(key).chain(value).collect();
            rule.arity(states.len() + 1)?;
            for (i, state) in states.iter().enumerate() {
                rule.inner(i, graph.state(**state).row_elems())?;
            }
            rule.per_token(states.len(), "kv_slots")?;
            let row = |id: &StateId| {
                let decl = graph.state(*id);
                let shape = Shape::new(&[Dim::Cached, Dim::Fixed(decl.heads), Dim::Fixed(decl.width)]);
                Inferred { shape, dtype: DType::State, state: Some(*id) }
            };
            Ok(states.into_iter().map(row).collect())
        }
        Op::Attention(attrs) => {
            rule.arity(5 + usize::from(attrs.masked))?;
            rule.attention(attrs)?;
            rule.queries(attrs)?;
            if attrs.masked {
                rule.scores(5, "a mask [1, T, S]")?;
            }
            rule.state(1, attrs.num_key_value_heads, attrs.head_dim)?;
            rule.reach(&[1, 2], attrs.reach())?;
            match attrs.value_in_key {
                false => rule.state(2, attrs.num_key_value_heads, attrs.value_head_dim)?,
                true if node.inputs[1] == node.inputs[2] => {}
                true => {
                    return Err(rule.wrong("values in the keys' state".into(), node.inputs[2].to_string()));
                }
            }
            rule.per_token(3, "positions")?;
            rule.per_token(4, "sequence")?;
            Ok(vec![f32(Shape::new(&[
                Dim::Tokens,
                Dim::Fixed(attrs.num_attention_heads * attrs.value_head_dim),
            ]))])
        }
        Op::AttentionScores(attrs) => {
            rule.arity(4)?;
            rule.attention(attrs)?;
            rule.queries(attrs)?;
            rule.state(1, attrs.num_key_value_heads, attrs.head_dim)?;
            rule.reach(&[1], attrs.reach())?;
            rule.per_token(2, "positions")?;
            rule.per_token(3, "sequence")?;
            Ok(vec![f32(Shape::new(&[Dim::Fixed(attrs.num_attention_heads), Dim::Tokens, Dim::Cached]))])
        }
        Op::AttentionSoftmax(attrs) => {
            rule.arity(3 + usize::from(attrs.masked))?;
            rule.attention(attrs)?;
            if attrs.masked {
                rule.scores(3, "a mask [1, T, S]")?;
            }
            let want = [Dim::Fixed(attrs.num_attention_heads), Dim::Tokens, Dim::Cached];
            rule.operand(0, DType::F32, "scores [H, T, S]", |s| s.0 == want)?;
            rule.per_token(1, "positions")?;
            rule.per_token(2, "sequence")?;
            Ok(vec![f32(rule.shape(0).clone())])
        }
        Op::IndexScores(IndexScoresAttrs { num_heads, head_dim }) => {
            rule.arity(5)?;
            rule.heads_on(*num_heads, 1, &[*head_dim])?;
            rule.tokens_by(0, "q", num_heads * head_dim)?;
            rule.tokens_by(1, "w", *num_heads)?;
            rule.state(2, 1, *head_dim)?;
            rule.reach(&[2], None)?;
            rule.per_token(3, "positions")?;
            rule.per_token(4, "sequence")?;
            Ok(vec![f32(Shape::new(&[Dim::Fixed(1), Dim::Tokens, Dim::Cached]))])
        }
        Op::IndexSelect { top_k, every } => {
            rule.arity(3)?;
            rule.scores(0, "scores [1, T, S]")?;
            rule.per_token(1, "positions")?;
            rule.per_token(2, "sequence")?;
            if *top_k == 0 || *every == 0 {
                return Err(rule.wrong("at least 1 position, of at least every 1st".into(), "0".into()));
            }
            Ok(vec![f32(rule.shape(0).clone())])
        }
        Op::Router(attrs) => {
            rule.arity(1)?;
            rule.inner(0, attrs.num_experts)?;
            rule.operand(0, DType::F32, "logits [T, E]", |s| s.0.len() == 2)?;
            if attrs.num_experts_per_tok == 0 || attrs.num_experts_per_tok > attrs.num_experts {
                return Err(rule.wrong(
                    format!("1 to {} experts per token", attrs.num_experts),
                    attrs.num_experts_per_tok.to_string(),
                ));
            }
            if let Some(bias) = attrs.selection_bias {
                rule.vector(bias, attrs.num_experts)?;
            }
            let bare = attrs.selection_bias.is_none() && attrs.groups.is_none() && !attrs.norm_topk_prob;
            if attrs.gate == GateKind::SparseMixer && !bare {
                let wanted = "a sparsemixer without bias, groups and renormalising";
                return Err(rule.wrong(wanted.into(), "one with them".into()));
            }
            if let Some(scale) = attrs.expert_scale {
                rule.vector(scale, attrs.num_experts)?;
            }
            if let Some(groups) = &attrs.groups {
                rule.groups(groups, attrs)?;
            }
            let shape = Shape::new(&[rule.shape(0).0[0], Dim::Fixed(attrs.num_experts_per_tok)]);
            Ok(vec![Inferred { shape: shape.clone(), dtype: DType::U32, state: None }, f32(shape)])
        }
        Op::GivenExperts(attrs) => {
            rule.arity(2)?;
            rule.inner(0, attrs.num_experts)?;
            rule.operand(0, DType::F32, "logits [T, E]", |s| s.0.len() == 2)?;
            rule.given_experts(attrs)?;
            let shape = Shape::new(&[rule.shape(0).0[0], Dim::Fixed(attrs.num_experts_per_tok)]);
            Ok(vec![Inferred { shape: shape.clone(), dtype: DType::U32, state: None }, f32(shape)])
        }
        Op::ExpertMatMul { weight, bias } => {
            rule.arity(2)?;
            let (experts, out, inner) = rule.expert_matrix(weight)?;
            rule.inner(0, inner)?;
            rule.operand(1, DType::U32, "expert ids [T, K]", |s| s.0.len() == 2 && s.width().is_some())?;
            let ids = rule.shape(1).clone();
            let x = rule.shape(0);
            let per_token = x.0.len() == 2 && x.0[0] == ids.0[0];
            let per_expert = x.0.len() == 3 && x.0[..2] == ids.0[..];
            if !per_token && !per_expert {
                return Err(rule.wrong(format!("x [T, {inner}] or {ids} with {inner} more"), x.to_string()));
            }
            if let Some(bias) = bias {
                rule.weight_shape(*bias, &[experts, out])?;
            }
            Ok(vec![f32(Shape::new(&[ids.0[0], ids.0[1], Dim::Fixed(out)]))])
        }
        Op::GatedAct { .. } => {
            rule.arity(2)?;
            rule.same(0, 1)?;
            Ok(vec![f32(rule.shape(0).clone()), f32(rule.shape(0).clone())])
        }
        Op::ExpertCombine => {
            rule.arity(2)?;
            rule.width(0)?;
            rule.width(1)?;
            let (y, w) = (rule.shape(0), rule.shape(1));
            let per_expert = y.0.len() == 3 && y.0[..2] == w.0[..];
            let (width, per_tok) = (y.width().unwrap_or(0), w.width().unwrap_or(0));
            let beside = y.0.len() == 2 && y.0[0] == w.0[0] && width.checked_rem(per_tok) == Some(0);
            if w.0.len() != 2 || !(per_expert || beside) {
                return Err(
                    rule.wrong("y [T, K, D] or [T, K·D] and weights [T, K]".into(), format!("{y} and {w}"))
                );
            }
            let width = if per_expert { width } else { width / per_tok };
            Ok(vec![f32(Shape::new(&[y.0[0], Dim::Fixed(width)]))])
        }
        Op::Add | Op::Mul => {
            rule.arity(2)?;
            rule.same(0, 1)?;
            Ok(vec![f32(rule.shape(0).clone())])
        }
        Op::MulHeads => {
            rule.arity(2)?;
            let (width, heads) = (rule.width(0)?, rule.width(1)?);
            let (x, factors) = (rule.shape(0), rule.shape(1));
            if heads == 0 || width % heads != 0 || !x.stands_beside(factors) {
                let wanted = "x [T, heads · d] and factors [T, heads]";
                return Err(rule.wrong(wanted.into(), format!("{x} and {factors}")));
            }
            Ok(vec![f32(x.clone())])
        }
        Op::Pointwise { function } => {
            rule.arity(1)?;
            rule.width(0)?;
            let factor = match *function {
                PointwiseFn::Scale(factor) | PointwiseFn::SoftCap(factor) | PointwiseFn::Clamp(factor) => {
                    factor
                }
                PointwiseFn::ReluSquared => 1.0,
            };
            let is_bound = !matches!(function, PointwiseFn::Scale(_));
            if !factor.is_finite() || (is_bound && factor <= 0.0) {
                return Err(rule.wrong("a finite factor, a positive bound".into(), factor.to_string()));
            }
            Ok(vec![f32(rule.shape(0).clone())])
        }
        Op::Concat { heads } => {
            rule.arity(2)?;
            let (n, m) = (rule.width(0)?, rule.width(1)?);
            let (a, b) = (rule.shape(0), rule.shape(1));
            if *heads == 0 || n % heads != 0 || m % heads != 0 || !a.stands_beside(b) {
                return Err(rule.wrong(
                    format!("two values of the same rows, their last axes divisible by {heads} heads"),
                    format!("{a} and {b}"),
                ));
            }
            let mut shape = a.clone();
            shape.0.pop();
            shape.0.push(Dim::Fixed(n + m));
            Ok(vec![f32(shape)])
        }
        Op::CausalConv(attrs) => {
            rule.arity(3)?;
            rule.per_token(1, "positions")?;
            rule.per_token(2, "sequence")?;
            let channels = rule.width(0)?;
            let decl = graph.state(attrs.state);
            let is_fit = decl.lifetime == Lifetime::PerSequence && decl.heads == channels && decl.width > 0;
            if !is_fit {
                return Err(rule.wrong(
                    format!("a state of each sequence, [{channels}, kernel − 1]"),
                    format!("[{}, {}], {:?}", decl.heads, decl.width, decl.lifetime),
                ));
            }
            rule.weight_shape(attrs.weight, &[channels, decl.width + 1])?;
            if let Some(bias) = attrs.bias {
                rule.vector(bias, channels)?;
            }
            Ok(vec![f32(rule.shape(0).clone())])
        }
        Op::DeltaGates { a, dt_bias, bound } => {
            rule.arity(2)?;
            let heads = rule.width(0)?;
            let width = rule.width(1)?;
            if !width.is_multiple_of(heads) || !rule.shape(0).stands_beside(rule.shape(1)) {
                let found = format!("{} and {}", rule.shape(0), rule.shape(1));
                return Err(rule.wrong("b [T, H] and dt [T, H·w]".into(), found));
            }
            if let Some(bound) = bound.filter(|bound| bound.is_nan() || *bound >= 0.0) {
                return Err(rule.wrong("a bound below 0".into(), bound.to_string()));
            }
            rule.vector(*a, heads)?;
            rule.vector(*dt_bias, width)?;
            Ok(vec![f32(rule.shape(0).clone()), f32(rule.shape(1).clone())])
        }
        Op::DeltaRule(attrs) => {
            rule.arity(5)?;
            rule.delta_rule(attrs)?;
            rule.per_token(3, "positions")?;
            rule.per_token(4, "sequence")?;
            Ok(vec![f32(Shape::new(&[Dim::Tokens, Dim::Fixed(attrs.value_width())]))])
        }
        Op::SsmScan(attrs) => {
            rule.arity(4)?;
            rule.ssm_scan(attrs)?;
            rule.per_token(2, "positions")?;
            rule.per_token(3, "sequence")?;
            Ok(vec![f32(Shape::new(&[Dim::Tokens, Dim::Fixed(attrs.x_width())]))])
        }
        Op::HyperGates(attrs) => {
            rule.arity(1)?;
            rule.hyper_gates(attrs)?;
            let streams = attrs.streams;
            let of = |n: usize| f32(Shape::new(&[rule.shape(0).0[0], Dim::Fixed(n)]));
            Ok(match attrs.iterations {
                Some(_) => vec![of(streams), of(streams), of(streams * streams)],
                None => vec![of(streams)],
            })
        }
        Op::HyperConnect { streams } => {
            rule.arity(4)?;
            let width = rule.width(1)?;
            rule.heads_on(*streams, 1, &[width])?;
            for (i, (what, n)) in
                [("x", streams * width), ("y", width), ("post", *streams), ("comb", streams * streams)]
                    .into_iter()
                    .enumerate()
            {
                rule.tokens_by(i, what, n)?;
            }
            Ok(vec![f32(rule.shape(0).clone())])
        }
        Op::Compress(attrs) => {
            rule.arity(4)?;
            let width = rule.compress(attrs)?;
            rule.per_token(2, "positions")?;
            rule.per_token(3, "sequence")?;
            Ok(vec![f32(Shape::new(&[Dim::Tokens, Dim::Fixed(width)]))])
        }
        Op::CompressedAttention(attrs) => {
            rule.arity(5 + usize::from(attrs.masked))?;
            rule.compressed_attention(attrs)?;
            // Its keys and entries have a row for every token.
            rule.reach(&[1, 2], None)?;
            rule.per_token(3, "positions")?;
            rule.per_token(4, "sequence")?;
            if attrs.masked {
                rule.scores(5, "a mask [1, T, S]")?;
            }
            Ok(vec![f32(rule.shape(0).clone())])
        }
        Op::Slice { heads, start, len } => {
            rule.arity(1)?;
            let width = rule.width(0)?;
            let end = start.checked_add(*len);
            let fits = |end: usize| *len > 0 && width.checked_rem(*heads) == Some(0) && end <= width / heads;
            if !end.is_some_and(fits) {
                let found = format!("{len} from {start} on of {}", rule.shape(0));
                return Err(rule.wrong(format!("elements inside each of {heads} heads"), found));
            }
            let mut shape = rule.shape(0).clone();
            shape.0.pop();
            shape.0.push(Dim::Fixed(heads * len));
            Ok(vec![f32(shape)])
        }
        Op::GetRows => {
            rule.arity(2)?;
            rule.operand(1, DType::U32, "rows [R]", |s| s.0.len() == 1)?;
            rule.operand(0, DType::F32, "x [T, D]", |s| s.0.len() == 2)?;
            Ok(vec![f32(Shape::new(&[rule.shape(1).0[0], rule.shape(0).0[1]]))])
        }
        Op::Tap { .. } => {
            if node.inputs.is_empty() {
                return Err(rule.wrong("at least one value".into(), "none".into()));
            }
            let first = graph.value(node.inputs[0]);
            for i in 0..node.inputs.len() {
                let value = graph.value(node.inputs[i]);
                if value.dtype == DType::State || value.shape.0.is_empty() {
                    let found = format!("{} {:?}", value.shape, value.dtype);
                    return Err(rule.wrong("a value with axes that is no state".into(), found));
                }
                if value.dtype != first.dtype || !value.shape.stands_beside(&first.shape) {
                    let wanted = format!("values like {} {:?}", first.shape, first.dtype);
                    return Err(rule.wrong(wanted, format!("{} {:?}", value.shape, value.dtype)));
                }
            }
            Ok(Vec::new())
        }
    }
}
