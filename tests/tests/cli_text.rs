//! `moe-run tokenize` and `moe-run chat` as processes.

use std::io::Write;
use std::process::{Command, Stdio};

use moe_run_tests::cli::{Finished, finish, interrupt, run, run_with_input, wait_for, wait_for_work};
use moe_run_tests::fixtures;
use serde_json::{Map, Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-run-under-test");

fn tokenize(args: &[&str]) -> Finished {
    run(PROGRAM, ["tokenize"].iter().chain(args).copied())
}

fn fixture(name: &str) -> String {
    fixtures::crate_dir().join("fixtures").join(name).to_str().unwrap().to_owned()
}

#[test]
fn text_gives_ids_and_pieces() {
    let vocabulary = fixtures::qwen2_vocabulary().to_str().unwrap().to_owned();
    let report = tokenize(&["-m", &vocabulary, "--json", "What is 2+2?"]).succeeded().json();
    assert_eq!(
        report,
        json!({
            "schema_version": 1,
            "ids": [3838, 374, 220, 17, 10, 17, 30],
            "pieces": ["What", " is", " ", "2", "+", "2", "?"],
            "pieces_hex": ["57686174", "206973", "20", "32", "2b", "32", "3f"],
        })
    );
    let table = tokenize(&["-m", &vocabulary, "a\n<|im_end|>"]).succeeded();
    assert_eq!(table.stdout, "     64  \"a\"\n    198  \"\\n\"\n 151645  \"<|im_end|>\"\n");
    // Each byte of a character that the demo vocabulary splits is told from the next.
    assert!(tokenize(&["🙂"]).succeeded().stdout.contains("\"\\xF0\""));
    let split = tokenize(&["--json", "🙂"]).succeeded().json();
    assert_eq!(split["pieces"][0], "\u{FFFD}");
    let bytes: Vec<&str> =
        split["pieces_hex"].as_array().unwrap().iter().map(|b| b.as_str().unwrap()).collect();
    assert_eq!((bytes[0], bytes.concat().as_str()), ("f0", "f09f9982"));
}

#[test]
fn text_comes_from_files_and_pipes_every_character() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("t.txt");
    std::fs::write(&file, "2\n").unwrap();
    let wanted = json!([17, 198]);
    assert_eq!(tokenize(&["--json", "-f", file.to_str().unwrap()]).succeeded().json()["ids"], wanted);
    for args in [&["tokenize", "--json"][..], &["tokenize", "--json", "-"]] {
        let piped = run_with_input(PROGRAM, args.iter().copied(), b"2\n").succeeded().json();
        assert_eq!(piped["ids"], wanted);
    }
}

/// Every case of the templates' reference, through the command: the text exactly, and the ids of that text.
#[test]
fn messages_are_rendered_exactly() {
    let vocabulary = fixtures::qwen2_vocabulary().to_str().unwrap().to_owned();
    let cases: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(fixture("chat/cases.json")).unwrap()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("messages.json");
    let file = file.to_str().unwrap();
    for (number, case) in cases.iter().enumerate() {
        let mut input: Map<String, Value> = case["extra"].as_object().unwrap().clone();
        input.insert("messages".into(), case["messages"].clone());
        input.insert("tools".into(), case["tools"].clone());
        std::fs::write(file, serde_json::to_vec(&input).unwrap()).unwrap();
        let template = fixture(&format!("chat/{}", case["template"].as_str().unwrap()));
        let mut args = vec!["--messages", file, "--chat-template", &template];
        if case["add_generation_prompt"] == false {
            args.push("--no-generation-prompt");
        }
        let render_only: Vec<&str> = args.iter().copied().chain(["--render-only"]).collect();
        let rendered = tokenize(&render_only).succeeded();
        assert_eq!(rendered.stdout, case["expected"].as_str().unwrap(), "{}", case["case"]);
        assert_eq!(rendered.stderr, "", "no model is opened");
        // The big vocabulary takes a while to load: a few cases will do.
        if number % 9 == 0 {
            args.extend(["-m", &vocabulary]);
            assert_eq!(tokenize(&args).succeeded().stdout, rendered.stdout);
            args.push("--json");
            let report = tokenize(&args).succeeded().json();
            assert_eq!((&report["schema_version"], &report["text"]), (&json!(1), &case["expected"]));
            let plain = tokenize(&["-m", &vocabulary, "--json", "--", &rendered.stdout]).succeeded().json();
            assert_eq!(report["ids"], plain["ids"]);
        }
    }
}

#[test]
fn wrong_input_of_tokenize_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (broken, number, none) =
        (path("b.json", "{"), path("n.json", "3"), path("o.json", "{\"tools\": []}"));
    let no_role = path("r.json", "[{\"content\": \"x\"}]");
    let no_content = path("c.json", "[{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"assistant\"}]");
    let odd_role = path("w.json", "[{\"role\": \"wizard\", \"content\": \"x\"}]");
    let parts = path(
        "p.json",
        "[{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"x\"}]}]",
    );
    let raise = path("raise.jinja", "{{ raise_exception('only one system message') }}");
    let fine = path("f.json", "[{\"role\": \"user\", \"content\": \"x\"}]");
    let micro = fixture("micro/zoo-q8_0.gguf");
    let cases: &[(&[&str], &[&str])] = &[
        (&["--messages", "absent.json"], &["absent.json", "cannot read"]),
        (&["--messages", &broken], &["b.json", "JSON"]),
        (&["--messages", &number], &["n.json", "array of messages"]),
        (&["--messages", &none], &["o.json", "\"messages\""]),
        (&["--messages", &no_role], &["r.json: message 0: found no \"role\""]),
        (&["--messages", &no_content], &["c.json: message 1 (assistant): found no \"content\""]),
        (&["--messages", &odd_role], &["w.json: message 0 (wizard): found a role"]),
        (&["--messages", &parts], &["p.json: message 1 (user): chat template, line 1"]),
        (&["--messages", &fine, "--chat-template", &raise], &["only one system message"]),
        (&["--messages", &fine, "-m", &micro], &["no chat template", "--chat-template"]),
        (&["-m", &micro, "x"], &["no tokenizer"]),
        (&["--render-only", "x"], &["--render-only", "cannot be used with"]),
        (&["--no-generation-prompt"], &["--messages"]),
        (&["-f", "absent.txt"], &["absent.txt"]),
    ];
    for (args, said) in cases {
        let refused = tokenize(args);
        assert_eq!(refused.code, 2, "{args:?}: {refused:#?}");
        for word in *said {
            assert!(refused.stderr.contains(word), "{args:?} says {word}: {refused:#?}");
        }
    }
}

fn chat(args: &[&str], input: &str) -> Finished {
    let all = ["chat", "--backend", "reference", "--temp", "0"].iter().chain(args).copied();
    run_with_input(PROGRAM, all, input.as_bytes())
}

#[test]
fn a_conversation_has_turns_and_reuses_what_it_evaluated() {
    let ended =
        chat(&[], "Hello\n\nWhat is 2+2?\n/reset\nCapital of \\\nFrance:\n/exit\nHello\n").succeeded();
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines[..2], ["Hello! How can I help you today?", "2 + 2 = 4"], "{ended:#?}");
    assert_eq!(lines.len(), 3, "what follows /exit is not read: {ended:#?}");
    let prompts: Vec<&str> = ended.stderr.lines().filter(|l| l.starts_with("prompt: ")).collect();
    assert!(prompts[0].starts_with("prompt: 9 tokens"), "{prompts:?}");
    // The prompt of the second turn begins with the first one's 9 tokens and the 9 of its answer.
    assert!(prompts[1].contains("+ 18 kept tokens"), "{prompts:?}");
    assert!(ended.stderr.contains("forgotten"), "{ended:#?}");
}

#[test]
fn a_conversation_is_saved_and_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("talk.json");
    let path = file.to_str().unwrap();
    let _ = chat(&["--system", "Be brief."], &format!("Hello\n/save {path}\n")).succeeded();
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(saved["messages"][0], json!({"role": "system", "content": "Be brief."}));
    assert_eq!(saved["messages"][1], json!({"role": "user", "content": "Hello"}));
    assert_eq!(saved["messages"].as_array().unwrap().len(), 3);
    // `tokenize --messages` reads the same file.
    let rendered = tokenize(&["--messages", path, "--no-generation-prompt"]).succeeded().stdout;
    assert!(
        rendered.starts_with("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n")
    );
    let again = directory.path().join("again.json");
    let loaded = chat(&[], &format!("/load {path}\n/save {}\n", again.display())).succeeded();
    assert!(loaded.stderr.contains("3 messages"), "{loaded:#?}");
    assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(&again).unwrap());
}

#[test]
fn what_goes_wrong_in_a_turn_does_not_end_the_conversation() {
    let long = "word ".repeat(100);
    let input = format!("/load absent.json\n/nonsense\n/save\n{long}\nHello\n/help\n");
    let ended = chat(&["-c", "64"], &input).succeeded();
    for said in
        ["absent.json", "no command /nonsense", "/save FILE", "the context is full", "/reset        forget"]
    {
        assert!(ended.stderr.contains(said), "{said}: {ended:#?}");
    }
    // The question that did not fit is taken back.
    assert_eq!(ended.stdout, "Hello! How can I help you today?\n");
}

#[test]
fn chat_wants_a_tokenizer_and_a_template() {
    let refused = chat(&["-m", &fixture("micro/zoo-q8_0.gguf")], "Hello\n");
    assert_eq!(refused.code, 2, "{refused:#?}");
    assert!(refused.stderr.contains("no tokenizer"), "{refused:#?}");
    assert!(
        refused.stderr.contains("`run`, `trace` and `parity` take token ids"),
        "chat takes none: {refused:#?}"
    );
}

/// What `/load` refuses leaves the conversation as it was, and the next line is answered.
#[test]
fn a_conversation_that_cannot_go_on_is_not_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let alternating = directory.path().join("alternating.jinja");
    std::fs::write(
        &alternating,
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must \
         alternate') }}{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if \
         add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    )
    .unwrap();
    let alternating = ["--chat-template", alternating.to_str().unwrap()];
    let chat = |args: &[&str], input: &str| {
        let all = ["chat", "--backend", "cpu", "--temp", "0"].iter().chain(args).copied();
        run_with_input(PROGRAM, all, input.as_bytes())
    };
    let message = |role: &str, content: Value| json!({"role": role, "content": content});
    let (user, answer) = (message("user", "Hello".into()), message("assistant", "ok".into()));
    let cases = [
        (json!([{"role": "user"}]), &[][..], "message 0 (user): found no \"content\", wanted a string"),
        (
            json!([user, message("assistant", Value::Null)]),
            &[],
            "message 1 (assistant): \"content\": found null",
        ),
        (
            json!([message("user", 7.into())]),
            &[],
            "message 0 (user): \"content\": found a number, wanted a string",
        ),
        (
            json!([user, answer, message("user", json!([{"text": "x"}]))]),
            &[],
            "message 2 (user): chat template, line 1",
        ),
        (
            json!([message("wizard", "x".into())]),
            &[],
            "message 0 (wizard): found a role that the chat template does not",
        ),
        (json!([user, {"role": 3, "content": "x"}]), &[], "message 1: \"role\": found a number"),
        (json!([user, {"content": "x"}]), &[], "message 1: found no \"role\""),
        (json!([user, "x"]), &[], "message 1: found a string, wanted an object"),
        (json!({"messages": user}), &[], "\"messages\": found an object, wanted an array"),
        (json!({"messages": []}), &[], "found no messages"),
        (json!("x"), &[], "wanted an array of messages"),
        (json!({"messages": [user, answer], "tools": 3}), &[], "a number as tools"),
        (json!([user, answer, answer]), &alternating, "message 2 (assistant): the chat template refuses"),
        (
            json!([user, answer, user]),
            &alternating,
            "no question can follow message 2 (user), the last: the chat",
        ),
    ];
    for (number, (conversation, args, said)) in cases.iter().enumerate() {
        let (file, kept) =
            (directory.path().join("load.json"), directory.path().join(format!("{number}.json")));
        std::fs::write(&file, conversation.to_string()).unwrap();
        let input = format!("Hello\n/load {}\n/save {}\nWhat is 2+2?\n", file.display(), kept.display());
        let ended = chat(args, &input).succeeded();
        let wanted = format!("error: {}: {said}", file.display());
        assert!(ended.stderr.contains(&wanted) || said.contains("tools"), "{wanted}: {ended:#?}");
        assert!(ended.stderr.contains(said) && ended.stderr.contains("as it was"), "{said}: {ended:#?}");
        let kept: Value = serde_json::from_str(&std::fs::read_to_string(kept).unwrap()).unwrap();
        assert_eq!((kept["messages"].as_array().unwrap().len(), &kept["messages"][0]), (2, &user), "{said}");
        assert!(ended.stdout.ends_with("2 + 2 = 4\n"), "{said}: {ended:#?}");
    }
    // What can go on is loaded: an answer that calls tools has no content.
    let calls = json!([{"type": "function", "function": {"name": "f", "arguments": {}}}]);
    let tools = json!([user, {"role": "assistant", "content": null, "tool_calls": calls}, message("tool", "4".into())]);
    let (file, template) =
        (directory.path().join("tools.json"), fixture("chat/Qwen-Qwen2.5-7B-Instruct.jinja"));
    std::fs::write(&file, tools.to_string()).unwrap();
    let args = ["--chat-template", template.as_str()];
    let ended = chat(&args, &format!("/load {}\n", file.display())).succeeded();
    assert!(ended.stderr.contains("3 messages") && !ended.stderr.contains("error"), "{ended:#?}");
}

/// As a prompt of `run` that is no text: wrong input.
#[test]
fn a_line_that_is_not_utf_8_is_refused() {
    let args = ["chat", "--backend", "reference", "--temp", "0"];
    let refused = run_with_input(PROGRAM, args, b"Hello\nna\xEFve\nHello\n");
    assert_eq!(refused.code, 2, "{refused:#?}");
    assert!(refused.stderr.contains("standard input: a line is not UTF-8"), "{refused:#?}");
    assert_eq!(refused.stdout, "Hello! How can I help you today?\n", "the lines before it are answered");
}

/// Ctrl-C ends the answer, not the conversation.
#[test]
fn ctrl_c_ends_a_turn() {
    // More than a micro-batch of the reference, which takes it seconds.
    let question = "What is 2+2? ".repeat(150);
    let mut child = Command::new(PROGRAM)
        .args(["chat", "--backend", "reference", "--temp", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{question}\nHello\n").as_bytes()).unwrap();
    wait_for(&mut child, "sampling: ");
    wait_for_work(&child);
    interrupt(&child);
    let ended = finish(child.wait_with_output().unwrap());
    assert_eq!(ended.code, 0, "{ended:#?}");
    let ends: Vec<&str> =
        ended.stderr.lines().filter_map(|l| l.rsplit_once("; ").map(|(_, end)| end)).collect();
    assert!(ends.contains(&"interrupted") && ends.contains(&"the model ended"), "{ended:#?}");
    // The question without an answer is taken back.
    assert_eq!(ended.stdout, "\nHello! How can I help you today?\n");
}
