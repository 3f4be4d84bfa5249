//! Many clients at once, those that go away, the server's end, and what it says of itself.

use crate::{CHAT, COMPLETIONS, PROGRAM, joined, whole, with};
use moe_run_graph::synth::Random;
use moe_run_tests::{cli, http::Serving};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// Requests of a crowd: each has what tells it from others, and all choose differently.
fn crowd() -> Vec<Value> {
    let beginning = "You are a helpful assistant who answers shortly and never lies. ".repeat(6);
    let prompts = [
        "What is 2+2?",
        "Name a colour.",
        "Write a long story about the sea.",
        "Why?",
        "Count: one two three",
    ];
    (0..16)
        .map(|number: usize| {
            let mut messages = vec![json!({"role": "user", "content": prompts[number % prompts.len()]})];
            if number.is_multiple_of(2) {
                messages.insert(0, json!({"role": "system", "content": beginning}));
            }
            json!({
                "messages": messages, "temperature": ([0.0, 0.8, 1.4][number % 3]), "seed": number, "max_tokens": 8 + 3 * number,
                "ignore_eos": number % 4 == 1, "logprobs": true, "top_logprobs": number % 4,
                "frequency_penalty": if number.is_multiple_of(5) { 0.4 } else { 0.0 },
            })
        })
        .collect()
}

#[test]
fn a_crowd_has_the_bits_of_each_alone() {
    let requests = crowd();
    let alone = Serving::start(PROGRAM, &["--parallel", "1", "--no-prefix-cache", "--ctx-size", "512"]);
    let wanted: Vec<_> = requests.iter().map(|body| whole(&alone.post(CHAT, body).ok())).collect();
    drop(alone);
    // Blocks for hardly three of them: some are put back and taken up again.
    let server = Serving::start(
        PROGRAM,
        &["--parallel", "16", "--ctx-size", "512", "--pool-tokens", "640", "--max-step-ms", "20"],
    );
    std::thread::scope(|scope| {
        for client in 0..8 {
            let (server, requests, wanted) = (&server, &requests, &wanted);
            scope.spawn(move || {
                let mut random = Random::new(&[55, client]);
                for _ in 0..6 {
                    let number = (random.next_u64() % 16) as usize;
                    let body = &requests[number];
                    match random.next_u64() % 4 {
                        0 => {
                            // A client that goes away in the middle.
                            let body = with(body.clone(), &json!({"stream": true})).to_string();
                            let mut stream = server.send("POST", CHAT, &[], body.as_bytes());
                            let _ = stream.read(&mut [0; 600]);
                        }
                        1 => {
                            let streamed = with(body.clone(), &json!({"stream": true}));
                            let (events, is_done) = server.post(CHAT, &streamed).events();
                            assert!(
                                is_done && joined(&events) == wanted[number],
                                "request {number}, streamed"
                            );
                        }
                        _ => assert_eq!(
                            whole(&server.post(CHAT, body).ok()),
                            wanted[number],
                            "request {number}"
                        ),
                    }
                }
            });
        }
    });
    server.wait_for_metric("moe_run_requests_running", 0.0);
    server.wait_for_metric("moe_run_kv_blocks_used", 0.0);
    println!(
        "{} cached, {} put back",
        server.metric("moe_run_prompt_tokens_cached_total"),
        server.metric("moe_run_preemptions_total")
    );
    assert!(server.metric("moe_run_prompt_tokens_cached_total") > 0.0);
    // What was computed before is not computed again, and the client hears so.
    let again = server.post(CHAT, &requests[0]).ok();
    assert_eq!(whole(&again), wanted[0]);
}

#[test]
fn a_client_that_goes_away_frees_its_place() {
    let server = Serving::start(PROGRAM, &["--parallel", "1", "--max-queue", "1"]);
    let body = json!({"prompt": "Once", "max_tokens": 4000, "ignore_eos": true, "temperature": 0});
    let whole = server.send("POST", COMPLETIONS, &[], body.to_string().as_bytes());
    server.wait_for_metric("moe_run_requests_running", 1.0);
    let streamed = with(body.clone(), &json!({"stream": true})).to_string();
    let waiting = server.send("POST", COMPLETIONS, &[], streamed.as_bytes());
    server.wait_for_metric("moe_run_requests_waiting", 1.0);
    let refused = server.post(COMPLETIONS, &body);
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.head.to_lowercase().contains("retry-after: 1"), "{}", refused.head);
    let before = server.metric("moe_run_generated_tokens_total");
    drop((whole, waiting));
    server.wait_for_metric("moe_run_requests_running", 0.0);
    server.wait_for_metric("moe_run_requests_waiting", 0.0);
    server.wait_for_metric("moe_run_kv_blocks_used", 0.0);
    assert!(server.metric("moe_run_generated_tokens_total") < before + 3000.0, "it did not go on to the end");
    let said = server.said();
    assert!(said.contains("client_gone"), "{said}");
    let answer = server.post(COMPLETIONS, &with(body, &json!({"max_tokens": 2}))).ok();
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}

#[test]
fn told_to_end_it_completes_what_it_has_begun() {
    let mut server = Serving::start(PROGRAM, &["--log-json"]);
    let body =
        json!({"prompt": "Once", "max_tokens": 300, "ignore_eos": true, "stream": true, "temperature": 0})
            .to_string();
    let mut stream = server.send("POST", COMPLETIONS, &[], body.as_bytes());
    let mut bytes = vec![0; 400];
    stream.read_exact(&mut bytes).unwrap();
    server.terminate();
    stream.read_to_end(&mut bytes).unwrap();
    let (events, is_done) = moe_run_tests::http::Answer::parse(&bytes).unwrap().events();
    assert!(is_done);
    assert_eq!(joined(&events)[0].2, "length");
    assert_eq!(server.child.wait().unwrap().code(), Some(0), "{}", server.said());
    let line = server.said().lines().find(|line| line.starts_with('{')).map(str::to_owned).unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&line["reason"], &line["output_tokens"], &line["status"]),
        (&json!("max_tokens"), &json!(300), &json!(200))
    );
    assert!(std::net::TcpStream::connect(&server.address).is_err());
}

#[test]
fn answers_that_take_too_long_are_cut_off_at_the_end() {
    let mut server = Serving::start(PROGRAM, &["--drain-s", "1"]);
    let body = json!({"prompt": "Once", "max_tokens": 1_000_000, "n": 4, "ignore_eos": true, "stream": true})
        .to_string();
    let mut stream = server.send("POST", COMPLETIONS, &[], body.as_bytes());
    stream.read_exact(&mut [0; 400]).unwrap();
    let started = Instant::now();
    server.terminate();
    assert_eq!(server.child.wait().unwrap().code(), Some(0), "{}", server.said());
    assert!(started.elapsed() < Duration::from_secs(20));
}

/// Connections that are half open, slow or nonsense take nothing from the others.
#[test]
fn odd_connections_do_no_harm() {
    let server = Serving::start(PROGRAM, &[]);
    let mut kept = Vec::new();
    for text in [
        "",
        "POST ",
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        "\0\u{1}\u{2}\r\n\r\n",
    ] {
        let mut stream = std::net::TcpStream::connect(&server.address).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        kept.push(stream);
    }
    let answer = server.post(COMPLETIONS, &json!({"prompt": "Hi", "max_tokens": 1})).ok();
    assert_eq!(answer["usage"]["completion_tokens"], 1);
    drop(kept);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn metrics_are_prometheus_text() {
    let server = Serving::start(PROGRAM, &[]);
    let _ = server.post(COMPLETIONS, &json!({"prompt": "Hi", "max_tokens": 3, "ignore_eos": true})).ok();
    let text = server.get("/metrics").text();
    let mut types = std::collections::BTreeMap::new();
    for line in text.lines() {
        match line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            Some((name, kind)) => {
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice")
            }
            None if line.starts_with("# HELP ") => {}
            None => {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
                let name = name.split('{').next().unwrap();
                let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
                let known = types.contains_key(name) || base.is_some_and(|base| types[base] == "histogram");
                assert!(known && !name.contains(':'), "{line}");
            }
        }
    }
    assert_eq!(server.metric("moe_run_generated_tokens_total"), 3.0);
    assert_eq!(server.metric("moe_run_time_to_first_token_seconds_count"), 1.0);
    assert_eq!(server.metric("moe_run_time_between_tokens_seconds_count"), 2.0);
}

#[test]
fn what_cannot_be_served_is_said_at_start() {
    let server = Serving::start(PROGRAM, &[]);
    let port = server.address.rsplit(':').next().unwrap();
    let taken = cli::run(PROGRAM, ["serve", "--port", port]);
    assert_eq!(taken.code, 2, "{taken:?}");
    assert!(
        taken.stderr.contains("cannot listen at 127.0.0.1") && taken.stderr.contains("--port"),
        "{}",
        taken.stderr
    );
    let wrong = cli::run(PROGRAM, ["serve", "--port", "0", "-m", "/nowhere.gguf"]);
    assert_eq!(wrong.code, 2);
}

/// The page loads nothing from elsewhere, and is small.
#[test]
fn the_page_is_whole_by_itself() {
    let server = Serving::start(PROGRAM, &["--api-key", "k"]);
    let mut bytes = 0;
    for (path, content_type) in
        [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")]
    {
        let file = server.get(path);
        assert_eq!(file.status, 200);
        let head = file.head.to_lowercase();
        assert!(head.contains(&format!("content-type: {content_type}")), "{head}");
        assert!(head.contains("content-security-policy: default-src 'none'; script-src 'self';"), "{head}");
        let text = file.text();
        assert!(!text.contains("//") || !text.contains("http"), "{path} names another place");
        assert!(!text.contains("innerHTML") && !text.contains(" style=") && !text.contains(" onclick="));
        bytes += text.len();
    }
    assert!(bytes < 60_000, "{bytes}");
}

/// What a server computed serves the next one; a file of something else is refused by name.
/// A file system of so many bytes, gone when it is dropped; `None` where it cannot be had.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(bytes: usize) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .output();
        mount.is_ok_and(|out| out.status.success()).then(|| SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).output();
    }
}

/// A disk without room for the cache is said at the end, and what was saved before is there still.
#[test]
fn a_full_disk_loses_no_cache_that_was_saved() {
    let Some(disk) = SmallDisk::new(1 << 20) else {
        eprintln!("SKIPPED: no small file system can be mounted here (root may): a full disk was not tried");
        return;
    };
    let path = disk.0.path().join("cache");
    let file = path.to_str().unwrap();
    let end = |words: usize| {
        let mut server = Serving::start(PROGRAM, &["--cache-file", file, "--ctx-size", "1024"]);
        let prompt = "The sea is wide and deep, and so on. ".repeat(words);
        let answer = server.post(COMPLETIONS, &json!({"prompt": prompt, "max_tokens": 1})).ok();
        server.terminate();
        let code = server.child.wait().unwrap().code();
        (code, answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap(), server.said())
    };
    // A block of 64 tokens takes 128 kB of this model.
    let (code, _, said) = end(9);
    assert_eq!(code, Some(0), "{said}");
    let kept = std::fs::read(&path).unwrap();
    let (code, cached, said) = end(70);
    assert!(cached > 0, "{said}");
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains(file) && said.to_lowercase().contains("space"), "{said}");
    assert!(std::fs::read(&path).unwrap() == kept, "it is left as it was");
    assert_eq!(std::fs::read_dir(disk.0.path()).unwrap().count(), 1, "nothing else is left");
    assert!(end(9).1 > 0);
}

#[test]
fn a_cache_outlives_its_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache");
    let file = path.to_str().unwrap();
    let body = json!({"prompt": "The sea is wide and deep, and so on. ".repeat(20), "max_tokens": 5, "temperature": 0, "logprobs": 1});
    let ask = |args: &[&str]| {
        let mut server = Serving::start(PROGRAM, &[&["--cache-file", file], args].concat());
        let answer = server.post(COMPLETIONS, &body).ok();
        server.terminate();
        assert_eq!(server.child.wait().unwrap().code(), Some(0), "{}", server.said());
        (whole(&answer), answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap())
    };
    let (first, second) = (ask(&[]), ask(&[]));
    assert_eq!(first.0, second.0);
    assert!(first.1 == 0 && second.1 >= 64, "{} then {} tokens cached", first.1, second.1);
    let kept = std::fs::read(&path).unwrap();
    for (args, damage, words) in [
        (&["--kv-type", "f32"][..], None, "wanted moe-run"),
        (&[], Some(kept.len() / 2), "it is damaged"),
        (&["--threads", "1"], Some(2), "it is no cache file"),
    ] {
        let mut bytes = kept.clone();
        if let Some(at) = damage {
            bytes[at] ^= 1;
        }
        std::fs::write(&path, &bytes).unwrap();
        let base = ["serve", "--port", "0", "--backend", "cpu", "--cache-file", file];
        let refused = cli::run(PROGRAM, base.iter().chain(args).copied());
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.stderr.contains(file) && refused.stderr.contains(words), "{}", refused.stderr);
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "it is left as it was");
    }
    // A process that is killed leaves the file of the one before it.
    std::fs::write(&path, &kept).unwrap();
    let mut server = Serving::start(PROGRAM, &["--cache-file", file]);
    let stream =
        with(body.clone(), &json!({"stream": true, "max_tokens": 4000, "ignore_eos": true})).to_string();
    let mut stream = server.send("POST", COMPLETIONS, &[], stream.as_bytes());
    stream.read_exact(&mut [0; 300]).unwrap();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    assert!(std::fs::read(&path).unwrap() == kept);
    assert!(ask(&[]).1 >= 64);
    // A disk that is full is said, and nothing else changes.
    #[cfg(target_os = "linux")]
    {
        let link = dir.path().join("full");
        let mut server = Serving::start(PROGRAM, &["--cache-file", link.to_str().unwrap()]);
        let _ = server.post(COMPLETIONS, &body).ok();
        std::os::unix::fs::symlink("/dev/full", &link).unwrap();
        server.terminate();
        assert_eq!(server.child.wait().unwrap().code(), Some(4), "{}", server.said());
        assert!(server.said().contains("full: cannot write"), "{}", server.said());
    }
}
