//! The commands, which hold the model.

use moe_run_tests::cli::{Finished, run_with_input};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-run-under-test");

fn run(args: &[&str]) -> Finished {
    run_with_input(PROGRAM, args.iter().copied(), b"")
}

#[test]
fn the_commands_hold_the_model_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let schema = path(
        "schema.json",
        r##"{"type": "object", "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["answer"], "additionalProperties": false}"##,
    );
    let ask = |more: &[&str]| {
        let args = ["run", "-p", "What is 2+2?", "--json"];
        run(&args.iter().chain(more).copied().collect::<Vec<_>>())
    };
    for temperature in ["0", "1.5"] {
        let report =
            ask(&["--temp", temperature, "--seed", "7", "--json-schema", &schema]).succeeded().json();
        let value: Value = serde_json::from_str(report["text"].as_str().unwrap()).unwrap();
        assert!((0..=99).contains(&value["answer"].as_i64().unwrap()), "{report}");
        assert!(["constraint_complete", "end_token"].contains(&report["stop_reason"].as_str().unwrap()));
    }
    let report = ask(&["--temp", "0", "--regex", "[0-9]"]).succeeded().json();
    assert!(report["text"].as_str().unwrap().parse::<u8>().is_ok(), "{report}");
    let grammar = path("g.lark", "start: \"yes\" | \"no\"");
    let report = ask(&["--temp", "0", "--grammar", &grammar]).succeeded().json();
    assert!(["yes", "no"].contains(&report["text"].as_str().unwrap()), "{report}");
    for (args, said) in [
        (&["--regex", "(a"][..], "regular expression"),
        (&["--json-schema", &path("u.json", r#"{"uniqueItems": true}"#)], "uniqueItems"),
        (&["--json-schema", &path("n.json", "{")], "not valid JSON"),
        (&["--regex", "a", "--grammar", &grammar], "cannot be used with"),
    ] {
        let refused = ask(args);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
    let args = ["chat", "--temp", "0", "--regex", "(yes|no)"];
    let chat = run_with_input(PROGRAM, args, b"Is it?\nAnd now?\n").succeeded();
    assert!(chat.stdout.lines().filter(|line| ["yes", "no"].contains(line)).count() == 2, "{chat:?}");
}
