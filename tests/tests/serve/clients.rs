//! Clients as people have them: OpenAI's and Anthropic's Python packages, OpenAI's for Node, curl, Prometheus' parser, and a browser for
//! the page. Where one is not installed, that is said.

use crate::PROGRAM;
use moe_run_tests::http::Serving;
use std::process::Command;

fn python() -> String {
    std::env::var("MOE_PYTHON").unwrap_or_else(|_| "python3".into())
}

/// A script of `tests/python` for a server.
fn script(name: &str, server: &Serving) -> Command {
    let mut command = Command::new(python());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/python/").to_owned() + name;
    command.arg(path).arg(format!("http://{}", server.address));
    command
}

/// Runs a client, which says the model's answer in the end.
fn answered(client: &mut Command, server: &Serving) {
    let done = client.output().unwrap();
    assert!(done.status.success(), "{}\n{}", String::from_utf8_lossy(&done.stderr), server.said());
    assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "2 + 2 = 4");
    server.wait_for_metric("moe_run_kv_blocks_used", 0.0);
}

/// Runs a script of `tests/python` against a server, where the package that it needs is installed.
fn client(package: &str, name: &str) {
    let has_package = Command::new(python()).args(["-c", &format!("import {package}")]).output();
    if !has_package.is_ok_and(|out| out.status.success()) {
        eprintln!("SKIPPED: Python's package {package} is not installed: that client was not tried");
        return;
    }
    let server = Serving::start(PROGRAM, &[]);
    answered(&mut script(name, &server), &server);
}

#[test]
fn openais_client_is_answered() {
    client("openai", "serve_openai.py");
}

/// OpenAI's client for Node, from the folder that `MOE_NODE` names, or from tests/node.
#[test]
fn openais_client_for_node_is_answered() {
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/node");
    let folder = std::env::var("MOE_NODE").unwrap_or_else(|_| scripts.to_owned());
    if !std::path::Path::new(&folder).join("node_modules/openai").exists() {
        eprintln!("SKIPPED: no openai for Node in {folder}: `npm install openai` there");
        return;
    }
    let server = Serving::start(PROGRAM, &[]);
    let mut node = Command::new("node");
    node.arg(format!("{scripts}/serve_openai.mjs")).arg(format!("http://{}", server.address)).arg(&folder);
    answered(&mut node, &server);
}

#[test]
fn prometheus_reads_what_is_counted() {
    client("prometheus_client", "serve_metrics.py");
}

/// The page, by keyboard alone, at a desk's width and a phone's; `MOE_SCREENSHOTS` names a folder for what is seen.
#[test]
fn the_page_works_in_a_browser() {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let is_there =
        |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    let Some(browser) = names.iter().find(is_there) else {
        eprintln!("SKIPPED: no Chromium is installed (scripts/test.sh installs it): the page was not tried");
        return;
    };
    let server = Serving::start(PROGRAM, &[]);
    let mut script = script("serve_page.py", &server);
    script.arg(browser).args(std::env::var_os("MOE_SCREENSHOTS"));
    answered(&mut script, &server);
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
