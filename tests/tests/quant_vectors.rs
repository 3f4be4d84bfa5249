//! Every format's decoder against reference values: random blocks decoded by gguf-py, the formats' public definition.
//!
//! All sixteen agree bit for bit. Where a format multiplies twice, the first product (binary16 scale by a small integer)
//! is exact in f32, so the order of the two does not matter.

use moe_run_graph::quant::Format;
use safetensors::SafeTensors;

const VECTORS: &[u8] = include_bytes!("../fixtures/quant-vectors.safetensors");

/// Bytes of random blocks, and the values that they stand for.
fn vectors(format: Format) -> (Vec<u8>, Vec<f32>) {
    let file = SafeTensors::deserialize(VECTORS).unwrap();
    let bytes = file.tensor(&format!("{format}.bytes")).unwrap().data().to_vec();
    let values = file.tensor(&format!("{format}.values")).unwrap();
    let values = values.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    (bytes, values.collect())
}

fn decoded(format: Format, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; bytes.len() / format.block_bytes() * format.block_elems()];
    format.decode_row(bytes, &mut out);
    out
}

#[test]
fn every_decoder_gives_the_reference_values_bit_for_bit() {
    for format in Format::ALL {
        let (bytes, wanted) = vectors(format);
        let got = decoded(format, &bytes);
        assert_eq!(got.len(), wanted.len(), "{format}");
        assert!(wanted.iter().any(|&x| x != 0.0) && wanted.iter().all(|x| x.is_finite()), "{format}");
        for i in 0..got.len() {
            assert_eq!(got[i].to_bits(), wanted[i].to_bits(), "{format} [{i}]: {} for {}", got[i], wanted[i]);
        }
    }
}

/// The vectors would not notice a bit that a decoder ignores if it were 0 in all of them.
#[test]
fn every_bit_of_a_block_matters() {
    for format in Format::ALL {
        let (bytes, _) = vectors(format);
        let block = &bytes[..format.block_bytes()];
        for bit in 0..block.len() * 8 {
            // Flipping a bit of a block must change some value of it, unless that bit scales zeros only: try all blocks.
            let matters = bytes.chunks_exact(format.block_bytes()).any(|block| {
                let mut flipped = block.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let bits = |y: Vec<f32>| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                bits(decoded(format, block)) != bits(decoded(format, &flipped))
            });
            assert!(matters, "{format}: bit {bit} changes nothing");
        }
    }
}

#[test]
fn blocks_at_odd_addresses_decode_alike() {
    for format in Format::ALL {
        let (bytes, wanted) = vectors(format);
        let shifted: Vec<u8> = std::iter::once(0).chain(bytes).collect();
        assert_eq!(decoded(format, &shifted[1..]), wanted, "{format}");
    }
}

#[test]
fn a_scale_that_is_not_finite_shows_in_every_value() {
    // Where the f16 scale of a block lies; MXFP4 has no scale that is not finite.
    let scale_at = |format| match format {
        Format::Q2K => Some(80),
        Format::Q3K => Some(108),
        Format::Q6K => Some(208),
        Format::F32 | Format::F16 | Format::Bf16 | Format::Mxfp4 => None,
        _ => Some(0),
    };
    for format in Format::ALL {
        let Some(at) = scale_at(format) else { continue };
        let (bytes, _) = vectors(format);
        let mut block = bytes[..format.block_bytes()].to_vec();
        block[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
        assert!(decoded(format, &block).iter().all(|y| y.is_nan()), "{format}");
    }
}

#[test]
fn mxfp4_scales_span_all_exponents() {
    // Code 2 is 1.0, code 7 is 6.0: y = 2^(e − 127) · that.
    for e in 0..=254u8 {
        let mut block = vec![0x72; 17];
        block[0] = e;
        let y = decoded(Format::Mxfp4, &block);
        let scale = 2f64.powi(i32::from(e) - 127);
        let six = (6.0 * scale) as f32; // infinite for e = 253 and 254
        assert_eq!((f64::from(y[0]), y[16]), (scale, six), "exponent {e}");
    }
}

#[test]
#[should_panic(expected = "Q4_K: 255 elements")]
fn lengths_that_do_not_agree_panic() {
    Format::Q4K.decode_row(&[0; 144], &mut [0.0; 255]);
}
