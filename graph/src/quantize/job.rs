//! Writing the file of a plan: workers encode a few rows at a time, one thread writes them in order.
//!
//! The bytes depend on the input, the plan and the importance alone, not on the number of threads or on where a job was
//! gone on with. Memory: three pieces a thread, each of about a million elements (or one row, where that is longer).

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use thiserror::Error;

use super::{Entry, Importance, QuantizePlan};
use crate::fnv::Fnv1a;
use crate::gguf::GgufFile;
use crate::quant::{EncodeError, Format};

/// Changes when the same input gives other bytes: a half-written file of before is then not gone on with.
pub const ENCODER_VERSION: u32 = 1;

/// Elements that are encoded together.
const PIECE_ELEMS: usize = 1 << 20;
/// Encoded pieces that a worker may be ahead of the writer.
const PIECES_AHEAD: usize = 1;

/// Why a file was not written to its end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JobError {
    /// A row that its format cannot hold.
    #[error("tensor {tensor:?}, row {row}: {source}")]
    Encode {
        /// The tensor.
        tensor: String,
        /// Over all outer dimensions.
        row: usize,
        /// Why.
        source: EncodeError,
    },
    /// The model's file lacks a tensor of the plan.
    #[error("tensor {tensor:?} is not in the model's file: the plan is of another")]
    Missing {
        /// The tensor.
        tensor: String,
    },
    /// The operating system refused.
    #[error("cannot write: {0}")]
    Io(#[from] io::Error),
    /// The caller wanted no more.
    #[error("stopped")]
    Stopped,
}

/// What is to be written.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// The model.
    pub file: &'a GgufFile,
    /// What becomes of its tensors.
    pub plan: &'a QuantizePlan,
    /// How much columns matter.
    pub importance: Option<&'a Importance>,
}

/// Rows of a tensor that are encoded together.
#[derive(Clone, Debug)]
struct Piece {
    tensor: usize,
    rows: Range<usize>,
    /// In the file to be written.
    offset_bytes: u64,
    len_bytes: usize,
}

impl Piece {
    fn end_bytes(&self) -> u64 {
        self.offset_bytes + self.len_bytes as u64
    }
}

impl Job<'_> {
    /// What tells this job's half-written file from another's: the encoder, the input's header and place, the output's header
    /// and the importance. `identity` is what is known of the input's files beside: sizes and times.
    #[must_use]
    pub fn fingerprint(&self, identity: &str) -> String {
        let mut fingerprint = Fnv1a::default();
        fingerprint.add(&ENCODER_VERSION.to_le_bytes());
        fingerprint.add(identity.as_bytes());
        for part in self.file.parts() {
            fingerprint.add(part.header());
        }
        fingerprint.add(self.plan.layout.header());
        if let Some(importance) = self.importance {
            importance.add_to(&mut fingerprint);
        }
        fingerprint.text()
    }

    /// All pieces in the order of the file, with what stands in front of them.
    fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (tensor, (entry, placed)) in self.plan.entries.iter().zip(self.plan.layout.tensors()).enumerate()
        {
            let rows = entry.elems() / entry.cols().max(1);
            let row_bytes = entry.bytes / rows.max(1);
            let together = (PIECE_ELEMS / entry.cols().max(1)).max(1);
            for first in (0..rows).step_by(together) {
                let rows = first..(first + together).min(rows);
                let offset_bytes = (placed.offset_bytes() + first * row_bytes) as u64;
                pieces.push(Piece { tensor, len_bytes: rows.len() * row_bytes, rows, offset_bytes });
            }
        }
        pieces
    }

    fn encode(&self, piece: &Piece) -> Result<Vec<u8>, JobError> {
        let entry = &self.plan.entries[piece.tensor];
        encode_tensor(self.file, entry, entry.to, self.importance, piece.rows.clone())
    }

    /// Writes what is missing of the file: everything, or what follows the first `done_bytes` bytes of it, which must be a
    /// number that `progress` was told. `progress` hears how many bytes there are after each piece, and may stop the job.
    ///
    /// # Errors
    /// [`JobError`].
    pub fn write<W: Write>(
        &self,
        mut out: W,
        done_bytes: u64,
        threads: NonZeroUsize,
        mut progress: impl FnMut(u64, &mut W) -> io::Result<ControlFlow<()>>,
    ) -> Result<W, JobError> {
        let pieces = self.pieces();
        let left: Vec<&Piece> = pieces.iter().filter(|piece| piece.end_bytes() > done_bytes).collect();
        let work = |worker: usize, sender: SyncSender<Result<Vec<u8>, JobError>>| {
            for piece in left.iter().skip(worker).step_by(threads.get()) {
                let encoded = self.encode(piece);
                let failed = encoded.is_err();
                if sender.send(encoded).is_err() || failed {
                    return;
                }
            }
        };
        thread::scope(|scope| {
            // Piece i comes from worker i mod threads, so receiving in turn keeps the order of the file.
            let receivers: Vec<Receiver<_>> = (0..threads.get())
                .map(|worker| {
                    let (sender, receiver) = sync_channel(PIECES_AHEAD);
                    let work = &work;
                    scope.spawn(move || work(worker, sender));
                    receiver
                })
                .collect();
            let mut written = done_bytes;
            if written == 0 {
                let header = self.plan.layout.header();
                out.write_all(header)?;
                written = header.len() as u64;
            }
            for (i, piece) in left.iter().enumerate() {
                let Ok(encoded) = receivers[i % threads].recv() else { return Err(JobError::Stopped) };
                pad(&mut out, &mut written, piece.offset_bytes)?;
                out.write_all(&encoded?)?;
                written = piece.end_bytes();
                if progress(written, &mut out)?.is_break() {
                    return Err(JobError::Stopped);
                }
            }
            pad(&mut out, &mut written, self.plan.layout.file_bytes() as u64)?;
            out.flush()?;
            Ok(out)
        })
    }
}

/// Rows of a tensor (counted over all outer dimensions) in another format, or as they are where it is their own.
///
/// # Errors
/// [`JobError::Encode`] and [`JobError::Missing`].
pub fn encode_tensor(
    file: &GgufFile,
    entry: &Entry,
    to: Format,
    importance: Option<&Importance>,
    rows: Range<usize>,
) -> Result<Vec<u8>, JobError> {
    let missing = || JobError::Missing { tensor: entry.name.clone() };
    let bytes = file.tensor(&entry.name).map(|tensor| file.data(tensor)).ok_or_else(missing)?;
    let cols = entry.cols();
    let from_row = entry.from.row_bytes(cols).ok_or_else(missing)?;
    let to_row = to.row_bytes(cols).ok_or_else(missing)?;
    let from = bytes.get(rows.start * from_row..rows.end * from_row).ok_or_else(missing)?;
    if entry.from == to {
        return Ok(from.to_vec());
    }
    let mut out = vec![0; rows.len() * to_row];
    let mut values = vec![0.0; cols];
    let mut weights = ExpertWeights::new(entry, importance);
    for ((row, from), out) in rows.zip(from.chunks_exact(from_row)).zip(out.chunks_exact_mut(to_row)) {
        entry.from.decode_row(from, &mut values);
        to.encode_row(&values, weights.of_row(row), out).map_err(|source| JobError::Encode {
            tensor: entry.name.clone(),
            row,
            source,
        })?;
    }
    Ok(out)
}

/// Writes zeros up to where something begins.
fn pad(out: &mut impl Write, written: &mut u64, to: u64) -> io::Result<()> {
    let zeros = to.saturating_sub(*written);
    io::copy(&mut io::Read::take(io::repeat(0), zeros), out)?;
    *written += zeros;
    Ok(())
}

/// The columns' weights of the expert that rows belong to, made once for rows that follow each other.
struct ExpertWeights<'a> {
    entry: &'a Entry,
    importance: Option<&'a super::TensorImportance>,
    rows_of_expert: usize,
    made: Option<(usize, Option<Vec<f32>>)>,
}

impl<'a> ExpertWeights<'a> {
    fn new(entry: &'a Entry, importance: Option<&'a Importance>) -> ExpertWeights<'a> {
        let importance = importance.and_then(|i| i.get(&entry.name)).map(std::sync::Arc::as_ref);
        let rows_of_expert = entry.shape.iter().rev().nth(1).copied().unwrap_or(1).max(1);
        ExpertWeights { entry, importance, rows_of_expert, made: None }
    }

    fn of_row(&mut self, row: usize) -> Option<&[f32]> {
        let importance = self.importance?;
        let expert = row / self.rows_of_expert;
        if self.made.as_ref().is_none_or(|(made, _)| *made != expert) {
            let weights = importance.weights(expert).filter(|w| w.len() == self.entry.cols());
            self.made = Some((expert, weights));
        }
        self.made.as_ref().and_then(|(_, weights)| weights.as_deref())
    }
}
