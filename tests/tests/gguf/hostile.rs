//! Damaged files: every truncation, and 200,000 mutations. None may panic, hang, or take memory beyond its own size's
//! worth; each is refused or gives tensors within the file.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use moe_run_graph::gguf::{GgufError, GgufFile};

use super::common::{Random, file};

/// Reads everything that an opened file offers.
fn use_all(file: &GgufFile) {
    let mut seen = 0u64;
    for (key, value) in file.metadata().iter() {
        seen += key.len() as u64 + value.type_name().len() as u64;
        let m = file.metadata();
        // Each accessor takes the value or says that it cannot.
        let _ = (m.u32(key), m.u64(key), m.i32(key), m.f32(key), m.bool(key), m.str(key));
        let _ = (m.string_array(key), m.i32_array(key), m.usize_array(key), m.f32_array(key));
    }
    for entry in file.tensors() {
        let bytes = file.data(entry);
        assert_eq!(bytes.len(), entry.len_bytes().unwrap_or(0));
        seen = seen.wrapping_add(entry.elems() as u64);
        let Ok(format) = entry.format() else { continue };
        let cols = *entry.shape.last().unwrap();
        let row = format.row_bytes(cols).unwrap();
        assert_eq!(entry.elems() / cols * row, bytes.len());
        let mut out = vec![0.0; cols];
        format.decode_row(&bytes[bytes.len() - row..], &mut out);
    }
    std::hint::black_box(seen);
}

/// Every prefix of `bytes` up to the end of its last tensor must be refused as truncated.
fn refuse_prefixes(bytes: &[u8], lengths: impl IntoIterator<Item = usize>) {
    for length in lengths {
        match GgufFile::from_bytes("cut.gguf", bytes[..length].to_vec()) {
            Err(GgufError::Truncated { remaining, wanted, .. }) => {
                assert!(wanted > u128::from(remaining), "at {length}: wants {wanted} of {remaining}");
            }
            Err(other) => panic!("cut at {length}: {other}"),
            Ok(_) => panic!("cut at {length}: opened"),
        }
    }
}

/// Ends of the tensors of `file`, and one byte around them.
fn tensor_boundaries(file: &GgufFile) -> Vec<usize> {
    let last = file.tensors().iter().map(|t| t.offset_bytes() + t.len_bytes().unwrap()).max().unwrap();
    let around = |t: &moe_run_graph::gguf::TensorEntry| {
        let (start, end) = (t.offset_bytes(), t.offset_bytes() + t.len_bytes().unwrap());
        [start - 1, start, start + 1, usize::midpoint(start, end), end - 1, end, end + 1]
    };
    let mut cuts: Vec<usize> = file.tensors().iter().flat_map(around).filter(|&cut| cut < last).collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

#[test]
fn every_truncation_of_the_sample_is_refused() {
    let bytes = file();
    let read = GgufFile::from_bytes("sample", bytes.clone()).unwrap();
    // Every byte of the header is a superset of every boundary of its structure.
    refuse_prefixes(&bytes, 0..=read.parts()[0].header().len());
    refuse_prefixes(&bytes, tensor_boundaries(&read));
}

#[test]
fn every_truncation_of_a_micro_model_is_refused() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/micro/zoo-q2_k.gguf");
    let bytes = std::fs::read(path).unwrap();
    let read = GgufFile::from_bytes("micro", bytes.clone()).unwrap();
    refuse_prefixes(&bytes, 0..=read.parts()[0].header().len());
    refuse_prefixes(&bytes, tensor_boundaries(&read));
}

/// What the fuzz target starts from: files that open, and files that must not.
#[test]
fn the_fuzz_corpus_is_read_or_refused() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/gguf");
    let mut opened: Vec<String> = Vec::new();
    let mut refused: Vec<String> = Vec::new();
    for name in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let Some(stem) = name.to_str().unwrap().strip_suffix(".gguf") else { continue };
        let stem = stem.rsplit('/').next().unwrap().to_owned();
        match GgufFile::from_bytes("corpus", std::fs::read(&name).unwrap()) {
            Ok(file) => {
                use_all(&file);
                opened.push(stem);
            }
            Err(_) => refused.push(stem),
        }
    }
    opened.sort();
    refused.sort();
    assert_eq!(opened, ["all-types", "minimal", "one-tensor", "version-2", "vocabulary"]);
    assert_eq!(refused, ["model-without-data", "part-2-of-3"]);
}

/// Changes `bytes` in one of the ways in which files are damaged, or made to do damage.
fn mutate(bytes: &mut Vec<u8>, header_bytes: usize, random: &mut Random) {
    const NUMBERS: [u64; 16] = [
        0,
        1,
        2,
        7,
        12,
        31,
        255,
        256,
        65535,
        65536,
        1 << 31,
        u32::MAX as u64,
        1 << 32,
        1 << 40,
        1 << 63,
        u64::MAX,
    ];
    let at = random.below(header_bytes);
    match random.below(10) {
        0 | 1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes[at] = random.next() as u8,
        3 => bytes[at] = [0, 0xff, 0x7f, 0x80][random.below(4)],
        4 | 5 => {
            let number = match random.below(3) {
                0 => NUMBERS[random.below(NUMBERS.len())],
                1 => (bytes.len() as u64).wrapping_add(random.below(5) as u64).wrapping_sub(2),
                _ => random.next() >> random.below(64),
            };
            let width = [4, 8][random.below(2)].min(bytes.len() - at);
            bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
        }
        6 => {
            let count = random.below(9);
            bytes.splice(at..at, (0..count).map(|_| 0));
        }
        7 => {
            let end = (at + random.below(9)).min(bytes.len());
            bytes.drain(at..end);
        }
        8 => {
            let (from, count) = (random.below(header_bytes), random.below(64));
            let piece = bytes[from..(from + count).min(bytes.len())].to_vec();
            let end = (at + piece.len()).min(bytes.len());
            bytes.splice(at..end, piece);
        }
        _ => bytes.truncate(random.below(bytes.len())),
    }
}

/// Highest address space and resident size of this process so far, in bytes.
#[cfg(target_os = "linux")]
fn memory_peaks() -> (usize, usize) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
    };
    (kib("VmPeak:"), kib("VmHWM:"))
}

#[test]
fn mutations_are_refused_or_harmless() {
    const MUTATIONS: usize = 200_000;
    let whole = file();
    let header_bytes = GgufFile::from_bytes("sample", whole.clone()).unwrap().parts()[0].header().len();
    #[cfg(target_os = "linux")]
    let before = memory_peaks();
    let opened = AtomicUsize::new(0);
    let threads = 2;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (whole, opened) = (&whole, &opened);
            scope.spawn(move || {
                for seed in (thread..MUTATIONS).step_by(threads) {
                    let mut random = Random((seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                    let mut bytes = whole.clone();
                    for _ in 0..=random.below(3) {
                        if bytes.len() > header_bytes {
                            mutate(&mut bytes, header_bytes, &mut random);
                        }
                    }
                    match GgufFile::from_bytes("mutated.gguf", Arc::<[u8]>::from(bytes)) {
                        Ok(file) => {
                            use_all(&file);
                            opened.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => {
                            let text = error.to_string();
                            assert!(
                                text.contains("mutated.gguf") && text.len() < 2000,
                                "seed {seed}: {text}"
                            );
                        }
                    }
                }
            });
        }
    });
    // Both ways out are taken often, or the mutations would test little.
    let opened = opened.into_inner();
    assert!((MUTATIONS / 50..MUTATIONS * 9 / 10).contains(&opened), "{opened} of {MUTATIONS} opened");
    #[cfg(target_os = "linux")]
    {
        // Address space counts what is reserved and never touched; each thread's heap may reserve 128 MiB of it.
        let (space, resident) = memory_peaks();
        assert!(space - before.0 < 1 << 30, "{} bytes of address space", space - before.0);
        assert!(resident - before.1 < 64 << 20, "{} bytes of memory", resident - before.1);
    }
}
