//! The fusions that backends have one launch for: one file each, with the match by dataflow and the typed struct that it
//! gives. A backend takes the struct apart in its `fits` (without `..`, so that no attribute is passed over) and emits it;
//! a fusion has one name in every backend.

pub mod attention_step;
pub mod delta_step;
pub mod down_combine;
pub mod experts_gate_up;
pub mod final_norm_lm_head;
pub mod gate_up;
pub mod gated_matmul;
pub mod latent_heads;
pub mod matmul_residual;
pub mod norm_qkv;
pub mod norm_residual;
pub mod norm_router;
pub mod norms_residual;
pub mod parts;
pub mod rope_kv;
pub mod route_gate_up;
pub mod router_gate_up;

pub use crate::ir::pattern::{Group, LaunchPattern, Matcher, group_of};
pub use attention_step::{AttentionStep, NormSpan, Placed};
pub use delta_step::DeltaStep;
pub use down_combine::{DownCombine, SharedExpert, SharedGate, Sums};
pub use experts_gate_up::ExpertsGateUp;
pub use final_norm_lm_head::FinalNormLmHead;
pub use gate_up::GateUp;
pub use gated_matmul::{GatedMatMul, RowGate};
pub use latent_heads::{LatentHeads, LatentQuery};
pub use matmul_residual::MatMulResidual;
pub use norm_qkv::{NormQkv, Projection};
pub use norm_residual::NormResidual;
pub use norm_router::NormRouter;
pub use norms_residual::{NormedSum, NormsResidual};
pub use rope_kv::RopeKv;
pub use route_gate_up::RouteGateUp;
pub use router_gate_up::RouterGateUp;
