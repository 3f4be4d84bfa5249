//! Saved logits: what `--save-logits` writes and `--against` reads.
//!
//! Little-endian: bytes 0–3 `MRLG`; 4–7 u32 version, 1; then u32 vocabulary, u32 tokens of a chunk, u32 chunks; the
//! tokens of the chunks as u32; then for every scored position of every chunk, in order, the logits as f32, verbatim.
//! A file is written under a temporary name beside its own and renamed when it is complete.

use super::Chunks;
use moe_run_runtime::partial_file::PartialFile;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

const MAGIC: [u8; 4] = *b"MRLG";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 20;

/// A file of saved logits that cannot be written, read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogitsFileError {
    /// It could not be written.
    #[error("{}: cannot write: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be read.
    #[error("{}: cannot read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else, cut off, or of another text or model.
    #[error("{}: {what}: found {found}, wanted {wanted}; {advice}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// In the file.
        found: String,
        /// By this run.
        wanted: String,
        /// What to try.
        advice: &'static str,
    },
}

/// Writes the logits of a run.
#[derive(Debug)]
pub struct LogitsWriter {
    partial: PartialFile,
    file: BufWriter<File>,
}

impl LogitsWriter {
    /// Begins a file for these chunks and a vocabulary.
    ///
    /// # Errors
    /// [`LogitsFileError::Write`].
    pub fn create(path: &Path, chunks: &Chunks, vocab_size: usize) -> Result<LogitsWriter, LogitsFileError> {
        let write_error = |source| LogitsFileError::Write { path: path.to_owned(), source };
        let partial = PartialFile::create(path).map_err(write_error)?;
        let mut file = BufWriter::new(partial.reopen().map_err(write_error)?);
        let mut header = Vec::with_capacity(HEADER_BYTES as usize + chunks.tokens().len() * 4);
        header.extend_from_slice(&MAGIC);
        for n in [VERSION, vocab_size as u32, chunks.chunk_tokens() as u32, chunks.len() as u32] {
            header.extend_from_slice(&n.to_le_bytes());
        }
        for token in chunks.tokens() {
            header.extend_from_slice(&token.0.to_le_bytes());
        }
        file.write_all(&header).map_err(write_error)?;
        Ok(LogitsWriter { partial, file })
    }

    /// Adds a position's logits.
    ///
    /// # Errors
    /// [`LogitsFileError::Write`].
    pub fn row(&mut self, logits: &[f32]) -> Result<(), LogitsFileError> {
        let written = logits.iter().try_for_each(|x| self.file.write_all(&x.to_le_bytes()));
        written.map_err(|source| LogitsFileError::Write { path: self.partial.path().to_owned(), source })
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// [`LogitsFileError::Write`].
    pub fn finish(self) -> Result<(), LogitsFileError> {
        let LogitsWriter { partial, file } = self;
        let path = partial.path().to_owned();
        let finished = file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|_| partial.sync())
            .and_then(|()| partial.finish());
        finished.map_err(|source| LogitsFileError::Write { path, source })
    }
}

/// Reads the logits of another run over the same tokens.
#[derive(Debug)]
pub struct LogitsReader {
    path: PathBuf,
    file: BufReader<File>,
    bytes: Vec<u8>,
}

impl LogitsReader {
    /// Opens a file and checks that it belongs to these chunks and this vocabulary, and that it is whole.
    ///
    /// # Errors
    /// [`LogitsFileError::Read`], [`LogitsFileError::Mismatch`].
    pub fn open(path: &Path, chunks: &Chunks, vocab_size: usize) -> Result<LogitsReader, LogitsFileError> {
        let read_error = |source| LogitsFileError::Read { path: path.to_owned(), source };
        let mismatch = |what, found: String, wanted: String, advice| LogitsFileError::Mismatch {
            path: path.to_owned(),
            what,
            found,
            wanted,
            advice,
        };
        let file = File::open(path).map_err(read_error)?;
        let found_bytes = file.metadata().map_err(read_error)?.len();
        let mut file = BufReader::new(file);
        let mut word = [0; 4];
        let magic_advice = "give a file that --save-logits wrote";
        if found_bytes < HEADER_BYTES {
            let wanted = format!("{HEADER_BYTES} or more");
            return Err(mismatch("bytes", found_bytes.to_string(), wanted, magic_advice));
        }
        file.read_exact(&mut word).map_err(read_error)?;
        if word != MAGIC {
            let text = |bytes: &[u8]| format!("{:?}", String::from_utf8_lossy(bytes));
            return Err(mismatch("first bytes", text(&word), text(&MAGIC), magic_advice));
        }
        let (text_advice, again) =
            ("use the same text, --ctx-size and --chunks for both runs", "save the logits again");
        for (what, wanted, advice) in [
            ("version", VERSION as usize, again),
            ("vocabulary", vocab_size, "compare files of models with one vocabulary"),
            ("tokens of a chunk", chunks.chunk_tokens(), text_advice),
            ("chunks", chunks.len(), text_advice),
        ] {
            file.read_exact(&mut word).map_err(read_error)?;
            let found = u32::from_le_bytes(word);
            if found as usize != wanted {
                return Err(mismatch(what, found.to_string(), wanted.to_string(), advice));
            }
        }
        let rows = chunks.len() as u64 * chunks.scored_positions().len() as u64;
        let wanted_bytes = HEADER_BYTES + chunks.tokens().len() as u64 * 4 + rows * vocab_size as u64 * 4;
        if found_bytes != wanted_bytes {
            return Err(mismatch("bytes", found_bytes.to_string(), wanted_bytes.to_string(), again));
        }
        for (i, token) in chunks.tokens().iter().enumerate() {
            file.read_exact(&mut word).map_err(read_error)?;
            let found = u32::from_le_bytes(word);
            if found != token.0 {
                let (found, wanted) = (format!("{found} at {i}"), format!("{} at {i}", token.0));
                return Err(mismatch("token", found, wanted, text_advice));
            }
        }
        Ok(LogitsReader { path: path.to_owned(), file, bytes: vec![0; vocab_size * 4] })
    }

    /// The next position's logits.
    ///
    /// # Errors
    /// [`LogitsFileError::Read`].
    pub fn row(&mut self, out: &mut Vec<f32>) -> Result<(), LogitsFileError> {
        self.file
            .read_exact(&mut self.bytes)
            .map_err(|source| LogitsFileError::Read { path: self.path.clone(), source })?;
        out.clear();
        out.extend(self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_run_graph::ids::TokenId;
    use std::fs;

    fn chunks(first: u32) -> Chunks {
        Chunks::new((first..first + 8).map(TokenId).collect(), 4, None, None).expect("two chunks")
    }

    #[test]
    fn rows_come_back_bit_for_bit() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("base.logits");
        let mut writer = LogitsWriter::create(&path, &chunks(0), 3).expect("writable");
        writer.row(&[1.0, -0.0, f32::MIN_POSITIVE]).expect("written");
        writer.row(&[3.5, 1e-40, -7.0]).expect("written");
        assert!(!path.exists(), "the name is given at the end");
        writer.finish().expect("renamed");
        let mut reader = LogitsReader::open(&path, &chunks(0), 3).expect("its own file");
        let mut row = Vec::new();
        reader.row(&mut row).expect("first");
        assert_eq!(
            row.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
            [0x3f80_0000, 0x8000_0000, 0x80_0000]
        );
        reader.row(&mut row).expect("second");
        assert_eq!(row, [3.5, 1e-40, -7.0]);
    }

    #[test]
    fn another_text_vocabulary_or_a_cut_file_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("base.logits");
        let mut writer = LogitsWriter::create(&path, &chunks(0), 3).expect("writable");
        for _ in 0..2 {
            writer.row(&[0.0; 3]).expect("written");
        }
        writer.finish().expect("renamed");
        let refused = |path: &Path, chunks: &Chunks, vocab: usize| {
            LogitsReader::open(path, chunks, vocab).expect_err("not its own file").to_string()
        };
        assert!(refused(&path, &chunks(1), 3).contains("token: found 0 at 0, wanted 1 at 0"));
        assert!(refused(&path, &chunks(0), 4).contains("vocabulary: found 3, wanted 4"));
        let whole = fs::read(&path).expect("readable");
        fs::write(&path, &whole[..whole.len() - 1]).expect("writable");
        assert!(refused(&path, &chunks(0), 3).contains("bytes: found 75, wanted 76"));
        fs::write(&path, b"GGUF and something more").expect("writable");
        assert!(refused(&path, &chunks(0), 3).contains("first bytes"));
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("base.logits");
        drop(LogitsWriter::create(&path, &chunks(0), 3).expect("writable"));
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);
    }
}
