//! What a comparison found: the verdict, the first operation that is wrong, every stage, every op, the logits.

use crate::taps::flips::Flip;
use crate::taps::number;
use crate::taps::save::ModelIdentity;
use crate::tolerance::{Relation, Tolerance};
use moe_run_graph::ir::Stage;
use moe_run_runtime::executable::ExecutableInfo;
use serde::Serialize;

/// The version of the JSON's layout.
pub const SCHEMA_VERSION: u32 = 1;

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Within tolerance.
    Pass,
    /// Beyond.
    Diverged,
}

/// One of the sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SideInfo {
    /// The backend, or where stages were saved.
    pub name: String,
    /// What ran; `None` for saved stages.
    pub executable: Option<ExecutableInfo>,
}

/// A stage of the free run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageCheck {
    /// The stage.
    pub stage: Stage,
    /// Its layer.
    pub layer: Option<usize>,
    /// The worst step's.
    #[serde(serialize_with = "number::f64")]
    pub relative_l2: f64,
    /// The worst step's.
    #[serde(serialize_with = "number::f64")]
    pub cosine: f64,
    /// The largest difference.
    #[serde(serialize_with = "number::f64")]
    pub max_abs: f64,
    /// The limit of relative_l2.
    pub tolerance: f64,
    /// Beyond it.
    pub beyond: bool,
    /// It fed the logits here.
    pub production: bool,
    /// Rows that lie behind a near-tie of the routing and are not judged.
    pub rows_excluded: usize,
}

/// An op of the forced run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpCheck {
    /// `layer-3/q_proj`.
    pub op: String,
    /// `matmul`.
    pub kind: &'static str,
    /// Its layer.
    pub layer: Option<usize>,
    /// The stage that shows it.
    pub stage: Option<Stage>,
    /// The launch that holds it: the pattern's name.
    pub launch: &'static str,
    /// The kernel, where the backend names it.
    pub kernel: Option<String>,
    /// The larger of relative_l2 and the worst channel's share.
    #[serde(serialize_with = "number::f64")]
    pub local_error: f64,
    /// Of the output.
    #[serde(serialize_with = "number::f64")]
    pub relative_l2: f64,
    /// The output channel with the largest |Δ| / (‖W_row‖·‖x‖), for products.
    pub worst_channel: Option<usize>,
    /// The limit of local_error.
    pub tolerance: f64,
    /// Why it is not smaller.
    pub tolerance_cause: &'static str,
    /// Beyond it.
    pub beyond: bool,
    /// It fed the logits here; otherwise it was recomputed and decides nothing.
    pub production: bool,
    /// Every input was the other side's; otherwise the error may be inherited, and it decides nothing.
    pub forced: bool,
    /// The weight that it reads.
    pub tensor: Option<String>,
    /// That weight's format.
    pub format: Option<&'static str>,
    /// The output's shape in the worst step.
    pub shape: Vec<usize>,
    /// The first position of the worst step.
    pub position: u32,
}

/// The first thing that is wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct First {
    /// `layer-3/q_proj`; the op that makes the stage where only the free run tells.
    pub op: String,
    /// Its layer.
    pub layer: Option<usize>,
    /// The stage.
    pub stage: Option<Stage>,
    /// Its own error; the free run's relative L2 where that is all there is.
    #[serde(serialize_with = "number::f64")]
    pub local_error: f64,
    /// The limit.
    pub tolerance: f64,
    /// Why the limit is not smaller.
    pub tolerance_cause: &'static str,
    /// The weight that the op reads.
    pub tensor: Option<String>,
    /// That weight's format.
    pub format: Option<&'static str>,
    /// The launch that holds the op.
    pub launch: Option<&'static str>,
    /// The kernel.
    pub kernel: Option<String>,
    /// The output's shape.
    pub shape: Option<Vec<usize>>,
    /// The first position of the step in which it was found.
    pub position: u32,
    /// `forced`: wrong by itself, having had the right inputs. `free`: named by the free run alone.
    pub found_by: &'static str,
}

/// The logits of the free run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LogitsCheck {
    /// Positions that are judged.
    pub positions: usize,
    /// Positions that are not: on both sides some of their logits are no finite numbers.
    pub not_finite: usize,
    /// The share of judged positions with the same best token; NaN where there are none.
    #[serde(serialize_with = "number::f64")]
    pub argmax_agreement: f64,
    /// The mean KL divergence of this side's distribution from the other's, in nats.
    #[serde(serialize_with = "number::f64")]
    pub kl: f64,
    /// The largest of a position.
    #[serde(serialize_with = "number::f64")]
    pub kl_max: f64,
    /// The largest difference of a logit.
    #[serde(serialize_with = "number::f64")]
    pub max_abs: f64,
}

/// A routing flip of the free run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoutingFlip {
    /// Layer.
    pub layer: usize,
    /// Position.
    pub position: u32,
    /// Which experts, and by how little.
    #[serde(flatten)]
    pub flip: Flip,
}

/// Where the free run's values stop being finite.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NotFinite {
    /// The first stage with such values, in the order of execution.
    pub stage: Stage,
    /// Its layer.
    pub layer: Option<usize>,
    /// Such values of the judged side, in the step that has the first of them.
    pub values: usize,
    /// The other side has such values at the same places: the model computes them, and no op is at fault.
    pub on_both_sides: bool,
    /// Weights that are not finite, of those that the stage is computed from; those of later stages are not looked at.
    pub weights: Vec<String>,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The verdict.
    pub verdict: Verdict,
    /// The first operation that is wrong; `None` where nothing is.
    pub first: Option<First>,
    /// In words.
    pub conclusion: String,
    /// This side.
    pub backend: SideInfo,
    /// The other.
    pub against: SideInfo,
    /// How their arithmetic relates.
    pub relation: Relation,
    /// The free run's limit.
    pub free_tolerance: Tolerance,
    /// Tokens.
    pub tokens: usize,
    /// How many of them were evaluated one by one at the end.
    pub decode_tokens: usize,
    /// Stages of the free run in the order of execution.
    pub stages: Vec<StageCheck>,
    /// Stages that the other side does not have.
    pub missing_stages: Vec<String>,
    /// Saved tensors that are no stage of this model, and were not looked at.
    pub unknown_tensors: Vec<String>,
    /// The model that stages were saved from, where that is recorded and is another than the judged one.
    pub saved_from: Option<ModelIdentity>,
    /// Where values are not finite; `None` where all are.
    pub not_finite: Option<NotFinite>,
    /// Routing flips of the free run.
    pub routing_flips: Vec<RoutingFlip>,
    /// Ops of the forced run in the order of execution; empty where there was none.
    pub ops: Vec<OpCheck>,
    /// The free run's logits; `None` where the other side has none.
    pub logits: Option<LogitsCheck>,
}

impl Report {
    /// Whether nothing is beyond tolerance.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Pass
    }
}
