//! Progress on standard error: bars on a terminal, nothing elsewhere, and nothing under `--quiet`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use moe_run_backends::Progress;

use crate::output;

/// What a backend calls while it loads.
pub type Callback = Arc<dyn Fn(Progress) + Send + Sync>;

/// Work that is done sooner is not worth a bar.
const WORTH_A_BAR: Duration = Duration::from_secs(1);

/// A bar of so many steps, in a template of indicatif's; hidden under `--quiet`. (indicatif draws nothing where standard
/// error is no terminal.)
pub fn bar(length: u64, template: &str) -> ProgressBar {
    if output::is_quiet() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Bars for what a backend is doing while it loads, one for each sort of work; they vanish when this is dropped.
pub struct LoadBars {
    all: MultiProgress,
    by_work: Arc<Mutex<BTreeMap<&'static str, ProgressBar>>>,
}

impl LoadBars {
    /// No bar yet: the first is drawn when loading has taken a second.
    pub fn new() -> LoadBars {
        LoadBars { all: MultiProgress::new(), by_work: Arc::default() }
    }

    /// What tells the bars how far loading has come; `None` under `--quiet`.
    pub fn callback(&self) -> Option<Callback> {
        if output::is_quiet() {
            return None;
        }
        let (all, by_work, started) = (self.all.clone(), Arc::clone(&self.by_work), Instant::now());
        Some(Arc::new(move |progress: Progress| {
            if started.elapsed() < WORTH_A_BAR {
                return;
            }
            let mut by_work = by_work.lock().unwrap_or_else(PoisonError::into_inner);
            let bar = by_work.entry(progress.what).or_insert_with(|| {
                // Weights are counted in bytes, anything else in pieces.
                let template = if progress.what.contains("weights") {
                    "{msg} {wide_bar} {bytes}/{total_bytes}"
                } else {
                    "{msg} {wide_bar} {pos}/{len}"
                };
                all.add(bar(progress.total, template).with_message(progress.what))
            });
            // Threads tell in any order.
            if progress.done > bar.position() {
                bar.set_position(progress.done);
            }
        }))
    }
}

impl Default for LoadBars {
    fn default() -> LoadBars {
        LoadBars::new()
    }
}

impl Drop for LoadBars {
    fn drop(&mut self) {
        for bar in self.by_work.lock().unwrap_or_else(PoisonError::into_inner).values() {
            bar.finish_and_clear();
        }
    }
}
