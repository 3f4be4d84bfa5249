//! What is answered: OpenAI's and Anthropic's shapes, whole and streamed.

use crate::{CHAT, COMPLETIONS, PROGRAM, joined, question, whole, with};
use moe_run_tests::{cli, http::Serving};
use serde_json::{Value, json};

#[test]
fn answers_are_those_of_run_in_openais_shape() {
    let server = Serving::start(PROGRAM, &["--alias", "demo"]);
    let text =
        cli::run(PROGRAM, ["-p", "What is 2+2?", "--temp", "0", "--backend", "cpu"]).succeeded().stdout;
    let body =
        json!({"model": "gpt-4o", "messages": question("What is 2+2?"), "temperature": 0, "user": "me"});
    let answer = server.post(CHAT, &body).ok();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "demo");
    assert!(
        answer["id"].as_str().unwrap().starts_with("chatcmpl-")
            && answer["created"].as_u64().unwrap() > 1_700_000_000
    );
    let choice = &answer["choices"][0];
    assert_eq!(
        choice["message"],
        json!({"role": "assistant", "content": text.trim_end_matches('\n'), "refusal": null})
    );
    assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("stop"), &Value::Null));

    // Usage is what /tokenize counts of what /apply-template renders.
    let prompt = server.post("/apply-template", &json!({"messages": question("What is 2+2?")})).ok();
    let count = |text: &Value| {
        let tokens = server.post("/tokenize", &json!({"content": text})).ok()["tokens"].clone();
        assert_eq!(&server.post("/detokenize", &json!({"tokens": tokens})).ok()["content"], text);
        tokens.as_array().unwrap().len()
    };
    let (prompt_tokens, output_tokens) = (count(&prompt["prompt"]), count(&choice["message"]["content"]));
    assert_eq!(
        answer["usage"],
        json!({
            "prompt_tokens": prompt_tokens, "completion_tokens": output_tokens,
            "total_tokens": prompt_tokens + output_tokens, "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        })
    );

    // The rendered prompt, as text and as ids, is the same question.
    let tokens = server.post("/tokenize", &json!({"content": prompt["prompt"]})).ok()["tokens"].clone();
    let body = json!({"prompt": [prompt["prompt"]], "temperature": 0, "max_tokens": 50});
    let first = server.post(COMPLETIONS, &body).ok();
    assert_eq!(first["object"], "text_completion");
    assert_eq!(first["choices"][0]["text"], choice["message"]["content"]);
    let by_ids = server.post(COMPLETIONS, &with(body, &json!({"prompt": tokens, "echo": true}))).ok();
    let echoed =
        prompt["prompt"].as_str().unwrap().to_owned() + choice["message"]["content"].as_str().unwrap();
    assert_eq!(by_ids["choices"][0]["text"], echoed);

    let models = server.get("/v1/models").ok();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("demo")));
    assert_eq!(server.get("/v1/models/demo").ok(), models["data"][0]);
    assert_eq!(server.get("/v1/models/other").status, 404);
    assert_eq!((server.get("/health").status, server.get("/ready").status), (200, 200));
    let said = server.said();
    assert!(said.contains("/v1/chat/completions 200 req-") && said.contains(" out, "), "{said}");
    assert!(!said.contains("2+2"), "a line never has the text: {said}");
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let server = Serving::start(PROGRAM, &[]);
    let cases = [
        json!({"temperature": 0}),
        json!({"temperature": 1.2, "seed": 7, "n": 3, "max_tokens": 20}),
        json!({"temperature": 0, "stop": [" 4", "zzz"]}),
        json!({"temperature": 1.5, "seed": 3, "max_tokens": 30, "ignore_eos": true, "stop": "e"}),
        json!({"temperature": 0.9, "seed": 1, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "presence_penalty": 0.5,
               "frequency_penalty": 0.5, "repetition_penalty": 1.1, "logit_bias": {"17": -100}, "max_completion_tokens": 12,
               "ignore_eos": true}),
    ];
    for (number, case) in cases.iter().enumerate() {
        for (path, prompt, logprobs) in [
            (
                CHAT,
                json!({"messages": question("What is 2+2?")}),
                json!({"logprobs": true, "top_logprobs": 3}),
            ),
            (COMPLETIONS, json!({"prompt": ["What is", "The sky is"]}), json!({"logprobs": 2})),
        ] {
            for extra in [json!({}), logprobs] {
                let body = with(with(prompt.clone(), case), &extra);
                let answer = server.post(path, &body).ok();
                let streamed =
                    with(body, &json!({"stream": true, "stream_options": {"include_usage": true}}));
                let stream = server.post(path, &streamed);
                assert!(stream.head.contains("text/event-stream"), "{}", stream.head);
                let (events, is_done) = stream.events();
                assert!(is_done);
                assert_eq!(joined(&events), whole(&answer), "case {number} of {path} {extra}");
                let (last, others) = events.split_last().unwrap();
                assert_eq!(last["choices"], json!([]));
                for name in ["prompt_tokens", "completion_tokens", "total_tokens"] {
                    assert_eq!(last["usage"][name], answer["usage"][name]);
                }
                assert!(others.iter().all(|event| event["usage"].is_null() && event["id"] == last["id"]));
                if path == CHAT {
                    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
                    assert_eq!(events[0]["object"], "chat.completion.chunk");
                }
            }
        }
    }
}

#[test]
fn log_probabilities_belong_to_the_text() {
    let server = Serving::start(PROGRAM, &[]);
    let body =
        json!({"messages": question("What is 2+2?"), "temperature": 0, "logprobs": true, "top_logprobs": 4});
    let answer = server.post(CHAT, &body).ok();
    let choice = &answer["choices"][0];
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len() as u64, answer["usage"]["completion_tokens"].as_u64().unwrap());
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8))
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), choice["message"]["content"].as_str().unwrap());
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 4);
        assert_eq!(
            (&top[0]["token"], &top[0]["logprob"]),
            (&token["token"], &token["logprob"]),
            "the best, at temperature 0"
        );
        let sum: f64 = top.iter().map(|t| t["logprob"].as_f64().unwrap().exp()).sum();
        assert!(
            sum <= 1.0 + 1e-6 && top.windows(2).all(|t| t[0]["logprob"].as_f64() >= t[1]["logprob"].as_f64())
        );
    }
    // What a bias forbids is not chosen; its probability is that of the untouched logits.
    let first = tokens[0]["top_logprobs"][0].clone();
    let id = server.post("/tokenize", &json!({"content": first["token"]})).ok()["tokens"][0].to_string();
    let biased = server.post(CHAT, &with(body, &json!({"logit_bias": {id: -100}, "max_tokens": 1}))).ok();
    let other = &biased["choices"][0]["logprobs"]["content"][0];
    assert_eq!(other["token"], tokens[0]["top_logprobs"][1]["token"]);
    assert_eq!(other["logprob"], tokens[0]["top_logprobs"][1]["logprob"]);
    assert_eq!(other["top_logprobs"], tokens[0]["top_logprobs"]);
}

/// Anthropic's API: whole, as events, counted, refused in its own words.
#[test]
fn anthropics_messages_are_answered() {
    let server = Serving::start(PROGRAM, &["--alias", "demo"]);
    let path = "/v1/messages";
    let body =
        json!({"model": "m", "max_tokens": 50, "temperature": 0, "messages": question("What is 2+2?")});
    let answer = server.post(path, &body).ok();
    assert_eq!(answer["content"], json!([{"type": "text", "text": "2 + 2 = 4"}]));
    assert_eq!(
        (&answer["type"], &answer["role"], &answer["model"]),
        (&json!("message"), &json!("assistant"), &json!("demo"))
    );
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("end_turn"), &Value::Null));
    let count = server.post("/v1/messages/count_tokens", &json!({"messages": question("What is 2+2?")})).ok();
    assert_eq!(count["input_tokens"], answer["usage"]["input_tokens"]);

    let stream = server.post(path, &with(body.clone(), &json!({"stream": true}))).text();
    let texts = stream.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = texts.map(|text| serde_json::from_str(text).unwrap()).collect();
    let text: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    assert_eq!(text, "2 + 2 = 4");
    assert_eq!(events.last().unwrap()["type"], "message_stop");
    let end = &events[events.len() - 2];
    assert_eq!(
        (&end["delta"]["stop_reason"], &end["usage"]["output_tokens"]),
        (&json!("end_turn"), &answer["usage"]["output_tokens"])
    );

    let stopped = server.post(path, &with(body.clone(), &json!({"stop_sequences": [" = "]}))).ok();
    assert_eq!(
        (&stopped["stop_reason"], &stopped["stop_sequence"]),
        (&json!("stop_sequence"), &json!(" = "))
    );
    assert_eq!(stopped["content"][0]["text"], "2 + 2");
    let cut = server.post(path, &with(body.clone(), &json!({"max_tokens": 2}))).ok();
    assert_eq!(cut["stop_reason"], "max_tokens");
    for (fields, word) in [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"tool_choice": {"type": "any"}}), "tool_choice"), // without tools
        (json!({"system": 3}), "system"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}), "messages[0].content[0]"),
    ] {
        let answer = server.post(path, &with(body.clone(), &fields));
        assert_eq!(answer.status, 400);
        let error = answer.json();
        assert_eq!(
            (&error["type"], &error["error"]["type"]),
            (&json!("error"), &json!("invalid_request_error"))
        );
        assert!(error["error"]["message"].as_str().unwrap().starts_with(word), "{error}");
    }
}

/// Tools reach the template, and a call that is required comes, whole and streamed, in every API.
#[test]
fn tools_reach_the_template() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let template = "{% if tools %}Tools: {% for t in tools %}{{ t.function.name }} {% endfor %}{% endif %}{% for m in messages %}\
                    {{ m.role }}: {{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function.arguments.x }}</tool_call>\
                    {% endfor %}\n{% endfor %}";
    std::fs::write(file.path(), template).unwrap();
    let server = Serving::start(PROGRAM, &["--chat-template", file.path().to_str().unwrap()]);
    assert!(
        server.said().contains("tools: calls are read as the chat template shows them"),
        "{}",
        server.said()
    );
    let tools = json!([{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]);
    let call =
        json!({"id": "c", "type": "function", "function": {"name": "look", "arguments": "{\"x\": 3}"}});
    let messages = json!([
        {"role": "user", "content": "a"}, {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "b"},
    ]);
    let body = json!({"messages": messages, "tools": tools, "max_tokens": 3});
    let prompt = server.post("/apply-template", &body).ok();
    assert_eq!(prompt["prompt"], "Tools: look user: aassistant: None<tool_call>3</tool_call>tool: b");
    let without = server.post("/apply-template", &with(body.clone(), &json!({"tool_choice": "none"}))).ok();
    assert!(without["prompt"].as_str().unwrap().starts_with("user: a"));
    let answer = server.post(CHAT, &with(body.clone(), &json!({"parallel_tool_calls": false}))).ok();
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
}

/// A template that shows calls in JSON between tags.
fn with_tools() -> (tempfile::NamedTempFile, Serving) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}\
                    <tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    std::fs::write(file.path(), template).unwrap();
    let server =
        Serving::start(PROGRAM, &["--chat-template", file.path().to_str().unwrap(), "--ctx-size", "512"]);
    (file, server)
}

#[test]
fn a_call_that_is_required_comes() {
    let (_file, server) = with_tools();
    let parameters = json!({
        "type": "object", "properties": {"at": {"type": "string", "enum": ["it", "all"]}, "often": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["at", "often"], "additionalProperties": false,
    });
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let body = json!({"messages": question("Look"), "tools": [tool("look"), tool("see")], "temperature": 1, "seed": 4});
    let check = |name: &str, arguments: &str| {
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        assert!(name == "look" || name == "see");
        assert!(["it", "all"].contains(&arguments["at"].as_str().unwrap()));
        assert!(
            (1..10).contains(&arguments["often"].as_i64().unwrap())
                && arguments.as_object().unwrap().len() == 2
        );
    };
    for (choice, name) in
        [(json!("required"), None), (json!({"type": "function", "function": {"name": "see"}}), Some("see"))]
    {
        let fields = json!({"tool_choice": choice, "parallel_tool_calls": false});
        let answer = server.post(CHAT, &with(body.clone(), &fields)).ok();
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        let call = &choice["message"]["tool_calls"][0]["function"];
        check(call["name"].as_str().unwrap(), call["arguments"].as_str().unwrap());
        assert!(name.is_none_or(|name| call["name"] == name));
        let streamed = with(with(body.clone(), &fields), &json!({"stream": true}));
        let (events, _) = server.post(CHAT, &streamed).events();
        let deltas: Vec<&Value> = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["tool_calls"].as_array())
            .flatten()
            .collect();
        assert_eq!((&deltas[0]["function"]["name"], &deltas[0]["type"]), (&call["name"], &json!("function")));
        assert!(deltas.iter().all(|delta| delta["index"] == 0));
        let arguments: String =
            deltas.iter().filter_map(|delta| delta["function"]["arguments"].as_str()).collect();
        assert_eq!(arguments, call["arguments"].as_str().unwrap());
        assert!(deltas.len() > 2, "arguments come as they are written: {deltas:?}");
    }
    let several = server
        .post(CHAT, &with(body.clone(), &json!({"tool_choice": "required", "n": 3, "max_tokens": 200})))
        .ok();
    for choice in several["choices"].as_array().unwrap() {
        for call in choice["message"]["tool_calls"].as_array().into_iter().flatten() {
            check(
                call["function"]["name"].as_str().unwrap(),
                call["function"]["arguments"].as_str().unwrap(),
            );
        }
    }
    let message = server
        .post("/v1/messages", &json!({
            "max_tokens": 200, "messages": question("Look"), "tools": [{"name": "look", "input_schema": parameters}],
            "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": true},
        }))
        .ok();
    assert_eq!(
        (&message["stop_reason"], &message["content"][0]["type"]),
        (&json!("tool_use"), &json!("tool_use"))
    );
    check("look", &message["content"][0]["input"].to_string());
    let response = server
        .post("/v1/responses", &json!({
            "input": "Look", "tools": [{"type": "function", "name": "look", "parameters": parameters}], "tool_choice": "required",
            "parallel_tool_calls": false,
        }))
        .ok();
    assert_eq!(response["output"][0]["type"], "function_call");
    check("look", response["output"][0]["arguments"].as_str().unwrap());
    // A plain template has no way of calling.
    let plain = Serving::start(PROGRAM, &[]);
    let refused = plain.post(CHAT, &with(body, &json!({"tool_choice": "required"})));
    assert_eq!(
        (refused.status, &refused.json()["error"]["param"]),
        (400, &json!("tool_choice")),
        "{}",
        refused.text()
    );
}

#[test]
fn answers_are_held_to_forms() {
    let server = Serving::start(PROGRAM, &["--ctx-size", "512"]);
    let schema = json!({
        "type": "object", "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}, "is_warm": {"type": "boolean"}},
        "required": ["colour", "is_warm"], "additionalProperties": false,
    });
    let body = json!({"messages": question("Which?"), "temperature": 1, "seed": 2});
    let check = |text: &str| {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in {text}"));
        assert!(
            ["red", "blue"].contains(&value["colour"].as_str().unwrap()) && value["is_warm"].is_boolean()
        );
    };
    let named = json!({"name": "n", "schema": schema, "strict": true});
    for fields in [
        json!({"response_format": {"type": "json_schema", "json_schema": named}}),
        json!({"guided_json": schema}),
        json!({"response_format": {"type": "json_object", "schema": schema}, "n": 3}),
    ] {
        let answer = server.post(CHAT, &with(body.clone(), &fields)).ok();
        for choice in answer["choices"].as_array().unwrap() {
            check(choice["message"]["content"].as_str().unwrap());
            assert_eq!(choice["finish_reason"], "stop");
        }
        let (events, _) =
            server.post(CHAT, &with(with(body.clone(), &fields), &json!({"stream": true}))).events();
        assert_eq!(joined(&events), whole(&answer));
    }
    let text = |answer: &Value| answer["choices"][0]["text"].as_str().unwrap().to_owned();
    let prompt = json!({"prompt": "Say", "temperature": 1, "max_tokens": 50});
    let regex = server.post(COMPLETIONS, &with(prompt.clone(), &json!({"guided_regex": "(ab){3}c"}))).ok();
    assert_eq!(text(&regex), "abababc");
    let choice =
        server.post(COMPLETIONS, &with(prompt.clone(), &json!({"guided_choice": ["yes", "no"]}))).ok();
    assert!(["yes", "no"].contains(&text(&choice).as_str()));
    let grammar =
        server.post(COMPLETIONS, &with(prompt, &json!({"grammar": "start: \"x\" y\ny: \"y\""}))).ok();
    assert_eq!(text(&grammar), "xy");
    let response = server.post(
        "/v1/responses",
        &json!({
            "input": "Which?", "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}},
        }),
    );
    check(response.ok()["output"][0]["content"][0]["text"].as_str().unwrap());
    let message = server.post("/v1/messages", &json!({
        "messages": question("Which?"), "max_tokens": 100, "output_config": {"format": {"type": "json_schema", "schema": schema}},
    }));
    check(message.ok()["content"][0]["text"].as_str().unwrap());
    for (fields, param, word) in [
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}),
            "response_format.json_schema.schema",
            "",
        ),
        (
            json!({"response_format": {"type": "json_object", "schema": {"type": "object", "propertyNames": {"pattern": "a"}}}}),
            "response_format",
            "propertyNames",
        ),
        (json!({"guided_regex": "("}), "guided_regex", ""),
        (json!({"grammar": "root ::= a"}), "grammar", ""),
        (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice", "one form"),
        (json!({"guided_regex": "a", "ignore_eos": true}), "ignore_eos", ""),
    ] {
        let answer = server.post(CHAT, &with(body.clone(), &fields));
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["param"]), (400, &json!(param)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
    // Schemas that would cost without end are refused, or end; the server answers as before.
    let deep = (0..20_000).fold(String::new(), |text, _| text + "{\"type\":\"array\",\"items\":")
        + "{}"
        + &"}".repeat(20_000);
    let body = format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"a\"}}],\"guided_json\":{deep}}}");
    assert_eq!(server.ask("POST", CHAT, &[], body.as_bytes()).status, 400);
    assert_eq!(server.get("/health").status, 200);
    server.wait_for_metric("moe_run_kv_blocks_used", 0.0);
}

/// OpenAI's newer API says what the chat says.
#[test]
fn responses_are_given() {
    let server = Serving::start(PROGRAM, &["--alias", "demo"]);
    let path = "/v1/responses";
    let body = json!({"model": "m", "input": "What is 2+2?", "temperature": 0});
    let chat = server.post(CHAT, &json!({"messages": question("What is 2+2?"), "temperature": 0})).ok();
    let answer = server.post(path, &body).ok();
    assert_eq!(
        (&answer["object"], &answer["status"], &answer["model"]),
        (&json!("response"), &json!("completed"), &json!("demo"))
    );
    let part = &answer["output"][0]["content"][0];
    assert_eq!(
        (&part["type"], &part["text"]),
        (&json!("output_text"), &chat["choices"][0]["message"]["content"])
    );
    for (name, as_name) in [
        ("input_tokens", "prompt_tokens"),
        ("output_tokens", "completion_tokens"),
        ("total_tokens", "total_tokens"),
    ] {
        assert_eq!(answer["usage"][name], chat["usage"][as_name]);
    }
    let stream = server.post(path, &with(body.clone(), &json!({"stream": true}))).text();
    let texts = stream.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = texts.map(|text| serde_json::from_str(text).unwrap()).collect();
    let text: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(text, part["text"].as_str().unwrap());
    assert_eq!(events.last().unwrap()["type"], "response.completed");
    let told = server
        .post(
            path,
            &with(body.clone(), &json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2})),
        )
        .ok();
    let logprobs = told["output"][0]["content"][0]["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len() as u64, told["usage"]["output_tokens"].as_u64().unwrap());
    assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
    for (fields, param) in [
        (json!({"input": null}), "input"),
        (json!({"input": [{"role": "king", "content": "a"}]}), "input[0].role"),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"instructions": 3}), "instructions"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
    ] {
        let answer = server.post(path, &with(body.clone(), &fields));
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (400, &json!(param)),
            "{}",
            answer.text()
        );
    }
}

/// A form beside tools that may be called: what comes is one of the two, whole.
#[test]
fn an_answer_is_in_its_form_or_a_call() {
    let (_file, server) = with_tools();
    let object = |name: &str| json!({"type": "object", "properties": {name: {"type": "integer", "minimum": 0, "maximum": 9}}, "required": [name], "additionalProperties": false});
    let tool = json!({"type": "function", "function": {"name": "look", "parameters": object("at")}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": object("n")}});
    let body =
        json!({"messages": question("Look"), "tools": [tool], "response_format": format, "temperature": 2});
    let (mut answers, mut calls) = (0, 0);
    for seed in 0..40 {
        let choice = &server.post(CHAT, &with(body.clone(), &json!({"seed": seed}))).ok()["choices"][0];
        match choice["finish_reason"].as_str().unwrap() {
            "stop" => {
                let value: Value =
                    serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
                assert!(value["n"].is_u64() && value.as_object().unwrap().len() == 1);
                answers += 1;
            }
            "tool_calls" => {
                for call in choice["message"]["tool_calls"].as_array().unwrap() {
                    let arguments = call["function"]["arguments"].as_str().unwrap();
                    let arguments: Value = serde_json::from_str(arguments).unwrap();
                    assert!(arguments["at"].is_u64() && choice["message"]["content"].is_null());
                }
                calls += 1;
            }
            other => panic!("{other}: {choice}"),
        }
        if answers > 1 && calls > 1 {
            break;
        }
    }
    // Which of the two a model of random talk begins with is chance; that both may is `constraints`' to show.
    assert!(answers + calls > 3);
    for (fields, param) in [
        (json!({"response_format": null, "guided_regex": "a"}), "guided_regex"),
        (json!({"tool_choice": "required"}), "response_format"),
        (json!({"response_format": {"type": "json_object", "schema": {"not": {}}}}), "response_format"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]}),
            "tools",
        ),
    ] {
        let refused = server.post(CHAT, &with(body.clone(), &fields));
        assert_eq!(
            (refused.status, &refused.json()["error"]["param"]),
            (400, &json!(param)),
            "{}",
            refused.text()
        );
    }
    let none = server.post(CHAT, &with(body, &json!({"tool_choice": "none", "seed": 1}))).ok();
    assert_eq!(none["choices"][0]["finish_reason"], "stop");
}

/// `"routing": true` tells the experts of each token, which change nothing of it.
#[test]
fn experts_are_told_where_they_are_asked_for() {
    let server = Serving::start(PROGRAM, &[]);
    let body = json!({"messages": question("What is 2+2?"), "temperature": 0, "logprobs": true});
    let plain = server.post(CHAT, &body).ok();
    let routed = server.post(CHAT, &with(body.clone(), &json!({"routing": true}))).ok();
    assert_eq!(whole(&plain), whole(&routed));
    assert!(plain["choices"][0].get("routing").is_none());
    let routing = routed["choices"][0]["routing"].as_array().unwrap();
    assert_eq!(routing.len() as u64, routed["usage"]["completion_tokens"].as_u64().unwrap());
    for token in routing {
        let layers = token["layers"].as_object().unwrap();
        assert!(
            layers.len() > 1
                && layers.values().all(|experts| {
                    let experts = experts.as_array().unwrap();
                    experts.len() == 4 && experts.iter().all(|expert| expert.as_u64().unwrap() < 16)
                })
        );
    }
    let streamed = with(body, &json!({"routing": true, "stream": true}));
    let (events, _) = server.post(CHAT, &streamed).events();
    let told: Vec<&Value> =
        events.iter().filter_map(|e| e["choices"][0]["routing"].as_array()).flatten().collect();
    assert_eq!(json!(told), json!(routing));
}
