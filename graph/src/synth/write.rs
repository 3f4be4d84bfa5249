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
use crate::quant::Format;

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
    /// The format of every matrix that the preset's mixture quantizes and whose rows are whole blocks of it; `None` is the
    /// mixture's.
    pub format: Option<Format>,
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
        let metadata = preset.metadata(layers, options.seed, options.vocabulary, options.format)?;
        let tensors = preset.tensors(layers, options.format);
        let specs: Vec<TensorSpec> = tensors.iter().map(|t| t.spec.clone()).collect();
        Ok(Synth { layout: GgufLayout::new(&metadata, &specs)?, tensors, seed: options.seed })
    }

    /// Header and places of the file.
    pub fn layout(&self) -> &GgufLayout {
        &self.layout
    }

    /// Bytes of tensor `tensor`: its type is a format, whose blocks are known.
    fn len_bytes(&self, tensor: usize) -> usize {
        self.layout.tensors()[tensor].len_bytes().unwrap_or(0)
    }

    /// How many pieces tensor `tensor` is filled in.
    fn chunks(&self, tensor: usize) -> usize {
        let blocks = self.len_bytes(tensor) / self.tensors[tensor].format.block_bytes();
        blocks.div_ceil(CHUNK_BLOCKS)
    }

    /// Piece `chunk` of tensor `tensor`.
    fn chunk(&self, tensor: usize, chunk: usize) -> Vec<u8> {
        let SynthTensor { spec: _, format, values } = &self.tensors[tensor];
        let chunk_bytes = CHUNK_BLOCKS * format.block_bytes();
        let left = self.len_bytes(tensor) - chunk * chunk_bytes;
        let mut out = vec![0; left.min(chunk_bytes)];
        let mut random = Random::new(&[self.seed, tensor as u64, chunk as u64]);
        match *values {
            Values::Rms(rms) => fill(*format, rms, &mut random, &mut out),
            Values::Ids(below) => {
                for y in out.as_chunks_mut::<4>().0 {
                    *y = ((random.next_u64() % below.max(1) as u64) as u32).to_le_bytes();
                }
            }
            Values::Norm | Values::Factor | Values::Decay => {
                let sign = if *values == Values::Decay { -1.0 } else { 1.0 };
                for y in out.as_chunks_mut::<4>().0 {
                    *y = (sign + 0.2 * random.signed_unit()).to_le_bytes();
                }
            }
        }
        out
    }

    /// The bytes that lowering reads, and where they stand in the file: what a file without weights has to have.
    pub fn factors(&self) -> impl Iterator<Item = (usize, Vec<u8>)> {
        let is_factor = move |tensor: &usize| self.tensors[*tensor].values == Values::Factor;
        (0..self.tensors.len()).filter(is_factor).flat_map(move |tensor| {
            let begin = self.layout.tensors()[tensor].offset_bytes();
            let chunk_bytes = CHUNK_BLOCKS * self.tensors[tensor].format.block_bytes();
            (0..self.chunks(tensor))
                .map(move |chunk| (begin + chunk * chunk_bytes, self.chunk(tensor, chunk)))
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgufFile, MetaArray, MetaValue};
    use crate::synth::PRESETS;
    use std::io;

    /// A model of the same kind that takes 6 MB; its larger tensors are filled in several pieces.
    static SMALL: Preset = Preset {
        name: "small",
        num_hidden_layers: 3,
        hidden_size: 512,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        num_experts: 8,
        num_experts_per_tok: 2,
        moe_intermediate_size: 256,
        vocab_size: 4500,
        ..PRESETS[0]
    };

    fn options(seed: u64) -> SynthOptions<'static> {
        SynthOptions { preset: &SMALL, num_hidden_layers: None, seed, vocabulary: None, format: None }
    }

    fn bytes(seed: u64, threads: usize) -> Vec<u8> {
        let threads = NonZeroUsize::new(threads).unwrap();
        Synth::new(&options(seed)).unwrap().write(Vec::new(), threads, |_| ControlFlow::Continue(())).unwrap()
    }

    #[test]
    fn seed_and_not_threads_decide_the_file() {
        let one = bytes(1, 1);
        assert_eq!(one.len(), Synth::new(&options(1)).unwrap().layout().file_bytes());
        for threads in [2, 3, 7] {
            assert!(one == bytes(1, threads), "{threads} threads");
        }
        let (one, two) =
            (GgufFile::from_bytes("1", one).unwrap(), GgufFile::from_bytes("2", bytes(2, 2)).unwrap());
        let mut seen = std::collections::HashSet::new();
        for tensor in one.tensors() {
            assert!(one.data(tensor) != two.data(tensor), "{}", tensor.name);
            assert!(seen.insert(one.data(tensor)), "{}: as another tensor", tensor.name);
            assert!(tensor.format().unwrap().non_finite(one.data(tensor)).is_clean(), "{}", tensor.name);
        }
        // Pieces of one tensor differ too.
        let output = one.data(one.tensor("output.weight").unwrap());
        let piece_bytes = CHUNK_BLOCKS * Format::Q6K.block_bytes();
        assert!(output.len() > 2 * piece_bytes);
        assert_ne!(output[..1000], output[piece_bytes..piece_bytes + 1000]);
    }

    #[test]
    fn norms_are_around_one_and_matmuls_around_zero() {
        let file = GgufFile::from_bytes("m", bytes(5, 2)).unwrap();
        let mean = |name: &str| {
            let tensor = file.tensor(name).unwrap();
            let mut y = vec![0.0; *tensor.shape.last().unwrap()];
            let row = tensor.format().unwrap().row_bytes(y.len()).unwrap();
            tensor.format().unwrap().decode_row(&file.data(tensor)[..row], &mut y);
            y.iter().sum::<f32>() / y.len() as f32
        };
        assert!((mean("blk.0.attn_norm.weight") - 1.0).abs() < 0.03);
        assert!(mean("blk.2.attn_q.weight").abs() < 0.01);
    }

    #[test]
    fn it_stops_when_told_and_when_writing_fails() {
        let threads = NonZeroUsize::new(3).unwrap();
        let mut calls = 0;
        let stopped = Synth::new(&options(1)).unwrap().write(Vec::new(), threads, |_| {
            calls += 1;
            if calls == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(stopped, Err(SynthError::Stopped)) && calls == 4);

        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let full =
            Synth::new(&options(1)).unwrap().write(Full(2 << 20), threads, |_| ControlFlow::Continue(()));
        let Err(SynthError::Write(WriteError::Io(error))) = full else { panic!("written to a full disk") };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn layers_and_vocabulary_must_fit() {
        let refused = |options: SynthOptions<'_>| Synth::new(&options).err().unwrap().to_string();
        let layers = refused(SynthOptions { num_hidden_layers: Some(4), ..options(0) });
        assert!(
            layers.contains("small") && layers.contains("4 layers") && layers.contains("1 to 3"),
            "{layers}"
        );
        let tokens = |n: usize| {
            let tokens = (0..n).map(|i| i.to_string()).collect();
            let pairs = [
                (keys::TOKENIZER_TOKENS, MetaValue::Array(MetaArray::String(tokens))),
                (keys::CHAT_TEMPLATE, MetaValue::String("{{ messages }}".into())),
                (keys::GENERAL_NAME, MetaValue::String("not taken over".into())),
            ];
            Metadata::from_pairs("vocabulary.gguf", pairs).unwrap()
        };
        let few = refused(SynthOptions { vocabulary: Some(&tokens(10)), ..options(0) });
        assert!(
            few.contains("vocabulary.gguf") && few.contains("10 tokens") && few.contains("4500"),
            "{few}"
        );
        let none = refused(SynthOptions { vocabulary: Some(&Metadata::default()), ..options(0) });
        assert!(none.contains(keys::TOKENIZER_TOKENS), "{none}");
        let right = tokens(4500);
        let synth = Synth::new(&SynthOptions { vocabulary: Some(&right), ..options(0) }).unwrap();
        let zeros = synth.layout().file_bytes() - synth.layout().header().len();
        let file = GgufFile::from_bytes("m", [synth.layout().header(), &vec![0; zeros]].concat()).unwrap();
        assert_eq!(file.metadata().string_array(keys::TOKENIZER_TOKENS).unwrap().len(), 4500);
        assert_eq!(file.metadata().str(keys::CHAT_TEMPLATE).unwrap(), "{{ messages }}");
        assert!(file.metadata().str(keys::GENERAL_NAME).unwrap().contains("random weights"));
    }

    #[test]
    fn the_largest_preset_is_laid_out() {
        let largest = &PRESETS[2];
        let synth = Synth::new(&SynthOptions { preset: largest, ..options(0) }).unwrap();
        assert_eq!(synth.layout().tensors().len(), 3 + 12 * largest.num_hidden_layers);
    }
}
