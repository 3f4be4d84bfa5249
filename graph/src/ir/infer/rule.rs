//! What the rules of shape inference are made of.

use crate::ir::compressed::{CompressAttrs, CompressedAttentionAttrs, HyperGatesAttrs};
use crate::ir::graph::{Graph, Lifetime, Node, StateId, WeightId};
use crate::ir::op::{
    AttentionAttrs, DType, Dim, ExpertGroups, GateKind, GivenExpertsAttrs, GroupScore, RouterAttrs, Shape,
    WeightSlice,
};
use crate::ir::recurrent::{DecayOf, DeltaRuleAttrs, SsmScanAttrs};
use crate::quant::Format;
use crate::verify::GraphError;

/// One node, looked at by its operands.
pub(super) struct Rule<'a> {
    pub(super) graph: &'a Graph,
    pub(super) node: &'a Node,
}

impl Rule<'_> {
    pub(super) fn wrong(&self, wanted: String, found: String) -> GraphError {
        GraphError::Operands { node: self.node.path(), op: self.node.op.stem(), wanted, found }
    }

    pub(super) fn shape(&self, i: usize) -> &Shape {
        &self.graph.value(self.node.inputs[i]).shape
    }

    pub(super) fn arity(&self, wanted: usize) -> Result<(), GraphError> {
        if self.node.inputs.len() != wanted {
            return Err(self.wrong(format!("{wanted} operands"), self.node.inputs.len().to_string()));
        }
        Ok(())
    }

    /// Every id is one of this graph: what the other rules look up.
    pub(super) fn own(&self) -> Result<(), GraphError> {
        let (graph, node) = (self.graph, self.node);
        if let Some(id) = node.inputs.iter().find(|v| v.index() >= graph.values.len()) {
            return Err(self.wrong("values of this graph".into(), id.to_string()));
        }
        if let Some(id) = node.op.weights().into_iter().find(|w| w.index() >= graph.weights.len()) {
            return Err(self.wrong("weights of this graph".into(), id.to_string()));
        }
        if let Some(id) = node.op.written_states().into_iter().find(|s| s.index() >= graph.states.len()) {
            return Err(self.wrong("states of this graph".into(), id.to_string()));
        }
        Ok(())
    }

    pub(super) fn per_token(&self, i: usize, what: &str) -> Result<(), GraphError> {
        self.operand(i, DType::U32, &format!("{what} [T]"), |s| s.0 == [Dim::Tokens])
    }

    pub(super) fn queries(&self, attrs: &AttentionAttrs) -> Result<(), GraphError> {
        let width = attrs.num_attention_heads * attrs.head_dim;
        self.operand(0, DType::F32, &format!("queries [T, {width}]"), |s| {
            s.0 == [Dim::Tokens, Dim::Fixed(width)]
        })
    }

    pub(super) fn operand(
        &self,
        i: usize,
        dtype: DType,
        wanted: &str,
        fits: impl Fn(&Shape) -> bool,
    ) -> Result<(), GraphError> {
        let value = self.graph.value(self.node.inputs[i]);
        if value.dtype != dtype || !fits(&value.shape) {
            return Err(
                self.wrong(format!("{wanted} {dtype:?}"), format!("{} {:?}", value.shape, value.dtype))
            );
        }
        Ok(())
    }

    pub(super) fn width(&self, i: usize) -> Result<usize, GraphError> {
        self.operand(i, DType::F32, "a last axis of fixed size", |s| s.width().is_some())?;
        self.shape(i).width().ok_or_else(|| self.wrong("a fixed last axis".into(), self.shape(i).to_string()))
    }

    pub(super) fn inner(&self, i: usize, wanted: usize) -> Result<(), GraphError> {
        if self.width(i)? != wanted {
            return Err(self.wrong(format!("a last axis of {wanted}"), self.shape(i).to_string()));
        }
        Ok(())
    }

    pub(super) fn same(&self, a: usize, b: usize) -> Result<(), GraphError> {
        self.width(a)?;
        self.width(b)?;
        if self.shape(a) != self.shape(b) {
            return Err(self.wrong(
                "two values of one shape".into(),
                format!("{} and {}", self.shape(a), self.shape(b)),
            ));
        }
        Ok(())
    }

    pub(super) fn state(&self, i: usize, heads: usize, width: usize) -> Result<(), GraphError> {
        let want = [Dim::Cached, Dim::Fixed(heads), Dim::Fixed(width)];
        self.operand(i, DType::State, &format!("a state [S, {heads}, {width}]"), |s| s.0 == want)
    }

    /// States that hold all of the positions that a query sees, which are `reach` at most.
    pub(super) fn reach(&self, operands: &[usize], reach: Option<usize>) -> Result<(), GraphError> {
        let states = operands.iter().filter_map(|i| self.graph.value(self.node.inputs[*i]).state);
        for window in states.filter_map(|state| self.graph.state(state).window()) {
            if reach.is_none_or(|reach| reach > window) {
                let seen = reach.map_or("all of them".to_owned(), |reach| format!("{reach}"));
                return Err(self.wrong(format!("no more than {window} positions to see"), seen));
            }
        }
        Ok(())
    }

    /// Groups of equal size, with enough experts in those that are chosen from, and in each as many as rank it.
    pub(super) fn groups(&self, groups: &ExpertGroups, attrs: &RouterAttrs) -> Result<(), GraphError> {
        let ExpertGroups { n_group, topk_group, score } = *groups;
        let experts = attrs.num_experts;
        if n_group == 0 || !experts.is_multiple_of(n_group) || !(1..=n_group).contains(&topk_group) {
            return Err(self.wrong(
                format!("{experts} experts in equal groups, and 1 or more of them to choose from"),
                format!("{topk_group} of {n_group} groups"),
            ));
        }
        let (size, ranking) = (experts / n_group, if score == GroupScore::BestTwo { 2 } else { 1 });
        if size < ranking || size * topk_group < attrs.num_experts_per_tok {
            return Err(self.wrong(
                format!("{ranking} or more experts a group, and {} in all", attrs.num_experts_per_tok),
                format!("{topk_group} of {n_group} groups of {size} experts"),
            ));
        }
        Ok(())
    }

    pub(super) fn attention(&self, attrs: &AttentionAttrs) -> Result<(), GraphError> {
        let AttentionAttrs {
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            value_head_dim,
            scale: _,
            window,
            chunk,
            soft_cap,
            sinks,
            value_in_key,
            masked: _,
        } = *attrs;
        if value_in_key && value_head_dim > head_dim {
            return Err(self.wrong(format!("values within keys of {head_dim}"), value_head_dim.to_string()));
        }
        if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 {
            return Err(self.wrong(
                "num_attention_heads a multiple of num_key_value_heads".into(),
                format!("{heads} and {kv_heads}"),
            ));
        }
        if head_dim == 0 || value_head_dim == 0 {
            return Err(self.wrong("heads of at least 1".into(), format!("{head_dim} and {value_head_dim}")));
        }
        if window == Some(0) || chunk == Some(0) {
            return Err(self.wrong("a window or chunk of at least 1, or none".into(), "0".into()));
        }
        if let Some(cap) = soft_cap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            return Err(self.wrong("a finite soft_cap above 0, or none".into(), cap.to_string()));
        }
        if let Some(sinks) = sinks {
            self.vector(sinks, heads)?;
        }
        Ok(())
    }

    /// Ids [T, n] of which the first K are taken, and what is made of them.
    pub(super) fn given_experts(&self, attrs: &GivenExpertsAttrs) -> Result<(), GraphError> {
        let GivenExpertsAttrs {
            num_experts: _,
            num_experts_per_tok: k,
            gate,
            norm_topk_prob: _,
            scale: _,
            divisor,
            table,
        } = *attrs;
        let of_each = matches!(gate, GateKind::Softmax | GateKind::Sigmoid | GateKind::SqrtSoftplus);
        if k == 0 || divisor == 0 || !of_each {
            return Err(self.wrong(
                "at least 1 expert a token, a divisor of at least 1, a softmax, a sigmoid or a sqrt-softplus"
                    .into(),
                format!("{k}, {divisor}, {gate:?}"),
            ));
        }
        let rows = self.shape(0).0[0];
        if let Some(table) = table {
            let decl = self.graph.weight(table);
            if !matches!(decl.shape[..], [vocab, n] if vocab > 0 && n >= k) || decl.format != Format::F32 {
                return Err(self.wrong(
                    format!("tensor {} [vocab, n], n of at least {k}, of 32 bits an element", decl.name),
                    format!("{} {:?}", decl.format.name(), decl.shape),
                ));
            }
            return self.operand(1, DType::U32, "tokens [T]", |s| s.0 == [rows]);
        }
        self.operand(1, DType::U32, &format!("ids [T, n], n of at least {k}"), |s| {
            s.0.len() == 2 && s.0[0] == rows && s.width().is_some_and(|n| n >= k)
        })
    }

    /// A number for each token and cached position.
    pub(super) fn scores(&self, i: usize, what: &str) -> Result<(), GraphError> {
        self.operand(i, DType::F32, what, |s| s.0 == [Dim::Fixed(1), Dim::Tokens, Dim::Cached])
    }

    /// A row of so many floats a token.
    pub(super) fn tokens_by(&self, i: usize, what: &str, width: usize) -> Result<(), GraphError> {
        self.operand(i, DType::F32, &format!("{what} [T, {width}]"), |s| {
            s.0 == [Dim::Tokens, Dim::Fixed(width)]
        })
    }

    /// A state of each sequence.
    pub(super) fn sequence_state(&self, id: StateId, heads: usize, width: usize) -> Result<(), GraphError> {
        let decl = self.graph.state(id);
        if decl.lifetime == Lifetime::PerSequence && (decl.heads, decl.width) == (heads, width) {
            return Ok(());
        }
        Err(self.wrong(
            format!("a state of each sequence, [{heads}, {width}]"),
            format!("[{}, {}], {:?}", decl.heads, decl.width, decl.lifetime),
        ))
    }

    /// One number is a multiple of the other, and none of `sizes` is 0.
    pub(super) fn heads_on(&self, heads: usize, groups: usize, sizes: &[usize]) -> Result<(), GraphError> {
        if groups > 0 && heads > 0 && heads.is_multiple_of(groups) && !sizes.contains(&0) {
            return Ok(());
        }
        Err(self.wrong(
            "a multiple of heads on heads or groups, each of at least 1 element".into(),
            format!("{heads} on {groups}, of {sizes:?}"),
        ))
    }

    pub(super) fn delta_rule(&self, attrs: &DeltaRuleAttrs) -> Result<(), GraphError> {
        let DeltaRuleAttrs {
            num_key_heads,
            num_value_heads,
            key_head_dim,
            value_head_dim,
            head_map: _,
            eps: _,
            scale: _,
            state,
        } = *attrs;
        self.heads_on(num_value_heads, num_key_heads, &[key_head_dim, value_head_dim])?;
        self.tokens_by(0, "q, k and v", 2 * attrs.key_width() + attrs.value_width())?;
        self.tokens_by(1, "β", num_value_heads)?;
        let of_head = self.width(2)? == num_value_heads;
        self.tokens_by(2, "decay", if of_head { num_value_heads } else { num_value_heads * key_head_dim })?;
        self.sequence_state(state, num_value_heads, key_head_dim * value_head_dim)
    }

    pub(super) fn ssm_scan(&self, attrs: &SsmScanAttrs) -> Result<(), GraphError> {
        let SsmScanAttrs { num_heads, head_dim, state_size, n_groups, decay_of, a, d, dt_bias, state } =
            *attrs;
        self.heads_on(num_heads, n_groups, &[head_dim, state_size])?;
        match decay_of {
            DecayOf::Head => self.vector(a, num_heads)?,
            DecayOf::Element if head_dim == 1 && n_groups == 1 => {
                self.weight_shape(a, &[num_heads, state_size])?;
            }
            DecayOf::Element => {
                let found = format!("{head_dim} rows on {n_groups} groups");
                return Err(self.wrong(
                    "heads of one row on one group, where elements decay by themselves".into(),
                    found,
                ));
            }
        }
        self.tokens_by(0, "x, B and C", attrs.x_width() + 2 * attrs.group_width())?;
        self.tokens_by(1, "dt", num_heads)?;
        [d, dt_bias].into_iter().try_for_each(|weight| self.vector(weight, num_heads))?;
        self.sequence_state(state, num_heads, head_dim * state_size)
    }

    /// What streams are connected by.
    pub(super) fn hyper_gates(&self, attrs: &HyperGatesAttrs) -> Result<(), GraphError> {
        let HyperGatesAttrs { streams, iterations, eps, scale, base } = *attrs;
        if streams == 0 || iterations == Some(0) || !(eps.is_finite() && eps >= 0.0) {
            let found = format!("{streams}, {iterations:?} and {eps}");
            return Err(self.wrong("streams, iterations and an epsilon that is not negative".into(), found));
        }
        self.tokens_or_rows(0, attrs.width())?;
        self.vector(scale, attrs.scales())?;
        self.vector(base, attrs.width())
    }

    /// A row of so many floats a token or row of logits.
    fn tokens_or_rows(&self, i: usize, width: usize) -> Result<(), GraphError> {
        self.operand(i, DType::F32, &format!("w [T, {width}]"), |s| s.0.len() == 2)?;
        self.inner(i, width)
    }

    /// What windows come to; the width of that.
    pub(super) fn compress(&self, attrs: &CompressAttrs) -> Result<usize, GraphError> {
        let CompressAttrs { ratio, overlap: _, bias, state } = *attrs;
        let (wide, parts) = (self.width(0)?, attrs.parts());
        if ratio == 0 || !wide.is_multiple_of(parts) {
            let wanted = format!("windows of at least 1 position, and {parts} channels for one");
            return Err(self.wrong(wanted, format!("{ratio} and {wide}")));
        }
        self.tokens_by(0, "a", wide)?;
        self.tokens_by(1, "b", wide)?;
        self.weight_shape(bias, &[ratio, wide])?;
        self.sequence_state(state, wide / parts, 2 * attrs.slots())?;
        Ok(wide / parts)
    }

    pub(super) fn compressed_attention(&self, attrs: &CompressedAttentionAttrs) -> Result<(), GraphError> {
        let CompressedAttentionAttrs {
            num_attention_heads: heads,
            head_dim,
            scale: _,
            window,
            ratio,
            sinks,
            masked: _,
        } = *attrs;
        self.heads_on(heads, 1, &[head_dim])?;
        if window == 0 || ratio == 0 {
            return Err(
                self.wrong("a window and a ratio of at least 1".into(), format!("{window} and {ratio}"))
            );
        }
        self.tokens_by(0, "q", heads * head_dim)?;
        self.state(1, 1, head_dim)?;
        self.state(2, 1, head_dim)?;
        if let Some(sinks) = sinks {
            self.vector(sinks, heads)?;
        }
        Ok(())
    }

    pub(super) fn weight_shape(&self, id: WeightId, wanted: &[usize]) -> Result<(), GraphError> {
        let weight = self.graph.weight(id);
        if weight.shape != wanted || weight.format != Format::F32 {
            return Err(self.wrong(
                format!("tensor {} F32 {wanted:?}", weight.name),
                format!("{} {:?}", weight.format.name(), weight.shape),
            ));
        }
        Ok(())
    }

    pub(super) fn vector(&self, id: WeightId, len: usize) -> Result<(), GraphError> {
        self.weight_shape(id, &[len])
    }

    pub(super) fn matrix(&self, slice: &WeightSlice) -> Result<(usize, usize), GraphError> {
        let weight = self.graph.weight(slice.tensor);
        let [rows, inner] = weight.shape[..] else {
            return Err(
                self.wrong(format!("tensor {} [out, in]", weight.name), format!("{:?}", weight.shape))
            );
        };
        self.slice(slice, rows, None)?;
        Ok((slice.rows.len(), inner))
    }

    pub(super) fn expert_matrix(&self, slice: &WeightSlice) -> Result<(usize, usize, usize), GraphError> {
        let weight = self.graph.weight(slice.tensor);
        let [experts, rows, inner] = weight.shape[..] else {
            return Err(
                self.wrong(format!("tensor {} [E, out, in]", weight.name), format!("{:?}", weight.shape))
            );
        };
        self.slice(slice, rows, Some(experts))?;
        Ok((slice.experts.as_ref().map_or(experts, std::ops::Range::len), slice.rows.len(), inner))
    }

    pub(super) fn slice(
        &self,
        slice: &WeightSlice,
        rows: usize,
        experts: Option<usize>,
    ) -> Result<(), GraphError> {
        let weight = self.graph.weight(slice.tensor);
        let rows_fit = slice.rows.start < slice.rows.end && slice.rows.end <= rows;
        let experts_fit = match (&slice.experts, experts) {
            (None, None) => true,
            (Some(range), Some(experts)) => range.start < range.end && range.end <= experts,
            _ => false,
        };
        if !rows_fit || !experts_fit {
            return Err(self.wrong(
                format!("a slice inside tensor {} {:?}", weight.name, weight.shape),
                format!("rows {:?}, experts {:?}", slice.rows, slice.experts),
            ));
        }
        Ok(())
    }
}
