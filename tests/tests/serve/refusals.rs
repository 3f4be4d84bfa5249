//! What is not answered, and why: by name, and never by a failure of the server.

use crate::{CHAT, COMPLETIONS, PROGRAM, question, with};
use moe_run_graph::synth::Random;
use moe_run_tests::http::Serving;
use serde_json::{Value, json};

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let server = Serving::start(
        PROGRAM,
        &["--ctx-size", "128", "--max-body-mib", "1", "--max-queue", "3", "--parallel", "2"],
    );
    let messages = question("Hi");
    let long = "word ".repeat(300);
    let chat = |fields: Value| with(json!({"messages": messages}), &fields);
    let text = |fields: Value| with(json!({"prompt": "Hi"}), &fields);
    for (path, body, param) in [
        (CHAT, json!({}), "messages"),
        (CHAT, chat(json!({"messages": "Hi"})), "messages"),
        (CHAT, chat(json!({"messages": [{"role": "user"}]})), "messages[0].content"),
        (CHAT, chat(json!({"temperature": "hot"})), "temperature"),
        (CHAT, chat(json!({"temperature": -1})), "temperature"),
        (CHAT, chat(json!({"top_p": 1.5})), "top_p"),
        (CHAT, chat(json!({"n": 0})), "n"),
        (CHAT, chat(json!({"n": 6})), "n"),
        (CHAT, chat(json!({"max_tokens": 0})), "max_tokens"),
        (CHAT, chat(json!({"max_tokens": 1.5})), "max_tokens"),
        (CHAT, chat(json!({"seed": "x"})), "seed"),
        (CHAT, chat(json!({"stop": [""]})), "stop"),
        (CHAT, chat(json!({"stop": [3]})), "stop[0]"),
        (CHAT, chat(json!({"logit_bias": {"x": 1}})), "logit_bias"),
        (CHAT, chat(json!({"logit_bias": {"99999999": 1}})), "logit_bias"),
        (CHAT, chat(json!({"logit_bias": {"1": 1000}})), "logit_bias"),
        (CHAT, chat(json!({"logprobs": 3})), "logprobs"),
        (CHAT, chat(json!({"top_logprobs": 3})), "top_logprobs"),
        (CHAT, chat(json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs"),
        (CHAT, chat(json!({"stream": "yes"})), "stream"),
        (CHAT, chat(json!({"stream_options": {"include_usage": true}})), "stream_options"),
        (CHAT, chat(json!({"model": 3})), "model"),
        (CHAT, chat(json!({"response_format": {"type": "xml"}})), "response_format.type"),
        (CHAT, chat(json!({"audio": {}})), "audio"),
        (CHAT, chat(json!({"grammar": "root ::= a"})), "grammar"),
        (CHAT, chat(json!({"taps": ["layer-0/moe_router"]})), "taps"),
        (COMPLETIONS, json!({}), "prompt"),
        (COMPLETIONS, text(json!({"prompt": []})), "prompt"),
        (COMPLETIONS, text(json!({"prompt": ""})), "prompt"),
        (COMPLETIONS, text(json!({"prompt": [1, "a"]})), "prompt[0]"),
        (COMPLETIONS, text(json!({"prompt": [1, -1]})), "prompt"),
        (COMPLETIONS, text(json!({"prompt": [99_999_999]})), "prompt"),
        (COMPLETIONS, text(json!({"prompt": vec!["a"; 200]})), "prompt"),
        (COMPLETIONS, text(json!({"prompt": {}})), "prompt"),
        (COMPLETIONS, text(json!({"suffix": "x"})), "suffix"),
        (COMPLETIONS, text(json!({"best_of": 2})), "best_of"),
        (COMPLETIONS, text(json!({"echo": true, "logprobs": 1})), "echo"),
        ("/tokenize", json!({}), "content"),
        ("/detokenize", json!({"tokens": ["a"]}), "tokens"),
        ("/detokenize", json!({"tokens": [99_999_999]}), "tokens"),
        ("/apply-template", json!({"messages": [{"role": "king", "content": "a"}]}), "messages[0].role"),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 400, "{path} {body}: {}", answer.text());
        let error = &answer.json()["error"];
        assert_eq!(error["param"], param, "{path} {body}: {error}");
        assert!(error["message"].as_str().unwrap().starts_with(param), "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    for (path, body) in
        [(CHAT, chat(json!({"messages": question(&long)}))), (COMPLETIONS, text(json!({"prompt": long})))]
    {
        let answer = server.post(path, &body);
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (400, &json!("context_length_exceeded"))
        );
    }
    // What changes nothing is taken.
    let harmless = json!({
        "model": "any", "user": "me", "metadata": {}, "store": false, "tools": [], "tool_choice": "auto", "n": null,
        "response_format": {"type": "text"}, "modalities": ["text"], "logit_bias": {}, "max_tokens": 2, "unheard_of": 1,
    });
    let answer = server.post(CHAT, &chat(harmless)).ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    // The context ends an answer that nothing else does.
    let body = json!({"prompt": "Hi", "max_tokens": 10_000, "ignore_eos": true});
    let answer = server.post(COMPLETIONS, &body).ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["total_tokens"], 129, "one more token is chosen than the context holds");

    for body in [&b"{"[..], b"", b"[]", b"\xff\xfe", b"{\"messages\": \"\\ud800\"}"] {
        let answer = server.ask("POST", CHAT, &[], body);
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("invalid_json")));
    }
    assert_eq!(server.ask("POST", CHAT, &[], &vec![b' '; 2 << 20]).status, 413);
    assert_eq!((server.get(CHAT).status, server.get("/v1/nothing").status), (405, 404));
    assert_eq!(server.ask("DELETE", "/v1/models", &[], b"").status, 405);
}

#[test]
fn strangers_are_not_answered() {
    let server = Serving::start(PROGRAM, &["--api-key", "sk-1", "--cors-origin", "https://chat.example"]);
    let status = |path: &str, headers: &[(&str, &str)]| server.ask("GET", path, headers, b"").status;
    assert_eq!(status("/v1/models", &[]), 401);
    assert_eq!(status("/v1/models", &[("Authorization", "Bearer sk-2")]), 401);
    assert_eq!(status("/v1/models", &[("Authorization", "Bearer sk-1")]), 200);
    assert_eq!(status("/v1/models", &[("x-api-key", "sk-1")]), 200);
    assert_eq!((status("/health", &[]), status("/ready", &[]), status("/metrics", &[])), (200, 200, 401));
    let key = ("Authorization", "Bearer sk-1");
    assert_eq!(status("/v1/models", &[key, ("Host", "evil.example")]), 403);
    assert_eq!(status("/v1/models", &[key, ("Host", "localhost:8080")]), 200);
    assert_eq!(status("/v1/models", &[key, ("Origin", "https://evil.example")]), 403);
    let answer = server.ask("GET", "/v1/models", &[key, ("Origin", "https://chat.example")], b"");
    assert!(
        answer.head.to_lowercase().contains("access-control-allow-origin: https://chat.example"),
        "{}",
        answer.head
    );
    let page = ("Origin", "http://localhost:3000");
    let answer = server.ask("OPTIONS", CHAT, &[page, ("Access-Control-Request-Method", "POST")], b"");
    assert_eq!(answer.status, 204);
    assert!(
        answer.head.to_lowercase().contains("access-control-allow-headers: authorization"),
        "{}",
        answer.head
    );
}

/// Mistakes of every kind in bodies that were right: never a failure of the server, and afterwards it answers as before.
#[test]
fn fuzzed_bodies_are_refused_or_answered() {
    let server = Serving::start(PROGRAM, &["--ctx-size", "256", "--drain-s", "1"]);
    let chat = json!({
        "model": "m", "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}],
        "temperature": 0.5, "top_p": 0.9, "n": 1, "max_tokens": 2, "stop": ["x", "y"], "logprobs": true, "top_logprobs": 2,
        "logit_bias": {"5": 1.5}, "seed": 3, "stream": true, "stream_options": {"include_usage": true}, "tools": [],
        "chat_template_kwargs": {"enable_thinking": false}, "presence_penalty": 0.1,
    });
    let text =
        json!({"prompt": ["a", "b"], "max_tokens": 2, "echo": true, "logprobs": null, "n": 2, "stop": "x"});
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e300),
        json!(18_446_744_073_709_551_615_u64),
        json!(""),
        json!("é🙂\u{0}"),
        json!("<|im_end|>"),
        json!([]),
        json!({}),
        json!([[[[]]]]),
        json!({"type": "text"}),
        json!([1, "a", null]),
        json!(0.1),
        json!({"role": "user", "content": "<|im_start|>"}),
        json!("x".repeat(3000)),
    ];
    let mut random = Random::new(&[77]);
    let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
    let mut statuses = std::collections::BTreeMap::new();
    for round in 0..400 {
        let (path, base) = if below(3) == 0 { (COMPLETIONS, &text) } else { (CHAT, &chat) };
        let mut body = base.clone();
        for _ in 0..below(4) {
            damage(&mut body, &values, &mut below);
        }
        let mut bytes = body.to_string().into_bytes();
        if below(4) == 0 {
            let at = below(bytes.len());
            match below(3) {
                0 => bytes.truncate(at),
                1 => bytes[at] = below(256) as u8,
                _ => bytes.insert(at, b"{}[],:\"\\"[below(8)]),
            }
        }
        let answer = server.ask("POST", path, &[], &bytes);
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        assert!(answer.status < 500 && answer.status != 404, "round {round}: {} for {shown}", answer.text());
        if answer.status >= 400 {
            assert!(answer.json()["error"]["message"].is_string());
        }
        *statuses.entry(answer.status).or_insert(0) += 1;
    }
    println!("{statuses:?}");
    assert!(statuses[&200] > 20 && statuses[&400] > 20, "{statuses:?}");
    server.wait_for_metric("moe_run_kv_blocks_used", 0.0);
    assert!(!server.said().contains("panicked"), "{}", server.said());
}

/// Puts another value in the place of one that is somewhere in a body, or leaves it out.
fn damage(value: &mut Value, values: &[Value], below: &mut impl FnMut(usize) -> usize) {
    let goes_deeper = below(3) > 0;
    match value {
        Value::Object(fields) if goes_deeper && !fields.is_empty() => {
            let name = fields.keys().nth(below(fields.len())).unwrap().clone();
            if below(8) == 0 {
                fields.remove(&name);
            } else {
                damage(&mut fields[&name], values, below);
            }
        }
        Value::Array(items) if goes_deeper && !items.is_empty() => {
            let at = below(items.len());
            damage(&mut items[at], values, below);
        }
        other => *other = values[below(values.len())].clone(),
    }
}
