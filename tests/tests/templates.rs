//! The template language: what Hugging Face's renderer gives for hundreds of expressions, and what a hostile template may
//! cost. `scripts/template-expressions.py` writes the expected values.

use std::{fmt::Write as _, process::Command};

use moe_run_text::chat::{ChatError, ChatInput, ChatTemplate};

use moe_run_tests::{chat_case::ChatCase, fixtures};
use serde::Deserialize;
use serde_json::{Map, Value};

const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-run-under-test");

fn render(source: &str, extra: &Map<String, Value>) -> Result<String, ChatError> {
    let mut input = ChatInput::conversation([("user", "hi")]);
    input.extra = extra.clone();
    ChatTemplate::from_source(source)?.render_text(&input)
}

#[derive(Deserialize)]
struct Expressions {
    variables: Map<String, Value>,
    cases: Vec<(String, Option<String>)>,
}

/// Expressions that give something else here, and why.
const DIFFERENT: &[(&str, &str)] = &[
    ("{{ d.keys() }}", VIEWS),
    ("{{ d.values() }}", VIEWS),
    ("{{ d.items() }}", VIEWS),
    ("{{ +n }}", "minijinja has no unary plus: refused"),
    ("{{ s | attr('upper') is callable }}", METHODS),
    ("{{ d['items'] }}{{ d.items is callable }}{{ d.b }}{{ d['b'] }}{{ d.nope is defined }}", METHODS),
    ("{{ s.upper is callable }}{{ s['x'] is defined }}", METHODS),
    ("{{ d | attr('b') is defined }}", "attr finds keys, too"),
];
const VIEWS: &str = "a view of a mapping is a list, and prints as one";
const METHODS: &str = "a method that is not called is no value; a key of that name is";

#[test]
fn expressions_give_what_hugging_face_gives() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/chat/expressions.json");
    let expressions: Expressions = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(expressions.cases.len() > 400);
    let mut different = String::new();
    for (source, expected) in &expressions.cases {
        let found = render(source, &expressions.variables);
        let agrees = match (&found, expected) {
            (Ok(text), Some(expected)) => text == expected,
            (Err(_), None) => true,
            _ => false,
        };
        if agrees == DIFFERENT.iter().any(|(known, _)| known == source) {
            writeln!(different, "{source}\n    wanted {expected:?}\n    found  {found:?}").unwrap();
        }
    }
    assert!(different.is_empty(), "{different}");
}

/// `chat/` of `MOE_FIXTURES`: the templates of two dozen models as they ship, the exact texts, conversations that they refuse,
/// and arguments of calls as clients send them.
#[test]
fn templates_of_models_render_as_hugging_face_renders_them() {
    let Some(path) = fixtures::find("chat/GLM-4.7-Flash.jinja") else { return };
    let dir = path.parent().unwrap();
    let read = |name: &str| -> Vec<ChatCase> {
        serde_json::from_str(&std::fs::read_to_string(dir.join(name)).unwrap()).unwrap()
    };
    let cases = [read("cases.json"), read("errors.json"), read("wire.json")].concat();
    let (mut rendered, mut different) = (0, String::new());
    for case in cases {
        // Where Hugging Face's own renderer forbids what the template does (`list.append`), so do we.
        let forbidden = case.note.is_some();
        let source = std::fs::read_to_string(dir.join(&case.template)).unwrap();
        let input = case.input([("bos_token", "<bos>"), ("eos_token", "<eos>")]);
        let found = ChatTemplate::from_source(&source).and_then(|template| template.render_text(&input));
        let agrees = match (&found, &case.expected) {
            (Ok(text), Some(expected)) => text == expected || case.dated,
            (Err(_), None) => true,
            (Err(_), Some(_)) => forbidden,
            (Ok(_), None) => false,
        };
        rendered += usize::from(found.is_ok());
        if !agrees {
            writeln!(
                different,
                "{}, {}:\n    wanted {:?}\n    found  {found:?}",
                case.template, case.case, case.expected
            )
            .unwrap();
        }
    }
    assert!(different.is_empty(), "{rendered} rendered; {different}");
    assert!(rendered > 500, "{rendered} rendered");
}

/// `toolcalls/` of `MOE_FIXTURES`: the prompts that models' answers follow, by how they end.
#[test]
fn prompts_of_tool_calls_end_as_the_models_saw_them() {
    #[derive(Deserialize)]
    struct Cases {
        tools: Value,
        cases: Vec<Case>,
    }
    #[derive(Deserialize)]
    struct Case {
        template: String,
        case: String,
        messages: Value,
        extra: Map<String, Value>,
        prompt_tail: String,
    }
    let Some(path) = fixtures::find("toolcalls/cases.json") else { return };
    let Cases { tools, cases } = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let mut different = String::new();
    for case in &cases {
        let source = path.with_file_name("templates").join(&case.template);
        let template = ChatTemplate::from_source(&std::fs::read_to_string(source).unwrap()).unwrap();
        let mut extra = case.extra.clone();
        extra.extend(
            [("bos_token", "<bos>"), ("eos_token", "<eos>")]
                .map(|(name, text)| (name.to_owned(), text.into())),
        );
        let input = ChatInput {
            messages: case.messages.clone(),
            // Where a case has no tools, its parser is not told of them; the prompt was.
            tools: Some(tools.clone()),
            add_generation_prompt: true,
            extra,
        };
        let found = template.render_text(&input);
        if !found.as_ref().is_ok_and(|text| text.ends_with(&case.prompt_tail)) {
            writeln!(
                different,
                "{}, {}: wanted …{:?}, found {found:?}",
                case.template, case.case, case.prompt_tail
            )
            .unwrap();
        }
    }
    assert!(cases.len() > 400 && different.is_empty(), "{different}");
}

/// Templates that would overflow a stack, fill the memory or take minutes, each of a kind.
fn hostile() -> Vec<(&'static str, String)> {
    let nested = |made: &str, used: &str| {
        format!(
            "{{% set ns = namespace(x=[], y=[]) %}}{{% for i in range(99999) %}}{made}{{% endfor %}}{used}"
        )
    };
    let lists = "{% set ns.x = [ns.x] %}{% set ns.y = [ns.y] %}";
    let twice = |unit: &str, end: &str, times: usize| format!("{{{{ {}{end} }}}}", unit.repeat(times));
    vec![
        ("deep: print", nested(lists, "{{ ns.x }}")),
        ("deep: compare", nested(lists, "{{ ns.x == ns.y }}")),
        ("deep: unique", nested(lists, "{{ [ns.x, ns.y]|unique|list|length }}")),
        ("deep: mapping", nested("{% set ns.x = {'a': ns.x} %}", "{{ ns.x }}")),
        ("deep: key", nested("{% set ns.x = (ns.x,) %}", "{{ {ns.x: 1} }}")),
        ("deep: freed only", nested("{% set ns.x = [ns.x] %}", "")),
        ("deep: dict()", nested("{% set ns.x = dict(a=ns.x) %}", "")),
        ("deep: batch", nested("{% set ns.x = [ns.x]|batch(1)|list %}", "")),
        ("deep: namespaces", nested("{% set t = namespace(x=ns.x) %}{% set ns.x = t %}", "")),
        (
            "deep: a chain grown at its end",
            "{% set ns = namespace() %}{% set ns.head = namespace() %}{% set ns.t = ns.head %}\
             {% for i in range(99999) %}{% set t = ns.t %}{% set n = namespace() %}{% set t.x = n %}{% set ns.t = n %}\
             {% endfor %}"
                .to_owned(),
        ),
        ("deep: itself", "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}{{ ns == ns }}{{ [ns]|tojson }}".to_owned()),
        ("deep: map", nested("{% set ns.x = [ns.x]|map('list')|list %}", "{{ ns.x }}")),
        ("deep: arguments", nested("{% set ns.x = [1, ns.x]|slice(1)|list %}", "{{ ns.x }}")),
        ("chain: sums", twice("1+", "1", 60_000)),
        ("chain: attributes", format!("{{{{ messages{} }}}}", ".a".repeat(60_000))),
        ("chain: items", format!("{{{{ messages{} }}}}", "[0]".repeat(60_000))),
        ("chain: calls", format!("{{{{ messages{} }}}}", "()".repeat(60_000))),
        ("chain: filters", format!("{{{{ messages{} }}}}", "|list".repeat(60_000))),
        ("chain: tests", format!("{{{{ 1{} }}}}", " is odd".repeat(60_000))),
        ("chain: nots", twice("not ", "1", 60_000)),
        ("chain: minus", twice("-", "1", 60_000)),
        ("chain: ifs", twice("1 if 1 else ", "1", 60_000)),
        ("chain: comparisons", twice("1 < ", "2", 60_000)),
        ("chain: and", twice("1 and ", "1", 60_000)),
        ("chain: concatenations", twice("'a'*99999 ~ ", "1", 60_000)),
        ("chain: elif", format!("{{% if false %}}{}{{% endif %}}", "{% elif false %}".repeat(20_000))),
        ("nested: parentheses", format!("{{{{ {}1{} }}}}", "(".repeat(60_000), ")".repeat(60_000))),
        ("nested: lists", format!("{{{{ {}1{} }}}}", "[".repeat(60_000), "]".repeat(60_000))),
        ("nested: ifs", "{% if 1 %}".repeat(60_000) + &"{% endif %}".repeat(60_000)),
        ("nested: loops", "{% for i in [1] %}".repeat(30_000) + &"{% endfor %}".repeat(30_000)),
        ("large: source", "x".repeat(2 << 20)),
        (
            "large: doubling",
            "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}\
             {{ ns.x|length }}"
                .to_owned(),
        ),
        (
            "large: sums",
            "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
                .to_owned(),
        ),
        (
            "large: lists",
            "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
                .to_owned(),
        ),
        (
            "large: captures",
            "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}\
             {% set ns.x = y %}{% endfor %}"
                .to_owned(),
        ),
        ("large: indent", "{{ 'a\\nb'|indent(2000000000)|length }}".to_owned()),
        ("large: join", "{{ (['a'*100000]*100000)|join|length }}".to_owned()),
        ("large: method join", "{{ ('a'*100000).join(['b']*100000)|length }}".to_owned()),
        ("large: replace", "{{ ('a'*100000).replace('a','b'*100000)|length }}".to_owned()),
        ("large: filter replace", "{{ ('a'*100000)|replace('a','b'*100000)|length }}".to_owned()),
        (
            "large: shared lists",
            "{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}"
                .to_owned(),
        ),
        ("large: center", "{{ 'a'.center(2000000000) }}{{ 'a'|center(2000000000) }}".to_owned()),
        ("large: ljust", "{{ 'a'.ljust(2000000000) }}".to_owned()),
        ("large: zfill", "{{ 'a'.zfill(2000000000) }}".to_owned()),
        ("large: expandtabs", "{{ '\\t'.expandtabs(2000000000) }}".to_owned()),
        ("large: percent", "{{ '%2000000000d' % 1 }}".to_owned()),
        ("large: percent star", "{{ '%*d' % (2000000000, 1) }}".to_owned()),
        ("large: precision", "{{ '%.2000000000f' % 1.5 }}".to_owned()),
        ("large: format filter", "{{ '%2000000000d'|format(1) }}".to_owned()),
        ("large: str.format", "{{ '{:>2000000000}'.format('x') }}".to_owned()),
        ("large: batch", "{{ [1]|batch(2000000000, 'x')|list|length }}".to_owned()),
        ("large: slice", "{{ [1]|slice(2000000000)|list|length }}".to_owned()),
        ("large: output", "{% for i in range(99999) %}{{ 'a'*10000 }}{% endfor %}".to_owned()),
        ("large: raw output", format!("{{% for i in range(99999) %}}{}{{% endfor %}}", "x".repeat(100_000))),
        ("large: map", "{{ ['a']|map('indent', 2000000000)|list }}{{ ['ab']|map('center', 2000000000)|list }}".to_owned()),
        ("large: wordwrap", "{{ ('a'*100000)|wordwrap(1, wrapstring='b'*100000)|length }}".to_owned()),
        ("large: power", "{{ 10 ** 10 ** 10 }}".to_owned()),
        ("large: tojson's indent", "{{ range(99999)|list|tojson(indent='a'*99999)|length }}".to_owned()),
        (
            "large: tojson's separators",
            "{{ range(99999)|list|tojson(separators=('a'*99999, 'b'))|length }}".to_owned(),
        ),
        ("large: one text often", "{{ ['a'*99999]*99999 }}".to_owned()),
        ("large: one text often, as JSON", "{{ (['a'*99999]*99999)|tojson|length }}".to_owned()),
        ("large: strftime_now", "{{ strftime_now('%c'*9999999)|length }}".to_owned()),
        ("large: an exception", "{{ raise_exception('a'*9999999) }}".to_owned()),
        ("large: not found", "{{ 'a'.index('b'*9999999) }}".to_owned()),
        (
            "long: loops",
            "{% for i in range(99999) %}{% for j in range(99999) %}{{ messages|tojson }}{% endfor %}{% endfor %}".to_owned(),
        ),
        (
            "long: empty loops",
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}".to_owned(),
        ),
        (
            "long: macros",
            "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(30) }}".to_owned(),
        ),
        ("long: macro without an end", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned()),
        (
            "long: sorted again and again",
            "{% set l = range(99999)|list %}{% for i in range(99999) %}{{ l|sort|first }}{% endfor %}".to_owned(),
        ),
        (
            "long: compared again and again",
            "{% set l = range(99999)|list %}{% set k = range(99999)|list %}{% for i in range(99999) %}{{ l == k }}{% endfor %}"
                .to_owned(),
        ),
        (
            "long: searched again and again",
            "{% set s = 'a'*100000 %}{% for i in range(99999) %}{{ s.find('a'*50000 ~ 'b') }}{% endfor %}".to_owned(),
        ),
        (
            "long: is in",
            "{% set l = range(99999)|list %}{% for i in l %}{{ 'x' in l }}{% endfor %}".to_owned(),
        ),
    ]
}

/// Each ends in one line and exit status 2 within a gigabyte of address space: no abort, no panic, no kill.
#[cfg(target_os = "linux")]
#[test]
fn hostile_templates_end_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let messages = dir.path().join("messages.json");
    std::fs::write(&messages, r#"[{"role": "user", "content": "hi"}]"#).unwrap();
    for (name, source) in hostile() {
        let path = dir.path().join("template.jinja");
        std::fs::write(&path, &source).unwrap();
        let output = Command::new("sh")
            .args(["-c", "ulimit -c 0; ulimit -v 1000000; exec \"$0\" \"$@\""])
            .arg(PROGRAM)
            .args(["tokenize", "--render-only", "--messages"])
            .arg(&messages)
            .arg("--chat-template")
            .arg(&path)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        // What only prints, counts or frees something bounded may succeed as well.
        let fine = matches!(name, "deep: itself" | "chain: ifs" | "large: power") && output.status.success();
        assert!(fine || output.status.code() == Some(2), "{name}: {:?}: {stderr}", output.status);
        assert!(
            fine || (stderr.lines().count() == 1 && stderr.len() < 2000),
            "{name}: {} bytes",
            stderr.len()
        );
        assert!(fine || stderr.starts_with("error: "), "{name}: {stderr}");
    }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }
}

/// A random expression of Jinja, of operators, methods, filters and values that build on each other.
fn expression(random: &mut Random, depth: usize) -> String {
    if depth == 0 {
        return random
            .of(&[
                "1",
                "0",
                "-3",
                "2.5",
                "'a'",
                "'x y'",
                "'\\n'",
                "''",
                "[]",
                "{}",
                "()",
                "none",
                "true",
                "a",
                "b",
                "ns.x",
                "ns",
                "messages",
                "messages[0].content",
                "undefined_name",
                "range(9)",
                "99999",
                "'%s'",
                "namespace()",
            ])
            .to_owned();
    }
    let mut e = || {
        let less = random.below(depth);
        expression(random, less)
    };
    let (x, y, z) = (e(), e(), e());
    match random.below(22) {
        0 => format!("({x} {} {y})", random.of(&["+", "-", "*", "/", "//", "%", "**", "~"])),
        1 => format!("({x} {} {y})", random.of(&["==", "!=", "<", ">=", "in", "not in", "and", "or"])),
        2 => format!("[{x}, {y}]"),
        3 => format!("({x}, {y})"),
        4 => format!("{{{x}: {y}}}"),
        5 => format!("{{'k': {x}, 1: {y}}}"),
        6 => format!("({x})[{y}]"),
        7 => format!("({x})[{y}:{z}]"),
        8 => format!("({x})[::{y}]"),
        9 => format!("({x} if {y} else {z})"),
        10 => format!("(not {x})"),
        11 => format!("(-({x}))"),
        12..=14 => {
            let filter = random.of(&[
                "list",
                "join",
                "join(', ')",
                "upper",
                "length",
                "unique|list",
                "sort",
                "reverse|list",
                "tojson",
                "tojson(indent=2)",
                "string",
                "first",
                "last",
                "batch(2)|list",
                "slice(3)|list",
                "map('string')|list",
                "select|list",
                "sum",
                "min",
                "max",
                "indent(3)",
                "trim",
                "replace('a', 'bb')",
                "default('d')",
                "dictsort",
                "items|list",
                "int",
                "float",
                "abs",
                "round",
                "title",
                "center(30)",
                "wordwrap(5)",
                "truncate(3)",
                "striptags",
                "escape",
                "urlencode",
                "groupby(0)|list",
                "format(1)",
                "wordcount",
                "pprint",
                "zip([1, 2])|list",
                "chain([1])|list",
                "map('list')|list",
                "xmlattr",
            ]);
            format!("({x})|{filter}")
        }
        15..=17 => {
            let method = random.of(&[
                "upper()",
                "split()",
                "split('a')",
                "strip()",
                "replace('a', 'aaaa')",
                "join(['x', 'y'])",
                "items()",
                "keys()",
                "values()",
                "get('k')",
                "copy()",
                "count('a')",
                "index(1)",
                "find('a')",
                "format(1, 2)",
                "splitlines()",
                "title()",
                "center(99)",
                "zfill(9)",
                "partition(' ')",
                "rsplit(' ', 1)",
                "startswith('a')",
                "expandtabs(3)",
                "append(1)",
            ]);
            format!("({x}).{method}")
        }
        18 => format!("dict([({x}, {y})])"),
        19 => format!("namespace(x={x}, y={y})"),
        20 => format!(
            "({x} is {})",
            random.of(&["defined", "none", "string", "mapping", "sequence", "iterable", "eq 1", "in [1]"])
        ),
        _ => format!("m({x})"),
    }
}

fn statement(random: &mut Random, depth: usize) -> String {
    let value = expression(random, 4);
    if depth == 0 {
        return format!("{{{{ {value} }}}}");
    }
    let body = statement(random, depth - 1);
    match random.below(10) {
        0 => format!("{{% for i in {value} %}}{body}{{% endfor %}}"),
        1 => format!("{{% for i in range({}) %}}{body}{{% endfor %}}", random.of(&["3", "60", "99999"])),
        2 => format!("{{% set ns.x = {value} %}}{body}"),
        3 => format!("{{% for i in range(99999) %}}{{% set ns.x = {value} %}}{{% endfor %}}{body}"),
        4 => format!("{{% for i in range(50) %}}{{% set ns.x = [ns.x, {value}] %}}{{% endfor %}}{body}"),
        5 => format!("{{% if {value} %}}{body}{{% else %}}no{{% endif %}}"),
        6 => format!("{{% set a %}}{body}{{% endset %}}{{% set b = a ~ {value} %}}{{{{ b }}}}"),
        7 => format!("{{% macro m(x) %}}{body}{{% endmacro %}}{{{{ m({value}) }}}}"),
        8 => format!("{{% filter upper %}}{body}{{% endfilter %}}"),
        _ => format!("{body}{{{{ {value} }}}}"),
    }
}

/// Templates by a grammar: each renders or is refused; none aborts, whatever it builds. `MOE_FULL=1` takes 10,000, in a
/// gigabyte and a half of address space.
#[test]
fn random_templates_render_or_are_refused() {
    let full = std::env::var("MOE_FULL").is_ok_and(|v| v == "1");
    let mut random = Random(0x5eed_0000_0000_0001);
    let (mut rendered, mut refused) = (0, 0);
    for _ in 0..if full { 10_000 } else { 300 } {
        let statements = statement(&mut random, 4);
        let source = format!(
            "{{% set ns = namespace(x=[1], y='') %}}{{% set a = 'ab' %}}{{% set b = [1, 'c'] %}}{statements}"
        );
        match render(&source, &Map::new()) {
            Ok(_) => rendered += 1,
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().contains("defect"), "{source}: {error}");
            }
        }
    }
    assert!(rendered > 0 && refused > 0, "{rendered} rendered, {refused} refused");
}
