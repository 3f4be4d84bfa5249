//! Files that commands write are never those that they read, under whatever name; and a model's file that is changed while
//! it is in use ends the command in words.

use std::{
    borrow::Cow,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use moe_run_graph::gguf::{
    GgufFile, MetaValue, Metadata,
    writer::{self, TensorSpec},
};
use moe_run_tests::{
    cli::{Finished, finish, run, run_with_input, wait_for, wait_for_work},
    fixtures,
};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_moe-run-under-test");
const SAID: &str = "the model's file was changed or cut while it was in use";

/// A folder with a model, a text, and what else commands read, every file with its bytes.
struct Folder {
    dir: tempfile::TempDir,
    before: Vec<(PathBuf, Vec<u8>)>,
}

impl Folder {
    fn new() -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::copy(fixtures::tiny_q4_k_m(), at("model.gguf")).unwrap();
        fs::write(at("text.txt"), "The capital of France is Paris. Two and two make four.\n".repeat(12))
            .unwrap();
        fs::write(at("template.jinja"), "{{ messages[0].content }}").unwrap();
        fs::create_dir(at("sub")).unwrap();
        let mut folder = Folder { dir, before: Vec::new() };
        for name in ["model.gguf", "text.txt", "template.jinja"] {
            folder.keep(name);
        }
        folder
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Counts a file among those that no command may change.
    fn keep(&mut self, name: &str) {
        let path = self.at(name);
        let bytes = fs::read(&path).unwrap();
        self.before.push((path, bytes));
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command.current_dir(self.dir.path()).args(line.split(' '));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, line: &str) -> Finished {
        finish(self.command(line).output().unwrap())
    }

    /// A command is refused with these words, before any work, and nothing is touched.
    fn refuses(&self, line: &str, words: &str) {
        self.is_refused(&self.run(line), line, words);
    }

    fn is_refused(&self, refused: &Finished, line: &str, words: &str) {
        assert_eq!(refused.code, 2, "{line}: {refused:#?}");
        assert!(refused.stderr.contains(words), "{line}: no {words:?} in {refused:#?}");
        assert!(!refused.stderr.contains("runs:") && refused.stdout.is_empty(), "{line}: {refused:#?}");
        for (path, bytes) in &self.before {
            assert!(fs::read(path).unwrap() == *bytes, "{line}: {} was changed", path.display());
        }
        self.has_no_unfinished_file(line);
    }

    fn has_no_unfinished_file(&self, line: &str) {
        for dir in [self.dir.path().to_owned(), self.at("sub")] {
            for entry in fs::read_dir(dir).unwrap() {
                let name = entry.unwrap().file_name();
                assert!(!name.to_string_lossy().contains("partial"), "{line}: {} is left", name.display());
            }
        }
    }
}

#[test]
fn no_output_takes_the_place_of_an_input() {
    let mut folder = Folder::new();
    let read = "which this command reads";
    for (line, words) in [
        ("graph -m model.gguf -o model.gguf", "--output model.gguf: it is the model's file, "),
        ("graph -m model.gguf --level plan --backend cpu -o sub/../model.gguf", read),
        (
            "perplexity -m model.gguf -f text.txt -c 16 --save-logits text.txt",
            "--save-logits text.txt: it is the text, ",
        ),
        ("perplexity -m model.gguf -f text.txt -c 16 --save-logits ./model.gguf", "it is the model's file, "),
        (
            "perplexity -f text.txt -c 16 --against template.jinja --save-logits template.jinja",
            "saved logits, ",
        ),
        ("trace -m model.gguf -p hi --routing model.gguf", "--routing model.gguf: it is the model's file, "),
        ("trace -m model.gguf -p hi --routing-plot model.gguf", "--routing-plot model.gguf: it is "),
        ("trace -f text.txt --raw --routing text.txt", "it is the prompt's file, "),
        ("trace -p hi --chat-template template.jinja --routing template.jinja", "it is the chat template, "),
        ("trace -p hi --routing sub/a --routing-plot sub/../sub/a", "writes it already, for another option"),
        (
            "synth --preset qwen3-coder-30b-a3b --layers 1 --dry-run --vocab-from model.gguf -o model.gguf",
            "the vocabulary's",
        ),
        (
            "quantize -m model.gguf --format Q8_0 -o model.gguf",
            "--output model.gguf: it is the model's file, ",
        ),
        ("quantize -m model.gguf --target-bits 4 -f text.txt -o sub/../text.txt", "it is the text, "),
        (
            "importance -m model.gguf -f text.txt -o model.gguf",
            "--output model.gguf: it is the model's file, ",
        ),
        ("importance -m model.gguf -f text.txt -o text.txt", "--output text.txt: it is the text, "),
        ("chat -m model.gguf --history model.gguf", "--history model.gguf: it is the model's file, "),
        ("chat --history text.txt", "--history text.txt: found another kind of file"),
    ] {
        folder.refuses(line, words);
    }

    // Each file of a folder of tensors that would be written.
    let stages = "run -p hi -n 1 --save-tensor attn_norm --save-tensor-overwrite --save-tensor-dir sub";
    let _ = folder.run(&format!("{stages} --backend cpu")).succeeded();
    folder.keep("sub/manifest.json");
    folder.keep("sub/layer-0/attn_norm.bin");
    folder.refuses(
        &format!("{stages} -f sub/manifest.json").replace("-p hi ", ""),
        "sub/manifest.json: it is the prompt's file",
    );
    fs::copy(folder.at("text.txt"), folder.at("sub/stages.safetensors")).unwrap();
    folder.keep("sub/stages.safetensors");
    folder.refuses(
        &format!("{stages} -f sub/stages.safetensors").replace("-p hi ", ""),
        "stages.safetensors: it is the prompt's",
    );
    let around =
        "parity --backend cpu --against sub/layer-0 --tokens 1,2 --save-tensor-overwrite --save-tensor-dir";
    folder.refuses(&format!("{around} sub"), "attn_norm.bin: it is a file of --against");

    // A text of which only the shell knows the name.
    let text = || fs::File::open(folder.at("text.txt")).unwrap();
    let line = "trace --raw --routing text.txt";
    let refused = finish(folder.command(line).stdin(text()).output().unwrap());
    #[cfg(unix)]
    folder.is_refused(&refused, line, "it is what standard input reads, ");
    let append = |name: &str| fs::OpenOptions::new().append(true).open(folder.at(name)).unwrap();
    let line = "graph -m model.gguf";
    let refused = finish(folder.command(line).stdout(append("model.gguf")).output().unwrap());
    #[cfg(unix)]
    folder.is_refused(&refused, line, "standard output: it goes to the model's file, ");

    // And what is read by nobody is replaced.
    fs::write(folder.at("old.txt"), "old").unwrap();
    let _ = folder.run("graph -m model.gguf -o old.txt").succeeded();
    let printed = folder.run("graph -m model.gguf").succeeded().stdout;
    assert_eq!(fs::read_to_string(folder.at("old.txt")).unwrap(), printed);
}

#[cfg(unix)]
#[test]
fn links_are_the_file_that_they_lead_to() {
    let mut folder = Folder::new();
    std::os::unix::fs::symlink("model.gguf", folder.at("soft.gguf")).unwrap();
    std::os::unix::fs::symlink("../soft.gguf", folder.at("sub/softer.gguf")).unwrap();
    fs::hard_link(folder.at("model.gguf"), folder.at("hard.gguf")).unwrap();
    folder.keep("hard.gguf");
    for (model, output) in [
        ("model.gguf", "soft.gguf"),
        ("model.gguf", "sub/softer.gguf"),
        ("model.gguf", "hard.gguf"),
        ("soft.gguf", "model.gguf"),
        ("hard.gguf", "soft.gguf"),
    ] {
        folder.refuses(&format!("graph -m {model} -o {output}"), "it is the model's file, ");
        folder.refuses(&format!("trace -m {model} -p hi --routing {output}"), "it is the model's file, ");
    }
    assert!(fs::symlink_metadata(folder.at("soft.gguf")).unwrap().is_symlink());
}

/// The demo model in two parts, its weights all zero.
fn write_split(dir: &Path) {
    let file = GgufFile::open(fixtures::tiny_q4_k_m()).unwrap();
    let tensors: Vec<TensorSpec> = file
        .tensors()
        .iter()
        .map(|t| TensorSpec { name: t.name.clone(), shape: t.shape.clone(), format: t.ggml_type })
        .collect();
    let halves = tensors.split_at(tensors.len() / 2);
    for (no, part) in [halves.0, halves.1].into_iter().enumerate() {
        let split = [
            ("split.no".to_owned(), MetaValue::U16(no as u16)),
            ("split.count".to_owned(), MetaValue::U16(2)),
            ("split.tensors.count".to_owned(), MetaValue::I32(tensors.len() as i32)),
        ];
        let whole = file.metadata().iter().filter(|_| no == 0).map(|(k, v)| (k.to_owned(), v.clone()));
        let metadata = Metadata::from_pairs("part", whole.chain(split)).unwrap();
        let zeros = |i: usize| Cow::Owned(vec![0; file.tensor(&part[i].name).unwrap().len_bytes().unwrap()]);
        let bytes = writer::to_vec(&metadata, part, zeros).unwrap();
        fs::write(dir.join(format!("m-{:05}-of-00002.gguf", no + 1)), bytes).unwrap();
    }
}

#[test]
fn every_part_of_a_split_model_counts() {
    let mut folder = Folder::new();
    write_split(folder.dir.path());
    let parts = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
    parts.iter().for_each(|part| folder.keep(part));
    for (given, output) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        folder
            .refuses(&format!("graph -m {} -o {}", parts[given], parts[output]), "it is the model's file, ");
    }
    let _ = folder.run(&format!("graph -m {} -o sub/graph.txt", parts[1])).succeeded();
}

#[test]
fn a_conversation_is_not_saved_over_what_it_reads() {
    let folder = Folder::new();
    let model = folder.at("model.gguf");
    let (model, saved) = (model.to_str().unwrap(), folder.at("talk.json"));
    let saved = saved.to_str().unwrap();
    let args = ["chat", "-m", model, "--temp", "0", "--backend", "cpu"];
    // What was loaded may be saved again: to go on with it.
    let input = format!("/save {model}\n/save -\n/save {saved}\n/load {saved}\n/save {saved}\n");
    let ended = run_with_input(PROGRAM, args, input.as_bytes()).succeeded();
    assert!(
        ended.stderr.contains("error: /save") && ended.stderr.contains("it is the model's file, "),
        "{ended:#?}"
    );
    assert!(ended.stderr.contains("/save -: standard output cannot be had here"), "{ended:#?}");
    assert_eq!(ended.stderr.matches("saved to ").count(), 2, "{ended:#?}");
    assert!(fs::read(model).unwrap() == folder.before[0].1);
}

#[test]
fn a_dash_is_standard_output_or_refused() {
    let folder = Folder::new();
    let printed = folder.run("graph -m model.gguf -o -").succeeded();
    assert_eq!(printed.stdout, folder.run("graph -m model.gguf").succeeded().stdout);
    for (line, words) in [
        ("perplexity -f text.txt -c 16 --save-logits -", "--save-logits -: standard output cannot"),
        (
            "synth --preset qwen3-coder-30b-a3b --layers 1 --dry-run -o -",
            "--output -: standard output cannot",
        ),
        (
            "run -p hi --save-tensor attn_norm --save-tensor-dir -",
            "--save-tensor-dir -: standard output cannot",
        ),
        (
            "parity --against reference --tokens 1 --save-tensor-dir -",
            "--save-tensor-dir -: standard output cannot",
        ),
        ("chat --history -", "--history -: standard output cannot"),
        ("trace -p hi --routing - --json", "each want standard output"),
        ("trace -p hi --routing - --routing-plot -", "each want standard output"),
    ] {
        folder.refuses(line, words);
    }
    assert!(!folder.at("-").exists());
}

#[test]
fn messages_are_no_template_variable() {
    let folder = Folder::new();
    for command in ["run -p hi", "chat"] {
        folder.refuses(&format!("{command} --template-var messages=[]"), "the messages are the prompt's own");
    }
}

/// A conversation with a copy of the demo model, of which one question is answered.
fn conversation(folder: &Folder) -> Child {
    let mut child =
        folder.command("chat -m model.gguf --temp 0 --backend cpu").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"Hello\n").unwrap();
    wait_for(&mut child, "the model ended\n");
    child
}

fn ends_in_words(mut child: Child, asked: &[u8]) -> Finished {
    // It may be gone already.
    let _ = child.stdin.take().map(|mut input| input.write_all(asked));
    let ended = finish(child.wait_with_output().unwrap());
    assert_eq!(ended.code, 4, "{ended:#?}");
    let lines: Vec<&str> = ended.stderr.lines().filter(|line| line.contains(SAID)).collect();
    assert!(
        lines.len() == 1 && lines[0].starts_with("error: ") && lines[0].contains("model.gguf"),
        "{ended:#?}"
    );
    ended
}

#[test]
fn a_conversation_ends_in_words_where_the_model_is_cut() {
    let folder = Folder::new();
    let child = conversation(&folder);
    fs::OpenOptions::new().write(true).open(folder.at("model.gguf")).unwrap().set_len(1000).unwrap();
    let ended = ends_in_words(child, b"Hello\n");
    assert!(ended.stderr.contains("1000 bytes"), "{ended:#?}");
}

#[test]
fn a_conversation_ends_in_words_where_the_model_is_written_to() {
    let folder = Folder::new();
    let child = conversation(&folder);
    // The same size, so that only the time tells; and some file systems count that in seconds.
    let file = fs::OpenOptions::new().write(true).open(folder.at("model.gguf")).unwrap();
    (&file).write_all(&folder.before[0].1).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(10)).unwrap();
    ends_in_words(child, b"Hello\n");
}

/// Another file under the same name is another file: the one that was opened is still what it was.
#[cfg(unix)]
#[test]
fn a_conversation_goes_on_where_the_model_is_replaced_by_another_file() {
    let folder = Folder::new();
    let mut child = conversation(&folder);
    fs::write(folder.at("new"), "no model").unwrap();
    fs::rename(folder.at("new"), folder.at("model.gguf")).unwrap();
    child.stdin.take().unwrap().write_all(b"Capital of France?\n").unwrap();
    let ended = finish(child.wait_with_output().unwrap());
    assert_eq!(ended.code, 0, "{ended:#?}");
}

/// In the middle of a step, where reading the weights faults.
#[cfg(unix)]
#[test]
fn a_cut_in_the_middle_of_a_step_leaves_nothing_unfinished() {
    for (line, begun) in [
        (
            "perplexity -m model.gguf -f text.txt -c 64 --save-logits sub/logits --backend reference",
            "chunks of 64",
        ),
        ("trace -m model.gguf -f text.txt -c 64 --routing sub/lines --backend reference", "chunks of 64"),
    ] {
        let folder = Folder::new();
        let text = fs::read_to_string(folder.at("text.txt")).unwrap().repeat(20);
        fs::write(folder.at("text.txt"), text).unwrap();
        let mut child = folder.command(line).spawn().unwrap();
        wait_for(&mut child, begun);
        wait_for_work(&child);
        fs::OpenOptions::new().write(true).open(folder.at("model.gguf")).unwrap().set_len(1000).unwrap();
        let ended = ends_in_words(child, b"");
        assert!(
            ended.stderr.contains("or its disk cannot be read any more"),
            "the handler says it: {ended:#?}"
        );
        assert_eq!(fs::read_dir(folder.at("sub")).unwrap().count(), 0, "{line}");
        folder.has_no_unfinished_file(line);
    }
}

/// A SIGBUS that nobody's file caused ends the process as it always did.
#[cfg(target_os = "linux")]
#[test]
fn another_sigbus_is_not_caught() {
    use std::os::unix::process::ExitStatusExt;
    let folder = Folder::new();
    let child = conversation(&folder);
    // The runtime of Rust takes the first for a stack that may have overflowed, and only then leaves it to the system.
    let mut child = child;
    while child.try_wait().unwrap().is_none() {
        let sent = Command::new("sh").args(["-c", &format!("kill -BUS {}", child.id())]).output().unwrap();
        assert!(sent.status.success() || child.try_wait().unwrap().is_some());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(7), "{:?}", finish(output));
}

#[test]
fn a_file_without_an_architecture_is_named_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bare.gguf");
    let metadata = Metadata::from_pairs("bare", [("general.name", MetaValue::String("x".into()))]).unwrap();
    fs::write(&path, writer::to_vec(&metadata, &[], |_| Cow::Owned(Vec::new())).unwrap()).unwrap();
    let path = path.to_str().unwrap();
    let refused = run(PROGRAM, ["graph", "-m", path]);
    assert_eq!((refused.code, refused.stderr.matches("bare.gguf").count()), (2, 1), "{refused:#?}");
    assert!(refused.stderr.contains("general.architecture"), "{refused:#?}");
    let shown: Value = run(PROGRAM, ["inspect", "-m", path, "--json"]).succeeded().json();
    let reason = shown["not_runnable"].as_str().unwrap();
    assert_eq!(reason.matches("bare.gguf").count(), 1, "{reason}");
}
