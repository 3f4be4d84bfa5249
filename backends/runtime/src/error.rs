//! What can go wrong on a backend; each says what was found, what was wanted and what to try.

use moe_run_graph::place::PlaceError;
use moe_run_graph::verify::GraphError;

/// An error of a backend, its devices or a step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// No backend of this name in this build.
    #[error("unknown backend '{found}'; this build has {}", known.join(", "))]
    UnknownBackend {
        /// The name given.
        found: String,
        /// The names that exist.
        known: Vec<&'static str>,
    },
    /// No backend of this build can run the model here.
    #[error("no backend can run this model here: {}; --backend reference runs any model, slowly", reasons.join("; "))]
    NoBackend {
        /// Of each, why not.
        reasons: Vec<String>,
    },
    /// The backend has no device here.
    #[error("backend {backend}: no device: {detail}; {advice}")]
    NoDevice {
        /// The backend.
        backend: &'static str,
        /// What was looked for and what was found.
        detail: String,
        /// What to try.
        advice: String,
    },
    /// An op, a format or an attribute that the backend lacks.
    #[error("backend {backend} cannot run {node} ({op}): {detail}; try another --backend")]
    Unsupported {
        /// The backend.
        backend: &'static str,
        /// The node's path.
        node: String,
        /// The op's stem.
        op: &'static str,
        /// The format or attribute, found and wanted.
        detail: String,
    },
    /// An option that the backend lacks.
    #[error("backend {backend}: {option} {found} is not available: wanted {wanted}")]
    Option {
        /// The backend.
        backend: &'static str,
        /// The option's name.
        option: &'static str,
        /// The value given.
        found: String,
        /// What it may be.
        wanted: String,
    },
    /// A tensor whose bytes are not there.
    #[error(
        "tensor {name}: wanted {wanted_bytes} bytes, found {found_bytes}; the file is damaged or incomplete"
    )]
    Weight {
        /// The tensor.
        name: String,
        /// By shape and format.
        wanted_bytes: usize,
        /// In the file.
        found_bytes: usize,
    },
    /// A graph reads a tensor that is not among the loaded weights.
    #[error("tensor {name}: wanted {wanted}, loaded is {found}; load the weights of this graph")]
    NotLoaded {
        /// The tensor.
        name: String,
        /// Format, shape and use in the graph.
        wanted: String,
        /// What was loaded by that name.
        found: String,
    },
    /// Memory that cannot be had.
    #[error("{what}: {wanted_bytes} bytes needed, {available_bytes} available; {advice}")]
    OutOfMemory {
        /// What it is for.
        what: String,
        /// Needed.
        wanted_bytes: u64,
        /// There.
        available_bytes: u64,
        /// What would fit.
        advice: String,
    },
    /// The context is full.
    #[error(
        "the context is full: {wanted_tokens} tokens do not fit in {capacity_tokens}; raise --ctx-size or shorten the prompt"
    )]
    ContextFull {
        /// Tokens that were to be held.
        wanted_tokens: usize,
        /// The state's capacity.
        capacity_tokens: usize,
    },
    /// No blocks are left for what sequences were to hold.
    #[error(
        "the pool of all sequences is full: {wanted_tokens} tokens more were wanted, {free_tokens} are free; close a sequence, or \
         make the pool larger"
    )]
    PoolFull {
        /// In whole blocks.
        wanted_tokens: usize,
        /// In whole blocks.
        free_tokens: usize,
    },
    /// A sequence that cannot go back to a shorter one.
    #[error(
        "a state of this model cannot go back from {held_tokens} tokens to {wanted_tokens}: it changes with every token, or holds \
         a window of them, and was not kept there; evaluate the tokens anew from the first"
    )]
    Rewind {
        /// Tokens that the sequence holds.
        held_tokens: usize,
        /// Tokens that it was to hold.
        wanted_tokens: usize,
    },
    /// A step whose input is not sound.
    #[error("step input: {0}")]
    Input(String),
    /// A value that the plan does not store was asked for, or with the wrong shape.
    #[error("{value}: {detail}")]
    Value {
        /// The value or state.
        value: String,
        /// What is wrong.
        detail: String,
    },
    /// The device failed in mid-run.
    #[error("backend {backend}, device {device}: {detail}")]
    Device {
        /// The backend.
        backend: &'static str,
        /// The device.
        device: String,
        /// The driver's words, and the op and layer where known.
        detail: String,
    },
    /// A model that the devices cannot share.
    #[error("placement: {0}")]
    Place(#[from] PlaceError),
    /// The graph breaks a rule.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// What an observer (a tap's sink) reports: a full disk, an interrupt.
    #[error("{0}")]
    Observer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl BackendError {
    /// A group whose nodes are not those that its pattern accepts: a defect of the plan or of the pattern. A launch that
    /// computed nothing instead would give numbers of before.
    pub fn mismatch(pattern: &str) -> BackendError {
        BackendError::Value {
            value: pattern.to_owned(),
            detail: "a defect: the group's nodes are not those of its pattern; please report the model"
                .into(),
        }
    }
}
