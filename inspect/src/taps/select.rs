//! Which taps were asked for: a list of stages and a range of layers → [`TapSelection`].
//!
//! What can be known without a model is checked by the two `parse` functions; what needs one by [`StageList::select`].

use moe_run_graph::ir::{Graph, Stage, StageScope};
use moe_run_graph::passes::TapSelection;
use std::collections::BTreeSet;
use std::ops::Range;

/// A request for taps that cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// A name that no stage has.
    #[error("unknown stage '{found}'; stages are {} (alias layer_output), or all", stage_names())]
    Unknown {
        /// The name.
        found: String,
    },
    /// An empty list, or nothing between two commas.
    #[error("empty stage name in '{list}'; wanted names separated by single commas, or all")]
    Empty {
        /// The list.
        list: String,
    },
    /// `all` beside other names.
    #[error("'all' beside other stages in '{list}'; wanted either all or a list of names")]
    AllMixed {
        /// The list.
        list: String,
    },
    /// Layers that are no range.
    #[error("layers '{found}': wanted START..END, two numbers with START below END (END is not included)")]
    Range {
        /// The text.
        found: String,
    },
    /// Layers that the model does not have.
    #[error("layers {}..{}: the model has {num_layers}, so END is at most {num_layers}", range.start, range.end)]
    Layers {
        /// The range.
        range: Range<usize>,
        /// The model's layers.
        num_layers: usize,
    },
    /// A stage that the model does not have in those layers.
    #[error("the model has no stage {stage} in layers {}..{}; it has {}", range.start, range.end, present.join(", "))]
    Lacks {
        /// The stage.
        stage: Stage,
        /// The layers.
        range: Range<usize>,
        /// What it has.
        present: Vec<&'static str>,
    },
}

fn stage_names() -> String {
    Stage::ALL.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ")
}

/// `STAGE[,STAGE…]` or `all`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageList {
    /// Every stage that the model has.
    All,
    /// These.
    Some(BTreeSet<Stage>),
}

impl StageList {
    /// Reads a list; names are case-insensitive.
    ///
    /// # Errors
    /// [`SelectError`] for an unknown or empty name and for `all` beside others.
    pub fn parse(list: &str) -> Result<StageList, SelectError> {
        let names: Vec<&str> = list.split(',').map(str::trim).collect();
        if names.iter().any(|n| n.is_empty()) {
            return Err(SelectError::Empty { list: list.to_owned() });
        }
        if names.iter().any(|n| n.eq_ignore_ascii_case("all")) {
            if names.len() > 1 {
                return Err(SelectError::AllMixed { list: list.to_owned() });
            }
            return Ok(StageList::All);
        }
        let stage = |n: &&str| Stage::parse(n).ok_or_else(|| SelectError::Unknown { found: (*n).to_owned() });
        Ok(StageList::Some(names.iter().map(stage).collect::<Result<_, _>>()?))
    }

    /// The taps of a graph that the list means in `layers`; stages of the whole model whatever the layers.
    ///
    /// # Errors
    /// [`SelectError`] for layers or stages that the model lacks.
    pub fn select(&self, graph: &Graph, layers: &Range<usize>) -> Result<TapSelection, SelectError> {
        if layers.end > graph.num_layers {
            return Err(SelectError::Layers { range: layers.clone(), num_layers: graph.num_layers });
        }
        // States have no taps: whoever wants one reads it behind the launch that changes it.
        let states = graph.state_stages().into_iter().map(|s| (s.stage, Some(s.layer.index())));
        let available: BTreeSet<(Stage, Option<usize>)> =
            graph.taps().map(|(node, stage)| (stage, node.layer.map(|l| l.index()))).chain(states).collect();
        let in_range = |&(_, layer): &(Stage, Option<usize>)| layer.is_none_or(|l| layers.contains(&l));
        let stages = match self {
            StageList::All => return Ok(available.into_iter().filter(in_range).collect()),
            StageList::Some(stages) => stages,
        };
        let chosen: BTreeSet<_> =
            available.iter().copied().filter(in_range).filter(|(s, _)| stages.contains(s)).collect();
        if let Some(&stage) = stages.iter().find(|s| !chosen.iter().any(|(c, _)| c == *s)) {
            let present: BTreeSet<Stage> =
                available.iter().filter(|t| in_range(t)).map(|(s, _)| *s).collect();
            return Err(SelectError::Lacks {
                stage,
                range: layers.clone(),
                present: present.into_iter().map(Stage::name).collect(),
            });
        }
        Ok(TapSelection::Some(chosen))
    }

    /// Whether the list asks for a stage whose rows are those of the logits.
    #[must_use]
    pub fn needs_all_logits(&self) -> bool {
        match self {
            StageList::All => true,
            StageList::Some(stages) => stages.iter().any(|s| matches!(s, Stage::FinalNorm | Stage::LmHead)),
        }
    }

    /// Whether every stage of the list belongs to the whole model.
    #[must_use]
    pub fn model_scope_only(&self) -> bool {
        matches!(self, StageList::Some(stages) if stages.iter().all(|s| s.scope() == StageScope::Model))
    }
}

/// Reads `START..END`, END exclusive.
///
/// # Errors
/// [`SelectError::Range`] for anything else, and for an empty or reversed range.
pub fn parse_layers(text: &str) -> Result<Range<usize>, SelectError> {
    let wrong = || SelectError::Range { found: text.to_owned() };
    let (start, end) = text.split_once("..").ok_or_else(wrong)?;
    let number = |s: &str| s.trim().parse::<usize>().map_err(|_| wrong());
    let range = number(start)?..number(end)?;
    if range.is_empty() {
        return Err(wrong());
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::{SelectError, StageList, parse_layers};
    use moe_run_graph::ir::Stage;

    #[test]
    fn lists() {
        assert_eq!(StageList::parse("ALL"), Ok(StageList::All));
        let list = StageList::parse("Attn_Norm, layer_output").unwrap();
        assert_eq!(list, StageList::Some([Stage::AttnNorm, Stage::PostFfnResidual].into()));
        assert!(matches!(StageList::parse(""), Err(SelectError::Empty { .. })));
        assert!(matches!(StageList::parse("attn_norm,,q_norm"), Err(SelectError::Empty { .. })));
        assert!(matches!(StageList::parse("all,q_norm"), Err(SelectError::AllMixed { .. })));
        let error = StageList::parse("attn_nrm").unwrap_err().to_string();
        assert!(error.contains("'attn_nrm'") && error.contains("moe_topk_ids"), "{error}");
    }

    #[test]
    fn layers() {
        assert_eq!(parse_layers("0..4"), Ok(0..4));
        for wrong in ["4..0", "1..1", "1", "a..b", "..3", "1..", "-1..2"] {
            assert!(parse_layers(wrong).is_err(), "{wrong}");
        }
    }
}
