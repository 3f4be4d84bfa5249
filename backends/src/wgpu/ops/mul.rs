//! Mul: a · b, element by element.

use crate::error::BackendError;
use crate::wgpu::emit::Emitter;
use moe_run_graph::ir::Node;

pub(super) fn emit(e: &mut Emitter<'_>, node: &Node) -> Result<(), BackendError> {
    super::add::elementwise(e, node, "mul")
}
