//! `moe-run serve`: OpenAI's HTTP API, many requests at once.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, ErrorKind, Write},
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use moe_run_backends::{
    CompileOptions, WeightSource,
    auto::Loaded,
    engine::{Engine, Settings},
    partial_file::{self, PartialFile},
    sequences::{CacheFileError, Sequences},
    step::BLOCK_TOKENS,
};
use moe_run_graph::{Model, fnv::Fnv1a, ir::Graph, passes::TapSelection, quant};
use moe_run_serve::{Config, Listening, ServeError, TapTable, Vocabularies};
use moe_run_text::toolcalls::{Format, Syntax};

use crate::{
    CliError, ExitCode,
    common::{self, BackendArgs, ModelArgs},
    engine::{chat_template, human_bytes, load},
    interrupt::Generation,
    output, prompt,
    sampling::SamplerArgs,
};

/// Bytes of a MiB.
const MIB: usize = 1 << 20;

/// Arguments of `serve`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which model
    #[command(flatten)]
    pub model: ModelArgs,

    /// File with a Jinja chat template, instead of the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// The model's name in answers [default: the file's name without .gguf]
    #[arg(long, value_name = "NAME")]
    pub alias: Option<String>,

    /// Where it listens and whom it answers
    #[command(flatten)]
    pub listen: ListenArgs,

    /// How requests share the model
    #[command(flatten)]
    pub share: ShareArgs,

    /// How tokens are chosen where a request does not say
    #[command(flatten)]
    pub sampler: SamplerArgs,

    /// What runs it
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// Where it listens and whom it answers.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Server")]
pub struct ListenArgs {
    /// Address to listen at; others than this machine's are reached by everybody who can reach it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,

    /// Port to listen at; 0 takes a free one, and says which
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub port: u16,

    /// Key that requests must carry as `Authorization: Bearer KEY`
    #[arg(long, value_name = "KEY", env = "MOE_RUN_API_KEY", hide_env_values = true, value_parser = key)]
    pub api_key: Option<String>,

    /// Origin of web pages that may ask, beside this machine's: `https://chat.example`; `*` for any; may be given more than once
    #[arg(long, value_name = "ORIGIN")]
    pub cors_origin: Vec<String>,

    /// Name by which the server may be called, beside this machine's; `*` for any; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,

    /// Size of a request at most, in MiB
    #[arg(long, value_name = "MIB", default_value = "16", value_parser = common::whole_number::<NonZeroUsize>)]
    pub max_body_mib: NonZeroUsize,

    /// Seconds that answers may go on once the server is told to end (SIGTERM, Ctrl-C)
    #[arg(long, value_name = "S", default_value = "30", value_parser = common::whole_number::<u64>)]
    pub drain_s: u64,

    /// Write the line about each request as JSON
    #[arg(long)]
    pub log_json: bool,
}

/// How requests share the model.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Requests")]
pub struct ShareArgs {
    /// Requests that run at once
    #[arg(long, value_name = "N", default_value = "8", value_parser = common::whole_number::<NonZeroUsize>)]
    pub parallel: NonZeroUsize,

    /// Tokens that all requests and the cache of prompts hold together [default: --ctx-size times --parallel]
    #[arg(long, value_name = "TOKENS", value_parser = common::whole_number::<NonZeroUsize>)]
    pub pool_tokens: Option<NonZeroUsize>,

    /// Requests that wait beyond those that run; more are answered with status 429
    #[arg(long, value_name = "N", default_value = "64", value_parser = common::whole_number::<usize>)]
    pub max_queue: usize,

    /// Milliseconds that a step may take while somebody waits for their next token; prompts are read in smaller parts then
    #[arg(long, value_name = "MS", value_parser = common::whole_number::<NonZeroUsize>)]
    pub max_step_ms: Option<NonZeroUsize>,

    /// File that the cache of prompts is saved to at the end, and taken from at the start
    #[arg(long, value_name = "FILE", conflicts_with = "no_prefix_cache")]
    pub cache_file: Option<PathBuf>,

    /// Read every prompt anew, though one with the same beginning was read before
    #[arg(long)]
    pub no_prefix_cache: bool,

    /// Let requests ask for what the passes held: `"taps": ["layer-3/moe_router"]` is answered as safetensors in base64
    #[arg(long)]
    pub taps: bool,
}

/// A key of the command line.
///
/// Errors: it is empty, or no header could carry it.
fn key(argument: &str) -> Result<String, String> {
    match argument.is_empty() || !argument.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Err("wanted letters, digits and signs of ASCII, one at least".to_owned()),
        false => Ok(argument.to_owned()),
    }
}

/// Serves until it is told to end.
///
/// Errors: arguments, model, backend; the address is taken.
pub fn run(args: Args) -> Result<ExitCode, CliError> {
    let Args { model, chat_template: template, alias, listen, share, sampler, backend } = args;
    sampler.check()?;
    backend.check()?;
    let template = template.as_deref().map(prompt::read_template).transpose()?;
    let name = alias.unwrap_or_else(|| name_of(&model));
    let listening = begin(&listen, name)?;
    let started = Instant::now();
    let model = model.open()?;
    let tokenizer = prompt::tokenizer(model.metadata())?;
    let (chosen, sampling_line) = sampler.sampler(model.metadata())?;
    let template = chat_template(&model, template.as_ref()).map_err(|error| error.to_string());

    let syntax = template.as_ref().ok().map(Syntax::of);

    let parallel = share.parallel.get();
    let options = CompileOptions { max_logits_rows: parallel, ..backend.compile_options(&model)? };
    let ctx_size = options.ctx_size;
    let Loaded { weights, executable } = load(&model, &backend.backend, &options)?;
    let info = executable.info();
    let why_not = why_company_matters(info.backend, &model.graph);
    let pool_tokens = share.pool_tokens.map_or(ctx_size.saturating_mul(parallel), NonZeroUsize::get);
    // Every request may fill its context where it is alone.
    let pool_tokens = pool_tokens.max(ctx_size).next_multiple_of(BLOCK_TOKENS);
    let taps = TapTable::of(&model.graph, share.taps);
    let (graph, options) = (model.graph.clone(), options.clone());
    let mut sequences = Sequences::new(executable, pool_tokens, parallel)?.with_taps(move |taps| {
        weights.compile(&graph, &CompileOptions { taps: TapSelection::Some(taps.clone()), ..options.clone() })
    });
    let cache = match share.cache_file {
        None => None,
        Some(path) => Some(Cache::open(path, &model, &mut sequences)?),
    };
    let pool_bytes = sequences.state_bytes();
    let shares_prefixes = !share.no_prefix_cache && sequences.shares_blocks();
    let kept_bytes = sequences.kept_states_bytes();
    let settings = Settings {
        max_queue: share.max_queue,
        max_step: share.max_step_ms.map(|ms| Duration::from_millis(ms.get() as u64)),
        cuts_freely: why_not.is_none(),
        shares_prefixes,
    };
    let served = moe_run_serve::Model {
        engine: Engine::start(sequences, settings)?,
        tokenizer: Arc::new(tokenizer),
        template,
        syntax,
        vocabularies: Vocabularies::default(),
        sampler: *chosen.options(),
        seed: sampler.seed,
        ctx_size,
        vocab_size: model.config.vocab_size,
        taps,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
    };
    // The seed that was drawn for the line is no request's.
    let sampling_line = match sampler.seed {
        None => sampling_line.split(", seed ").next().unwrap_or_default(),
        Some(_) => &sampling_line,
    };
    output::note(&format!("{sampling_line}; a request may say otherwise"));
    if let Err(why) = &served.template {
        output::warning(&format!("no chat: {why}; /v1/completions answers"));
    }
    match served.syntax.as_ref().map(|syntax| syntax.format) {
        Some(Format::Plain) => {
            output::note("tools: the chat template shows no known way of calling them: answers are text")
        }
        Some(format) => {
            output::note(&format!("tools: calls are read as the chat template shows them: {}", format.name()))
        }
        None => {}
    }
    output::note(&match why_not {
        None => "answers: a request has the same bits alone, from the cache and beside others".to_owned(),
        Some(why) => format!("answers: their last bits may depend on the requests beside them: {why}"),
    });
    if !shares_prefixes && !share.no_prefix_cache {
        output::note("cache: none: every prompt is read anew, for a sequence's state here is its own");
    }
    if shares_prefixes && kept_bytes > 0 {
        output::note(&format!(
            "cache: what recurrent layers and layers with a window hold is kept at borders of prompts, {} at most",
            human_bytes(kept_bytes)
        ));
    }
    output::note(&format!(
        "requests: {parallel} at once of up to {ctx_size} tokens, {pool_tokens} in all ({}), {} may wait; loaded in {:.1} s",
        human_bytes(pool_bytes),
        share.max_queue,
        started.elapsed().as_secs_f64()
    ));
    let generation = Generation::begin();
    let sequences = listening.serve(served, || generation.is_interrupted()).map_err(failed)?;
    if let (Some(cache), Some(sequences)) = (cache, sequences) {
        cache.save(&sequences)?;
    }
    Ok(ExitCode::Ok)
}

/// The file of the cache of prompts.
struct Cache {
    path: PathBuf,
    /// What its blocks were computed with.
    binding: String,
}

impl Cache {
    /// Takes up what the file holds, where there is one.
    ///
    /// Errors: it cannot be read or written, is damaged or of something else; the backend keeps nothing that could be saved.
    fn open(path: PathBuf, model: &Model, sequences: &mut Sequences) -> Result<Cache, CliError> {
        let info = sequences.info();
        let binding = format!(
            "moe-run {}, model {:016x}, {}, activations {}, kv cache {}",
            env!("CARGO_PKG_VERSION"),
            model_hash(model),
            info.backend,
            info.activations,
            info.kv_type
        );
        let wrong = |error: CacheFileError| CliError::bad_input(format!("{}: {error}", path.display()));
        partial_file::check_target(&path).map_err(|error| CliError::unwritable(&path, &error))?;
        sequences.check_cache().map_err(|error| CliError::unsupported(format!("--cache-file: {error}")))?;
        match File::open(&path) {
            Ok(file) => {
                let blocks = sequences.load_cache(&binding, &mut BufReader::new(file)).map_err(wrong)?;
                output::note(&format!("cache: {} tokens from {}", blocks * BLOCK_TOKENS, path.display()));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(CliError::unreadable(&path, &error)),
        }
        Ok(Cache { path, binding })
    }

    /// Errors: it cannot be written; then what was there is there still.
    fn save(&self, sequences: &Sequences) -> Result<(), CliError> {
        let unwritable = |error: io::Error| CliError::unwritable(&self.path, &error);
        let file = PartialFile::create(&self.path).map_err(unwritable)?;
        let mut out = BufWriter::with_capacity(1 << 20, file.file().map_err(unwritable)?);
        let blocks = match sequences.save_cache(&self.binding, &mut out) {
            Ok(blocks) => blocks,
            Err(CacheFileError::Read(error)) => return Err(unwritable(error)),
            Err(error) => return Err(CliError::failed(error)),
        };
        out.flush().map_err(unwritable)?;
        drop(out);
        file.sync().and_then(|()| file.finish()).map_err(unwritable)?;
        output::note(&format!("cache: {} tokens saved to {}", blocks * BLOCK_TOKENS, self.path.display()));
        Ok(())
    }
}

/// A hash of what the model is: of each tensor its name, format, shape, and bytes here and there.
fn model_hash(model: &Model) -> u64 {
    // Bytes that are looked at in a row, and places in a tensor.
    const ROW: usize = 64;
    const PLACES: usize = 8;
    let mut hash = Fnv1a::default();
    for decl in &model.graph.weights {
        hash.add(format!("{} {} {:?} ", decl.name, decl.format, decl.shape).as_bytes());
        let bytes = model.file.weight(decl).unwrap_or_default();
        let step = (bytes.len() / PLACES).max(ROW);
        for from in (0..bytes.len()).step_by(step) {
            hash.add(&bytes[from..bytes.len().min(from + ROW)]);
        }
    }
    hash.value()
}

/// Listens, and says where.
fn begin(listen: &ListenArgs, name: String) -> Result<Listening, CliError> {
    let ListenArgs { host, port, api_key, cors_origin, allow_host, max_body_mib, drain_s, log_json } =
        listen.clone();
    let has_key = api_key.is_some();
    let config = Config {
        host,
        port,
        name,
        api_key,
        cors_origins: cors_origin,
        allowed_hosts: allow_host,
        max_body_bytes: max_body_mib.get().saturating_mul(MIB),
        drain: Duration::from_secs(drain_s),
        log_json,
        log: Box::new(output::note),
    };
    let listening = Listening::begin(config).map_err(failed)?;
    output::note(&format!("listening: http://{}", listening.address()));
    if !listening.is_loopback() && !has_key {
        output::warning(
            "everybody who can reach this machine can ask: give --api-key KEY, or --host 127.0.0.1",
        );
    }
    Ok(listening)
}

fn failed(error: ServeError) -> CliError {
    match error {
        ServeError::Listen { .. } => CliError::bad_input(error),
        ServeError::System(_) => CliError::failed(error),
    }
}

/// The file's name, without what says its kind or part.
fn name_of(model: &ModelArgs) -> String {
    let stem = model
        .model
        .as_ref()
        .and_then(|path| path.file_stem())
        .map(|stem| stem.to_string_lossy().into_owned());
    stem.unwrap_or_else(|| "moe-run-demo".to_owned())
}

/// Why a request's bits may depend on the others, where they may.
fn why_company_matters(backend: &str, graph: &Graph) -> Option<String> {
    match backend {
        "reference" => None,
        "cpu" => graph
            .weights
            .iter()
            .find(|weight| matches!(weight.format, quant::Format::F16 | quant::Format::Bf16))
            .map(|weight| {
                format!(
                    "{} is {}, which a lone token is multiplied with in another order",
                    weight.name, weight.format
                )
            }),
        other => {
            Some(format!("{other} adds in another order where it reads a prompt than where it generates"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_what_a_header_can_carry() {
        assert!(key("sk-1").is_ok() && key("").is_err() && key("a b").is_err() && key("ä").is_err());
    }
}
