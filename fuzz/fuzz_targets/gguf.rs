//! Any bytes are refused or give a file whose every key and tensor can be read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use moe_run_graph::gguf::GgufFile;

fuzz_target!(|bytes: &[u8]| {
    let file = match GgufFile::from_bytes("fuzz", bytes.to_vec()) {
        Ok(file) => file,
        Err(error) => {
            assert!(error.to_string().len() < 4096);
            return;
        }
    };
    let metadata = file.metadata();
    for (key, _) in metadata.iter() {
        // Each accessor takes the value or says that it cannot.
        let _ = (metadata.u32(key), metadata.u64(key), metadata.i32(key), metadata.f32(key), metadata.bool(key));
        let _ = (metadata.str(key), metadata.string_array(key), metadata.i32_array(key));
        let _ = (metadata.usize_array(key), metadata.f32_array(key));
    }
    for entry in file.tensors() {
        let bytes = file.data(entry);
        assert_eq!(bytes.len(), entry.len_bytes().unwrap_or(0));
        let Ok(format) = entry.format() else { continue };
        let cols = entry.shape.last().copied().expect("a tensor has a dimension");
        let row_bytes = format.row_bytes(cols).expect("a row is whole blocks");
        assert_eq!(entry.elems() / cols * row_bytes, bytes.len());
        let mut row = vec![0.0; cols];
        format.decode_row(&bytes[bytes.len() - row_bytes..], &mut row);
    }
});
