//! Runs a prompt with taps and keeps what they give.

use moe_run_backends::executable::ValueAccess;
use moe_run_backends::session::{LogitsRows, Session};
use moe_run_backends::{Backend, BackendError, CompileOptions, HostTensor, Observer, TapValue};
use moe_run_graph::Model;
use moe_run_graph::ids::TokenId;
use moe_run_graph::passes::{Launch, Plan, TapSelection};
use moe_run_inspect::taps::states::changed_states;
use std::collections::BTreeMap;
use std::time::Duration;

/// Keeps every tapped value by its path (`layer-0/attn_norm`), joining micro-batches along the first axis.
#[derive(Debug, Default)]
pub struct Collect {
    /// The values.
    pub values: BTreeMap<String, HostTensor>,
    /// The states that a sequence has one row of, as the last launch that changes them left them: `layer-0/conv_state`.
    pub states: BTreeMap<String, HostTensor>,
}

impl Observer for Collect {
    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        let path = tap.stage.path(tap.layer);
        if self.values.insert(path.clone(), tap.tensor.to_tensor()).is_some() {
            return Err(BackendError::Input(format!(
                "{path} was delivered twice: prompts here fit one micro-batch"
            )));
        }
        Ok(())
    }

    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        _elapsed: Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        for (stage, layer, held) in changed_states(plan, launch, values, |_, _| true)? {
            self.states.insert(stage.path(Some(layer.index())), held);
        }
        Ok(())
    }
}

/// Evaluates `tokens` in one step with every tap, all rows of logits asked for.
///
/// # Errors
/// What compiling or the step reports.
pub fn all_taps(
    backend: &dyn Backend,
    model: &Model,
    options: &CompileOptions,
    tokens: &[TokenId],
) -> Result<Collect, BackendError> {
    let options = CompileOptions {
        taps: TapSelection::All,
        max_logits_rows: tokens.len(),
        micro_batch: Some(tokens.len()),
        ctx_size: tokens.len(),
        ..options.clone()
    };
    let executable = backend.compile(&model.graph, model.file.clone(), &options)?;
    let mut session = Session::new(executable)?;
    let mut collect = Collect::default();
    session.feed(tokens, LogitsRows::All, Some(&mut collect), |_, _| Ok(()))?;
    Ok(collect)
}
