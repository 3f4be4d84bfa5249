//! Streaming a synthetic model to a file: workers fill pieces, one thread writes them in order.

use std::{
    io::Write,
    num::NonZeroUsize,
    ops::ControlFlow,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use thiserror::Error;

use super::{
    Random,
    blocks::fill,
    preset::{Preset, SynthTensor, Values},
};
use crate::gguf::{
    GgufError, Metadata, keys,
    writer::{GgufLayout, GgufWriter, TensorSpec, WriteError},
};

/// Blocks that are filled together, from one stream of random numbers: a quarter to one MiB.
const CHUNK_BLOCKS: usize = 4096;
/// Filled pieces that a worker may be ahead of the writer.
const CHUNKS_AHEAD: usize = 2;

/// Why a synthetic model could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SynthError {
    /// A number of layers that the preset does not have.
    #[error("{preset}: found {found} layers asked for, wanted 1 to {wanted}")]
    Layers {
        /// The preset.
        preset: &'static str,
        /// Asked for.
        found: usize,
        /// What the real model has.
        wanted: usize,
    },
    /// A vocabulary of another size than the model's embedding table.
    #[error(
        "{file}: found a vocabulary of {found} tokens, wanted {wanted} for {preset}; take the tokenizer of that model"
    )]
    Vocabulary {
        /// The file that the tokenizer was to come from.
        file: String,
        /// Its tokens.
        found: usize,
        /// The model's.
        wanted: usize,
        /// The preset.
        preset: &'static str,
    },
    /// The file that the tokenizer was to come from has none.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// The file could not be laid out or written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The caller wanted no more.
    #[error("stopped")]
    Stopped,
}

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct SynthOptions<'a> {
    /// The model.
    pub preset: &'static Preset,
    /// How many of its layers; `None` is all.
    pub num_hidden_layers: Option<usize>,
    /// Decides every weight.
    pub seed: u64,
    /// Metadata of a file whose tokenizer and chat template are taken over.
    pub vocabulary: Option<&'a Metadata>,
}

/// A synthetic model, ready to be written.
pub struct Synth {
    layout: GgufLayout,
    tensors: Vec<SynthTensor>,
    seed: u64,
}

impl Synth {
    /// Decides metadata and tensor table.
    ///
    /// Errors: more layers than the model has, or a vocabulary that does not fit it.
    pub fn new(options: &SynthOptions<'_>) -> Result<Synth, SynthError> {
        let preset = options.preset;
        let layers = options.num_hidden_layers.unwrap_or(preset.num_hidden_layers);
        if !(1..=preset.num_hidden_layers).contains(&layers) {
            let (preset, wanted) = (preset.name, preset.num_hidden_layers);
            return Err(SynthError::Layers { preset, found: layers, wanted });
        }
        if let Some(from) = options.vocabulary {
            let found = from.string_array(keys::TOKENIZER_TOKENS)?.len();
            if found != preset.vocab_size {
                let (file, wanted) = (from.origin().to_owned(), preset.vocab_size);
                return Err(SynthError::Vocabulary { file, found, wanted, preset: preset.name });
            }
        }
        let metadata = preset.metadata(layers, options.seed, options.vocabulary)?;
        let tensors = preset.tensors(layers);
        let specs: Vec<TensorSpec> = tensors.iter().map(|t| t.spec.clone()).collect();
        Ok(Synth { layout: GgufLayout::new(&metadata, &specs)?, tensors, seed: options.seed })
    }

    /// Header and places of the file.
    pub fn layout(&self) -> &GgufLayout {
        &self.layout
    }

    /// How many pieces tensor `tensor` is filled in.
    fn chunks(&self, tensor: usize) -> usize {
        let blocks =
            self.layout.tensors()[tensor].len_bytes() / self.tensors[tensor].spec.format.block_bytes();
        blocks.div_ceil(CHUNK_BLOCKS)
    }

    /// Piece `chunk` of tensor `tensor`.
    fn chunk(&self, tensor: usize, chunk: usize) -> Vec<u8> {
        let SynthTensor { spec, values } = &self.tensors[tensor];
        let chunk_bytes = CHUNK_BLOCKS * spec.format.block_bytes();
        let left = self.layout.tensors()[tensor].len_bytes() - chunk * chunk_bytes;
        let mut out = vec![0; left.min(chunk_bytes)];
        let mut random = Random::new(&[self.seed, tensor as u64, chunk as u64]);
        match *values {
            Values::Rms(rms) => fill(spec.format, rms, &mut random, &mut out),
            Values::Norm => {
                for y in out.as_chunks_mut::<4>().0 {
                    *y = (1.0 + 0.2 * random.signed_unit()).to_le_bytes();
                }
            }
        }
        out
    }

    /// All pieces in the order of the file.
    fn pieces(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.tensors.len()).flat_map(|tensor| (0..self.chunks(tensor)).map(move |chunk| (tensor, chunk)))
    }

    /// Writes the file to `out`, with `threads` threads that fill. `progress` hears of the bytes written so far and may
    /// stop it. The bytes do not depend on the number of threads.
    ///
    /// Errors: writing fails, or `progress` breaks ([`SynthError::Stopped`]).
    pub fn write<W: Write>(
        self,
        out: W,
        threads: NonZeroUsize,
        mut progress: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<W, SynthError> {
        let work = |worker: usize, sender: SyncSender<Vec<u8>>| {
            for (tensor, chunk) in self.pieces().skip(worker).step_by(threads.get()) {
                if sender.send(self.chunk(tensor, chunk)).is_err() {
                    return; // the writer has given up
                }
            }
        };
        thread::scope(|scope| {
            // Piece i comes from worker i mod threads, so receiving in turn keeps the order of the file.
            let receivers: Vec<Receiver<Vec<u8>>> = (0..threads.get())
                .map(|worker| {
                    let (sender, receiver) = sync_channel(CHUNKS_AHEAD);
                    let work = &work;
                    scope.spawn(move || work(worker, sender));
                    receiver
                })
                .collect();
            let mut written = self.layout.header().len() as u64;
            let mut writer = GgufWriter::new(out, self.layout.clone())?;
            for (index, _) in self.pieces().enumerate() {
                let Ok(piece) = receivers[index % threads].recv() else { break }; // finish() tells what is missing
                writer.write(&piece)?;
                written += piece.len() as u64;
                if progress(written).is_break() {
                    return Err(SynthError::Stopped);
                }
            }
            Ok(writer.finish()?)
        })
    }
}
