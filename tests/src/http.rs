//! A server as a process, and HTTP over plain sockets: what a client sends and gets, byte by byte.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A running `moe-run serve`, ended when it is dropped.
#[derive(Debug)]
pub struct Serving {
    /// The process.
    pub child: Child,
    /// Where it listens: `127.0.0.1:PORT`.
    pub address: String,
    said: Arc<Mutex<String>>,
}

impl Serving {
    /// Starts one at a free port and waits until it is ready. `program` is `env!("CARGO_BIN_EXE_moe-run-under-test")`.
    ///
    /// # Panics
    /// Where it does not become ready: with what it said.
    #[must_use]
    pub fn start(program: &str, args: &[&str]) -> Serving {
        let mut child = Command::new(program)
            .args(["serve", "--port", "0", "--backend", "cpu", "--threads", "2"])
            .args(args)
            .env_remove("MOE_RUN_API_KEY")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}"));
        let said = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().expect("standard error is a pipe");
        let kept = Arc::clone(&said);
        let (sender, ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("ready: http://") {
                    let _ = sender.send(address.to_owned());
                }
                kept.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let address = ready.recv_timeout(Duration::from_secs(120));
        let address = address.unwrap_or_else(|_| panic!("not ready: {}", said.lock().unwrap()));
        Serving { child, address, said }
    }

    /// What it said on standard error until now.
    #[must_use]
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Posts JSON and waits for the answer.
    #[must_use]
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &[], body.to_string().as_bytes())
    }

    /// Gets a path.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    /// Sends a request with further headers and waits for the answer.
    ///
    /// # Panics
    /// Where there is no answer that is HTTP.
    #[must_use]
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.send(method, path, headers, body);
        let mut bytes = Vec::new();
        // A server that refuses a body may reset the connection behind its answer.
        let _ = stream.read_to_end(&mut bytes);
        Answer::parse(&bytes).unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(&bytes)))
    }

    /// Sends a request and leaves the answer to be read.
    ///
    /// # Panics
    /// Where the server does not take it.
    #[must_use]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a time limit");
        let has_host = headers.iter().any(|(name, _)| *name == "Host");
        let host = if has_host { String::new() } else { format!("Host: {}\r\n", self.address) };
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let _ = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(body));
        stream
    }

    /// A number of `/metrics`.
    ///
    /// # Panics
    /// Where there is none of that name.
    #[must_use]
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    /// Waits until a number of `/metrics` is what is wanted.
    ///
    /// # Panics
    /// Where it is not within a minute.
    pub fn wait_for_metric(&self, name: &str, wanted: f64) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.metric(name) != wanted {
            assert!(Instant::now() < until, "{name} is {}, wanted {wanted}", self.metric(name));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends SIGTERM.
    ///
    /// # Panics
    /// Where there is no such process.
    pub fn terminate(&self) {
        let status = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.child.id())]).status();
        assert!(status.expect("a shell").success());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP's status.
    pub status: u16,
    /// The head, as it came.
    pub head: String,
    /// The body, out of its chunks.
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads an answer that is complete.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Answer> {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let body = &bytes[end + 4..];
        let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let body = if is_chunked { unchunked(body) } else { body.to_vec() };
        Some(Answer { status, head, body })
    }

    /// The body as text.
    ///
    /// # Panics
    /// Where it is none.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("a body of text")
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// With the body, where it is something else.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    /// The same, where the request was answered.
    ///
    /// # Panics
    /// With the body, where it was not.
    #[must_use]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// The values of an event stream, and whether it ended with `[DONE]`.
    ///
    /// # Panics
    /// Where it is no stream of JSON values.
    #[must_use]
    pub fn events(&self) -> (Vec<Value>, bool) {
        let text = self.text();
        let data: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        let is_done = data.last() == Some(&"[DONE]");
        let values = data.iter().filter(|data| **data != "[DONE]");
        (
            values
                .map(|data| serde_json::from_str(data).unwrap_or_else(|e| panic!("{e} in {data}")))
                .collect(),
            is_done,
        )
    }
}

/// A body out of its chunks, as far as it came.
fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end])
            .ok()
            .and_then(|text| usize::from_str_radix(text.trim(), 16).ok());
        let (Some(size), tail) = (size, &rest[end + 2..]) else { break };
        let size = size.min(tail.len());
        body.extend_from_slice(&tail[..size]);
        rest = tail.get(size + 2..).unwrap_or_default();
    }
    body
}
