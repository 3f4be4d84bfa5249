//! The exit codes: the one table that the help text, the README and the tests share.

/// What the process's exit status says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ExitCode {
    /// The command did what it was asked. Also: Ctrl-C ended a generation early, or the reader of a pipe went away.
    Ok = 0,
    /// The command ran, and its verdict is no: values differ beyond the tolerance, a self-test or a check failed.
    Verdict = 1,
    /// Wrong arguments, or input that cannot be read or is not valid: model, prompt, template or tensor file.
    BadInput = 2,
    /// A backend, device, operation, tensor format or architecture that is not there or not supported.
    Unsupported = 3,
    /// It failed while running: out of memory, a device error, a disk that is full, a model's file that was changed or cut
    /// while it was in use, logits that are not numbers.
    Failed = 4,
    /// Ctrl-C ended the process at once.
    Interrupted = 130,
}

impl ExitCode {
    /// Every code.
    pub const ALL: [ExitCode; 6] = [
        ExitCode::Ok,
        ExitCode::Verdict,
        ExitCode::BadInput,
        ExitCode::Unsupported,
        ExitCode::Failed,
        ExitCode::Interrupted,
    ];

    /// The line of the table.
    pub const fn meaning(self) -> &'static str {
        match self {
            ExitCode::Ok => {
                "done (also: a generation that one Ctrl-C ended, or output whose reader went away)"
            }
            ExitCode::Verdict => {
                "ran, and the verdict is no: beyond tolerance, diverged, self-test or check failed"
            }
            ExitCode::BadInput => {
                "wrong arguments, or a model, prompt, template or tensor file that is unreadable or not valid"
            }
            ExitCode::Unsupported => {
                "a backend, device, operation, tensor format or architecture that is absent or not supported"
            }
            ExitCode::Failed => {
                "failed while running: memory, device, full disk, changed model file, logits not numbers"
            }
            ExitCode::Interrupted => "ended at once by Ctrl-C",
        }
    }

    /// The table as it stands in the help text and the README.
    pub fn table() -> String {
        let mut table = String::from("Exit codes:\n");
        for code in ExitCode::ALL {
            table.push_str(&format!("  {:>3}  {}\n", code as u8, code.meaning()));
        }
        table
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        std::process::ExitCode::from(code as u8)
    }
}
