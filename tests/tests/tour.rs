//! docs/tour.md tells the truth: every command in it is run, and prints the lines that stand below it, in their order. `…`
//! stands for anything: a line of it for lines, within a line for a part of it.

use moe_run_tests::fixtures::crate_dir;
use std::path::Path;
use std::process::Command;

/// A command and what it is to print.
struct Shown {
    command: String,
    lines: Vec<String>,
}

/// The indented blocks of a page: `$ command`, then its lines.
fn shown(page: &str) -> Vec<Shown> {
    let mut all: Vec<Shown> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        let Some(line) = line.strip_prefix("    ") else {
            inside = false;
            continue;
        };
        if let Some(command) = line.strip_prefix("$ ") {
            all.push(Shown { command: command.to_owned(), lines: Vec::new() });
            inside = true;
        } else if let (true, Some(last)) = (inside, all.last_mut()) {
            last.lines.push(line.to_owned());
        }
    }
    all
}

/// Whether a line is what is shown: its parts between `…` in order, the first at the beginning, the last at the end.
fn is_as_shown(line: &str, wanted: &str) -> bool {
    let mut parts: Vec<&str> = wanted.split('…').collect();
    let last = parts.pop().unwrap_or_default();
    if parts.is_empty() {
        return line == last;
    }
    let Some(mut rest) = line.strip_prefix(parts[0]) else { return false };
    for part in &parts[1..] {
        let Some((_, behind)) = rest.split_once(part) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

/// The first line that is shown and does not follow.
fn missing<'a>(found: &str, wanted: &'a [String]) -> Option<&'a str> {
    let mut found = found.lines();
    wanted
        .iter()
        .map(String::as_str)
        .filter(|line| *line != "…")
        .find(|wanted| !found.any(|line| is_as_shown(line.trim_end(), wanted)))
}

#[test]
fn every_command_prints_what_the_tour_shows() {
    let page = std::fs::read_to_string(crate_dir().join("../docs/tour.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_moe-run-under-test"));
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(program, bin.join("moe-run")).unwrap();
    let verse = "The model reads a text, one token after another, and says how likely each of them was.\n";
    std::fs::write(folder.path().join("verse.txt"), verse.repeat(60)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let all = shown(&page);
    assert!(all.len() >= 12, "{} commands", all.len());
    for Shown { command, lines } in all {
        let output = Command::new("sh")
            .args(["-c", &format!("{command} 2>&1")])
            .current_dir(folder.path())
            .env("PATH", &path)
            .output()
            .unwrap();
        let found = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command}\n{found}");
        assert_eq!(missing(&found, &lines), None, "$ {command}\n{found}");
    }
}

#[test]
fn a_line_that_is_not_there_is_missed() {
    let wanted = |lines: &[&str]| lines.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>();
    let found = "a 1 b\nc\nd";
    assert_eq!(missing(found, &wanted(&["a … b", "…", "d"])), None);
    assert_eq!(missing(found, &wanted(&["c", "a … b"])), Some("a … b"));
    assert_eq!(missing(found, &wanted(&["a"])), Some("a"));
    assert_eq!(missing(found, &wanted(&["a … c"])), Some("a … c"));
}
