//! Starts `moe-run` as a process and looks at what comes out.

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// What a process left: its exit code and its two outputs as text.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; −1 where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output as one JSON value.
    ///
    /// # Panics
    /// With all output, where it is something else.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e} in {self:#?}"))
    }

    /// The same, where the process succeeded.
    ///
    /// # Panics
    /// With all output, where it did not.
    #[must_use]
    pub fn succeeded(self) -> Finished {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }
}

/// Runs the program to its end with the given arguments and nothing on standard input. `program` is
/// `env!("CARGO_BIN_EXE_moe-run-under-test")`.
///
/// # Panics
/// Where it cannot be started.
#[must_use]
pub fn run<'a>(program: &str, args: impl IntoIterator<Item = &'a str>) -> Finished {
    run_with_input(program, args, b"")
}

/// The same, with standard input.
///
/// # Panics
/// Where it cannot be started, or does not read its input.
#[must_use]
pub fn run_with_input<'a>(program: &str, args: impl IntoIterator<Item = &'a str>, input: &[u8]) -> Finished {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    // A program that ends without reading closes the pipe: that is its right.
    let written = child.stdin.take().map(|mut pipe| pipe.write_all(input));
    drop(written);
    finish(child.wait_with_output().unwrap_or_else(|e| panic!("{program}: {e}")))
}

/// What a process left.
#[must_use]
pub fn finish(output: Output) -> Finished {
    let Output { status, stdout, stderr } = output;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Finished { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) }
}

/// Sends a process what Ctrl-C sends.
///
/// # Panics
/// Where there is no such process.
pub fn interrupt(child: &Child) {
    let status = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status();
    assert!(status.expect("a shell").success(), "no process {}", child.id());
}

/// Reads a process's standard error up to a text.
///
/// # Panics
/// Where it ends without it.
pub fn wait_for(child: &mut Child, text: &str) {
    let stderr = child.stderr.as_mut().expect("standard error is a pipe");
    let mut said = Vec::new();
    // Byte by byte: what comes after the text is left to be read later.
    let mut byte = [0];
    while !String::from_utf8_lossy(&said).contains(text) {
        let read = stderr.read(&mut byte).expect("standard error can be read");
        assert!(read > 0, "no {text:?} in {}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
}

/// Waits until a process handles what Ctrl-C sends: before that, the signal would end it.
///
/// # Panics
/// Where the process is not there.
pub fn wait_for_handler(child: &Child) {
    const INTERRUPT: u64 = 1 << 1;
    let caught = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("a process");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default();
        u64::from_str_radix(mask.trim(), 16).expect("a mask in hexadecimal digits") & INTERRUPT != 0
    };
    while_polling(|| !caught());
}

/// Waits until a process has computed for 0.3 seconds more than it has now, however much of the machine it gets.
///
/// # Panics
/// Where the process is not there.
pub fn wait_for_work(child: &Child) {
    const TICKS: u64 = 30; // of a hundredth of a second
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("a process");
        // Behind the name in brackets: the state is field 3, the times as user and in the system are 14 and 15.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        fields.skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum::<u64>()
    };
    let begun = ticks();
    while_polling(|| ticks() < begun + TICKS);
}

/// Where there is no /proc, a second must do.
fn while_polling(mut wanted: impl FnMut() -> bool) {
    if !cfg!(target_os = "linux") {
        return std::thread::sleep(Duration::from_secs(1));
    }
    while wanted() {
        std::thread::sleep(Duration::from_millis(5));
    }
}
