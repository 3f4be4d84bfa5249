//! The other side of a comparison: a backend that runs beside the first, or stages that were saved.
//!
//! A live side runs on a thread of its own and hands over every tap through a bounded channel, so that nothing but the
//! stages in flight is ever held. A saved side reads each stage when it is asked for.

use super::ParityError;
use crate::taps::tensor_set::TensorSet;
use crate::taps::{RowAxis, floats, states};
use moe_run_graph::ir::{Graph, LayerIdx, Node, Op, Stage};
use moe_run_graph::passes::{Launch, Plan};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{HostTensor, Observer, TapValue, ValueAccess};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

/// A stage, and the first position of the step that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub stage: Stage,
    pub layer: Option<usize>,
    pub first_position: u32,
}

/// What a live side sends.
pub(super) type Message = (Key, HostTensor);

/// Sends every tap.
pub(super) struct Sender(pub SyncSender<Message>);

/// The receiving side ended first: it has its own error to report.
#[derive(Debug, thiserror::Error)]
#[error("the other side of the comparison ended")]
pub(super) struct Gone;

impl Sender {
    fn send(&mut self, message: Message) -> Result<(), BackendError> {
        self.0.send(message).map_err(|_| BackendError::Observer(Box::new(Gone)))
    }
}

impl Observer for Sender {
    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        _elapsed: Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        changed_states(plan, launch, values)?.into_iter().try_for_each(|state| self.send(state))
    }

    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        let first_position = tap.positions.first().copied().unwrap_or(0);
        let key = Key { stage: tap.stage, layer: tap.layer, first_position };
        self.send((key, tap.tensor.to_tensor()))
    }
}

/// The states of one row a sequence that a launch changes, which have no taps: what each holds behind the step's last token.
pub(super) fn changed_states(
    plan: &Plan,
    launch: &Launch,
    values: &mut dyn ValueAccess,
) -> Result<Vec<Message>, BackendError> {
    let sizes = values.sizes();
    let first_position = sizes.cached.saturating_sub(sizes.tokens) as u32;
    let message = |(stage, layer, held): (_, LayerIdx, _)| {
        (Key { stage, layer: Some(layer.index()), first_position }, held)
    };
    Ok(states::changed_states(plan, launch, values, |_, _| true)?.into_iter().map(message).collect())
}

/// Where stages come from.
pub(super) enum Origin<'a> {
    Live(Receiver<Message>),
    /// Nothing more is wanted: a live side finds its channel closed.
    Closed,
    Saved {
        set: &'a TensorSet,
        total_tokens: usize,
        /// Of how many positions an indexer's choice has one, by layer.
        every: HashMap<usize, usize>,
    },
}

/// The other side's stages, each read once a step.
pub(super) struct Source<'a> {
    origin: Origin<'a>,
    held: HashMap<Key, Rc<HostTensor>>,
    /// Where the reader is: what lies two layers or a step behind is dropped.
    front: (u32, usize),
}

impl<'a> Source<'a> {
    pub(super) fn new(origin: Origin<'a>) -> Source<'a> {
        Source { origin, held: HashMap::new(), front: (0, 0) }
    }

    pub(super) fn close(&mut self) {
        self.origin = Origin::Closed;
    }

    /// Whether the other side has states behind so many tokens: of a saved side those behind the last one alone were kept.
    pub(super) fn has_states_behind(&self, tokens: usize) -> bool {
        match &self.origin {
            Origin::Live(_) | Origin::Closed => true,
            Origin::Saved { total_tokens, .. } => tokens == *total_tokens,
        }
    }

    /// A stage of the step of `tokens` tokens from `key.first_position` on; `None` where the other side has none.
    pub(super) fn get(&mut self, key: Key, tokens: usize) -> Result<Option<Rc<HostTensor>>, ParityError> {
        if let Some(found) = self.held.get(&key) {
            return Ok(Some(Rc::clone(found)));
        }
        let front = (key.first_position, key.layer.unwrap_or(0));
        if front > self.front {
            self.front = front;
            self.held.retain(|k, _| k.first_position == front.0 && k.layer.is_none_or(|l| l + 1 >= front.1));
        }
        match &self.origin {
            Origin::Closed => Ok(None),
            Origin::Live(receiver) => loop {
                let Ok((sent, tensor)) = receiver.recv() else { return Ok(None) };
                let tensor = Rc::new(tensor);
                self.held.insert(sent, Rc::clone(&tensor));
                if sent == key {
                    return Ok(Some(tensor));
                }
            },
            Origin::Saved { set, total_tokens, every } => {
                let every = key.layer.and_then(|layer| every.get(&layer)).copied().unwrap_or(1);
                let Some(tensor) = saved(set, key, tokens, *total_tokens, every)? else { return Ok(None) };
                let tensor = Rc::new(tensor);
                self.held.insert(key, Rc::clone(&tensor));
                Ok(Some(tensor))
            }
        }
    }
}

/// Of how many positions an indexer's choice has one, by layer.
pub(super) fn choices(graph: &Graph) -> HashMap<usize, usize> {
    let every = |node: &Node| match node.op {
        Op::IndexSelect { top_k: _, every } => node.layer.map(|layer| (layer.index(), every)),
        _ => None,
    };
    graph.nodes.iter().filter_map(every).collect()
}

/// Rows [total, total] of which a file has only every so many-th column: the others are 0.
fn spread(data: &[f32], total: usize, every: usize) -> Vec<f32> {
    let mut out = vec![0.0; total * total];
    let columns = total / every;
    for (row, out) in data.chunks_exact(columns.max(1)).zip(out.chunks_exact_mut(total)) {
        row.iter().zip(out.iter_mut().skip(every - 1).step_by(every)).for_each(|(x, out)| *out = *x);
    }
    out
}

/// Cuts a step's rows out of a stage that was saved for all tokens.
fn saved(
    set: &TensorSet,
    key: Key,
    tokens: usize,
    total: usize,
    every: usize,
) -> Result<Option<HostTensor>, ParityError> {
    let name = key.stage.path(key.layer);
    let Some(tensor) = set.tensors.get(&name) else { return Ok(None) };
    let mut elems = tensor.elems();
    let mismatch = |wanted: String| ParityError::SavedShape {
        stage: name.clone(),
        path: tensor.path.clone(),
        found: tensor.shape.clone(),
        wanted,
    };
    let first = key.first_position as usize;
    let mut data = tensor.read()?;
    // Choices among entries may stand without the positions between those.
    let is_choice = matches!(key.stage, Stage::IndexScores | Stage::IndexSelected);
    if is_choice && every > 1 && elems > 0 && elems == total * (total / every) {
        data = spread(&data, total, every);
        elems = data.len();
    }
    if matches!(key.stage, Stage::ConvState | Stage::SsmState) {
        return Ok(Some(HostTensor::f32(tensor.shape.clone(), data)));
    }
    if RowAxis::of(key.stage) == RowAxis::HeadsTokensCached {
        let square = total * total;
        if elems == 0 || !elems.is_multiple_of(square) {
            return Err(mismatch(format!("[heads, {total}, {total}]")));
        }
        let (heads, cached) = (elems / square, first + tokens);
        let mut out = Vec::with_capacity(heads * tokens * cached);
        for head in 0..heads {
            for token in first..first + tokens {
                let row = (head * total + token) * total;
                out.extend_from_slice(&data[row..row + cached]);
            }
        }
        return Ok(Some(HostTensor::f32(vec![heads, tokens, cached], out)));
    }
    let rows = if tensor.shaped { tensor.shape.first().copied().unwrap_or(0) } else { total };
    if rows != total || elems == 0 || !elems.is_multiple_of(total) {
        return Err(mismatch(format!("{total} rows, one a token")));
    }
    let width = elems / total;
    let mut shape = vec![tokens, width];
    if tensor.shaped {
        shape = tensor.shape.clone();
        shape[0] = tokens;
    }
    let data = data[first * width..(first + tokens) * width].to_vec();
    if matches!(key.stage, Stage::MoeTopkIds | Stage::ChunkIds) {
        return Ok(Some(HostTensor::u32(shape, data.iter().map(|id| *id as u32).collect())));
    }
    Ok(Some(HostTensor::f32(shape, data)))
}

/// The elements of a stage as floats.
pub(super) fn elements(tensor: &HostTensor) -> std::borrow::Cow<'_, [f32]> {
    floats(&tensor.data)
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn choices_among_entries_stand_at_the_positions_that_complete_them() {
        let mut wanted = vec![0.0; 7 * 7];
        let saved: Vec<f32> = (1..=14).map(|n| n as f32).collect();
        for (row, of) in saved.chunks_exact(2).enumerate() {
            (wanted[row * 7 + 2], wanted[row * 7 + 5]) = (of[0], of[1]);
        }
        assert_eq!(spread(&saved, 7, 3), wanted);
    }
}
