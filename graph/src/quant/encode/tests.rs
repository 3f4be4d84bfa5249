//! Bytes decode to what was meant; no format's error is larger than what its number of levels explains.

use super::*;
use crate::synth::{Random, fill};

fn decoded(format: Format, bytes: &[u8], elems: usize) -> Vec<f32> {
    let mut y = vec![0.0; elems];
    format.decode_row(bytes, &mut y);
    y
}

fn encoded(format: Format, x: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut bytes = vec![0xa5; format.row_bytes(x.len()).unwrap()];
    format.encode_row(x, importance, &mut bytes).unwrap();
    bytes
}

/// Sums of three uniform numbers: a bell.
fn bell(random: &mut Random) -> f32 {
    random.signed_unit() + random.signed_unit() + random.signed_unit()
}

fn relative_error(x: &[f32], y: &[f32], w: impl Fn(usize) -> f32) -> f64 {
    let sum = |term: &dyn Fn(usize) -> f32| (0..x.len()).map(|i| f64::from(w(i) * term(i))).sum::<f64>();
    (sum(&|i| (x[i] - y[i]).powi(2)) / sum(&|i| x[i].powi(2))).sqrt()
}

#[test]
fn packing_is_the_inverse_of_taking_apart() {
    macro_rules! check {
        ($format:expr, $module:ident) => {{
            let format: Format = $format;
            let mut bytes = vec![0; 64 * format.block_bytes()];
            fill(format, 1.0, &mut Random::new(&[7]), &mut bytes);
            let mut random = Random::new(&[8]);
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                // Every bit of scales and codes, not only those that a sane block has.
                for byte in block.iter_mut() {
                    *byte ^= (random.signed_unit() * 128.0) as i8 as u8;
                }
                let mut integers = Integers::new(format.sub_elems());
                $module::integers(bytemuck::from_bytes(block), &mut integers);
                if !integers.scale.is_finite() || !integers.min.is_finite() {
                    continue;
                }
                let mut again = integers;
                $module::integers(&$module::pack(&integers), &mut again);
                assert_eq!(again, integers, "{format}");
                // MXFP4 has two zeros.
                if format != Format::Mxfp4 {
                    assert_eq!(bytemuck::bytes_of(&$module::pack(&integers)), block, "{format}");
                }
            }
        }};
    }
    check!(Format::Q4_0, q4_0);
    check!(Format::Q4_1, q4_1);
    check!(Format::Q5_0, q5_0);
    check!(Format::Q5_1, q5_1);
    check!(Format::Q8_0, q8_0);
    check!(Format::Q2K, q2_k);
    check!(Format::Q3K, q3_k);
    check!(Format::Q4K, q4_k);
    check!(Format::Q5K, q5_k);
    check!(Format::Q6K, q6_k);
    check!(Format::Iq4Nl, iq4_nl);
    check!(Format::Iq4Xs, iq4_xs);
    check!(Format::Mxfp4, mxfp4);
}

/// Root mean square errors relative to the elements' that llama.cpp's encoders make of the numbers of the test below, without
/// importance (libggml of llama-cpp-python 0.3.36, `ggml_quantize_chunk`).
const OF_LLAMA_CPP: [(Format, f64); 15] = [
    (Format::F16, 0.000_210),
    (Format::Bf16, 0.001_664),
    (Format::Q4_0, 0.079_617),
    (Format::Q4_1, 0.074_275),
    (Format::Q5_0, 0.039_569),
    (Format::Q5_1, 0.036_046),
    (Format::Q8_0, 0.004_976),
    (Format::Q2K, 0.283_945),
    (Format::Q3K, 0.143_791),
    (Format::Q4K, 0.067_751),
    (Format::Q5K, 0.034_153),
    (Format::Q6K, 0.016_763),
    (Format::Iq4Nl, 0.072_757),
    (Format::Iq4Xs, 0.073_390),
    (Format::Mxfp4, 0.115_397),
];

#[test]
fn no_error_is_larger_than_llama_cpps() {
    let mut random = Random::new(&[1]);
    let x: Vec<f32> = (0..256 * 64).map(|_| 0.03 * bell(&mut random)).collect();
    for (format, theirs) in OF_LLAMA_CPP {
        let ours = relative_error(&x, &decoded(format, &encoded(format, &x, None), x.len()), |_| 1.0);
        // Their numbers are rounded to the sixth digit.
        assert!(ours <= theirs + 5e-7, "{format}: {ours}, theirs {theirs}");
    }
    assert_eq!(decoded(Format::F32, &encoded(Format::F32, &x, None), x.len()), x);
}

#[test]
fn important_columns_come_out_better() {
    let mut random = Random::new(&[2]);
    let x: Vec<f32> = (0..256 * 16).map(|_| bell(&mut random)).collect();
    let importance: Vec<f32> = (0..x.len()).map(|i| if i % 7 == 0 { 100.0 } else { 1.0 }).collect();
    for format in Format::WRITTEN.into_iter().filter(|f| f.is_quantized()) {
        let plain = decoded(format, &encoded(format, &x, None), x.len());
        let weighted = decoded(format, &encoded(format, &x, Some(&importance)), x.len());
        let [plain, weighted] = [plain, weighted].map(|y| relative_error(&x, &y, |i| importance[i]));
        // A power of two leaves little to choose.
        let limit = if format == Format::Mxfp4 { 1.0 } else { 0.97 };
        assert!(weighted <= limit * plain, "{format}: {weighted} weighted, {plain} without");
    }
}

#[test]
fn odd_rows_come_out_right() {
    for format in Format::WRITTEN {
        let zeros = decoded(format, &encoded(format, &[0.0; 256], None), 256);
        assert!(zeros.iter().all(|y| *y == 0.0), "{format}: zeros");
        let ones = decoded(format, &encoded(format, &[1.0; 256], None), 256);
        assert!(ones.iter().all(|y| (y - 1.0).abs() < 0.01), "{format}: ones {:?}", &ones[..4]);
        let minus = decoded(format, &encoded(format, &[-3.0; 256], None), 256);
        assert!(minus.iter().all(|y| (y + 3.0).abs() < 0.03), "{format}: {:?}", &minus[..4]);
        // One large element, and columns that never met anything.
        let mut one = [1e-6; 256];
        one[77] = -50.0;
        let y = decoded(format, &encoded(format, &one, Some(&[0.0; 256])), 256);
        assert!((y[77] + 50.0).abs() <= 2.0 && y.iter().all(|y| y.is_finite()), "{format}: {}", y[77]);
        for bad in [f32::NAN, f32::INFINITY] {
            one[3] = bad;
            let mut out = vec![0; format.row_bytes(256).unwrap()];
            let error = format.encode_row(&one, None, &mut out).unwrap_err();
            assert_eq!(error, EncodeError::NotFinite { elem: 3 }, "{format}");
        }
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused() {
    let mut x = [1.0; 256];
    x[130] = 3e38;
    for format in Format::WRITTEN {
        let mut out = vec![0; format.row_bytes(256).unwrap()];
        let result = format.encode_row(&x, None, &mut out);
        match format {
            Format::F32 | Format::Bf16 => assert_eq!(result, Ok(())),
            Format::Mxfp4 => {
                assert_eq!(result, Ok(()));
                assert!(decoded(format, &out, 256)[130] > 2e38);
            }
            _ => assert!(
                matches!(result, Err(EncodeError::TooLarge { elem, .. }) if elem <= 130),
                "{format}: {result:?}"
            ),
        }
    }
    let error = Format::Iq2S.encode_row(&[0.0; 256], None, &mut [0; 82]).unwrap_err().to_string();
    assert!(error.contains("IQ2_S") && error.contains("Q4_K"), "{error}");
}
