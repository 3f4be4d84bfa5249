//! What a template may cost: a template is part of a file that anyone may have made, so it is a stranger's program.
//!
//! - **Syntax**: bytes of source, tokens of one tag and branches of conditions are bounded before anything is parsed, as the
//!   parser, the compiler and the end of both recurse over a tree that such a chain makes deep.
//! - **Values**: nesting is bounded where a value is made, as printing, comparing and freeing recurse over it.
//! - **Work**: bytes that are built and written, values that are looked at, steps of the interpreter, and time.
//! - **Stack**: everything runs on a thread whose stack is known to hold what these bounds allow.
//!
//! One [`Budget`] covers all renderings of one prompt.

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use minijinja::{
    Error, ErrorKind, Value,
    machinery::{Token, Tokenizer},
    syntax::SyntaxConfig,
    value::ValueKind,
};

/// Steps of the template interpreter that one rendering may take: a prompt of a thousand messages takes about a fortieth.
pub(super) const FUEL: u64 = 20_000_000;

/// Bytes of a template's source; the largest that models come with are below 100 kB.
const MAX_SOURCE: usize = 1 << 20;

/// Tokens between `{{` and `}}`, or between `{%` and `%}`.
const MAX_TAG_TOKENS: usize = 4096;

/// `elif`s in a template: each is a level of the syntax tree.
const MAX_BRANCHES: usize = 2048;

/// How deeply lists and mappings may be nested; messages come from JSON, where 128 is the limit.
const MAX_DEPTH: usize = 160;

/// Bytes that all renderings of one prompt may build, counted whether or not they are kept.
const MAX_BUILT: u64 = 192 << 20;

/// Values that all renderings of one prompt may look at where whole values are checked.
const MAX_VISITED: u64 = 20_000_000;

/// Containers with attributes that can be set (`namespace()`): these can be chained after they were checked.
const MAX_NAMESPACES: u64 = 10_000;

/// What an element of a list or a mapping counts for, in bytes.
const ELEMENT: u64 = 48;

/// Bytes that a prompt may have, and times that it may be longer than the messages: what comes after would take long over it.
const MAX_OUTPUT: usize = 2 << 20;
const MAX_GROWTH: usize = 8;

/// Time for all renderings of one prompt; a long prompt takes hundredths of it. Where it fails, it may be rendered once more to
/// find the message that it fails on. On a busy machine the time counts that the thread had a processor for, where that is known.
const MAX_TIME: Duration = Duration::from_millis(800);
/// Time that a prompt may take at most, however little of it the thread had a processor for.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The stack of the thread that templates are parsed and run on. The bounds above need less than a quarter of it.
const STACK: usize = 64 << 20;

/// An error about values: what Python would raise.
pub(super) fn wrong(detail: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// The source of an error that a bound is the cause of.
#[derive(Debug)]
pub(super) struct Beyond;

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a bound of templates")
    }
}

impl std::error::Error for Beyond {}

/// An error that says which bound a template would break.
pub(super) fn beyond(detail: impl Into<String>) -> Error {
    wrong(detail.into()).with_source(Beyond)
}

/// Errors: a value is nested more deeply than what recurses over it may go.
pub(super) fn check_depth(depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(beyond(format!("a value is nested too deeply: more than {MAX_DEPTH} levels")));
    }
    Ok(())
}

/// What is left for the renderings of one prompt.
#[derive(Debug)]
pub(super) struct Budget {
    built: AtomicU64,
    visited: AtomicU64,
    namespaces: AtomicU64,
    begun: Instant,
    /// When to look at the time again, in nanoseconds behind `begun`.
    look_at: AtomicU64,
}

/// What a thread has had of a processor since it began.
fn processor_time() -> Option<Duration> {
    // Nanoseconds on a processor, nanoseconds of waiting for one, and how often it was given one.
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

impl Budget {
    pub(super) fn new() -> Arc<Budget> {
        Arc::new(Budget {
            built: AtomicU64::new(0),
            visited: AtomicU64::new(0),
            namespaces: AtomicU64::new(0),
            begun: Instant::now(),
            look_at: AtomicU64::new(MAX_TIME.as_nanos() as u64),
        })
    }

    /// Errors: the time is over.
    pub(super) fn tick(&self) -> Result<(), Error> {
        let took = self.begun.elapsed();
        if took.as_nanos() as u64 > self.look_at.load(Relaxed) {
            let left = processor_time().map_or(Duration::ZERO, |worked| MAX_TIME.saturating_sub(worked));
            if left.is_zero() || took > MAX_WAIT {
                return Err(beyond(format!("the template takes more than {:.1} s", MAX_TIME.as_secs_f64())));
            }
            self.look_at.store((took + left).as_nanos() as u64, Relaxed);
        }
        Ok(())
    }

    /// Counts bytes that are about to be built or written.
    ///
    /// Errors: there are too many; the time is over.
    pub(super) fn build(&self, bytes: usize) -> Result<(), Error> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX).min(MAX_BUILT + 1);
        if self.built.fetch_add(bytes, Relaxed).saturating_add(bytes) > MAX_BUILT {
            return Err(beyond(format!(
                "the template builds more than {} MiB of text and lists",
                MAX_BUILT >> 20
            )));
        }
        self.tick()
    }

    /// Counts elements of a list or mapping that is about to be built.
    ///
    /// Errors: as [`Budget::build`].
    pub(super) fn build_elements(&self, elements: usize) -> Result<(), Error> {
        self.build(elements.saturating_mul(ELEMENT as usize))
    }

    /// Counts a `namespace()`.
    ///
    /// Errors: there are too many.
    pub(super) fn namespace(&self) -> Result<(), Error> {
        if self.namespaces.fetch_add(1, Relaxed) >= MAX_NAMESPACES {
            return Err(beyond(format!("the template makes more than {MAX_NAMESPACES} namespaces")));
        }
        Ok(())
    }

    fn visit(&self) -> Result<(), Error> {
        let visited = self.visited.fetch_add(1, Relaxed);
        if visited > MAX_VISITED {
            return Err(beyond(format!("the template goes over more than {MAX_VISITED} values")));
        }
        if visited.is_multiple_of(1024) { self.tick() } else { Ok(()) }
    }

    /// Goes over all that a value holds, as printing or comparing it would.
    ///
    /// Errors: it is nested too deeply, or holds too much.
    pub(super) fn check(&self, value: &Value) -> Result<(), Error> {
        self.check_at(value, 0)
    }

    fn check_at(&self, value: &Value, depth: usize) -> Result<(), Error> {
        self.visit()?;
        check_depth(depth)?;
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    self.check_at(&item, depth + 1)?;
                }
                Ok(())
            }
            ValueKind::Map | ValueKind::Plain => {
                // Macros, loops and the like are plain: they hold nothing that can be gone over.
                let Ok(keys) = value.try_iter() else { return Ok(()) };
                for key in keys {
                    self.check_at(&key, depth + 1)?;
                    self.check_at(&value.get_item(&key)?, depth + 1)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Errors: a prompt is much longer than what was put in, in bytes.
pub(super) fn check_output(output: usize, input: usize) -> Result<(), Error> {
    let most = input.saturating_mul(MAX_GROWTH).saturating_add(MAX_OUTPUT);
    if output > most {
        return Err(beyond(format!(
            "the template writes {output} bytes for messages of {input}; at most {most} are taken"
        )));
    }
    Ok(())
}

/// A bound that a template's source breaks.
#[derive(Debug)]
pub(super) struct TooMuchSyntax {
    /// Line where it does.
    pub line: usize,
    /// Which bound.
    pub detail: String,
}

/// Errors: the source is larger, or its syntax tree could be deeper, than what the thread's stack is made for.
pub(super) fn check_syntax(source: &str, syntax: &SyntaxConfig) -> Result<(), TooMuchSyntax> {
    if source.len() > MAX_SOURCE {
        let detail = format!("{} bytes of source, wanted at most {MAX_SOURCE}", source.len());
        return Err(TooMuchSyntax { line: 1, detail });
    }
    let mut tokenizer = Tokenizer::new(source, "<string>", false, syntax.clone());
    let (mut in_tag, mut branches) = (0_usize, 0_usize);
    let mut tag_begins = false;
    // What is not even a token is the parser's to report.
    while let Ok(Some((token, span))) = tokenizer.next_token() {
        let begins = matches!(token, Token::BlockStart);
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => in_tag = 0,
            Token::Ident("elif") if tag_begins => branches += 1,
            _ => in_tag += 1,
        }
        tag_begins = begins;
        let line = span.start_line.into();
        if in_tag > MAX_TAG_TOKENS {
            let detail = format!("a tag of more than {MAX_TAG_TOKENS} parts exceeds the recursion limits");
            return Err(TooMuchSyntax { line, detail });
        }
        if branches > MAX_BRANCHES {
            let detail = format!("more than {MAX_BRANCHES} elifs exceed the recursion limits");
            return Err(TooMuchSyntax { line, detail });
        }
    }
    Ok(())
}

/// Runs `work` on a thread with a stack that holds what the bounds allow.
///
/// Errors: no such thread could be started, or it panicked.
#[cfg(not(target_family = "wasm"))]
pub(super) fn on_known_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("template".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, work)
            .map_err(|e| beyond(format!("no thread with a stack of {} MiB for it: {e}", STACK >> 20)))?;
        thread
            .join()
            .map_err(|_| beyond("the template engine failed on it (a defect: please report the template)"))
    })
}

/// Runs `work`: there are no threads, and the host bounds the stack.
#[cfg(target_family = "wasm")]
pub(super) fn on_known_stack<T>(work: impl FnOnce() -> T) -> Result<T, Error> {
    let _ = STACK;
    Ok(work())
}
