//! The rules of a plan: `node-in-one-launch` (a tap: delivered by one), `launch-order`, `crossing-value-stored`,
//! `alive-while-needed`, `buffers-apart`.

use super::Plan;
use super::plan_memory::alive_together;
use crate::ir::{DType, NodeId, Op};
use crate::verify::GraphError;
use std::collections::HashMap;

/// A launch, and whether it is a tap behind it.
type Place = (usize, bool);

/// Checks every rule of a plan.
///
/// # Errors
/// The first rule that is broken.
pub fn verify_plan(plan: &Plan) -> Result<(), GraphError> {
    let broken = |rule, after, node: String, detail: String| GraphError::Rule { rule, after, node, detail };
    let place = places(plan)?;
    for node in &plan.graph.nodes {
        let is_tap = matches!(node.op, Op::Tap { .. });
        let at = match place.get(&node.id) {
            Some(at) if is_tap == at.1 => *at,
            _ => {
                let detail = "not in exactly one launch".to_owned();
                return Err(broken("node-in-one-launch", "group_launches", node.path(), detail));
            }
        };
        for input in &node.inputs {
            let value = plan.graph.value(*input);
            let Some(from) = value.producer.and_then(|p| place.get(&p)) else { continue };
            if from > &at {
                let detail = format!("{input} is made later, in launch {}", from.0);
                return Err(broken("launch-order", "group_launches", node.path(), detail));
            }
            if *from == at || value.dtype == DType::State {
                continue;
            }
            let Some(slot) = plan.memory.slot(*input) else {
                let detail = format!("{input} leaves launch {} without a buffer", from.0);
                return Err(broken("crossing-value-stored", "plan_memory", node.path(), detail));
            };
            if slot.first_launch > from.0 || slot.last_launch < at.0 {
                let detail =
                    format!("{input} is needed in launches {} to {}, its buffer is not", from.0, at.0);
                return Err(broken("alive-while-needed", "plan_memory", node.path(), detail));
            }
        }
    }
    for (i, a) in plan.memory.slots.iter().enumerate() {
        for b in &plan.memory.slots[i + 1..] {
            let apart = a.offset_bytes + a.size_bytes <= b.offset_bytes
                || b.offset_bytes + b.size_bytes <= a.offset_bytes;
            if alive_together(a, b) && !apart {
                let detail = format!("shares memory with {}", b.value);
                return Err(broken("buffers-apart", "plan_memory", a.value.to_string(), detail));
            }
        }
    }
    Ok(())
}

/// Where each node runs and each tap is delivered.
fn places(plan: &Plan) -> Result<HashMap<NodeId, Place>, GraphError> {
    let mut place = HashMap::new();
    for (l, launch) in plan.launches.iter().enumerate() {
        let taps = launch.taps.iter().map(|id| (*id, true));
        for (id, is_tap) in launch.nodes.iter().map(|id| (*id, false)).chain(taps) {
            if plan.graph.node(id).is_none() || place.insert(id, (l, is_tap)).is_some() {
                return Err(GraphError::Rule {
                    rule: "node-in-one-launch",
                    after: "group_launches",
                    node: id.to_string(),
                    detail: format!("{} holds a node that is dropped or held twice", launch.id),
                });
            }
        }
    }
    Ok(place)
}
