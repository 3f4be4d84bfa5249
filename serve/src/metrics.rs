//! `/metrics`: what the engine counts, in Prometheus' text format.

use moe_run_runtime::engine::{Histogram, Meter};
use std::fmt::Write;

/// The content type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

fn number(out: &mut String, kind: &str, name: &str, help: &str, value: impl std::fmt::Display) {
    // To write to a string never fails.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
}

fn histogram(out: &mut String, name: &str, help: &str, histogram: &Histogram) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
    let mut count = 0;
    for (bound, times) in histogram.cumulative() {
        let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
        let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {times}");
        count = times;
    }
    let _ = writeln!(out, "{name}_sum {}\n{name}_count {count}", histogram.sum_seconds());
}

/// All metrics.
pub fn text(meter: &Meter) -> String {
    let mut out = String::new();
    let gauges = [
        ("moe_run_requests_running", "Requests that run.", meter.running()),
        ("moe_run_requests_waiting", "Requests that wait in the queue.", meter.waiting()),
        ("moe_run_kv_blocks_used", "Blocks of 64 tokens that requests hold.", meter.blocks_used()),
        ("moe_run_kv_blocks_total", "Blocks of 64 tokens.", meter.blocks_total()),
    ];
    for (name, help, value) in gauges {
        number(&mut out, "gauge", name, help, value);
    }
    let counters = [
        (
            "moe_run_prompt_tokens_total",
            "Prompt tokens evaluated, without cached ones.",
            meter.prompt_tokens(),
        ),
        ("moe_run_prompt_tokens_cached_total", "Prompt tokens taken from the cache.", meter.cached_tokens()),
        ("moe_run_generated_tokens_total", "Tokens generated.", meter.generated_tokens()),
        ("moe_run_preemptions_total", "Requests put back for lack of blocks.", meter.preemptions()),
        ("moe_run_steps_total", "Steps of the engine.", meter.steps()),
    ];
    for (name, help, value) in counters {
        number(&mut out, "counter", name, help, value);
    }
    let (queued, step) = ("From submission to the first step.", "Of a step.");
    histogram(&mut out, "moe_run_queue_seconds", queued, &meter.queued);
    let first = "From submission to the first token.";
    histogram(&mut out, "moe_run_time_to_first_token_seconds", first, &meter.first_token);
    let between = "From a request's token to its next one.";
    histogram(&mut out, "moe_run_time_between_tokens_seconds", between, &meter.between_tokens);
    histogram(&mut out, "moe_run_step_seconds", step, &meter.step);
    out
}
