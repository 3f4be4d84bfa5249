//! Blocks that full beginnings left, in a file: saved when a process ends, taken up again by the next one.
//!
//! Little endian: eight bytes that name the format, the length of the binding (u64) and its text, a block's bytes (u64), how many
//! blocks follow (u64); of each, the one unused the longest first: its parent's key (two u64), its ids (u32), its rows; how many
//! borders follow at which sequences' own states and rings were kept (u64); of each, in the same order: the tokens before it (u64),
//! their ids, and of each such state what was kept; then a sum of all before it (u64). The binding says in words of what model and settings the rows are; a file with another one is refused,
//! and so is one whose sum is not what it says. Deliberately absent: the file's name, and that it appears whole or not at all,
//! which are [`crate::partial_file`]'s.

use super::{BLOCK_TOKENS, KeptRows, Sequences};
use crate::blocks::{Key, mix};
use crate::executable::SequenceStates;
use moe_run_graph::ids::TokenId;
use std::io::{self, Read, Write};

const MAGIC: [u8; 8] = *b"moerunk2";
/// Longer bindings are not written.
const MAX_BINDING: u64 = 4096;
/// No border is behind more tokens: what is read of a damaged file is bounded.
const MAX_BORDER: usize = 1 << 24;

/// Why a cache file is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheFileError {
    /// It cannot be read.
    #[error("cannot read: {0}")]
    Read(#[from] io::Error),
    /// It is something else.
    #[error("it is no cache file of moe-run, or one of another version")]
    Other,
    /// It belongs to something else.
    #[error("it holds what was computed with {found}; wanted {wanted}: give another file, or remove it")]
    Foreign {
        /// The file's binding.
        found: String,
        /// What runs.
        wanted: String,
    },
    /// Its content is not what was written.
    #[error("it is damaged ({0}): remove it")]
    Damaged(&'static str),
    /// The backend or model keeps nothing that could be saved.
    #[error("{0} keeps no blocks that several requests could share, so there is no cache to save")]
    NoBlocks(String),
}

/// A sum of what was written or read, in order.
struct Sum(u64);

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.0 = mix(self.0, u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.0 = mix(self.0, u64::from_le_bytes(last));
    }
}

fn bytes_of(tokens: &[TokenId]) -> Vec<u8> {
    tokens.iter().flat_map(|id| id.0.to_le_bytes()).collect()
}

fn ids_of(bytes: &[u8]) -> Vec<TokenId> {
    bytes.as_chunks::<4>().0.iter().map(|id| TokenId(u32::from_le_bytes(*id))).collect()
}

impl Sequences {
    fn block_bytes(&self) -> Result<usize, CacheFileError> {
        let bytes = if self.shares_blocks() { self.state.block_bytes() } else { None };
        bytes.ok_or_else(|| {
            CacheFileError::NoBlocks(format!("the {} backend with this model", self.info().backend))
        })
    }

    /// The binding, and which states are no part of blocks: that depends on how many sequences there are.
    fn bound(&self, binding: &str) -> String {
        let rings = self.state.rings().iter().flatten().count();
        if rings == 0 { binding.to_owned() } else { format!("{binding}; {rings} states of a window's size") }
    }

    /// Whether there is anything that [`Sequences::save_cache`] could save, ever.
    ///
    /// # Errors
    /// [`CacheFileError::NoBlocks`].
    pub fn check_cache(&self) -> Result<(), CacheFileError> {
        self.block_bytes().map(drop)
    }

    /// Writes the blocks that nobody has and others may still want, with what they are bound to. How many they were.
    ///
    /// # Errors
    /// What writing reports; [`CacheFileError::NoBlocks`].
    pub fn save_cache(&self, binding: &str, out: &mut dyn Write) -> Result<usize, CacheFileError> {
        let (block_bytes, binding) = (self.block_bytes()?, self.bound(binding));
        let mut sum = Sum(0);
        let mut put = |bytes: &[u8]| {
            sum.add(bytes);
            out.write_all(bytes)
        };
        let kept: Vec<_> = self.blocks.kept().collect();
        put(&MAGIC)?;
        put(&(binding.len() as u64).to_le_bytes())?;
        put(binding.as_bytes())?;
        put(&(block_bytes as u64).to_le_bytes())?;
        put(&(kept.len() as u64).to_le_bytes())?;
        let mut rows = Vec::with_capacity(block_bytes);
        for (block, parent, tokens) in &kept {
            put(&parent.to_bytes())?;
            put(&bytes_of(tokens))?;
            rows.clear();
            self.state.read_block(*block, &mut rows);
            put(&rows)?;
        }
        let borders = self.kept.oldest_first();
        put(&(borders.len() as u64).to_le_bytes())?;
        for (tokens, states) in borders {
            put(&(tokens.len() as u64).to_le_bytes())?;
            put(&bytes_of(tokens))?;
            for (_, rows) in states {
                put(&rows.to_bytes())?;
            }
        }
        out.write_all(&sum.0.to_le_bytes())?;
        Ok(kept.len())
    }

    /// Takes up what [`Sequences::save_cache`] wrote, as much as there is room for, the latest first. How many blocks that is.
    ///
    /// # Errors
    /// [`CacheFileError`]; nothing of the file is kept then.
    pub fn load_cache(&mut self, binding: &str, input: &mut dyn Read) -> Result<usize, CacheFileError> {
        let loaded = self.load(binding, input);
        if loaded.is_err() {
            self.blocks.forget_idle();
            self.kept.forget();
        }
        loaded
    }

    fn load(&mut self, binding: &str, input: &mut dyn Read) -> Result<usize, CacheFileError> {
        let (block_bytes, binding) = (self.block_bytes()?, self.bound(binding));
        let mut sum = Sum(0);
        let mut take = |bytes: usize| {
            let mut taken = vec![0; bytes];
            match input.read_exact(&mut taken) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(CacheFileError::Damaged("cut off"));
                }
                Err(error) => return Err(error.into()),
            }
            sum.add(&taken);
            Ok(taken)
        };
        let number = |bytes: Vec<u8>| bytes.try_into().map_or(0, u64::from_le_bytes);
        match take(MAGIC.len()) {
            Ok(magic) if magic == MAGIC => {}
            Ok(_) | Err(CacheFileError::Damaged(_)) => return Err(CacheFileError::Other),
            Err(error) => return Err(error),
        }
        let len = number(take(8)?);
        if len > MAX_BINDING {
            return Err(CacheFileError::Damaged("its head"));
        }
        let found = String::from_utf8_lossy(&take(len as usize)?).into_owned();
        if found != binding {
            return Err(CacheFileError::Foreign { found, wanted: binding });
        }
        if number(take(8)?) != block_bytes as u64 {
            return Err(CacheFileError::Damaged("its head"));
        }
        let count = number(take(8)?);
        let room = self.blocks.available() as u64;
        let mut loaded = 0;
        for at in 0..count {
            let parent = Key::from_bytes(&take(16)?);
            let ids = take(4 * BLOCK_TOKENS)?;
            let rows = take(block_bytes)?;
            let tokens = ids_of(&ids);
            if count - at > room {
                continue;
            }
            if let Some(block) = self.blocks.restore(parent, &tokens) {
                self.state.write_block(block, &rows);
                loaded += 1;
            }
        }
        let borders = number(take(8)?);
        for at in 0..borders {
            let len_tokens = match usize::try_from(number(take(8)?)) {
                Ok(len) if len.is_multiple_of(BLOCK_TOKENS) && len > 0 && len <= MAX_BORDER => len,
                _ => return Err(CacheFileError::Damaged("a border")),
            };
            let tokens = ids_of(&take(4 * len_tokens)?);
            let mut states = SequenceStates::new();
            for (id, kv_type, bytes) in self.kept_each(len_tokens) {
                states.push((id, KeptRows::from_bytes(kv_type, &take(bytes)?)));
            }
            if borders - at <= self.kept.most() as u64 {
                let key = tokens.chunks(BLOCK_TOKENS).fold(Key::default(), Key::of);
                self.kept.insert(key, &tokens, states);
            }
        }
        let wanted = sum.0;
        let mut found = [0; 8];
        input.read_exact(&mut found).map_err(|_| CacheFileError::Damaged("cut off"))?;
        if u64::from_le_bytes(found) != wanted {
            return Err(CacheFileError::Damaged("its sum is another"));
        }
        Ok(loaded)
    }
}
