//! Progress of loading, on standard error: a bar on a terminal, nothing elsewhere.

use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};
use moe_run_backends::Progress;

/// What a backend calls while it loads.
pub type Callback = Arc<dyn Fn(Progress) + Send + Sync>;

/// A bar for whatever the backend is doing; it vanishes when dropped.
pub struct LoadBar {
    bar: ProgressBar,
    what: Arc<Mutex<&'static str>>,
}

impl LoadBar {
    /// A bar that is not drawn before the first progress. (indicatif draws nothing where standard error is no terminal.)
    pub fn new() -> LoadBar {
        let bar = ProgressBar::hidden();
        LoadBar { bar, what: Arc::new(Mutex::new("")) }
    }

    /// What tells the bar how far loading has come.
    pub fn callback(&self) -> Callback {
        let (bar, what) = (self.bar.clone(), Arc::clone(&self.what));
        Arc::new(move |progress: Progress| {
            let mut what = what.lock().unwrap_or_else(PoisonError::into_inner);
            if *what != progress.what {
                *what = progress.what;
                // Weights are counted in bytes, anything else in pieces.
                let template = if progress.what.contains("weights") {
                    "{msg} {wide_bar} {bytes}/{total_bytes}"
                } else {
                    "{msg} {wide_bar} {pos}/{len}"
                };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                bar.set_message(progress.what);
                bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
            }
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        })
    }
}

impl Default for LoadBar {
    fn default() -> LoadBar {
        LoadBar::new()
    }
}

impl Drop for LoadBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
