//! The HTTP server: connections, and what each path answers.

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use moe_run_runtime::sequences::Sequences;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::model::Model;
use crate::openai::new_id;
use crate::record::Record;
use crate::respond::{self, Body};
use crate::{anthropic, chat, completions, guard, metrics, page, responses, texts};

/// What answers carry as their system's fingerprint.
pub const FINGERPRINT: &str = concat!("moe-run-", env!("CARGO_PKG_VERSION"));

/// How long a request's head may take, and a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a request's body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 1024;
/// Threads that read requests, render templates and tokenize.
const WORKERS: usize = 4;

/// How the server listens and whom it answers.
pub struct Config {
    /// The address to listen at, a name or a number.
    pub host: String,
    /// The port; 0 for any that is free.
    pub port: u16,
    /// The model's name in answers.
    pub name: String,
    /// What requests must carry, where one is given.
    pub api_key: Option<String>,
    /// Origins of web pages that may ask, beside those of this machine; `*` for any.
    pub cors_origins: Vec<String>,
    /// Names by which the server may be called, beside this machine's own and numbers.
    pub allowed_hosts: Vec<String>,
    /// Bytes of a request's body at most.
    pub max_body_bytes: usize,
    /// How long answers may go on once the server is told to end.
    pub drain: Duration,
    /// Whether the lines about requests are JSON.
    pub log_json: bool,
    /// Where they go.
    pub log: Box<dyn Fn(&str) + Send + Sync>,
}

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be had.
    #[error("cannot listen at {host}:{port}: {source}; try another --port or --host")]
    Listen {
        /// The address.
        host: String,
        /// Its port.
        port: u16,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Threads or signals cannot be had.
    #[error("the server cannot start: {0}")]
    System(#[from] std::io::Error),
}

/// What all connections share.
pub struct Server {
    /// How it listens.
    pub config: Config,
    /// Whether it listens to this machine alone.
    pub is_loopback: bool,
    model: OnceLock<Arc<Model>>,
    is_draining: AtomicBool,
}

impl Server {
    /// The model.
    ///
    /// Errors: it is being loaded, or the server ends.
    pub fn model(&self) -> Result<Arc<Model>, ApiError> {
        let unavailable = |code, message| Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message));
        match self.model.get() {
            _ if self.is_draining.load(Ordering::Relaxed) => unavailable("ending", "the server is ending"),
            Some(model) => Ok(Arc::clone(model)),
            None => unavailable("loading", "the model is being loaded"),
        }
    }

    /// The model, and what a body asks of it.
    ///
    /// Errors: as [`Server::model`], and what is wrong with the body.
    pub async fn asked<T: Send + 'static>(
        &self,
        body: Bytes,
        read: impl FnOnce(Fields, &Model) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(Arc<Model>, T), ApiError> {
        let model = self.model()?;
        let asking = Arc::clone(&model);
        let asked = self.on_worker(move || read(Fields::parse(&body)?, &asking)).await?;
        Ok((model, asked))
    }

    /// Work that takes processor time, off the threads that serve connections.
    ///
    /// Errors: the work's own.
    pub async fn on_worker<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(_) => Err(ApiError::failed("the request could not be read: this is a mistake in moe-run")),
        }
    }
}

/// A server that listens, and says that its model is being loaded.
pub struct Listening {
    runtime: Runtime,
    server: Arc<Server>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    connections: tokio::task::JoinHandle<()>,
}

impl Listening {
    /// Begins to listen.
    ///
    /// Errors: the address is taken, or there is none of that name.
    pub fn begin(config: Config) -> Result<Listening, ServeError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(WORKERS)
            .thread_name("http")
            .enable_all()
            .build()?;
        let Config { host, port, .. } = &config;
        let refused = |source| ServeError::Listen { host: host.clone(), port: *port, source };
        let listener = runtime.block_on(TcpListener::bind((host.as_str(), *port))).map_err(refused)?;
        let address = listener.local_addr()?;
        let is_loopback = address.ip().is_loopback();
        let (model, is_draining) = (OnceLock::new(), AtomicBool::new(false));
        let server = Arc::new(Server { config, is_loopback, model, is_draining });
        let (stop, stopped) = watch::channel(false);
        let connections = runtime.spawn(accept(listener, Arc::clone(&server), stopped));
        Ok(Listening { runtime, server, address, stop, connections })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether other machines can reach it.
    pub fn is_loopback(&self) -> bool {
        self.server.is_loopback
    }

    /// Answers with this model until the process is told to end (SIGTERM, or `is_interrupted`), then lets answers go on for as
    /// long as `drain` says. A second signal ends at once. Gives back what ran the model.
    ///
    /// Errors: signals cannot be had.
    pub fn serve(
        self,
        model: Model,
        is_interrupted: impl Fn() -> bool,
    ) -> Result<Option<Sequences>, ServeError> {
        let Listening { runtime, server, address, stop, connections } = self;
        let model = server.model.get_or_init(|| Arc::new(model));
        let drain = server.config.drain;
        let log = &server.config.log;
        log(&format!("ready: http://{address}"));
        runtime.block_on(async {
            let mut ends = Ends::new()?;
            ends.wait(&is_interrupted).await;
            server.is_draining.store(true, Ordering::Relaxed);
            log(&format!("ending: answers may go on for {} s", drain.as_secs()));
            let _ = stop.send(true);
            tokio::select! {
                _ = connections => log("ended: every answer was complete"),
                () = tokio::time::sleep(drain) => log("ended: answers that were not complete were cut off"),
                () = ends.wait_for_signal() => log("ended at once"),
            }
            Ok::<(), ServeError>(())
        })?;
        let sequences = model.engine.end();
        runtime.shutdown_timeout(Duration::from_secs(1));
        Ok(sequences)
    }
}

/// What tells a server to end.
struct Ends {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Ends {
    fn new() -> Result<Ends, ServeError> {
        Ok(Ends {
            #[cfg(unix)]
            terminate: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?,
        })
    }

    async fn wait(&mut self, is_interrupted: &impl Fn() -> bool) {
        let polling = async {
            while !is_interrupted() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = polling => {}
            () = self.wait_for_signal() => {}
        }
    }

    async fn wait_for_signal(&mut self) {
        #[cfg(unix)]
        if self.terminate.recv().await.is_some() {
            return;
        }
        std::future::pending().await
    }
}

/// Serves connections until it is told to stop, then waits for those that are busy.
async fn accept(listener: TcpListener, server: Arc<Server>, mut stopped: watch::Receiver<bool>) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: some will be free again.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // Small parts are sent at once; that this fails does no harm.
        let _ = stream.set_nodelay(true);
        let server = Arc::clone(&server);
        let service = service_fn(move |request| {
            let server = Arc::clone(&server);
            async move { Ok::<_, Infallible>(respond_to(&server, request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that breaks off has its own reasons.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// A path's response, with what browsers ask for.
async fn respond_to(server: &Arc<Server>, request: Request<Incoming>) -> Response<Body> {
    let origin = guard::origin(request.headers());
    let path = request.uri().path().to_owned();
    let is_anthropic = path.ends_with("/messages") || path.ends_with("/count_tokens");
    let answered = match guard::check(server, &request) {
        Ok(()) if request.method() == Method::OPTIONS => Ok(guard::preflight()),
        Ok(()) => route(server, request, &path).await,
        Err(error) => Err(error),
    };
    let mut response = answered.unwrap_or_else(|error| error.respond(is_anthropic));
    guard::allow_origin(server, origin.as_deref(), response.headers_mut());
    response
}

async fn route(
    server: &Arc<Server>,
    request: Request<Incoming>,
    path: &str,
) -> Result<Response<Body>, ApiError> {
    let path = path.strip_prefix("/v1").filter(|rest| rest.starts_with('/')).unwrap_or(path);
    let ok = |value: Value| Ok(respond::json(StatusCode::OK, &value));
    let wanted = match path {
        "/chat/completions" | "/completions" | "/responses" => Method::POST,
        "/messages" | "/messages/count_tokens" => Method::POST,
        "/tokenize" | "/detokenize" | "/apply-template" => Method::POST,
        "/" | "/page.css" | "/page.js" | "/health" | "/ready" | "/metrics" | "/models" => Method::GET,
        other if other.starts_with("/models/") => Method::GET,
        _ => {
            let message = format!("there is no {} here", guard::brief(path));
            return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_url", message));
        }
    };
    let found = request.method();
    if *found != wanted && !(wanted == Method::GET && *found == Method::HEAD) {
        let message = format!("found {}, wanted {wanted}", guard::brief(found.as_str()));
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message));
    }
    match path {
        // It lives; whether it answers, /ready says, too, while it ends.
        "/health" => match server.model.get() {
            Some(_) => ok(json!({"status": "ok"})),
            None => server.model().map(|_| respond::json(StatusCode::OK, &Value::Null)),
        },
        "/ready" => server.model().and_then(|_| ok(json!({"status": "ready"}))),
        "/metrics" => {
            let text = metrics::text(server.model()?.engine.meter());
            Ok(respond::with_body(StatusCode::OK, metrics::CONTENT_TYPE, text))
        }
        "/models" => {
            // With what Anthropic's clients look for beside what OpenAI's do.
            let (name, has_more) = (&server.config.name, false);
            let list = |data| json!({"object": "list", "data": [data], "has_more": has_more, "first_id": name, "last_id": name});
            server.model().and_then(|model| ok(list(about(server, &model))))
        }
        "/tokenize" => texts::tokenize(server, body(server, request).await?).await,
        "/detokenize" => texts::detokenize(server, body(server, request).await?).await,
        "/apply-template" => texts::apply_template(server, body(server, request).await?).await,
        "/chat/completions" => recorded(server, request, "/v1/chat/completions").await,
        "/responses" => recorded(server, request, "/v1/responses").await,
        "/messages" => recorded(server, request, "/v1/messages").await,
        "/messages/count_tokens" => anthropic::count_tokens(server, body(server, request).await?).await,
        "/completions" => recorded(server, request, "/v1/completions").await,
        other => {
            if let Some(file) = page::file(other) {
                return Ok(file);
            }
            let model = server.model()?;
            if other.strip_prefix("/models/") == Some(&server.config.name) {
                return ok(about(server, &model));
            }
            let message = format!("there is no model of that name here; it serves {}", server.config.name);
            Err(ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message))
        }
    }
}

/// A path that generates, with its line for who watches.
async fn recorded(
    server: &Arc<Server>,
    request: Request<Incoming>,
    path: &'static str,
) -> Result<Response<Body>, ApiError> {
    let id = new_id("req-");
    let mut record = Some(Record::begin(server, id.clone(), path));
    let answered = async {
        let body = body(server, request).await?;
        match path {
            "/v1/completions" => completions::completions(server, body, &mut record).await,
            "/v1/responses" => responses::respond(server, body, &mut record).await,
            "/v1/messages" => anthropic::message(server, body, &mut record).await,
            _ => chat::chat(server, body, &mut record).await,
        }
    };
    let answered = answered.await;
    if let (Err(error), Some(record)) = (&answered, &mut record) {
        record.failed(error.status.as_u16(), error.code);
    }
    let is_anthropic = path == "/v1/messages";
    let mut response = answered.unwrap_or_else(|error| error.respond(is_anthropic));
    // The id of the request's line in the log, where clients look for it.
    let name = HeaderName::from_static(if is_anthropic { "request-id" } else { "x-request-id" });
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(name, id);
    }
    Ok(response)
}

/// What `/v1/models` says.
fn about(server: &Server, model: &Model) -> Value {
    json!({
        "id": server.config.name, "object": "model", "created": model.created, "owned_by": "moe-run",
        "max_model_len": model.ctx_size, "type": "model", "display_name": server.config.name,
    })
}

/// A request's whole body.
async fn body(server: &Server, request: Request<Incoming>) -> Result<Bytes, ApiError> {
    let limit = server.config.max_body_bytes;
    let too_large = || {
        let message = format!("the body has more than {limit} bytes (--max-body-mib)");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let body = Limited::new(request.into_body(), limit);
    match tokio::time::timeout(BODY_TIMEOUT, body.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => {
            Err(ApiError::new(StatusCode::BAD_REQUEST, "incomplete_body", "the body is not complete"))
        }
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not come in time")),
    }
}
