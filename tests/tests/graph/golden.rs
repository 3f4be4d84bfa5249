//! The text of every level of a one-layer graph, and of each backend's plan, against files under `golden/`. Kernels are
//! left out: which variant runs is the machine's choice.
//!
//! `MOE_RUN_UPDATE_GOLDEN=1 cargo test -p moe-run-tests --test graph golden` writes them anew; the difference is then
//! to be read, not waved through.

use crate::common::{Dumped, one_layer, plan_of};
use moe_run_backends::{CompileOptions, registry};
use moe_run_graph::dump::{self, Subject};
use moe_run_graph::ir::Stage;
use moe_run_graph::passes::{TapSelection, drop_unrequested_taps};
use std::fmt::Write;
use std::path::Path;

fn check(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("MOE_RUN_UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, found).unwrap();
        return;
    }
    let wanted = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; MOE_RUN_UPDATE_GOLDEN=1 writes it", path.display()));
    if wanted == found {
        return;
    }
    let mut difference = String::new();
    let (mut a, mut b) = (wanted.lines(), found.lines());
    loop {
        match (a.next(), b.next()) {
            (None, None) => break,
            (wanted, found) if wanted == found => {}
            (wanted, found) => {
                let _ = write!(difference, "- {}\n+ {}\n", wanted.unwrap_or(""), found.unwrap_or(""));
            }
        }
    }
    panic!("{name} has changed; MOE_RUN_UPDATE_GOLDEN=1 accepts it:\n{difference}");
}

#[test]
fn golden_lowered_graph() {
    let model = one_layer().lower();
    let dump = Dumped::new(Subject::Lowered).dump(&model);
    check("one_layer.lowered.txt", &dump::text(&dump));
    check("one_layer.lowered.dot", &dump::dot(&dump));
}

#[test]
fn golden_drop_unrequested_taps() {
    let (_, graph) = one_layer().lower();
    let mut text = String::new();
    let some = [(Stage::AttnScores, Some(0)), (Stage::MoeRouter, Some(0))].into_iter().collect();
    for (what, taps) in [("none", TapSelection::None), ("attn_scores, moe_router", some)] {
        let _ = writeln!(text, "taps kept: {what}");
        for node in &drop_unrequested_taps(&graph, &taps).nodes {
            let _ = writeln!(text, "  {} {} {}", node.id, node.path(), node.op.stem());
        }
    }
    check("one_layer.drop_unrequested_taps.txt", &text);
}

/// What `group_launches` and `plan_memory` make of it for each backend, for one token and for a prompt.
#[test]
fn golden_plans_of_every_backend() {
    let model = one_layer().lower();
    for backend in registry::all() {
        for tokens in [1, 512] {
            let patterns = backend.patterns(tokens, &CompileOptions::default());
            let mut text = String::new();
            for taps in [TapSelection::None, TapSelection::All] {
                let plan = plan_of(&model.1, &taps, &patterns);
                for subject in [Subject::Optimized(&plan), Subject::Plan(&plan)] {
                    let mut dumped = Dumped::new(subject);
                    dumped.backend = Some(backend.name());
                    text.push_str(&dump::text(&dumped.dump(&model)));
                    text.push('\n');
                }
            }
            check(&format!("one_layer.{}.{tokens}.txt", backend.name()), &text);
        }
    }
}
