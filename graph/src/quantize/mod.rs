//! A model's file → the same model in other formats.
//!
//! Input: an opened [`Model`](crate::Model), a choice of formats ([`Choice`]), and where there is one what a text said of the
//! importance of columns ([`Importance`]). Output: a [`QuantizePlan`], the table of what becomes of each tensor; then the file,
//! written from front to back a few rows at a time by [`Job`], into a file that can be gone on with ([`Resumable`]).
//! Deliberately absent: which format a tensor should have for a size in bits, which needs the model to run.

mod importance;
mod job;
mod mixture;
mod plan;
mod recipe;
mod resume;

pub use importance::{IMPORTANCE_TYPE, Importance, ImportanceError, TensorImportance, importance_file};
pub use job::{ENCODER_VERSION, Job, JobError, encode_tensor};
pub(crate) use mixture::more_bits;
pub use mixture::{MIXTURES, Mixture};
pub use plan::{Base, Choice, Entry, PlanError, QuantizePlan, Why};
pub use recipe::{Recipe, RecipeError, Rule};
pub use resume::{Begun, Resumable, ResumeError};
