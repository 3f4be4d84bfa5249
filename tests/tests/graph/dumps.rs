//! Dumps of the 48-layer target: they fold, they are fast, and their numbers are right.

use crate::common::{Dumped, plan_of, target};
use moe_run_graph::dump::{self, Subject};
use moe_run_graph::passes::TapSelection;

#[test]
fn look() {
    let model = target();
    let t = std::time::Instant::now();
    let model = model.lower();
    eprintln!("lower {:?}", t.elapsed());
    let t = std::time::Instant::now();
    let plan = plan_of(&model.1, &TapSelection::None, &[]);
    eprintln!("plan {:?}", t.elapsed());
    let dir = std::path::Path::new("/tmp/dumplook");
    std::fs::create_dir_all(dir).unwrap();
    for (name, subject) in [
        ("lowered", Subject::Lowered),
        ("optimized", Subject::Optimized(&plan)),
        ("plan", Subject::Plan(&plan)),
    ] {
        let mut d = Dumped::new(subject);
        d.bandwidth_bytes_per_s = Some(60e9);
        let t = std::time::Instant::now();
        let d = d.dump(&model);
        eprintln!("dump {:?}", t.elapsed());
        std::fs::write(dir.join(format!("{name}.txt")), dump::text(&d)).unwrap();
        std::fs::write(dir.join(format!("{name}.dot")), dump::dot(&d)).unwrap();
        std::fs::write(dir.join(format!("{name}.json")), dump::json(&d).unwrap()).unwrap();
        std::fs::write(dir.join(format!("{name}.html")), dump::html(&d).unwrap()).unwrap();
        eprintln!("all {:?}", t.elapsed());
    }
}
