//! Each way in which a file can be wrong, and that the error names file, key or tensor, found, wanted, and a way out.

use std::{fs, process::Command, sync::Arc};

use moe_run_graph::{
    gguf::{GgufError, GgufFile, MetaArray as A, MetaValue as V, Metadata},
    quant::Format,
    weights::Weights,
};

use super::common::{file, file_of, metadata, patched, spec};

fn refused(bytes: Vec<u8>, parts: &[&str]) -> GgufError {
    let error = GgufFile::from_bytes("the.gguf", bytes).unwrap_err();
    let text = error.to_string();
    for part in ["the.gguf"].iter().chain(parts) {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
    error
}

/// `name` with its length before it, as files have it.
fn string(name: &str) -> Vec<u8> {
    let mut out = (name.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(name.as_bytes());
    out
}

/// A file whose only tensor is "w", F32 of [4, 8], in a table whose entry's fields are found by their values.
fn one_tensor() -> Vec<u8> {
    file_of(&Metadata::default(), &[spec("w", &[4, 8], Format::F32)])
}

/// Offset of the first byte after the tensor's name in [`one_tensor`]: u32 dimensions, u64 × 2 sizes, u32 type, u64 offset.
const ENTRY: usize = 4 + 4 + 8 + 8 + 8 + 1;

fn with_entry(at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = one_tensor();
    bytes[ENTRY + at..ENTRY + at + new.len()].copy_from_slice(new);
    bytes
}

#[test]
fn other_kinds_of_file() {
    refused(b"PK\x03\x04rest".to_vec(), &["ZIP", "GGUF"]);
    refused(b"ggjt\x01\0\0\0".to_vec(), &["old GGML", "convert"]);
    refused(b"{\"a\"".to_vec(), &["{", "GGUF"]);
    refused(vec![0x93, 0xff, 0, 1], &["93, ff", "GGUF"]);
    refused(vec![], &["magic", "0 bytes are left"]);
}

#[test]
fn versions() {
    for (version, parts) in [
        (0u32, ["version 0", "2 or 3"]),
        (1, ["version 1", "convert the model again"]),
        (4, ["version 4", "newer moe-run"]),
        (3 << 24, ["big-endian version 3", "little-endian"]),
        (2 << 24, ["big-endian version 2", "little-endian"]),
        (u32::MAX, ["version 4294967295", "2 or 3"]),
    ] {
        let mut bytes = file();
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        assert!(matches!(refused(bytes, &parts), GgufError::Version { .. }));
    }
}

#[test]
fn counts_beyond_the_file() {
    for stated in [u64::MAX, 1 << 40, 1 << 32, 100_000] {
        let mut bytes = file();
        bytes[8..16].copy_from_slice(&stated.to_le_bytes());
        assert!(matches!(refused(bytes, &["tensors", &stated.to_string()]), GgufError::Truncated { .. }));
        let mut bytes = file();
        bytes[16..24].copy_from_slice(&stated.to_le_bytes());
        assert!(matches!(
            refused(bytes, &["metadata keys", &stated.to_string()]),
            GgufError::Truncated { .. }
        ));
    }
}

#[test]
fn metadata_values() {
    let bytes = file();
    refused(patched(&bytes, &string("string"), &[vec![0xff; 8], b"string".to_vec()].concat()), &["65535"]);
    // The length of a string value, after key and type.
    let old = [string("string"), 8u32.to_le_bytes().to_vec()].concat();
    let at = bytes.windows(old.len()).position(|w| w == old).unwrap() + old.len();
    for length in [u64::MAX, 1 << 40, bytes.len() as u64] {
        let mut bad = bytes.clone();
        bad[at..at + 8].copy_from_slice(&length.to_le_bytes());
        let error = refused(bad, &["\"string\"", &length.to_string()]);
        assert!(matches!(error, GgufError::Truncated { .. }));
    }
    // A value is judged by what uses it, a key is a name.
    let opened =
        GgufFile::from_bytes("the.gguf", patched(&bytes, "Grüße".as_bytes(), b"Gr\xffsse\xff")).unwrap();
    let error = opened.metadata().str("string").unwrap_err();
    assert!(matches!(error, GgufError::KeyType { .. }), "{error:?}");
    assert!(error.to_string().contains("\"string\": found string \"Gr\\xFFsse\\xFF, "), "{error}");
    assert!(error.to_string().contains("which is not UTF-8, wanted a string"), "{error}");
    refused(patched(&bytes, b"general.arch", b"general.\xffrch"), &["metadata key 0", "not UTF-8"]);

    let typed = |key: &str, number: u32| [string(key), number.to_le_bytes().to_vec()].concat();
    refused(patched(&bytes, &typed("u8", 0), &typed("u8", 13)), &["\"u8\"", "value type 13", "0 to 12"]);
    let bool_value = |value: u8| [typed("bool", 7), vec![value]].concat();
    refused(patched(&bytes, &bool_value(1), &bool_value(2)), &["\"bool\"", "byte 2", "0 or 1"]);

    let array = |key: &str, element: u32, count: u64| {
        [typed(key, 9), element.to_le_bytes().to_vec(), count.to_le_bytes().to_vec()].concat()
    };
    for (key, element, count) in [
        ("array.u8", 0, 3u64),
        ("array.i64", 11, 1),
        ("array.bool", 7, 2),
        ("array.string", 8, 3),
        ("array.array", 9, 2),
    ] {
        for stated in [u64::MAX, u64::MAX / 8, 1 << 40] {
            let bad = patched(&bytes, &array(key, element, count), &array(key, element, stated));
            assert!(matches!(refused(bad, &[key]), GgufError::Truncated { .. }));
        }
        refused(
            patched(&bytes, &array(key, element, count), &array(key, 99, count)),
            &[key, "value type 99"],
        );
    }
    refused(patched(&bytes, &string("i16"), &string("u16")), &["metadata key \"u16\"", "twice"]);
}

#[test]
fn arrays_nested_too_deep() {
    let nested = |depth: usize| {
        let mut array = A::U8(vec![1]);
        for _ in 1..depth {
            array = A::Array(vec![array]);
        }
        Metadata::from_pairs("nested", [("deep", V::Array(array))]).unwrap()
    };
    let bytes = file_of(&nested(4), &[]);
    assert_eq!(GgufFile::from_bytes("x", bytes).unwrap().metadata().array("deep").unwrap().len(), 1);
    // The writer refuses five levels as the reader does, so the sixth comes from a file of 100,000 by hand.
    let text = moe_run_graph::gguf::writer::GgufLayout::new(&nested(5), &[]).unwrap_err().to_string();
    assert!(text.contains("\"deep\"") && text.contains("nested deeper than 4"), "{text}");
    let mut bytes = [&b"GGUF"[..], &3u32.to_le_bytes(), &0u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
    bytes.extend(string("deep"));
    bytes.extend(9u32.to_le_bytes());
    for _ in 0..100_000 {
        bytes.extend(9u32.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
    }
    refused(bytes, &["\"deep\"", "nested deeper than 4"]);
}

#[test]
fn alignments() {
    let bytes = file();
    let aligned = |n: u32| {
        [string("general.alignment"), 4u32.to_le_bytes().to_vec(), n.to_le_bytes().to_vec()].concat()
    };
    for bad in [0, 1, 4, 48, u32::MAX] {
        let parts = ["general.alignment", &bad.to_string(), "power of two"];
        refused(patched(&bytes, &aligned(64), &aligned(bad)), &parts);
    }
    refused(patched(&bytes, &aligned(64), &aligned(1 << 31)), &["tensor"]);
    let text = Metadata::from_pairs("t", [("general.alignment", V::String("32".into()))]).unwrap();
    let text = moe_run_graph::gguf::writer::GgufLayout::new(&text, &[]).unwrap_err().to_string();
    assert!(text.contains("general.alignment") && text.contains("string \"32\""), "{text}");
}

#[test]
fn tensor_shapes() {
    for dims in [0u32, 5, u32::MAX] {
        refused(
            with_entry(0, &dims.to_le_bytes()),
            &["tensor \"w\"", &format!("{dims} dimensions"), "1 to 4"],
        );
    }
    refused(with_entry(4, &0u64.to_le_bytes()), &["tensor \"w\"", "[4, 0]", "at least 1"]);
    refused(with_entry(4, &u64::MAX.to_le_bytes()), &["tensor \"w\"", "shape"]);
    // 2^62 · 4 elements: the product fits no u64; 2^61: the bytes do not.
    refused(with_entry(4, &(1u64 << 62).to_le_bytes()), &["tensor \"w\"", "shape"]);
    refused(with_entry(4, &(1u64 << 61).to_le_bytes()), &["tensor \"w\"", "shape"]);
    // A terabyte in a file of a few hundred bytes.
    let error = refused(with_entry(4, &(1u64 << 36).to_le_bytes()), &["tensor \"w\"", "1099511627776"]);
    assert!(matches!(error, GgufError::Truncated { .. }));
}

#[test]
fn tensor_types() {
    // Types that nothing here decodes: the file is opened, the tensor is not read.
    for (number, name, len_bytes) in
        [(4u32, "Q4_2", None), (26, "I32", Some(128)), (24, "I8", Some(32)), (777, "type 777", None)]
    {
        let file = GgufFile::from_bytes("the.gguf", with_entry(20, &number.to_le_bytes())).unwrap();
        let entry = file.tensor("w").unwrap();
        assert_eq!((entry.ggml_type.name().as_ref(), entry.len_bytes()), (name, len_bytes));
        assert_eq!(file.data(entry).len(), len_bytes.unwrap_or(0));
        let weights = Weights::new(Arc::new(file));
        assert_eq!((weights.get("w"), weights.iter().count()), (None, 0));
        let error = weights.require("w").unwrap_err();
        assert!(matches!(error, GgufError::TensorType { .. }), "{error:?}");
        let (text, name) = (error.to_string(), name.trim_start_matches("type "));
        assert!(
            text.starts_with("the.gguf: tensor \"w\": ") && text.contains(name) && text.contains("Q4_K"),
            "{text}"
        );
    }
    // Where the size of a type's blocks is known, the extents are checked; where it is not, the beginning.
    for (number, parts) in [
        (28u32, ["wants 256 bytes", "128 bytes are left"]),
        (17, ["[4, 8] in IQ2_XS", "multiple of 256"]),
        (40, ["[4, 8] in NVFP4", "multiple of 64"]),
    ] {
        refused(with_entry(20, &number.to_le_bytes()), &["tensor \"w\"", parts[0], parts[1]]);
    }
    let mut beyond = with_entry(20, &777u32.to_le_bytes());
    beyond[ENTRY + 24..ENTRY + 32].copy_from_slice(&128u64.to_le_bytes());
    assert!(matches!(refused(beyond, &["tensor \"w\"", "wants 1 bytes"]), GgufError::Truncated { .. }));
    let error =
        refused(with_entry(20, &12u32.to_le_bytes()), &["tensor \"w\"", "[4, 8] in Q4_K", "multiple of 256"]);
    assert!(matches!(error, GgufError::Invalid { .. }));
}

#[test]
fn tensor_offsets() {
    refused(with_entry(24, &8u64.to_le_bytes()), &["tensor \"w\"", "data offset 8", "32 bytes"]);
    for offset in [32u64, 1 << 40, u64::MAX - 31] {
        let error = refused(with_entry(24, &offset.to_le_bytes()), &["tensor \"w\"", "wants 128 bytes"]);
        assert!(matches!(error, GgufError::Truncated { .. }));
    }
}

#[test]
fn overlapping_and_repeated_tensors() {
    let specs = [spec("first", &[16], Format::F32), spec("other", &[16], Format::F32)];
    let bytes = file_of(&Metadata::default(), &specs);
    // The second tensor's offset, 64, becomes 32 and 0.
    let entry = |offset: u64| {
        [
            string("other"),
            1u32.to_le_bytes().into(),
            16u64.to_le_bytes().into(),
            vec![0; 4],
            offset.to_le_bytes().into(),
        ]
        .concat()
    };
    for offset in [32, 0] {
        let error =
            refused(patched(&bytes, &entry(64), &entry(offset)), &["\"first\"", "\"other\"", "overlap"]);
        assert!(matches!(error, GgufError::Overlap { .. }));
    }
    let error = refused(patched(&bytes, &string("other"), &string("first")), &["tensor \"first\"", "twice"]);
    assert!(matches!(error, GgufError::Duplicate { .. }));
}

#[test]
fn names_are_clipped_and_escaped_in_messages() {
    let long = "k\u{1b}[31m".repeat(5000);
    let text = Metadata::from_pairs("m", [(long.clone(), V::U8(0))]).unwrap();
    let bytes = file_of(&text, &[]);
    let bad = patched(&bytes, &[string(&long), vec![0; 4]].concat(), &[string(&long), vec![77; 4]].concat());
    let text = GgufFile::from_bytes("the.gguf", bad).unwrap_err().to_string();
    assert!(text.len() < 1000 && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn paths_that_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let opened = |path: &std::path::Path| GgufFile::open(path).unwrap_err();
    let error = opened(dir.path());
    assert!(matches!(error, GgufError::NotAFile { found: "a directory", .. }), "{error}");
    let empty = dir.path().join("empty.gguf");
    fs::write(&empty, "").unwrap();
    let error = opened(&empty);
    assert!(matches!(error, GgufError::NotAFile { found: "an empty file", .. }), "{error}");
    assert!(error.to_string().contains("empty.gguf"));
    let error = opened(&dir.path().join("absent.gguf"));
    assert!(
        error.to_string().contains("absent.gguf") && error.to_string().contains("check the path"),
        "{error}"
    );
    #[cfg(unix)]
    {
        let pipe = dir.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let error = opened(&pipe);
        assert!(matches!(error, GgufError::NotAFile { .. }), "a pipe must not block: {error}");
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_be_read() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret.gguf");
    fs::write(&path, file()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&path).is_ok() {
        eprintln!("SKIPPED a_file_that_may_not_be_read: this user (root) may read everything");
        return;
    }
    let text = GgufFile::open(&path).unwrap_err().to_string();
    assert!(text.contains("secret.gguf") && text.contains("check that you may read it"), "{text}");
}

/// A file that really is a terabyte (sparse): its size justifies any count, so the header itself is bounded.
#[cfg(unix)]
#[test]
fn a_sparse_terabyte_does_not_justify_a_terabyte_of_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("huge.gguf");
    let write = |head: &[u8]| {
        fs::write(&path, head).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 40)
    };
    let head = |tensors: u64, pairs: u64| {
        [&b"GGUF"[..], &3u32.to_le_bytes(), &tensors.to_le_bytes(), &pairs.to_le_bytes()].concat()
    };
    if let Err(error) = write(&head(1 << 34, 0)) {
        eprintln!("SKIPPED a_sparse_terabyte…: this file system holds no sparse terabyte ({error})");
        return;
    }
    let text = GgufFile::open(&path).unwrap_err().to_string();
    assert!(text.contains("within the first 64 MiB"), "{text}");
    write(&head(0, 1 << 36)).unwrap();
    assert!(GgufFile::open(&path).unwrap_err().to_string().contains("within the first 64 MiB"));
    // An array of 2^36 empty strings, of which every one is there.
    let mut bytes = head(0, 1);
    bytes.extend(string("empties"));
    bytes.extend(9u32.to_le_bytes());
    bytes.extend(8u32.to_le_bytes());
    bytes.extend((1u64 << 36).to_le_bytes());
    write(&bytes).unwrap();
    let text = GgufFile::open(&path).unwrap_err().to_string();
    assert!(text.contains("\"empties\"") && text.contains("within the first 64 MiB"), "{text}");
    // And a right file of that size is opened: its tensors may be anywhere.
    write(&file_of(&metadata(), &[spec("w", &[16], Format::F32)])).unwrap();
    assert_eq!(GgufFile::open(&path).unwrap().len_bytes(), 1 << 40);
}
