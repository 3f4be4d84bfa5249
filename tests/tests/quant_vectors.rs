//! Every format's decoder against reference values: random blocks decoded by gguf-py, the formats' public definition.
//!
//! All twenty-eight agree bit for bit. Where a format multiplies twice, the first product (binary16 scale by a small integer)
//! is exact in f32, so the order of the two does not matter.

use moe_run_graph::quant::Format;
use safetensors::SafeTensors;

const VECTORS: &[u8] = include_bytes!("../fixtures/quant-vectors.safetensors");

/// Bytes of random blocks, and the values that they stand for.
fn vectors(format: Format) -> (Vec<u8>, Vec<f32>) {
    vectors_in(VECTORS, format)
}

fn vectors_in(file: &[u8], format: Format) -> (Vec<u8>, Vec<f32>) {
    let file = SafeTensors::deserialize(file).unwrap();
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
    agree_with(VECTORS);
}

/// The same, twice as many blocks.
#[test]
fn every_decoder_gives_all_reference_values() {
    let Some(path) = moe_run_tests::fixtures::find("quant/quant-vectors.safetensors") else { return };
    agree_with(&std::fs::read(path).unwrap());
}

fn agree_with(file: &[u8]) {
    for format in Format::ALL {
        let (bytes, wanted) = vectors_in(file, format);
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
        // The signs of NVFP4's scales say nothing.
        let is_idle = |bit: usize| format == Format::Nvfp4 && bit < 32 && bit % 8 == 7;
        for bit in (0..block.len() * 8).filter(|bit| !is_idle(*bit)) {
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
    // Where the f16 scale of a block lies; MXFP4 and NVFP4 have no scale that is not finite, and IQ1_M's lies in pieces.
    let scale_at = |format| match format {
        Format::Q2K => Some(80),
        Format::Q3K => Some(108),
        Format::Q6K => Some(208),
        Format::Tq1_0 => Some(52),
        Format::Tq2_0 => Some(64),
        Format::F32 | Format::F16 | Format::Bf16 | Format::Mxfp4 | Format::Nvfp4 | Format::Iq1M => None,
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
fn nvfp4_scales_are_e4m3_without_sign() {
    for bits in 0..=255u8 {
        let mut block = vec![0x72; 36];
        block[2] = bits;
        let y = decoded(Format::Nvfp4, &block);
        let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
        let scale = match (bits, exponent) {
            (0x7f, _) => 0.0, // a NaN in the OCP's definition, 0 in ggml's
            (_, 0) => mantissa * 2f64.powi(-9),
            _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
        };
        assert_eq!((f64::from(y[32]), f64::from(y[40])), (scale, 6.0 * scale), "{bits}");
    }
}

#[test]
#[should_panic(expected = "Q4_K: 255 elements")]
fn lengths_that_do_not_agree_panic() {
    Format::Q4K.decode_row(&[0; 144], &mut [0.0; 255]);
}
