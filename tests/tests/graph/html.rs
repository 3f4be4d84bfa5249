//! The HTML page in a real browser: it loads from a file, folds and unfolds, finds, and says nothing on the console.

use crate::chromium::Chromium;
use crate::common::{Dumped, plan_of, target};
use moe_run_graph::config::ModelConfig;
use moe_run_graph::dump::{self, MeasuredTimes, Subject};
use moe_run_graph::gguf::MetaValue;
use moe_run_graph::ir::Graph;
use moe_run_graph::passes::TapSelection;
use std::path::Path;

fn skipped() {
    eprintln!("SKIPPED: no Chromium on this machine; MOE_RUN_CHROMIUM names one");
}

fn write(dir: &Path, name: &str, dump: &dump::Dump) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, dump::html(dump).unwrap()).unwrap();
    path
}

fn lowered(model: &(ModelConfig, Graph)) -> dump::Dump {
    Dumped { bandwidth_bytes_per_s: Some(60e9), ..Dumped::new(Subject::Lowered) }.dump(model)
}

#[test]
fn the_page_folds_and_finds_and_reports_no_error() {
    let Some(mut browser) = Chromium::start(1280, 800) else { return skipped() };
    let dir = tempfile::tempdir().unwrap();
    let model = target().lower();
    browser.open(&write(dir.path(), "lowered.html", &lowered(&model)));

    // Folded, the whole model stands on one screen without scrolling.
    assert_eq!(browser.evaluate("document.querySelectorAll('.tile').length"), 48);
    assert_eq!(browser.evaluate("document.querySelectorAll('.layer').length"), 0);
    assert_eq!(browser.evaluate("document.documentElement.scrollHeight <= 800"), true);
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth <= 1280"), true);

    browser.click(".tile[data-layer='7']");
    assert_eq!(browser.evaluate("document.querySelectorAll('.layer .row').length"), 23);
    assert_eq!(browser.evaluate("document.querySelector('.tile[data-layer=\"7\"]').ariaExpanded"), "true");
    browser.click(".tile[data-layer='7']");
    assert_eq!(browser.evaluate("document.querySelectorAll('.layer').length"), 0);

    // The search box: `/` leads to it; typed and entered, a tap is found, its layer unfolded, its row in view.
    browser.key("/");
    for c in "layer-3/moe_router".chars() {
        browser.key(&c.to_string());
    }
    assert_eq!(browser.evaluate("document.querySelector('#hits li').dataset.path"), "layer-3/moe_router");
    browser.key("Enter");
    let found = "document.querySelector('.row.on').dataset.path";
    assert_eq!(browser.evaluate(found), "layer-3/router_topk");
    assert_eq!(browser.evaluate("document.querySelector('.pill.on').dataset.path"), "layer-3/moe_router");
    let in_view = "(() => { const b = document.querySelector('.row.on').getBoundingClientRect(); \
                   return b.top > 60 && b.bottom < innerHeight; })()";
    assert_eq!(browser.evaluate(in_view), true);
    assert_eq!(browser.evaluate("document.querySelector('#detail h2').textContent"), "layer-3/moe_router");
    // Nothing of the row is cut off.
    let cut =
        "[...document.querySelectorAll('.row > *')].filter(e => e.scrollWidth > e.clientWidth + 1).length";
    assert_eq!(browser.evaluate(cut), 0);

    browser.evaluate("document.getElementById('unfold').click()");
    assert_eq!(browser.evaluate("document.querySelectorAll('.layer').length"), 48);
    browser.evaluate("document.getElementById('fold').click()");
    assert_eq!(browser.evaluate("document.querySelectorAll('.layer').length"), 0);

    let theme = "document.documentElement.dataset.theme";
    assert_eq!(browser.evaluate(theme), "light");
    let dark = serde_json::json!({ "features": [{ "name": "prefers-color-scheme", "value": "dark" }] });
    browser.call("Emulation.setEmulatedMedia", dark);
    browser.until(&format!("{theme} === 'dark'"));
    assert!(browser.screenshot().len() > 10_000, "the page is drawn");
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[test]
fn a_profiled_plan_shows_heat_and_what_was_dropped() {
    let Some(mut browser) = Chromium::start(1280, 800) else { return skipped() };
    let dir = tempfile::tempdir().unwrap();
    let model = target().lower();
    let plan = plan_of(&model.1, &TapSelection::None, &[]);
    let launch_seconds = (0..plan.launches.len()).map(|i| 1e-6 * (1 + i % 7) as f64).collect();
    let mut dumped = Dumped::new(Subject::Plan(&plan));
    dumped.bandwidth_bytes_per_s = Some(60e9);
    dumped.measured = Some(MeasuredTimes { steps: 3, launch_seconds });
    browser.open(&write(dir.path(), "plan.html", &dumped.dump(&model)));

    assert_eq!(browser.evaluate("document.querySelectorAll('.tile.hot').length"), 48);
    browser.click(".tile[data-layer='0']");
    assert_eq!(browser.evaluate("document.querySelectorAll('.layer .num.hot').length"), 21);
    for (path, said) in [
        ("layer-3/moe_router", "it was not asked for"),
        ("layer-3/attn_scores", "the plan has dropped both"),
        ("launch 40", "Cost"),
    ] {
        browser.evaluate("document.getElementById('search').value = ''");
        browser.key("/");
        browser.call("Input.insertText", serde_json::json!({ "text": path }));
        browser.key("Enter");
        let detail = browser.evaluate("document.getElementById('detail').textContent");
        let detail = detail.as_str().unwrap();
        assert!(detail.starts_with(path) && detail.contains(said), "{path}: {detail}");
    }
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[test]
fn a_models_name_is_text_and_never_markup() {
    let Some(mut browser) = Chromium::start(1280, 800) else { return skipped() };
    let dir = tempfile::tempdir().unwrap();
    let name = "</script><script>document.title='x'</script><!--<b>&amp; {{data}} /*script*/";
    let mut blueprint = crate::common::one_layer();
    blueprint.set("general.name", MetaValue::String(name.into()));
    browser.open(&write(dir.path(), "name.html", &lowered(&blueprint.lower())));
    assert_eq!(browser.evaluate("document.querySelector('h1').textContent"), name);
    assert_eq!(browser.evaluate("document.title"), format!("{name} – moe-run graph"));
    assert_eq!(browser.errors, Vec::<String>::new());
}
