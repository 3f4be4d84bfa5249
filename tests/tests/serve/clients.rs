//! Clients as people have them: OpenAI's and Anthropic's Python packages, and curl. Where one is not installed, that is said.

use crate::PROGRAM;
use moe_run_tests::http::Serving;
use std::process::Command;

/// Runs a script of `tests/python` against a server, where the package that it needs is installed.
fn client(package: &str, script: &str) {
    let python = std::env::var("MOE_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_package = Command::new(&python).args(["-c", &format!("import {package}")]).output();
    if !has_package.is_ok_and(|out| out.status.success()) {
        eprintln!("SKIPPED: Python's package {package} is not installed: that client was not tried");
        return;
    }
    let server = Serving::start(PROGRAM, &[]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/").to_owned() + script;
    let done = Command::new(&python).arg(script).arg(format!("http://{}", server.address)).output().unwrap();
    assert!(done.status.success(), "{}\n{}", String::from_utf8_lossy(&done.stderr), server.said());
    assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "2 + 2 = 4");
    server.wait_for_metric("moe_run_kv_blocks_used", 0.0);
}

#[test]
fn openais_client_is_answered() {
    client("openai", "serve_openai.py");
}

#[test]
fn anthropics_client_is_answered() {
    client("anthropic", "serve_anthropic.py");
}

#[test]
fn curl_is_answered() {
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: curl is not installed");
        return;
    }
    let server = Serving::start(PROGRAM, &[]);
    let url = format!("http://{}/v1/chat/completions", server.address);
    let body =
        r#"{"messages": [{"role": "user", "content": "What is 2+2?"}], "temperature": 0, "stream": true}"#;
    // Without a content type of JSON, too, as hands type it; and beyond the size from which curl asks before it sends.
    let long = body.replace("What", &(" ".repeat(3000) + "What"));
    for (body, args) in
        [(body, &["-sS"][..]), (body, &["-sS", "--http1.0"]), (&long, &["-sS", "-H", "Expect: 100-continue"])]
    {
        let done = Command::new("curl").args(args).args(["-d", body, &url]).output().unwrap();
        let text = String::from_utf8(done.stdout).unwrap();
        assert!(done.status.success() && text.ends_with("data: [DONE]\n\n"), "{text}");
    }
}
