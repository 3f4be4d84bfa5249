//! The rules of a plan: `node-in-one-launch`, `launch-order`, `crossing-value-stored`, `buffers-apart`.

use super::Plan;
use super::plan_memory::alive_together;
use crate::ir::{DType, NodeId, Op};
use crate::verify::GraphError;
use std::collections::HashMap;

/// Checks every rule of a plan.
///
/// # Errors
/// The first rule that is broken.
pub fn verify_plan(plan: &Plan) -> Result<(), GraphError> {
    let broken = |rule, after, node: String, detail: String| GraphError::Rule { rule, after, node, detail };
    let mut place: HashMap<NodeId, (usize, usize)> = HashMap::new();
    for (l, launch) in plan.launches.iter().enumerate() {
        for (p, phase) in launch.phases.iter().enumerate() {
            for id in phase {
                if plan.graph.node(*id).is_none() || place.insert(*id, (l, p)).is_some() {
                    let detail = format!("{} holds a node that is dropped or held twice", launch.id);
                    return Err(broken("node-in-one-launch", "group_launches", id.to_string(), detail));
                }
            }
        }
    }
    for node in &plan.graph.nodes {
        let is_tap = matches!(node.op, Op::Tap { .. });
        let at = match (place.get(&node.id), is_tap) {
            (Some(at), false) => Some(*at),
            (None, true) => None,
            _ => {
                let detail = "not in exactly one launch".to_owned();
                return Err(broken("node-in-one-launch", "group_launches", node.path(), detail));
            }
        };
        for input in &node.inputs {
            let value = plan.graph.value(*input);
            let Some(from) = value.producer.and_then(|p| place.get(&p)) else { continue };
            if let Some(at) = at
                && (from > &at)
            {
                let detail = format!("{input} is made later, in launch {}", from.0);
                return Err(broken("launch-order", "group_launches", node.path(), detail));
            }
            let crosses = at.is_none_or(|at| at != *from);
            if crosses && value.dtype != DType::State && !plan.is_stored(*input) {
                let detail = format!("{input} leaves launch {} without a buffer", from.0);
                return Err(broken("crossing-value-stored", "plan_memory", node.path(), detail));
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
