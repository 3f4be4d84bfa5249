//! Texts that are held to a schema, an expression, a grammar or calls of tools: what comes out fits, whatever is chosen among the
//! allowed tokens; rules that cannot be held, or are made to cost much, are refused.

mod calls;
mod commands;
mod greedy;
mod hostile;
mod reasoning;
mod rules;
mod schemas;

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use moe_run_graph::{gguf::GgufFile, ids::TokenId};
use moe_run_tests::{fixtures, random::Random};
use moe_run_text::{constraint::Constraint, tokenizer::Tokenizer};
use serde_json::{Value, json};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_metadata(GgufFile::open(fixtures::tiny_q4_k_m()).unwrap().metadata()).unwrap()
}

fn allowed(constraint: &mut Constraint, tokenizer: &Tokenizer) -> Vec<TokenId> {
    let allowed = constraint.allowed().unwrap();
    let ids = (0..u32::try_from(tokenizer.vocab_size()).unwrap()).map(TokenId);
    ids.filter(|&id| allowed.contains(id)).collect()
}

fn piece(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
    tokenizer.piece(id).unwrap_or_default()
}

/// Gives a text token by token, the longest that may come; `Err` with what is left where none may.
fn feed(constraint: &mut Constraint, tokenizer: &Tokenizer, text: &str) -> Result<(), String> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let ids = allowed(constraint, tokenizer);
        let fitting = ids.into_iter().filter(|&id| {
            let piece = piece(tokenizer, id);
            !piece.is_empty() && rest.starts_with(&piece)
        });
        let Some(id) = fitting.max_by_key(|&id| piece(tokenizer, id).len()) else {
            return Err(String::from_utf8_lossy(rest).into_owned());
        };
        constraint.accept(id).unwrap();
        rest = &rest[piece(tokenizer, id).len()..];
    }
    Ok(())
}

/// A text from any of the allowed tokens; after a while those of `closing` are spelled where they may be. `None` where it does
/// not end.
fn any_text(
    constraint: &mut Constraint,
    tokenizer: &Tokenizer,
    random: &mut Random,
    closing: &[&str],
) -> Option<String> {
    let mut bytes = Vec::new();
    for step in 0..3000 {
        if constraint.is_complete() {
            return Some(String::from_utf8(bytes).unwrap());
        }
        let ids = allowed(constraint, tokenizer);
        assert!(!ids.is_empty(), "nothing may follow {:?}", String::from_utf8_lossy(&bytes));
        let (ends, ids): (Vec<TokenId>, Vec<TokenId>) =
            ids.into_iter().partition(|&id| tokenizer.is_end_of_generation(id));
        if !ends.is_empty() && (ids.is_empty() || step > 20 || random.below(2) == 0) {
            constraint.accept(ends[0]).unwrap();
            return Some(String::from_utf8(bytes).unwrap());
        }
        let spelled = (step > 12).then(|| spelled(tokenizer, &ids, &bytes, closing, random)).flatten();
        let id = spelled.unwrap_or_else(|| *random.of(&ids));
        constraint.accept(id).unwrap();
        bytes.extend(piece(tokenizer, id));
    }
    None
}

/// The longest token that goes on with a text of `closing` which has begun, or begins one.
fn spelled(
    tokenizer: &Tokenizer,
    ids: &[TokenId],
    bytes: &[u8],
    closing: &[&str],
    random: &mut Random,
) -> Option<TokenId> {
    let begun =
        |text: &str| (1..text.len()).rev().find(|&n| bytes.ends_with(&text.as_bytes()[..n])).unwrap_or(0);
    let text = closing.iter().find(|text| begun(text) > 0).unwrap_or_else(|| random.of(closing));
    let rest = &text.as_bytes()[begun(text)..];
    let fitting = ids.iter().copied().filter(|&id| {
        let piece = piece(tokenizer, id);
        !piece.is_empty() && rest.starts_with(&piece)
    });
    fitting.max_by_key(|&id| piece(tokenizer, id).len())
}

/// Has Python's jsonschema check values, each with its schema; skips loudly without it.
fn validate(values: &[(Value, Value)]) {
    let python = PathBuf::from(std::env::var_os("MOE_PYTHON").unwrap_or_else(|| "python3".into()));
    let works = Command::new(&python).args(["-c", "import jsonschema"]).output();
    if !works.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: {} has no jsonschema (scripts/test.sh installs it into .venv)", python.display());
        return;
    }
    let script = r#"
import json, sys
from jsonschema import Draft202012Validator, FormatChecker
for schema, value in json.load(sys.stdin):
    Draft202012Validator.check_schema(schema)
    for error in Draft202012Validator(schema, format_checker=FormatChecker()).iter_errors(value):
        print(json.dumps(schema), json.dumps(value), error.message)
"#;
    let mut child = Command::new(&python)
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(json!(values).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}
