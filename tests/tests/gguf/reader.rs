//! What a right file gives: every value as written, every tensor where it is.

use std::{path::Path, sync::Arc};

use moe_run_graph::{
    gguf::{
        GgufFile, MetaArray as A, MetaValue as V, Metadata,
        writer::{GgufLayout, GgufWriter},
    },
    quant::Format,
    weights::Weights,
};

use super::common::{data, file, file_of, metadata, spec, tensors};

#[test]
fn what_is_written_is_read() {
    let read = GgufFile::from_bytes("sample", file()).unwrap();
    let (wanted, specs) = (metadata(), tensors());
    assert_eq!(read.metadata().len(), wanted.len());
    assert!(read.metadata().iter().eq(wanted.iter()), "order and values");
    assert_eq!(read.tensors().len(), specs.len());
    for (i, (entry, spec)) in read.tensors().iter().zip(&specs).enumerate() {
        assert_eq!((&entry.name, &entry.shape, entry.ggml_type), (&spec.name, &spec.shape, spec.format));
        assert_eq!(entry.elems(), spec.shape.iter().product::<usize>());
        assert_eq!(read.data(entry), data(i, &specs), "{}", entry.name);
        assert_eq!(read.data(entry).as_ptr().addr() % 8, 0, "{}", entry.name);
        assert_eq!(entry.offset_bytes() % 64, 0, "general.alignment is 64");
        assert_eq!(read.tensor(&spec.name), Some(entry));
    }
    assert_eq!(read.tensor("no such"), None);
    assert_eq!(
        (read.parts().len(), read.parts()[0].version(), read.parts()[0].alignment_bytes()),
        (1, 3, 64)
    );
}

#[test]
fn version_2_is_laid_out_alike() {
    let mut bytes = file();
    bytes[4] = 2;
    let read = GgufFile::from_bytes("sample", bytes).unwrap();
    assert_eq!(read.parts()[0].version(), 2);
    assert!(read.metadata().iter().eq(metadata().iter()));
}

#[test]
fn bytes_at_any_address_are_aligned() {
    let bytes = file();
    for shift in 0..8 {
        let mut room: Vec<u8> = vec![0; shift];
        room.extend_from_slice(&bytes);
        let leaked: &'static [u8] = &Box::leak(room.into_boxed_slice())[shift..];
        let read = GgufFile::from_bytes("sample", leaked).unwrap();
        for (i, entry) in read.tensors().iter().enumerate() {
            assert_eq!(read.data(entry).as_ptr().addr() % 8, 0);
            assert_eq!(read.data(entry), data(i, &tensors()));
        }
    }
}

#[test]
fn files_are_mapped_and_give_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sample.gguf");
    std::fs::write(&path, file()).unwrap();
    let read = GgufFile::open(&path).unwrap();
    assert_eq!(read.len_bytes(), file().len() as u64);
    for (i, entry) in read.tensors().iter().enumerate() {
        assert_eq!(read.data(entry), data(i, &tensors()));
    }
    assert_eq!(read.metadata().origin(), path.display().to_string());
}

#[test]
fn accessors_convert_integers_that_fit_and_name_what_they_found() {
    let m = metadata();
    assert_eq!(m.u32("u8").unwrap(), 200);
    assert_eq!(m.u64("u64").unwrap(), u64::MAX);
    assert_eq!(m.usize("u16").unwrap(), 60000);
    assert_eq!(m.i32("i8").unwrap(), -100);
    assert_eq!(m.f32("f32").unwrap(), 1.5e-6);
    assert_eq!(m.f32("f64").unwrap(), 1.0 / 3.0);
    assert!(m.bool("bool").unwrap());
    assert_eq!(m.str("general.architecture").unwrap(), "qwen3moe");
    assert_eq!(m.string_array("array.string").unwrap(), ["a", "", "zwölf"]);
    assert_eq!(*m.i32_array("array.i32").unwrap(), [-7, 7]);
    assert_eq!(*m.i32_array("array.u8").unwrap(), [1, 2, 255]);
    assert_eq!(m.usize_array("array.u16").unwrap(), [1, 65535]);
    assert_eq!(m.f32_array("array.f32").unwrap(), [0.5, -0.25]);
    assert_eq!(m.array("array.bool").unwrap(), &A::Bool(vec![true, false]));
    assert_eq!(m.opt_u32("absent").unwrap(), None);
    assert_eq!(m.opt_str("absent").unwrap(), None);

    let message = |e: moe_run_graph::gguf::GgufError| e.to_string();
    for (text, parts) in [
        (message(m.u32("i8").unwrap_err()), ["sample", "\"i8\"", "i8 -100", "4294967295"]),
        (message(m.i32("u32").unwrap_err()), ["sample", "\"u32\"", "u32 4000000000", "32 bits"]),
        (message(m.u32("bool").unwrap_err()), ["sample", "\"bool\"", "bool true", "integer"]),
        (message(m.f32("u8").unwrap_err()), ["sample", "\"u8\"", "u8 200", "float"]),
        (message(m.i32_array("array.u32").unwrap_err()), ["sample", "array.u32", "of 2 u32", "32-bit"]),
        (
            message(m.string_array("string").unwrap_err()),
            ["sample", "\"string\"", "string", "array of strings"],
        ),
        (message(m.u32("absent").unwrap_err()), ["sample", "\"absent\"", "missing", "conversion"]),
    ] {
        for part in parts {
            assert!(text.contains(part), "{part:?} in {text:?}");
        }
    }
}

#[test]
fn a_file_without_tensors_is_a_vocabulary() {
    let bytes = file_of(&metadata(), &[]);
    let read = GgufFile::from_bytes("vocabulary", bytes).unwrap();
    assert!(read.tensors().is_empty());
    assert_eq!(read.metadata().len(), metadata().len());
}

#[test]
fn alignment_defaults_to_32() {
    let plain = Metadata::from_pairs("plain", [("general.architecture", V::String("x".into()))]).unwrap();
    let specs = [spec("a", &[3], Format::F32), spec("b", &[5], Format::F32)];
    let read = GgufFile::from_bytes("plain", file_of(&plain, &specs)).unwrap();
    let offsets: Vec<usize> = read.tensors().iter().map(|t| t.offset_bytes()).collect();
    assert_eq!(offsets[0] % 32, 0);
    assert_eq!(offsets[1], offsets[0] + 32);
}

#[test]
fn weights_are_shared_views() {
    let specs = tensors();
    let weights = Weights::new(Arc::new(GgufFile::from_bytes("sample", file()).unwrap()));
    let four = weights.get("four").unwrap();
    assert_eq!((four.rows(), four.cols_elems(), four.row_bytes()), (12, 32, 34));
    assert_eq!(four.row(11), &data(1, &specs)[11 * 34..]);
    let mut decoded = [0.0; 32];
    four.decode_row(3, &mut decoded);
    let mut wanted = [0.0; 32];
    Format::Q8_0.decode_row(&data(1, &specs)[3 * 34..4 * 34], &mut wanted);
    assert_eq!(decoded.map(f32::to_bits), wanted.map(f32::to_bits));
    assert_eq!(weights.get("blk.0.weight").unwrap().as_f32().map(<[f32]>::len), Some(3));
    assert!(four.as_f32().is_none());
    assert_eq!(weights.iter().count(), specs.len());
    let text = weights.require("absent").unwrap_err().to_string();
    assert!(text.contains("sample") && text.contains("\"absent\""), "{text}");
    let clone = weights.clone();
    std::thread::spawn(move || assert!(clone.get("four").is_some())).join().unwrap();
}

#[test]
fn the_writer_takes_tensors_in_pieces_and_wants_all_bytes() {
    let specs = tensors();
    let layout = GgufLayout::new(&metadata(), &specs).unwrap();
    let wanted = file();
    assert_eq!(layout.file_bytes(), wanted.len());
    assert_eq!(layout.header(), &wanted[..layout.header().len()]);
    let mut writer = GgufWriter::new(Vec::new(), layout).unwrap();
    for i in 0..specs.len() {
        let bytes = data(i, &specs);
        let (left, right) = bytes.split_at(bytes.len() / 3);
        writer.write(left).unwrap();
        let text = writer.write(&bytes).unwrap_err().to_string();
        assert!(text.contains(&specs[i].name), "{text}");
        writer.write(right).unwrap();
    }
    assert!(writer.current().is_none());
    assert_eq!(writer.finish().unwrap(), wanted);

    let mut short = GgufWriter::new(Vec::new(), GgufLayout::new(&metadata(), &specs).unwrap()).unwrap();
    short.write(&[0; 2]).unwrap();
    let text = short.finish().unwrap_err().to_string();
    assert!(text.contains("\"scalar\"") && text.contains("2 bytes") && text.contains('4'), "{text}");
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let refused = |specs: &[_], part: &str| {
        let text = GgufLayout::new(&metadata(), specs).unwrap_err().to_string();
        assert!(text.contains(part), "{part:?} in {text:?}");
    };
    refused(&[spec("a", &[1], Format::F32), spec("a", &[1], Format::F32)], "twice");
    refused(&[spec(&"n".repeat(65), &[1], Format::F32)], "65 bytes");
    refused(&[spec("", &[1], Format::F32)], "0 bytes");
    refused(&[spec("a", &[2, 100], Format::Q4K)], "[2, 100]");
    refused(&[spec("a", &[usize::MAX, 256], Format::Q4K)], "shape");
    refused(&[spec("a", &[], Format::F32)], "shape");
    refused(&[spec("a", &[1, 1, 1, 1, 1], Format::F32)], "5 dimensions");
    refused(&[spec("a", &[0, 256], Format::Q4K)], "shape");
    let odd = Metadata::from_pairs("odd", [("general.alignment", V::U32(48))]).unwrap();
    let text = GgufLayout::new(&odd, &[]).unwrap_err().to_string();
    assert!(
        text.contains("general.alignment") && text.contains("48") && text.contains("power of two"),
        "{text}"
    );
}

#[test]
fn the_tiny_model_is_read_whole() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-qwen3moe-q4_k_m.gguf");
    let read = GgufFile::open(path).unwrap();
    assert_eq!(read.metadata().u32("qwen3moe.block_count").unwrap(), 4);
    assert_eq!(read.metadata().string_array("tokenizer.ggml.tokens").unwrap().len(), 3072);
    let q = read.tensor("blk.0.attn_q.weight").unwrap();
    assert_eq!((q.shape.as_slice(), q.format()), ([512, 256].as_slice(), Ok(Format::Q4K)));
    let down = read.tensor("blk.3.ffn_down_exps.weight").unwrap();
    assert_eq!((down.shape.as_slice(), down.format()), ([16, 256, 256].as_slice(), Ok(Format::Q6K)));
}
