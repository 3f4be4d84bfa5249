//! Mul: a · b, element by element.

use crate::emit::Emitter;
use moe_run_graph::ir::Node;
use moe_run_runtime::error::BackendError;

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node) -> Result<(), BackendError> {
    super::add::elementwise(e, node, "mul")
}
