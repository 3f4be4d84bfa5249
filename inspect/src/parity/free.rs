//! The free run: both sides left to themselves; every stage compared as it is computed, in the order of execution.
//!
//! A routing flip that is a near-tie is rounding. What lies behind it (the position in that layer; the position and
//! those after it in every later layer) was computed by other experts and is not judged.

use super::not_finite::{Beginning, take_as_equal};
use super::report::{LogitsCheck, RoutingFlip, StageCheck};
use super::source::{Key, Message, Source, changed_states, elements};

use super::{ParityError, carry};
use crate::taps::RowAxis;
use crate::taps::compare::{Comparison, compare};
use crate::taps::flips::{Logits, align, flips};
use crate::tolerance::Tolerance;
use moe_run_graph::ir::Stage;
use moe_run_graph::passes::{Launch, Plan};
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{HostTensor, Observer, TapValue, ValueAccess};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

/// The relative difference of router logits that is always granted in a free run: it is then rounding that decided.
const LOGIT_NOISE: f64 = 1e-6;

/// Compares every tap with the other side's.
pub(super) struct Free<'a> {
    pub source: Source<'a>,
    tolerance: Tolerance,
    index: HashMap<(Stage, Option<usize>), usize>,
    logits: LogitsSums,
    router_logits: Option<(usize, Rc<HostTensor>, Rc<HostTensor>)>,
    /// Ids of the layer in progress: this side's and the other's.
    ids: Option<(usize, Vec<f32>, Vec<f32>)>,
    near_ties: Vec<(usize, u32)>,
    pub stages: Vec<StageCheck>,
    pub missing: BTreeSet<String>,
    pub flips: Vec<RoutingFlip>,
    pub first_beyond: Option<(Stage, Option<usize>, u32)>,
    pub first_not_finite: Option<Beginning>,
}

#[derive(Default)]
struct LogitsSums {
    /// That have numbers on one side at least.
    positions: usize,
    not_finite: usize,
    agreements: usize,
    kl: f64,
    kl_max: f64,
    max_abs: f64,
}

impl<'a> Free<'a> {
    pub(super) fn new(source: Source<'a>, tolerance: Tolerance) -> Free<'a> {
        Free {
            source,
            tolerance,
            index: HashMap::new(),
            logits: LogitsSums::default(),
            router_logits: None,
            ids: None,
            near_ties: Vec::new(),
            stages: Vec::new(),
            missing: BTreeSet::new(),
            flips: Vec::new(),
            first_beyond: None,
            first_not_finite: None,
        }
    }

    pub(super) fn logits(&self) -> Option<LogitsCheck> {
        let l = &self.logits;
        (l.positions + l.not_finite > 0).then(|| LogitsCheck {
            positions: l.positions,
            not_finite: l.not_finite,
            argmax_agreement: l.agreements as f64 / l.positions as f64,
            kl: l.kl / l.positions as f64,
            kl_max: l.kl_max,
            max_abs: l.max_abs,
        })
    }

    /// Whether a row lies behind a near-tie.
    fn excluded(&self, stage: Stage, layer: Option<usize>, position: u32) -> bool {
        self.near_ties.iter().any(|&(flip_layer, flip_position)| match layer {
            Some(l) if l == flip_layer => position == flip_position && stage > Stage::MoeTopkIds,
            Some(l) => l > flip_layer && position >= flip_position,
            None => stage != Stage::Embedding && position >= flip_position,
        })
    }

    fn compare_tap(&mut self, tap: &TapValue<'_>) -> Result<(), ParityError> {
        let first_position = tap.positions.first().copied().unwrap_or(0);
        let key = Key { stage: tap.stage, layer: tap.layer, first_position };
        let Some(other) = self.source.get(key, tap.positions.len())? else {
            self.missing.insert(tap.stage.path(tap.layer));
            return Ok(());
        };
        if other.data.len() != tap.tensor.elems() {
            return Err(ParityError::Sizes {
                stage: tap.stage.path(tap.layer),
                found: other.shape.clone(),
                wanted: tap.tensor.shape.to_vec(),
            });
        }
        let mine = tap.tensor.floats();
        let mut theirs = elements(&other).into_owned();
        match (tap.stage, tap.layer) {
            (Stage::MoeLogits, Some(layer)) => {
                self.router_logits = Some((layer, Rc::new(tap.tensor.to_tensor()), Rc::clone(&other)));
            }
            (Stage::MoeTopkIds, Some(layer)) => {
                return self.compare_ids(tap, layer, &mine, &theirs);
            }
            (
                Stage::MoeRouter
                | Stage::FfnGate
                | Stage::FfnUp
                | Stage::FfnSilu
                | Stage::FfnSwigl
                | Stage::FfnOut,
                _,
            ) => {
                if let Some((layer, a, b)) = &self.ids
                    && Some(*layer) == tap.layer
                {
                    let per_tok = a.len() / tap.positions.len().max(1);
                    align(&mut theirs, per_tok, b, a);
                }
            }
            (Stage::LmHead, _) => self.compare_logits(&mine, &theirs, tap.tensor.shape.last().copied()),
            _ => {}
        }
        let (kept_a, mut kept_b, excluded) = self.judged_rows(tap, &mine, &theirs);
        take_as_equal(&kept_a, &mut kept_b);
        let comparison = compare(&kept_a, &kept_b, 0);
        self.record(tap, &comparison, excluded);
        Ok(())
    }

    /// Compares a state behind the step's last token, whose position that is.
    fn compare_state(
        &mut self,
        (key, mine): Message,
        position: u32,
        tokens: usize,
    ) -> Result<(), ParityError> {
        let Some(other) = self.source.get(key, tokens)? else {
            self.missing.insert(key.stage.path(key.layer));
            return Ok(());
        };
        if other.data.len() != mine.data.len() {
            return Err(ParityError::Sizes {
                stage: key.stage.path(key.layer),
                found: other.shape.clone(),
                wanted: mine.shape.clone(),
            });
        }
        let is_excluded = self.excluded(key.stage, key.layer, position);
        let (a, mut b) = match is_excluded {
            true => (Vec::new(), Vec::new()),
            false => (elements(&mine).into_owned(), elements(&other).into_owned()),
        };
        take_as_equal(&a, &mut b);
        let comparison = compare(&a, &b, 0);
        let tap = TapValue {
            stage: key.stage,
            layer: key.layer,
            positions: &[position],
            logits_rows: &[],
            tensor: mine.view(),
            production: true,
        };
        self.record(&tap, &comparison, usize::from(is_excluded));
        Ok(())
    }

    /// The elements that are judged: rows behind a near-tie and positions after the query are left out.
    fn judged_rows(&self, tap: &TapValue<'_>, mine: &[f32], theirs: &[f32]) -> (Vec<f32>, Vec<f32>, usize) {
        let axis = RowAxis::of(tap.stage);
        let tokens = tap.positions.len().max(1);
        let width = match axis {
            RowAxis::HeadsTokensCached => tap.tensor.shape.last().copied().unwrap_or(1),
            _ => mine.len() / tap.tensor.shape.first().copied().unwrap_or(1).max(1),
        }
        .max(1);
        let (mut a, mut b, mut excluded) = (Vec::new(), Vec::new(), 0);
        for (row, (x, y)) in mine.chunks_exact(width).zip(theirs.chunks_exact(width)).enumerate() {
            let token = match axis {
                RowAxis::Tokens => row,
                RowAxis::LogitsRows => tap.logits_rows[row] as usize,
                RowAxis::HeadsTokensCached => row % tokens,
            };
            let position = tap.positions[token];
            if self.excluded(tap.stage, tap.layer, position) {
                excluded += 1;
                continue;
            }
            let visible =
                if axis == RowAxis::HeadsTokensCached { width.min(position as usize + 1) } else { width };
            a.extend_from_slice(&x[..visible]);
            b.extend_from_slice(&y[..visible]);
        }
        (a, b, excluded)
    }

    fn compare_ids(
        &mut self,
        tap: &TapValue<'_>,
        layer: usize,
        mine: &[f32],
        theirs: &[f32],
    ) -> Result<(), ParityError> {
        let per_tok = tap.tensor.shape.last().copied().unwrap_or(1);
        let logits = self.router_logits.as_ref().filter(|(l, _, _)| *l == layer);
        let floats = logits.map(|(_, a, b)| (elements(a), elements(b), a.shape.last().copied()));
        let logits = floats.as_ref().map(|(a, b, e)| Logits { a, b, num_experts: e.unwrap_or(0) });
        let mut bugs = 0usize;
        let mut found = flips(mine, theirs, per_tok, logits, LOGIT_NOISE);
        found.retain(|f| !self.excluded(tap.stage, tap.layer, tap.positions[f.row]));
        for flip in found {
            let position = tap.positions[flip.row];
            if flip.near_tie {
                self.near_ties.push((layer, position));
            } else {
                bugs += flip.only_a.len();
            }
            self.flips.push(RoutingFlip { layer, position, flip });
        }
        // Ids are names: their distance is the share of choices that differ.
        let mut comparison = compare(&[], &[], 0);
        comparison.relative_l2 = bugs as f64 / mine.len().max(1) as f64;
        if bugs > 0 {
            comparison.relative_l2 = comparison.relative_l2.max(self.tolerance.value * 2.0);
        }
        self.record(tap, &comparison, 0);
        self.ids = Some((layer, mine.to_vec(), theirs.to_vec()));
        Ok(())
    }

    fn compare_logits(&mut self, mine: &[f32], theirs: &[f32], width: Option<usize>) {
        let width = width.unwrap_or(1).max(1);
        let sums = &mut self.logits;
        for (a, b) in mine.chunks_exact(width).zip(theirs.chunks_exact(width)) {
            if [a, b].iter().all(|row| row.iter().any(|x| !x.is_finite())) {
                sums.not_finite += 1;
                continue;
            }
            sums.positions += 1;
            sums.agreements += usize::from(best(a).is_some() && best(a) == best(b));
            let kl = kl_divergence(b, a);
            sums.kl += kl;
            sums.kl_max = if kl.is_nan() { kl } else { sums.kl_max.max(kl) };
            let difference = compare(a, b, 0).max.map_or(0.0, |m| m.abs);
            sums.max_abs = sums.max_abs.max(difference);
        }
    }

    fn record(&mut self, tap: &TapValue<'_>, c: &Comparison, rows_excluded: usize) {
        let beyond = !c.within(self.tolerance.value);
        if c.nan_a + c.inf_a > 0 {
            self.first_not_finite.get_or_insert(Beginning {
                stage: tap.stage,
                layer: tap.layer,
                values: c.nan_a + c.inf_a,
                on_both_sides: c.non_finite_mismatches == 0,
            });
        }
        let stages = &mut self.stages;
        let at = *self.index.entry((tap.stage, tap.layer)).or_insert_with(|| {
            stages.push(StageCheck {
                stage: tap.stage,
                layer: tap.layer,
                relative_l2: 0.0,
                cosine: 1.0,
                max_abs: 0.0,
                tolerance: self.tolerance.value,
                beyond: false,
                production: tap.production,
                rows_excluded: 0,
            });
            stages.len() - 1
        });
        let check = &mut self.stages[at];
        check.relative_l2 = check.relative_l2.max(c.relative_l2);
        check.cosine = if c.cosine.is_nan() { c.cosine } else { check.cosine.min(c.cosine) };
        check.max_abs = check.max_abs.max(c.max.map_or(0.0, |m| m.abs));
        check.beyond |= beyond;
        check.rows_excluded += rows_excluded;
        if beyond && tap.production && self.first_beyond.is_none() {
            let position = tap.positions.first().copied().unwrap_or(0);
            self.first_beyond = Some((tap.stage, tap.layer, position));
        }
    }
}

impl Observer for Free<'_> {
    fn after_launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        _elapsed: Duration,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        let sizes = values.sizes();
        if !self.source.has_states_behind(sizes.cached) {
            return Ok(());
        }
        let position = sizes.cached.saturating_sub(1) as u32;
        for state in changed_states(plan, launch, values)? {
            self.compare_state(state, position, sizes.tokens).map_err(carry)?;
        }
        Ok(())
    }

    fn tap(&mut self, tap: &TapValue<'_>) -> Result<(), BackendError> {
        self.compare_tap(tap).map_err(carry)
    }
}

/// The lowest of the best tokens; `None` where a logit is NaN.
fn best(logits: &[f32]) -> Option<usize> {
    let mut best = None::<(usize, f32)>;
    for (i, &x) in logits.iter().enumerate() {
        if x.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, b)| x > b) {
            best = Some((i, x));
        }
    }
    best.map(|b| b.0)
}

/// Σ p·(ln p − ln q) of the distributions of two rows of logits, in nats.
fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |x: &[f32]| {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = x.iter().map(|x| f64::from(x - max).exp()).sum();
        f64::from(max) + sum.ln()
    };
    let (lp, lq) = (log_sum(p), log_sum(q));
    let term = |(a, b): (&f32, &f32)| {
        let log_p = f64::from(*a) - lp;
        log_p.exp() * (log_p - (f64::from(*b) - lq))
    };
    p.iter().zip(q).map(term).sum::<f64>()
}
