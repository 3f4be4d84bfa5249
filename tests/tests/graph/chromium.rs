//! A headless Chromium, spoken to by the DevTools protocol over two pipes: no port, no WebSocket.

use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A browser with one page; ended when dropped.
pub struct Chromium {
    process: Child,
    to: File,
    from: File,
    unread: Vec<u8>,
    last_id: u64,
    session: Option<String>,
    /// Errors of the page: uncaught exceptions, failed loads, `console.error`.
    pub errors: Vec<String>,
    _dir: tempfile::TempDir,
}

/// The browser's program: `MOE_RUN_CHROMIUM`, else the first that the path has; `None` where there is none.
fn program() -> Option<OsString> {
    if let Some(named) = std::env::var_os("MOE_RUN_CHROMIUM") {
        return Some(named);
    }
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = std::env::split_paths(&path).flat_map(|dir| names.map(|n| dir.join(n))).find(|p| p.is_file());
    found.map(OsString::from)
}

impl Chromium {
    /// Starts the browser with a page of the given size; `None` where there is none on this machine.
    pub fn start(width: u32, height: u32) -> Option<Chromium> {
        let program = program()?;
        let dir = tempfile::tempdir().unwrap();
        let fifo = |name: &str| {
            let path = dir.path().join(name);
            assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
            path
        };
        let (to, from) = (fifo("to"), fifo("from"));
        // The protocol's pipes are file descriptors 3 and 4, which a shell sets up.
        let process = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<\"$TO\" 4>\"$FROM\"", "sh"])
            .arg(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
            .args(["--remote-debugging-pipe", "about:blank"])
            .env("TO", &to)
            .env("FROM", &from)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut browser = Chromium {
            process,
            to: OpenOptions::new().write(true).open(&to).unwrap(),
            from: File::open(&from).unwrap(),
            unread: Vec::new(),
            last_id: 0,
            session: None,
            errors: Vec::new(),
            _dir: dir,
        };
        let page = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let target = page["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable", "Network.enable"] {
            browser.call(domain, json!({}));
        }
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        browser.call("Emulation.setDeviceMetricsOverride", metrics);
        Some(browser)
    }

    fn receive(&mut self) -> Value {
        loop {
            if let Some(end) = self.unread.iter().position(|b| *b == 0) {
                let message: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&message[..end]).unwrap();
            }
            let mut chunk = vec![0; 1 << 16];
            let n = self.from.read(&mut chunk).unwrap();
            assert!(n > 0, "the browser ended");
            self.unread.extend_from_slice(&chunk[..n]);
        }
    }

    /// Calls a method and waits for its result; errors that the page reports meanwhile are kept.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut message = json!({ "id": self.last_id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.to.write_all(message.to_string().as_bytes()).unwrap();
        self.to.write_all(b"\0").unwrap();
        loop {
            let answer = self.receive();
            if answer["id"] == self.last_id {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            let params = &answer["params"];
            let is_error = match answer["method"].as_str() {
                Some("Runtime.exceptionThrown") => true,
                Some("Log.entryAdded") => params["entry"]["level"] == "error",
                Some("Runtime.consoleAPICalled") => params["type"] == "error" || params["type"] == "assert",
                // The page itself is a file; whatever else it asks for, it should not.
                Some("Network.requestWillBeSent") => params["type"] != "Document",
                _ => false,
            };
            if is_error {
                self.errors.push(params.to_string());
            }
        }
    }

    /// The value of an expression in the page.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    /// Opens a file and waits until it is loaded and its script has run.
    pub fn open(&mut self, file: &Path) {
        let url = format!("file://{}", file.display());
        self.call("Page.navigate", json!({ "url": url }));
        self.until(&format!(
            "location.href.startsWith('{url}') && document.readyState === 'complete' && !!document.getElementById('detail')"
        ));
    }

    /// Waits until a condition of the page holds.
    pub fn until(&mut self, condition: &str) {
        let start = Instant::now();
        while self.evaluate(condition) != true {
            // Only against hanging: a busy machine may take its time.
            assert!(start.elapsed() < Duration::from_secs(900), "never: {condition}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses and lets go of a key.
    pub fn key(&mut self, key: &str) {
        let code = if key == "Enter" { 13 } else { 0 };
        for kind in ["keyDown", "keyUp"] {
            let mut params = json!({ "type": kind, "key": key, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && key.chars().count() == 1 {
                params["text"] = key.into();
            }
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    /// Clicks the middle of the first element of a selector, as a mouse does.
    pub fn click(&mut self, selector: &str) {
        let middle = format!(
            "(() => {{ const e = document.querySelector({}); e.scrollIntoView({{ block: 'center' }}); \
             const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()",
            json!(selector)
        );
        let middle = self.evaluate(&middle);
        for kind in ["mousePressed", "mouseReleased"] {
            let params =
                json!({ "type": kind, "x": middle[0], "y": middle[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", params);
        }
    }

    /// The page as PNG, base64.
    pub fn screenshot(&mut self) -> String {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        shot["data"].as_str().unwrap().to_owned()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // Only the processes that were started here: the browser ends its own.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
