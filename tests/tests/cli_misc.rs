//! What surrounds the commands: help, exit codes, completions, devices, the self-test.

use moe_run::ExitCode;
use moe_run_tests::cli::{Finished, finish, run};

fn moe_run(args: &[&str]) -> Finished {
    run(env!("CARGO_BIN_EXE_moe-run-under-test"), args.iter().copied())
}

#[test]
fn help_has_examples_and_every_exit_code() {
    let help = moe_run(&["--help"]).succeeded().stdout;
    assert!(help.contains("Examples:"));
    for code in ExitCode::ALL {
        assert!(help.contains(&format!("{:>3}  {}", code as u8, code.meaning())), "{code:?} in {help}");
    }
    let version = moe_run(&["--version"]).succeeded().stdout;
    assert_eq!(version, format!("moe-run {}\n", env!("CARGO_PKG_VERSION")));
}

/// The commands that the help text lists, without `help`, which takes the name of a command, not options.
fn commands() -> Vec<String> {
    let help = moe_run(&["--help"]).succeeded().stdout;
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Every command has a help text, and says nothing else when asked for it.
#[test]
fn every_command_has_help() {
    let commands = commands();
    for wanted in [
        "run",
        "chat",
        "tokenize",
        "devices",
        "inspect",
        "quantize",
        "importance",
        "synth",
        "selftest",
        "completions",
    ] {
        assert!(commands.iter().any(|command| command == wanted), "{wanted} in {commands:?}");
    }
    for command in &commands {
        let help = moe_run(&[command, "--help"]).succeeded();
        assert!(help.stdout.contains("Usage:") && help.stderr.is_empty(), "{command}: {help:#?}");
        assert!(help.stdout.contains("\nExamples:\n  moe-run "), "{command}: {help:#?}");
    }
}

#[test]
fn a_mistyped_command_or_option_is_answered_with_the_one_meant() {
    for (args, meant) in [(&["tokenise"][..], "tokenize"), (&["run", "--max-token", "3"], "--max-tokens")] {
        let refused = moe_run(args);
        assert_eq!(refused.code, 2);
        assert!(refused.stderr.contains(meant), "{refused:#?}");
    }
}

#[test]
fn output_has_no_colours_where_there_is_no_terminal() {
    for args in [&["--help"][..], &["--nonsense"], &["-p", "x", "--top-p", "3"]] {
        let finished = moe_run(args);
        assert!(!finished.stdout.contains('\u{1b}') && !finished.stderr.contains('\u{1b}'), "{finished:#?}");
    }
}

#[test]
fn completions_for_every_shell_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = moe_run(&["completions", shell]).succeeded().stdout;
        assert!(script.contains("tokenize") && script.contains("max-tokens"), "{shell}");
    }
    assert_eq!(moe_run(&["completions", "tcsh"]).code, 2);
}

/// What bash offers for a line whose last word is being typed, by the script that `completions bash` prints.
#[cfg(unix)]
fn bash_offers(script: &std::path::Path, words: &[&str]) -> Vec<String> {
    // Arguments of a completion function: the command, the word being typed, the word before it.
    const COMPLETE: &str = r#"
        source "$1" || exit 1
        COMP_WORDS=("${@:2}")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        function=$(complete -p moe-run) || exit 1
        function=${function##*-F }
        "${function%% *}" moe-run "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let output = std::process::Command::new("bash")
        .args(["--norc", "--noprofile", "-c", COMPLETE, "bash"])
        .arg(script)
        .args(words)
        .output()
        .expect("bash can be started");
    let finished = moe_run_tests::cli::finish(output).succeeded();
    assert_eq!(finished.stderr, "", "{words:?}");
    finished.stdout.lines().map(str::to_owned).collect()
}

#[cfg(unix)]
#[test]
fn bash_completes_options_and_values_of_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("moe-run.bash");
    std::fs::write(&script, moe_run(&["completions", "bash"]).succeeded().stdout).unwrap();
    let offers = |words: &[&str]| bash_offers(&script, words);

    assert_eq!(offers(&["moe-run", "tok"]), ["tokenize"]);
    assert_eq!(offers(&["moe-run", "--max-t"]), ["--max-tokens"]);
    assert_eq!(offers(&["moe-run", "bench", "--prompt"]), ["--prompt-tokens"]);
    let options = offers(&["moe-run", "bench", "--"]);
    for option in ["--model", "--gen-tokens", "--profile", "--help"] {
        assert!(options.iter().any(|offered| offered == option), "{option} in {options:?}");
    }
    assert!(!options.iter().any(|offered| offered == "--level"), "an option of graph in {options:?}");
    assert_eq!(offers(&["moe-run", "graph", "--level", ""]), ["lowered", "optimized", "plan"]);
    assert_eq!(offers(&["moe-run", "completions", "f"]), ["fish"]);
    let backends = offers(&["moe-run", "run", "--backend", ""]);
    let names = moe_run_backends::registry::all();
    let names: Vec<&str> = std::iter::once("auto").chain(names.iter().map(|b| b.name())).collect();
    assert_eq!(backends, names);
    // There is a branch for every command.
    for command in commands() {
        assert!(offers(&["moe-run", &command, "--he"]).contains(&"--help".to_owned()), "{command}");
    }
}

#[test]
fn devices_lists_every_backend_of_the_build() {
    let text = moe_run(&["devices"]).succeeded().stdout;
    let report = moe_run(&["devices", "--json"]).succeeded().json();
    assert_eq!(report["schema_version"], 1);
    let backends = report["backends"].as_array().unwrap();
    for name in ["cpu", "reference"] {
        let backend = backends.iter().find(|b| b["backend"] == name).unwrap();
        assert!(!backend["devices"].as_array().unwrap().is_empty());
        assert_eq!(backend["error"], serde_json::Value::Null);
        assert!(text.lines().any(|line| line == name), "{text}");
    }
    // A backend without a device says why.
    for backend in backends.iter().filter(|b| b["devices"].as_array().unwrap().is_empty()) {
        assert!(text.contains(backend["error"].as_str().unwrap_or("no device here")), "{text}");
    }
}

#[test]
fn the_self_test_passes_on_the_cpu() {
    let report = moe_run(&["selftest", "--backend", "cpu", "--json"]).succeeded().json();
    assert_eq!(report["verdict"], "pass");
    let ops = report["backends"][0]["ops"].as_array().unwrap();
    for op in moe_run_inspect::cases::OPS {
        let of_op: Vec<_> = ops.iter().filter(|o| o["op"] == *op).collect();
        assert!(!of_op.is_empty(), "{op}");
        assert!(
            of_op.iter().all(|o| o["cases"].as_u64().unwrap() >= 8 && o["worst"].is_number()),
            "{of_op:?}"
        );
    }
    let demo = &report["backends"][0]["demo"][0];
    assert_eq!((demo["answers"].as_u64(), demo["failures"].as_array().map(Vec::len)), (Some(4), Some(0)));
    assert_eq!(moe_run(&["selftest", "--device", "0"]).code, 2);
}

/// Mesa asks Wayland for the compositor's GPU, and libwayland complains where it has no directory to look in.
#[cfg(target_os = "linux")]
#[test]
fn the_drivers_lines_do_not_reach_the_user() {
    for directory in [None, Some(""), Some("relative")] {
        for args in [&["-p", "hi", "--temp", "0", "-n", "2"][..], &["devices"]] {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_moe-run-under-test"));
            for variable in ["XDG_RUNTIME_DIR", "WAYLAND_DISPLAY", "WAYLAND_SOCKET"] {
                command.env_remove(variable);
            }
            let command = command.args(args).envs(directory.map(|name| ("XDG_RUNTIME_DIR", name)));
            let finished = finish(command.output().unwrap()).succeeded();
            assert!(!finished.stderr.contains("XDG_RUNTIME_DIR"), "{directory:?} {args:?}: {finished:#?}");
        }
    }
}
