//! Calls of tools and reasoning in what models write: every case whole and in pieces, and texts that are made to cost much.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use moe_run_tests::{
    cli::{Finished, run_with_input},
    fixtures,
    random::Random,
};
use moe_run_text::{
    chat::{ChatInput, ChatTemplate},
    toolcalls::{Answer, Call, Calls, Delta, Format, Parser, Syntax, parse},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-run-under-test");

#[derive(Deserialize)]
struct Cases {
    tools: Value,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    format: String,
    case: String,
    messages: Value,
    extra: Map<String, Value>,
    tools: Value,
    prompt_tail: String,
    text: String,
    finished: bool,
    expected: Expected,
    open_call: Option<String>,
}

#[derive(Deserialize)]
struct Expected {
    content: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Vec<ExpectedCall>,
}

#[derive(Deserialize)]
struct ExpectedCall {
    name: String,
    arguments: Value,
}

/// A case with what is the same for all of a template.
struct Ready<'a> {
    case: &'a Case,
    syntax: &'a Syntax,
    prompt: String,
    tools: Option<&'a Value>,
}

impl Ready<'_> {
    fn name(&self) -> String {
        format!("{}: {}", self.case.template, self.case.case)
    }

    fn parser(&self, calls: Calls) -> Parser {
        Parser::new(self.syntax, &self.prompt, self.tools, calls)
    }

    fn whole(&self) -> Answer {
        parse(self.syntax, &self.prompt, self.tools, &self.case.text, self.case.finished)
    }

    /// The sum of the deltas of a text in pieces.
    fn in_pieces(&self, calls: Calls, mut cut: impl FnMut(usize) -> usize) -> Answer {
        let mut parser = self.parser(calls);
        let mut sum = Sum::default();
        let mut rest = self.case.text.as_bytes();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(cut(rest.len()).clamp(1, rest.len()));
            sum.add(&parser.push(piece));
            rest = after;
        }
        sum.add(&parser.finish(self.case.finished));
        sum.answer
    }
}

/// Adds deltas up, and holds them to their order.
#[derive(Default)]
struct Sum {
    answer: Answer,
    open: Option<usize>,
    calls: usize,
}

impl Sum {
    fn add(&mut self, deltas: &[Delta]) {
        for delta in deltas {
            match delta {
                Delta::Content(text) | Delta::Reasoning(text) => assert!(!text.is_empty()),
                Delta::CallBegin { index, .. } => {
                    assert_eq!(*index, self.calls);
                    self.open = Some(*index);
                    self.calls += 1;
                }
                Delta::CallArguments { index, text } => {
                    assert_eq!(Some(*index), self.open);
                    assert!(!text.is_empty());
                }
                Delta::CallEnd { index } => assert_eq!(Some(*index), self.open.take()),
            }
            self.answer.add(delta);
        }
    }
}

/// Runs `check` on every case of a file, where it is there.
fn each_case(file: &str, mut check: impl FnMut(&Ready<'_>)) {
    let Some(path) = fixtures::find(file) else { return };
    let cases: Cases = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut templates: BTreeMap<&str, (ChatTemplate, Syntax)> = BTreeMap::new();
    for case in &cases.cases {
        let (template, syntax) = templates.entry(&case.template).or_insert_with(|| {
            let path = fixtures::find(&format!("toolcalls/templates/{}", case.template)).unwrap();
            let template = ChatTemplate::from_source(&std::fs::read_to_string(path).unwrap()).unwrap();
            let syntax = Syntax::of(&template);
            (template, syntax)
        });
        assert_eq!(syntax.format.name(), case.format, "{}", case.template);
        let tools = (case.tools == "TOOLS").then_some(&cases.tools);
        let input = ChatInput {
            messages: case.messages.clone(),
            tools: tools.cloned(),
            add_generation_prompt: true,
            extra: case.extra.clone(),
        };
        let prompt = template.render_text(&input).unwrap();
        // A case without tools has the tail of a prompt with tools; the end is the same.
        let end = case.prompt_tail.char_indices().rev().nth(10).map_or(0, |(at, _)| at);
        assert!(prompt.ends_with(&case.prompt_tail[end..]), "{}: {prompt:?}", case.template);
        check(&Ready { case, syntax, prompt, tools });
    }
    assert!(!cases.cases.is_empty());
}

/// How an answer differs from what a case expects.
fn difference(case: &Case, answer: &Answer) -> Option<String> {
    let expected = &case.expected;
    let texts = [
        ("content", &expected.content, &answer.content),
        ("reasoning", &expected.reasoning_content, &answer.reasoning),
    ];
    for (what, expected, found) in texts {
        let expected = expected.as_deref().unwrap_or_default().trim();
        if expected != found.trim() {
            return Some(format!("{what}: wanted {expected:?}, found {found:?}"));
        }
    }
    let found: Vec<(String, Value)> = answer
        .calls
        .iter()
        .map(|call| (call.name.clone(), serde_json::from_str(&call.arguments).unwrap()))
        .collect();
    let wanted: Vec<(String, Value)> =
        expected.tool_calls.iter().map(|call| (call.name.clone(), call.arguments.clone())).collect();
    (found != wanted).then(|| format!("calls: wanted {wanted:?}, found {found:?}"))
}

fn check_cases(file: &str, cuts: usize) {
    let mut wrong = String::new();
    each_case(file, |ready| {
        let case = ready.case;
        let whole = ready.whole();
        if let Some(difference) = difference(case, &whole) {
            writeln!(wrong, "{}: {difference}", ready.name()).unwrap();
            return;
        }
        assert_eq!(whole.open_call, None, "{}", ready.name());
        // The open call has its name, and no case without one has it.
        let mut parser = ready.parser(Calls::Whole);
        parser.push(&case.text);
        parser.finish(case.finished);
        if parser.cut_call() != case.open_call {
            writeln!(wrong, "{}: open call {:?}", ready.name(), parser.cut_call()).unwrap();
        }
        for seed in 1..=cuts as u64 {
            let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + case.text.len() as u64);
            let longest = [1, 2, 7, 40][random.below(4)];
            let pieces = ready.in_pieces(Calls::Whole, |_| 1 + random.below(longest));
            if pieces != whole {
                writeln!(wrong, "{} in pieces, seed {seed}: {pieces:?}", ready.name()).unwrap();
            }
            // What is streamed comes to the same, but for a call that is cut off or breaks.
            let streamed = ready.in_pieces(Calls::Streamed, |_| 1 + random.below(longest));
            let streamed = Answer { open_call: None, ..streamed };
            if !case.case.contains("broken") && streamed != whole {
                writeln!(wrong, "{} streamed, seed {seed}: {streamed:?}", ready.name()).unwrap();
            }
        }
    });
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_carried_cases() {
    check_cases("toolcalls/few.json", 8);
}

/// All cases of `MOE_FIXTURES`.
#[test]
fn every_case_whole_and_in_pieces() {
    check_cases("toolcalls/cases.json", 6);
}

/// Every place at which a text can be cut in two.
#[test]
fn cut_anywhere() {
    each_case("toolcalls/few.json", |ready| {
        let whole = ready.whole();
        for at in 1..ready.case.text.len() {
            let mut first = Some(at);
            let answer = ready.in_pieces(Calls::Whole, |rest| first.take().unwrap_or(rest));
            assert_eq!(answer, whole, "{} cut at {at}", ready.name());
        }
    });
}

/// A text that is cut off anywhere never shows a call's text as content, nor loses calls that were complete.
#[test]
fn cut_off_anywhere() {
    each_case("toolcalls/few.json", |ready| {
        let case = ready.case;
        if !case.finished || case.case.contains("broken") || case.case.contains("mentions") {
            return;
        }
        let whole = ready.whole();
        for (at, _) in case.text.char_indices() {
            let cut = parse(ready.syntax, &ready.prompt, ready.tools, &case.text[..at], false);
            let name = format!("{} cut off at {at}: {cut:?}", ready.name());
            // One character that a tag begins with may be the text's.
            let own = |text: &str| {
                text.trim().strip_suffix(['<', '[', ']']).unwrap_or(text.trim()).trim_end().to_owned()
            };
            assert!(whole.content.starts_with(&own(&cut.content)), "{name}");
            assert!(whole.reasoning.starts_with(&own(&cut.reasoning)), "{name}");
            assert!(whole.calls.starts_with(&cut.calls), "{name}");
        }
    });
}

/// The syntaxes of the carried templates.
fn syntaxes() -> Vec<Syntax> {
    let dir = fixtures::crate_dir().join("fixtures/toolcalls/templates");
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let syntax = |source: &str| Syntax::of(&ChatTemplate::from_source(source).unwrap());
    let mut syntaxes: Vec<Syntax> =
        paths.iter().map(|path| syntax(&std::fs::read_to_string(path).unwrap())).collect();
    syntaxes.push(syntax(SOLAR));
    syntaxes.push(syntax("{{ messages[0].content }}"));
    let formats: BTreeSet<&str> = syntaxes.iter().map(|syntax| syntax.format.name()).collect();
    assert_eq!(formats, Format::ALL.iter().map(|format| format.name()).collect());
    syntaxes
}

/// What Solar-Open's template writes of calls.
const SOLAR: &str = "{% for m in messages %}{% if m.tool_calls %}<|begin|>assistant<|tool_calls|>{% for c in m.tool_calls %}\
    <|tool_call:begin|>{{ c.id }}<|tool_call:name|>{{ c.function.name }}<|tool_call:args|>{{ c.function.arguments | tojson }}\
    <|tool_call:end|>{% endfor %}<|calls|>{% else %}<|begin|>{{ m.role }}<|content|>{{ m.content }}<|end|>{% endif %}\
    {% endfor %}{% if add_generation_prompt %}<|begin|>assistant{% endif %}";

/// Pieces of every format.
#[rustfmt::skip]
const FRAGMENTS: &[&str] = &[
    "<tool_call>", "</tool_call>", "<function=f>", "<function=", "</function>", "<parameter=a>", "</parameter>", "<think>",
    "</think>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<tool_calls:opensource>", "<tool_call:opensource>",
    "<tool_sep:opensource>", "<arg_key:opensource>", "</arg_key:opensource>", "<arg_value:opensource>",
    "</arg_value:opensource>", "</tool_call:opensource>", "<|tool_calls_section_begin|>", "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>", "<|tool_call_end|>", "functions.f:0", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "```json\n", "<｜DSML｜function_calls>", "<｜DSML｜invoke name=\"f\">",
    "<｜DSML｜parameter name=\"a\" string=\"true\">", "</｜DSML｜parameter>", "</｜DSML｜invoke>", "]<]minimax[>[", "<tool_call>\n",
    "<invoke name=\"f\">", "</invoke>", "<a>", "</a>", "<item>", "</item>", "<minimax:tool_call>", "<parameter name=\"a\">",
    "<|channel|>", "<|start|>assistant", "<|message|>", "<|end|>", "<|call|>", "analysis", "commentary", "final",
    " to=functions.f", "<|tool_call_start|>[", "f(a=", ")]", "<|tool_call>call:f{", "<|\"|>", "}<tool_call|>",
    "<|channel>thought\n", "<channel|>", "<|START_ACTION|>", "<|END_ACTION|>", "<|START_TEXT|>", "<|END_TEXT|>",
    "<|START_THINKING|>", "<|END_THINKING|>", "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]", "<|function_call|>",
    "<|tool_calls|>", "<|tool_call:begin|>", "<|tool_call:name|>", "<|tool_call:args|>", "<|tool_call:end|>",
    "{\"name\": \"f\", \"arguments\": {", "{\"name\": \"f\", \"arguments\": {}}", "\"a\": ", "\"", "'", "\\", "\\u12", "{", "}", "[",
    "]", ",", ":", "(", ")", "=", "1", "-0.5e3", "true", "None", "null", "f", "a", " ", "\n", "é", "🙂", "\0", "<", ">",
];

/// Random mixes of what formats write: nothing panics, whole and pieces agree, and every call is a call.
#[test]
fn random_mixes_of_tags() {
    let tools: Value = serde_json::from_str(
        r##"[{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
            "a": {"anyOf": [{"$ref": "#/properties/a"}, {"type": ["array", "null"]}]}}}}}]"##,
    )
    .unwrap();
    let rounds = if std::env::var_os("MOE_FULL").is_some() { 4000 } else { 400 };
    let mut calls = 0;
    let mut written: BTreeMap<String, Vec<String>> = BTreeMap::new();
    each_case("toolcalls/few.json", |ready| {
        written.entry(ready.case.format.clone()).or_default().push(ready.case.text.clone());
    });
    for (number, syntax) in syntaxes().iter().enumerate() {
        let mut random = Random(0x5EED + number as u64);
        let written = written.get(syntax.format.name()).map(Vec::as_slice).unwrap_or_default();
        for round in 0..rounds {
            // Fragments, and what the format writes with one of them in its middle.
            let mut text = String::new();
            for _ in 0..random.below(20) {
                let fragment = FRAGMENTS[random.below(FRAGMENTS.len())];
                let Some(case) = written.get(random.below(written.len() * 2 + 1)) else {
                    text.push_str(fragment);
                    continue;
                };
                let at = (random.below(case.len() + 1)..=case.len())
                    .find(|at| case.is_char_boundary(*at))
                    .unwrap();
                text.push_str(&case[..at]);
                text.push_str(if random.below(2) == 0 { fragment } else { "" });
                text.push_str(if random.below(4) > 0 { &case[at..] } else { "" });
            }
            let prompt = ["", "<think>", "<|START_THINKING|>", "<|start|>assistant"][random.below(4)];
            let finished = random.below(3) > 0;
            let whole = parse(syntax, prompt, Some(&tools), &text, finished);
            for call in &whole.calls {
                assert!(serde_json::from_str::<Value>(&call.arguments).unwrap().is_object(), "{text:?}");
            }
            calls += whole.calls.len();
            for mode in [Calls::Whole, Calls::Streamed] {
                let mut parser = Parser::new(syntax, prompt, Some(&tools), mode);
                let mut sum = Sum::default();
                for piece in text.as_bytes().chunks(1 + random.below(9)) {
                    sum.add(&parser.push(piece));
                }
                sum.add(&parser.finish(finished));
                if mode == Calls::Whole {
                    assert_eq!(sum.answer, whole, "{} round {round}: {text:?}", syntax.format.name());
                }
            }
        }
    }
    assert!(calls > 100, "{calls}");
}

/// Texts made to be read again and again, or to be nested: the time is that of their length.
#[test]
fn hostile_texts_cost_no_more_than_their_length() {
    const BYTES: usize = 400_000;
    let repeated = |part: &str| part.repeat(BYTES / part.len());
    let mut texts: Vec<String> =
        FRAGMENTS.iter().filter(|part| part.len() > 3).map(|part| repeated(part)).collect();
    for opener in FRAGMENTS.iter().filter(|part| part.starts_with('<') || part.starts_with('[')) {
        texts.push(repeated(&format!("{opener}{{\"name\": \"f\", \"arguments\": {{\"a\": \"")));
        texts.push(format!("{opener}{{\"name\": \"f\", \"arguments\": {{\"a\": \"{}", repeated(opener)));
    }
    for nested in ["[", "{\"a\": ", "{a:", "]<]minimax[>[<a>"] {
        for opener in [
            "<tool_call>{\"name\": \"f\", \"arguments\": ",
            "<|tool_call>call:f{a:",
            "<|tool_call_start|>[f(a=",
            "]<]minimax[>[<tool_call>]<]minimax[>[<invoke name=\"f\">",
            "<tool_call>f<arg_key>a</arg_key><arg_value>",
        ] {
            texts.push(format!("{opener}{}", repeated(nested)));
        }
    }
    texts.push(format!("<|tool_call_start|>[f(a={}", repeated("'  ")));
    texts.push(format!("<tool_call><function=f><parameter=a>{}", repeated("</parameter> ")));
    texts.push(repeated(" "));
    for syntax in syntaxes() {
        let name = syntax.format.name();
        // All texts for the formats' own tags would take minutes: those that begin a call here, and some others.
        let opens = |text: &String| {
            let mut parser = Parser::new(&syntax, "", None, Calls::Whole);
            let beginning: String = text.chars().take(60).collect();
            parser.push(&beginning).is_empty()
        };
        for text in texts.iter().filter(|text| opens(text)) {
            let began = Instant::now();
            let mut parser = Parser::new(&syntax, "", None, Calls::Whole);
            let mut length = 0;
            for piece in text.as_bytes().chunks(7) {
                length += parser.push(piece).len();
            }
            length += parser.finish(true).len();
            let beginning: String = text.chars().take(60).collect();
            assert!(began.elapsed() < Duration::from_secs(10), "{name}: {beginning:?} {length}");
        }
    }
}

/// Half of a surrogate pair is no character: strict readers of JSON would refuse the arguments.
#[test]
fn half_of_a_surrogate_pair() {
    let syntax = syntaxes().into_iter().find(|syntax| syntax.format == Format::HermesJson).unwrap();
    for (written, wanted) in [
        ("\\ud83d\\ude42", "🙂"),
        ("\\uD83D", "\u{FFFD}"),
        ("\\ude42a", "\u{FFFD}a"),
        ("\\ud83d\\ud83d\\ude42\\n", "\u{FFFD}🙂\n"),
        ("\\ud83d\\n\\u00e9", "\u{FFFD}\né"),
    ] {
        let text =
            format!("<tool_call>{{\"name\": \"f\", \"arguments\": {{\"a\": \"{written}\"}}}}</tool_call>");
        let answer = parse(&syntax, "", None, &text, true);
        let arguments: Value = serde_json::from_str(&answer.calls[0].arguments).unwrap();
        assert_eq!(arguments["a"], wanted, "{written}");
    }
}

/// Calls that a JSON reader would refuse for their depth are text.
#[test]
fn depth_is_bounded() {
    let syntax = syntaxes().into_iter().find(|syntax| syntax.format == Format::HermesJson).unwrap();
    for (depth, calls) in [(90, 1), (101, 0), (100_000, 0)] {
        let text = format!(
            "<tool_call>{{\"name\": \"f\", \"arguments\": {{\"a\": {}{}}}}}</tool_call>",
            "[".repeat(depth),
            "]".repeat(depth)
        );
        let answer = parse(&syntax, "", None, &text, true);
        assert_eq!(answer.calls.len(), calls, "{depth}");
        assert_eq!(answer.content.is_empty(), calls == 1);
    }
}

/// A case through `moe-run parse`: files in `directory`, the text in one or through a pipe.
fn parse_by_command(ready: &Ready<'_>, directory: &Path, through_pipe: bool) -> Finished {
    let case = ready.case;
    let template = fixtures::find(&format!("toolcalls/templates/{}", case.template)).unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut input = case.extra.clone();
    input.insert("messages".to_owned(), case.messages.clone());
    let messages = write("messages.json", &Value::Object(input).to_string());
    let mut args =
        vec!["parse".to_owned(), "--chat-template".to_owned(), template.to_str().unwrap().to_owned()];
    args.extend(["--messages".to_owned(), messages]);
    if let Some(tools) = ready.tools {
        args.extend(["--tools".to_owned(), write("tools.json", &tools.to_string())]);
    }
    if !case.finished {
        args.push("--unfinished".to_owned());
    }
    if !through_pipe {
        args.extend(["-f".to_owned(), write("text.txt", &case.text)]);
    }
    run_with_input(
        PROGRAM,
        args.iter().map(String::as_str),
        if through_pipe { case.text.as_bytes() } else { b"" },
    )
}

#[test]
fn the_command_gives_each_case() {
    let directory = tempfile::tempdir().unwrap();
    let mut number = 0;
    each_case("toolcalls/few.json", |ready| {
        number += 1;
        let report = parse_by_command(ready, directory.path(), number % 2 == 0).succeeded().json();
        let call = |call: &Value| Call {
            name: call["name"].as_str().unwrap().to_owned(),
            arguments: call["arguments"].to_string(),
        };
        let answer = Answer {
            content: report["content"].as_str().unwrap().to_owned(),
            reasoning: report["reasoning_content"].as_str().unwrap().to_owned(),
            calls: report["tool_calls"].as_array().unwrap().iter().map(call).collect(),
            open_call: None,
        };
        assert_eq!(difference(ready.case, &answer), None, "{}", ready.name());
    });
}

#[test]
fn the_command_shows_deltas_and_says_how_it_reads() {
    let template = fixtures::find("toolcalls/templates/Qwen-Qwen3-0.6B.jinja").unwrap();
    let text = b"<think>\nA b.\n</think>\n\n<tool_call>{\"name\": \"f\", \"arguments\": {\"n\": 123456789012345678901}}</tool_call>\nDone.";
    let args = ["parse", "--chat-template", template.to_str().unwrap()];
    let deltas = run_with_input(PROGRAM, args.into_iter().chain(["--deltas"]), text).succeeded();
    let lines: Vec<Value> = deltas.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let arguments = json!("{\"n\": 123456789012345678901}");
    assert_eq!(
        lines,
        [
            json!({"reasoning_content": "A"}),
            json!({"reasoning_content": " b."}),
            json!({"tool_call": {"index": 0, "name": "f"}}),
            json!({"tool_call": {"index": 0, "arguments": arguments}}),
            json!({"tool_call": {"index": 0, "complete": true}}),
            json!({"content": "Done."}),
        ]
    );
    assert!(deltas.stderr.contains("hermes-json"), "{deltas:?}");
    let whole = run_with_input(PROGRAM, args, text).succeeded();
    assert!(whole.stdout.contains("123456789012345678901"), "no digit is lost: {whole:?}");
    let cut =
        run_with_input(PROGRAM, args.into_iter().chain(["--unfinished"]), b"<tool_call>{\"name\": \"f\"")
            .succeeded();
    assert!(cut.stderr.contains("inside of a call of f"), "{cut:?}");
    assert_eq!(cut.json()["content"], "");
}

#[test]
fn an_unknown_way_of_calling_and_wrong_files_are_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let template = path("plain.jinja", "{{ messages[0].content }}");
    let plain =
        run_with_input(PROGRAM, ["parse", "-q", "--chat-template", &template], b"<tool_call>x").succeeded();
    assert_eq!(plain.json(), json!({"content": "<tool_call>x", "reasoning_content": "", "tool_calls": []}));
    assert!(plain.stderr.contains("no way of calling tools that is known"), "{plain:?}");
    let wrong = [
        path("a.json", "{"),
        path("b.json", "{\"tool\": []}"),
        path("c.json", "\"x\""),
        path("d.json", "[1]"),
        directory.path().join("none.json").to_str().unwrap().to_owned(),
    ];
    for file in &wrong {
        for args in [
            &["parse", "--chat-template", &template, "--tools", file][..],
            &["run", "-p", "x", "--tools", file],
            &["chat", "--tools", file],
        ] {
            let refused = run_with_input(PROGRAM, args.iter().copied(), b"x");
            assert_eq!(refused.code, 2, "{args:?}: {refused:?}");
            assert!(refused.stderr.contains(file.as_str()), "{refused:?}");
        }
    }
    let refused = run_with_input(
        PROGRAM,
        ["parse", "--chat-template", &path("raises.jinja", "{{ raise_exception('no') }}")],
        b"x",
    );
    assert_eq!(refused.code, 2, "{refused:?}");
}

/// Answers of the demo model, which was given a tool.
#[test]
fn run_and_chat_take_tools() {
    let directory = tempfile::tempdir().unwrap();
    let tools = directory.path().join("tools.json");
    let tool =
        json!({"type": "function", "function": {"name": "now", "description": "The time", "parameters": {}}});
    std::fs::write(&tools, json!({"tools": [tool]}).to_string()).unwrap();
    let tools = tools.to_str().unwrap();
    let args = ["run", "-p", "What is 2+2?", "--temp", "0", "-n", "16", "--tools", tools];
    let report = run_with_input(PROGRAM, args.into_iter().chain(["--json"]), b"").succeeded().json();
    let shown = run_with_input(PROGRAM, args, b"").succeeded();
    let content = report["content"].as_str().unwrap();
    assert!(shown.stdout.contains(content.trim()), "{report} {shown:?}");
    assert!(report["tool_calls"].is_array() && report["reasoning_content"].is_string(), "{report}");
    let without = run_with_input(PROGRAM, ["run", "-p", "2+2", "-n", "1", "--json"], b"").succeeded().json();
    assert!(without.get("tool_calls").is_none(), "{without}");
    let prompts = [&report, &without].map(|report| report["prompt_tokens"].as_array().unwrap().len());
    assert!(prompts[0] > prompts[1], "the template has the tools: {prompts:?}");
    let chat = ["chat", "--tools", tools, "--temp", "0", "-n", "8"];
    let chat = run_with_input(PROGRAM, chat, b"/tool 12:00\nHi\n").succeeded();
    assert!(chat.stderr.contains("no call waits for a result"), "{chat:?}");
    assert!(!chat.stdout.trim().is_empty(), "{chat:?}");
}
