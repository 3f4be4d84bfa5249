//! Taps of a request: `"taps": ["layer-3/moe_router", "final_norm"]` → what the passes held there, as safetensors in base64.

use moe_run_graph::ir::{Graph, LayerIdx, Stage, StageScope, StepSizes};
use moe_run_inspect::taps::tensor_file::safetensors_header;
use moe_run_runtime::sequences::{TappedRows, Taps, has_rows};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::ApiError;
use crate::fields::{Fields, wrong_type};
use crate::model::Model;

const NAME: &str = "taps";
/// Bytes of an answer's tensors at most, of all choices together.
const MAX_BYTES: usize = 64 << 20;

/// The taps that a model has.
#[derive(Debug, Default)]
pub struct TapTable {
    /// Of the experts' ids.
    pub experts: Arc<Taps>,
    /// Elements of a row of every tap that a request may ask for; `None` where none may.
    pub rows: Option<BTreeMap<(Stage, Option<usize>), usize>>,
}

impl TapTable {
    /// Those of a graph, which requests may ask for where `are_told`.
    #[must_use]
    pub fn of(graph: &Graph, are_told: bool) -> TapTable {
        let taps = || graph.taps().map(|(node, stage)| (node, (stage, node.layer.map(LayerIdx::index))));
        let one = StepSizes { tokens: 1, logits_rows: 1, cached: 1 };
        let width = |value| graph.value(value).shape.elems(one);
        let rows = taps()
            .filter(|(_, (stage, _))| has_rows(*stage))
            .map(|(node, tap)| (tap, node.inputs.iter().map(|value| width(*value)).sum()));
        let experts = taps().map(|(_, tap)| tap).filter(|(stage, _)| *stage == Stage::MoeTopkIds);
        TapTable { experts: Arc::new(experts.collect()), rows: are_told.then(|| rows.collect()) }
    }
}

/// The taps that a request asks for, and elements of a row of all together. A stage without a layer is that of every layer.
///
/// Errors: they are not told here; something that is no tap of the model.
pub fn read(fields: &mut Fields, model: &Model) -> Result<(Arc<Taps>, usize), ApiError> {
    let asked = fields.array(NAME)?.unwrap_or_default();
    if asked.is_empty() {
        return Ok(Default::default());
    }
    let Some(table) = &model.taps.rows else {
        return Err(ApiError::unsupported(NAME, "the server tells them where it is started with --taps"));
    };
    let mut taps = Taps::new();
    for (at, item) in asked.iter().enumerate() {
        let place = format!("{NAME}[{at}]");
        let wrong = |message: String| ApiError::field(&place, "invalid_value", message);
        let Value::String(text) = item else {
            return Err(wrong_type(&place, item, "a string such as \"layer-3/moe_router\""));
        };
        let shown = || text.chars().take(60).collect::<String>();
        let (layer, name) = match text.strip_prefix("layer-").and_then(|rest| rest.split_once('/')) {
            Some((layer, name)) => {
                let layer = layer.parse::<usize>();
                (Some(layer.map_err(|_| wrong(format!("found {:?}, wanted layer-N/STAGE", shown())))?), name)
            }
            None => (None, text.as_str()),
        };
        let Some(stage) = Stage::parse(name) else {
            return Err(wrong(format!(
                "found {:?}, which is no stage: moe-run trace --help lists them",
                shown()
            )));
        };
        if !has_rows(stage) {
            let why = "its rows are as long as what is cached: moe-run trace --save-tensor saves it";
            return Err(ApiError::unsupported(place, why));
        }
        let is_meant = |tap: &(Stage, Option<usize>)| tap.0 == stage && (layer.is_none() || tap.1 == layer);
        let before = taps.len();
        taps.extend(table.keys().copied().filter(is_meant));
        if taps.len() == before && !taps.iter().any(is_meant) {
            let place = match (layer, stage.scope()) {
                (Some(layer), StageScope::Layer) => format!("layer {layer} of this model"),
                (Some(_), StageScope::Model) => return Err(wrong(format!("{stage} is of no layer"))),
                (None, _) => "this model".to_owned(),
            };
            return Err(wrong(format!("{place} has no stage {stage}")));
        }
    }
    let width = taps.iter().filter_map(|tap| table.get(tap)).sum();
    Ok((Arc::new(taps), width))
}

/// Errors: the tensors of so many answers of so many tokens in all would be too large.
pub fn check_size(width: usize, tokens: usize) -> Result<(), ApiError> {
    let bytes = width.saturating_mul(tokens).saturating_mul(size_of::<f32>());
    if bytes > MAX_BYTES {
        let message = format!(
            "{tokens} tokens, prompts and answers, would make {bytes} bytes, wanted {MAX_BYTES} at most: ask for fewer taps, \
             or a smaller max_tokens"
        );
        return Err(ApiError::field(NAME, "invalid_value", message));
    }
    Ok(())
}

/// A safetensors file in base64. Its metadata's `positions` are, for each tensor, the position of the first row and the one behind
/// the last.
pub fn told(tapped: &[TappedRows]) -> Value {
    let name = |rows: &TappedRows| rows.stage.path(rows.layer);
    let shape = |rows: &TappedRows| [&[rows.rows()], rows.row_shape.as_slice()].concat();
    let tensors: Vec<_> = tapped.iter().map(|rows| (name(rows), shape(rows))).collect();
    let range = |rows: &TappedRows| json!([rows.first_position, rows.first_position + rows.rows()]);
    let positions: Map<String, Value> = tapped.iter().map(|rows| (name(rows), range(rows))).collect();
    let mut file = safetensors_header(&tensors, &[("positions", Value::Object(positions).to_string())]);
    file.extend(tapped.iter().flat_map(|rows| &rows.values).flat_map(|value| value.to_le_bytes()));
    Value::String(base64::encode(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_is_refused() {
        assert!(check_size(1 << 20, 16).is_ok());
        let error = check_size(1 << 20, 17).unwrap_err();
        assert!(error.message.contains("17 tokens") && error.param.as_deref() == Some("taps"), "{error:?}");
        assert!(check_size(usize::MAX, usize::MAX).is_err());
    }
}
