//! Split models: any part opens the whole; what does not fit together is refused.

use std::{
    fs,
    path::{Path, PathBuf},
};

use moe_run_graph::{
    gguf::{GgufFile, MetaValue as V, Metadata, writer::TensorSpec},
    quant::Format,
};

use super::common::{data, file_of, spec};

/// Metadata of part `no` of `count`, of a model of `total` tensors.
fn part_metadata(no: u16, count: u16, total: i32) -> Metadata {
    let split =
        [("split.no", V::U16(no)), ("split.count", V::U16(count)), ("split.tensors.count", V::I32(total))];
    let general = ("general.architecture", V::String("qwen3moe".into()));
    let pairs = if no == 0 { vec![general] } else { vec![] };
    Metadata::from_pairs("part", pairs.into_iter().chain(split)).unwrap()
}

/// Tensors of part `no`: one with a name of its own.
fn part_tensors(no: u16) -> Vec<TensorSpec> {
    vec![spec(&format!("blk.{no}.weight"), &[usize::from(no) + 1, 64], Format::Q8_0)]
}

fn path(dir: &Path, no: u16, count: u16) -> PathBuf {
    dir.join(format!("model-{:05}-of-{count:05}.gguf", no + 1))
}

fn write_three(dir: &Path) {
    for no in 0..3 {
        fs::write(path(dir, no, 3), file_of(&part_metadata(no, 3, 3), &part_tensors(no))).unwrap();
    }
}

fn refused(path: &Path, parts: &[&str]) {
    let text = GgufFile::open(path).unwrap_err().to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
}

#[test]
fn any_part_opens_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    write_three(dir.path());
    for given in 0..3 {
        let read = GgufFile::open(path(dir.path(), given, 3)).unwrap();
        assert_eq!(read.metadata().str("general.architecture").unwrap(), "qwen3moe");
        assert_eq!((read.parts().len(), read.tensors().len()), (3, 3));
        for no in 0..3u16 {
            let entry = read.tensor(&format!("blk.{no}.weight")).unwrap();
            assert_eq!(entry.part(), usize::from(no));
            assert_eq!(read.data(entry), data(0, &part_tensors(no)));
        }
        let sum: u64 = (0..3).map(|no| fs::metadata(path(dir.path(), no, 3)).unwrap().len()).sum();
        assert_eq!(read.len_bytes(), sum);
    }
}

#[test]
fn a_missing_part_is_named() {
    let dir = tempfile::tempdir().unwrap();
    write_three(dir.path());
    fs::remove_file(path(dir.path(), 1, 3)).unwrap();
    refused(
        &path(dir.path(), 2, 3),
        &["part 2 of 3 is missing", "model-00002-of-00003.gguf", "one directory"],
    );
}

#[test]
fn a_renamed_part_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_three(dir.path());
    let renamed = dir.path().join("first.gguf");
    fs::copy(path(dir.path(), 0, 3), &renamed).unwrap();
    refused(&renamed, &["first.gguf", "-00001-of-00003.gguf"]);
    // Two parts exchanged: the names lie about the order.
    fs::rename(path(dir.path(), 1, 3), dir.path().join("x")).unwrap();
    fs::rename(path(dir.path(), 2, 3), path(dir.path(), 1, 3)).unwrap();
    fs::rename(dir.path().join("x"), path(dir.path(), 2, 3)).unwrap();
    refused(&path(dir.path(), 0, 3), &["part 3 of 3", "part 2 of 3"]);
}

#[test]
fn parts_of_different_models_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_three(dir.path());
    let other = |no, count, total, tensors: &[TensorSpec]| {
        fs::write(path(dir.path(), 1, 3), file_of(&part_metadata(no, count, total), tensors))
    };

    other(1, 4, 3, &part_tensors(1)).unwrap();
    refused(&path(dir.path(), 0, 3), &["part 2 of 4", "part 2 of 3"]);

    other(1, 3, 3, &part_tensors(0)).unwrap();
    refused(&path(dir.path(), 0, 3), &["\"blk.0.weight\" occurs twice"]);

    let mut two = part_tensors(1);
    two.push(spec("extra", &[4], Format::F32));
    other(1, 3, 3, &two).unwrap();
    refused(&path(dir.path(), 0, 3), &["4 tensors", "wanted 3", "split.tensors.count"]);

    fs::write(path(dir.path(), 1, 3), file_of(&Metadata::default(), &part_tensors(1))).unwrap();
    refused(&path(dir.path(), 0, 3), &["a whole model", "part 2 of 3"]);

    fs::write(path(dir.path(), 1, 3), b"").unwrap();
    refused(&path(dir.path(), 0, 3), &["00002-of-00003", "empty file"]);
}

#[test]
fn a_number_beyond_the_count_is_refused() {
    let bytes = file_of(&part_metadata(3, 3, 3), &part_tensors(3));
    let text = GgufFile::from_bytes("part", bytes).unwrap_err().to_string();
    assert!(text.contains("split.no") && text.contains("found 3"), "{text}");
}

#[test]
fn a_part_alone_in_memory_is_refused() {
    let bytes = file_of(&part_metadata(1, 3, 3), &part_tensors(1));
    let text = GgufFile::from_bytes("part", bytes).unwrap_err().to_string();
    assert!(text.contains("part 2 of 3") && text.contains("whole model"), "{text}");
}
