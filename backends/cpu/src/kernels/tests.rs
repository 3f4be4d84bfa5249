//! Every instruction set against the portable functions, and those against the formats' exact decode, the reference's
//! products of 8-bit activations, bit for bit, and f64 sums.

use super::layout::{MAX_SUBS, Zero};
use super::unpack::{RowStep, unpack_floats, unpack_panel, unpack_row};
use super::*;
use moe_run_graph::quant::iq1_m::set_scale;
use moe_run_graph::quant::{ActBlock, ActivationPrecision, Format};
use moe_run_reference::matmul::{Rounded, WeightRow};

/// xorshift64*: tests need spread, not quality.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Roughly normal.
    pub fn float(&mut self) -> f32 {
        let sum: u64 = (0..4).map(|_| self.next() >> 40).sum();
        (sum as f32 / (1 << 24) as f32 - 2.0) * 1.7
    }
}

/// Random blocks whose scales are ordinary numbers.
pub fn random_rows(format: Format, rows: usize, cols: usize, rng: &mut Rng) -> Vec<u8> {
    let row_bytes = format.row_bytes(cols).unwrap();
    let mut bytes: Vec<u8> = (0..rows * row_bytes).map(|_| rng.next() as u8).collect();
    let mut half = |at: &mut [u8]| {
        at.copy_from_slice(&half::f16::from_f32(0.002 + 0.01 * rng.float().abs()).to_le_bytes());
    };
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        match format {
            Format::F32 => block.copy_from_slice(&rng_float(block).to_le_bytes()),
            Format::F16 => block.copy_from_slice(&half::f16::from_f32(rng_float(block)).to_le_bytes()),
            Format::Bf16 => block.copy_from_slice(&half::bf16::from_f32(rng_float(block)).to_le_bytes()),
            Format::Mxfp4 => block[0] = 118 + block[0] % 8,
            Format::Iq1M => {
                let mut d = [0; 2];
                half(&mut d);
                set_scale(bytemuck::from_bytes_mut(block), d);
            }
            // Every byte is a scale that is finite.
            Format::Nvfp4 => {}
            _ => {
                let scales = format.f16_scales();
                assert!(!scales.is_empty(), "{format}: where is its scale?");
                for &at in scales {
                    half(&mut block[at..at + 2]);
                }
            }
        }
    }
    bytes
}

fn rng_float(seed: &[u8]) -> f32 {
    let mut rng = Rng(seed.iter().fold(0x9E37_79B9_7F4A_7C15, |s, b| (s ^ u64::from(*b)).rotate_left(9)) | 1);
    rng.next();
    rng.float()
}

/// Elements under one scale of the activations that a format meets by itself.
fn activation_block(format: Format) -> usize {
    if format.is_super_block() { 256 } else { 32 }
}

pub fn quantized() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|f| f.is_quantized())
}

fn accelerated() -> impl Iterator<Item = Kernels> {
    Isa::ALL.iter().filter_map(|isa| Kernels::with(*isa))
}

/// Every aarch64 machine since 2018 has dot products, and so has the emulator: here they must be found.
#[cfg(target_arch = "aarch64")]
#[test]
fn neon_is_found() {
    assert!(accelerated().any(|kernels| kernels.isa() == Isa::Neon));
}

#[test]
fn unpacked_rows_are_the_decoded_values_exactly() {
    let mut rng = Rng(1);
    for format in quantized() {
        let layout = PanelLayout::of(format).unwrap();
        for _ in 0..20 {
            let bytes = random_rows(format, 1, 256, &mut rng);
            let mut want = [0.0f32; 256];
            format.decode_row(&bytes, &mut want);
            let mut row = RowStep::zeroed();
            unpack_row(format, &bytes, &mut row);
            for k in 0..256 {
                let (sub, block) = (k / layout.sub_elems, k / layout.scale_elems);
                let (mut scale, mut min) = (row.scale[block], row.min[block]);
                if layout.super_block {
                    scale *= row.sub_scale[sub] as f32;
                    min *= row.sub_min[sub] as f32;
                }
                let got = match layout.zero {
                    Zero::Shift(s) => scale * (f32::from(row.u[k]) - (1u32 << s) as f32),
                    Zero::Min => scale * f32::from(row.u[k]) - min,
                };
                assert_eq!(got, want[k], "{format} element {k}");
            }
        }
    }
}

#[test]
fn every_instruction_set_unpacks_the_same_bits() {
    let mut rng = Rng(2);
    for kernels in accelerated() {
        for format in Format::ALL {
            for (rows, elems) in [(16, 256usize), (16, 32), (16, 64), (16, 96), (16, 128), (5, 256)] {
                if !elems.is_multiple_of(format.block_elems()) {
                    continue;
                }
                // The step lies in the middle of longer rows, and rows start at odd addresses.
                let cols = 256 + elems;
                let stride = format.row_bytes(cols).unwrap();
                let mut bytes = vec![0u8; 3];
                bytes.extend(random_rows(format, rows, cols, &mut rng));
                let step = &bytes[3 + format.row_bytes(256).unwrap()..];
                let (mut a, mut b) = (PanelF32::zeroed(), PanelF32::zeroed());
                let (mut p, mut q) = (Panel::zeroed(), Panel::zeroed());
                let what = format!("{} {format} {rows} × {elems}", kernels.isa().name());
                if let Some(layout) = PanelLayout::of(format) {
                    unpack_panel(format, step, stride, rows, elems, &mut p);
                    kernels.unpack(format, step, stride, rows, elems, &mut q);
                    assert!(p.q[..elems * 16] == q.q[..elems * 16], "{what}");
                    for b in 0..elems / layout.scale_elems {
                        assert_eq!(p.scale[b].0, q.scale[b].0, "{what} scale {b}");
                        if layout.zero == Zero::Min {
                            assert_eq!(p.min[b].0, q.min[b].0, "{what} min {b}");
                        }
                    }
                    for s in 0..if layout.super_block { elems / layout.sub_elems } else { 0 } {
                        assert_eq!(p.sub_scale[s], q.sub_scale[s], "{what} scale of sub-block {s}");
                        if layout.zero == Zero::Min {
                            assert_eq!(p.sub_min[s], q.sub_min[s], "{what} min of sub-block {s}");
                        }
                    }
                } else {
                    unpack_floats(format, step, stride, rows, elems, &mut a);
                    kernels.unpack_f32(format, step, stride, rows, elems, &mut q, &mut b);
                    for k in 0..elems {
                        assert_eq!(a.w[k].0, b.w[k].0, "{what} element {k}");
                    }
                }
            }
        }
    }
}

/// A tile of quantized tokens; for each its dequantized values, and what the reference makes of it.
struct Tile {
    q: Vec<i8>,
    sums16: Vec<i32>,
    sums32: Vec<i32>,
    scale: Vec<f32>,
    values: Vec<Vec<f32>>,
    rounded: Vec<Rounded>,
}

impl Tile {
    /// The whole of it, as kernels take it.
    fn step(&self, block: usize) -> TileStep<'_> {
        TileStep {
            q: &self.q,
            neg_sums16: &self.sums16,
            neg_sums32: &self.sums32,
            scale: &self.scale,
            scale_per_step: block == 256,
        }
    }
}

fn random_tile(tokens: usize, elems: usize, block: usize, rng: &mut Rng) -> Tile {
    let mut tile = Tile {
        q: vec![0; tokens * elems],
        sums16: vec![0; tokens * elems / 16],
        sums32: vec![0; tokens * elems / 32],
        scale: vec![0.0; tokens * elems / block],
        values: Vec::new(),
        rounded: Vec::new(),
    };
    let activation = ActivationPrecision::Q8(if block == 32 { ActBlock::X32 } else { ActBlock::X256 });
    for t in 0..tokens {
        let x: Vec<f32> = (0..elems).map(|_| rng.float()).collect();
        let (mut q, mut scale) = (vec![0i8; elems], vec![0.0; elems / block]);
        let (mut s16, mut s32) = (vec![0; elems / 16], vec![0; elems / 32]);
        Kernels::detect().quantize(&x, block, &mut q, &mut scale, &mut s16, &mut s32);
        tile.rounded.push(Rounded::new(&x, activation));
        tile.values.push((0..elems).map(|k| f32::from(q[k]) * scale[k / block]).collect());
        (0..elems).for_each(|k| tile.q[(k / 4 * tokens + t) * 4 + k % 4] = q[k]);
        (0..s16.len()).for_each(|i| tile.sums16[i * tokens + t] = s16[i]);
        (0..s32.len()).for_each(|i| tile.sums32[i * tokens + t] = s32[i]);
        (0..scale.len()).for_each(|i| tile.scale[i * tokens + t] = scale[i]);
    }
    tile
}

#[test]
fn products_are_the_references_and_near_those_of_the_decoded_values() {
    let mut rng = Rng(3);
    for kernels in accelerated() {
        for format in quantized() {
            let layout = PanelLayout::of(format).unwrap();
            for tokens in 1..=8 {
                for (elems, block) in [(256, 256), (256, 32), (128, 32), (96, 32)] {
                    let whole = elems % format.block_elems() == 0;
                    if !whole || (block == 256 && !format.is_super_block()) {
                        continue;
                    }
                    let bytes = random_rows(format, 16, elems, &mut rng);
                    let stride = format.row_bytes(elems).unwrap();
                    let tile = random_tile(tokens, elems, block, &mut rng);
                    let mut panel = Panel::zeroed();
                    kernels.unpack(format, &bytes, stride, 16, elems, &mut panel);
                    let step = tile.step(block);
                    let mut out = vec![Lanes([0.0; 16]); tokens];
                    kernels.mul_q8(layout, &panel, elems / layout.sub_elems, step, &mut out);
                    for r in 0..16 {
                        let mut row = vec![0.0f32; elems];
                        format.decode_row(&bytes[r * stride..][..stride], &mut row);
                        for t in 0..tokens {
                            let x = &tile.rounded[t];
                            let exact = WeightRow::new(format, &bytes[r * stride..][..stride], elems, x);
                            let (got, want) = (out[t].0[r], exact.dot(x, 0, elems));
                            let isa = kernels.isa().name();
                            assert_eq!(
                                got.to_bits(),
                                want.to_bits(),
                                "{isa} {format} in {block}: {got} {want}"
                            );
                            let terms =
                                row.iter().zip(&tile.values[t]).map(|(w, x)| f64::from(*w) * f64::from(*x));
                            let size: f64 = terms.clone().map(f64::abs).sum();
                            let want: f64 = terms.sum::<f64>();
                            let got = f64::from(out[t].0[r]);
                            // Sums of 8 to 16 floats, each of integers with up to 2⁷ cancelled: some 2⁻²⁴ of the
                            // terms before the zero point is taken off, which are at most 16 times the size.
                            assert!(
                                (got - want).abs() < 3e-6 * (size + 1.0),
                                "{isa} {format} {got} {want} {size}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Fails where one of the products of `rows` rows and `x` is off by more than rounding.
fn assert_products(what: &str, format: Format, bytes: &[u8], x: &[f32], out: &[f32]) {
    let stride = format.row_bytes(x.len()).unwrap();
    for (r, got) in out.iter().enumerate() {
        let mut row = vec![0.0f32; x.len()];
        format.decode_row(&bytes[r * stride..][..stride], &mut row);
        let terms = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
        let size: f64 = terms.clone().map(f64::abs).sum();
        let (got, want) = (f64::from(*got), terms.sum::<f64>());
        assert!((got - want).abs() <= 3e-6 * size, "{what} {format} row {r}: {got} {want}");
    }
}

#[test]
fn one_token_products_are_the_references() {
    let mut rng = Rng(7);
    for kernels in accelerated() {
        let mut found = 0;
        for format in quantized() {
            let block = activation_block(format);
            for (rows, blocks) in [(16, 3), (34, 8), (5, 1), (1, 2), (7, 5)] {
                let inner = format.block_elems() * blocks;
                // Rows begin at an odd address and end with the buffer.
                let mut bytes = vec![0u8; 1];
                bytes.extend(random_rows(format, rows, inner, &mut rng));
                let tile = random_tile(1, inner, block, &mut rng);
                let step = tile.step(block);
                let mut out = vec![f32::NAN; rows];
                if kernels.dot_rows(format, &bytes[1..], inner, step, &[], &mut out) {
                    found += 1;
                    let stride = format.row_bytes(inner).unwrap();
                    for (bytes, got) in bytes[1..].chunks_exact(stride).zip(&out) {
                        let want = WeightRow::new(format, bytes, inner, &tile.rounded[0]);
                        let want = want.dot(&tile.rounded[0], 0, inner);
                        let isa = kernels.isa().name();
                        assert_eq!(got.to_bits(), want.to_bits(), "{isa} {format}: {got} {want}");
                    }
                }
            }
        }
        assert_eq!(found > 0, kernels.isa() != Isa::Portable, "{} has such kernels", kernels.isa().name());
    }
}

#[test]
fn a_few_tokens_have_the_bits_of_one() {
    let mut rng = Rng(17);
    for kernels in accelerated() {
        let mut found = 0;
        for format in quantized().filter(|format| kernels.few_tokens(*format) > 1) {
            let block = activation_block(format);
            for (rows, inner) in [(16, 256), (37, 768), (3, 512), (1, 1280), (5, 96)] {
                let Some(_) = format.row_bytes(inner) else { continue };
                let bytes = random_rows(format, rows, inner, &mut rng);
                for n in 1..=kernels.few_tokens(format) {
                    let tiles: Vec<_> = (0..n).map(|_| random_tile(1, inner, block, &mut rng)).collect();
                    let steps: Vec<_> = tiles.iter().map(|tile| tile.step(block)).collect();
                    let stride = rows + 3;
                    let mut out = vec![-1.0; n * stride];
                    kernels.dot_few(format, &bytes, inner, &steps, &[], rows, &mut out, stride);
                    for (step, out) in steps.iter().zip(out.chunks(stride)) {
                        let mut want = vec![0.0; rows];
                        assert!(kernels.dot_rows(format, &bytes, inner, *step, &[], &mut want));
                        assert_eq!(out[..rows], want, "{} {format} {rows} × {inner}", kernels.isa().name());
                        assert!(out[rows..].iter().all(|x| *x == -1.0));
                        found += 1;
                    }
                }
            }
        }
        assert_eq!(found > 0, kernels.isa() == Isa::Avx512);
    }
}

#[test]
fn asking_ahead_changes_no_product() {
    let mut rng = Rng(11);
    for kernels in accelerated() {
        for format in [
            Format::Q4K,
            Format::Q6K,
            Format::Q8_0,
            Format::Q4_0,
            Format::Iq3S,
            Format::Nvfp4,
            Format::Q1_0,
            Format::F32,
            Format::F16,
        ] {
            let (rows, inner) = (37, 768);
            let bytes = random_rows(format, rows, inner, &mut rng);
            let block = activation_block(format);
            let tile = random_tile(1, inner, block, &mut rng);
            let x: Vec<f32> = (0..inner).map(|_| rng.float()).collect();
            let step = tile.step(block);
            let products = |lookahead, then: &[u8]| {
                let (kernels, mut out) = (kernels.with_lookahead(lookahead), vec![0.0; rows]);
                let done = match format.is_quantized() {
                    true => kernels.dot_rows(format, &bytes, inner, step, then, &mut out),
                    false => kernels.dot_floats(format, &bytes, &x, false, then, &mut out),
                };
                done.then(|| out.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            let want = products(Lookahead { into: Cache::L2, bytes: 0 }, &[]);
            for into in [Cache::L1, Cache::L2] {
                for ahead in [64, 2048, 8192, usize::MAX] {
                    for then in [&[][..], &bytes[..1]] {
                        let got = products(Lookahead { into, bytes: ahead }, then);
                        assert_eq!(got, want, "{} {format} {ahead}", kernels.isa().name());
                    }
                }
            }
        }
    }
}

#[test]
fn one_token_sums_are_exact_at_the_largest_steps() {
    for kernels in accelerated() {
        for format in quantized() {
            let (inner, block) = (format.block_elems(), activation_block(format));
            for (byte, q) in [(0xff, 127), (0xff, -127), (0x00, 127), (0x80, -127), (0x7f, -127)] {
                let mut rng = Rng(8);
                let mut bytes = random_rows(format, 1, inner, &mut rng);
                let scales = bytes.clone();
                bytes.fill(byte);
                let d = match format {
                    Format::Q2K => 80..84,
                    Format::Q3K => 108..110,
                    Format::Q6K => 208..210,
                    Format::Mxfp4 => 0..1,
                    Format::Nvfp4 => 0..4,
                    Format::Tq1_0 => 52..54,
                    Format::Tq2_0 => 64..66,
                    Format::Iq1M => 48..56,
                    Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => 0..4,
                    _ => 0..2,
                };
                bytes[d.clone()].copy_from_slice(&scales[d]);
                let (q, sums16, sums32) = (
                    vec![q; inner],
                    vec![-16 * i32::from(q); inner / 16],
                    vec![-32 * i32::from(q); inner / 32],
                );
                let scale = vec![0.01f32; inner / block];
                let step = TileStep {
                    q: &q,
                    neg_sums16: &sums16,
                    neg_sums32: &sums32,
                    scale: &scale,
                    scale_per_step: block == 256,
                };
                let mut out = [f32::NAN];
                if kernels.dot_rows(format, &bytes, inner, step, &[], &mut out) {
                    let x: Vec<f32> = q.iter().map(|q| f32::from(*q) * scale[0]).collect();
                    assert_products(kernels.isa().name(), format, &bytes, &x, &out);
                }
            }
        }
    }
}

#[test]
fn one_token_products_of_floats_match_f64() {
    let mut rng = Rng(9);
    for kernels in accelerated() {
        let mut found = 0;
        for format in Format::ALL {
            for (rows, inner) in [(16, 256), (3, 1), (16, 47), (1, 129), (7, 80)] {
                let Some(row_bytes) = format.row_bytes(inner) else { continue };
                let mut bytes = vec![0u8; 1];
                bytes.extend(random_rows(format, rows, inner, &mut rng));
                assert_eq!(bytes.len(), 1 + rows * row_bytes);
                let x: Vec<f32> = (0..inner).map(|_| rng.float()).collect();
                for wide in [false, true] {
                    let mut out = vec![f32::NAN; rows];
                    if !kernels.dot_floats(format, &bytes[1..], &x, wide, &[], &mut out) {
                        continue;
                    }
                    found += 1;
                    assert_products(kernels.isa().name(), format, &bytes[1..], &x, &out);
                    let rounded = Rounded::new(&x, ActivationPrecision::F32);
                    for (bytes, got) in bytes[1..].chunks_exact(row_bytes).zip(&out).filter(|_| wide) {
                        let want = WeightRow::new(format, bytes, inner, &rounded).dot(&rounded, 0, inner);
                        assert_eq!(got.to_bits(), want.to_bits(), "{} {format}", kernels.isa().name());
                    }
                }
            }
        }
        let has_them = matches!(kernels.isa(), Isa::Avx2 | Isa::Avx512);
        assert_eq!(found, if has_them { 30 } else { 0 }, "F32, F16 and BF16");
    }
}

#[test]
fn float_products_match_f64() {
    let mut rng = Rng(4);
    for kernels in accelerated() {
        for format in Format::ALL {
            for tokens in 1..=8 {
                let bytes = random_rows(format, 16, 256, &mut rng);
                let stride = format.row_bytes(256).unwrap();
                let x: Vec<f32> = (0..256 * tokens).map(|_| rng.float()).collect();
                let (mut scratch, mut panel) = (Panel::zeroed(), PanelF32::zeroed());
                kernels.unpack_f32(format, &bytes, stride, 16, 256, &mut scratch, &mut panel);
                let mut out = vec![Lanes([0.0; 16]); tokens];
                kernels.mul_f32(&panel.w, &x, &mut out);
                for r in 0..16 {
                    let mut row = vec![0.0f32; 256];
                    format.decode_row(&bytes[r * stride..][..stride], &mut row);
                    for t in 0..tokens {
                        let terms = (0..256).map(|k| f64::from(row[k]) * f64::from(x[k * tokens + t]));
                        let size: f64 = terms.clone().map(f64::abs).sum();
                        let want: f64 = terms.sum();
                        assert!((f64::from(out[t].0[r]) - want).abs() < 2e-6 * size, "{format}");
                    }
                }
            }
        }
    }
}

#[test]
fn wide_products_are_the_references() {
    let mut rng = Rng(10);
    for kernels in accelerated() {
        for tokens in 1..=8 {
            for inner in [1usize, 33, 96, 256] {
                let bytes = random_rows(Format::F32, 16, inner, &mut rng);
                let x: Vec<f32> = (0..inner * tokens).map(|_| rng.float()).collect();
                let mut panel = PanelF32::zeroed();
                unpack_floats(Format::F32, &bytes, 4 * inner, 16, inner, &mut panel);
                let mut out = vec![WideLanes([0.0; 16]); tokens];
                kernels.mul_wide(&panel.w[..inner], &x, &mut out);
                for t in 0..tokens {
                    let x: Vec<f32> = (0..inner).map(|k| x[k * tokens + t]).collect();
                    let x = Rounded::new(&x, ActivationPrecision::F32);
                    for (r, bytes) in bytes.chunks_exact(4 * inner).enumerate() {
                        let want = WeightRow::new(Format::F32, bytes, inner, &x).dot(&x, 0, inner);
                        let got = out[t].0[r] as f32;
                        assert_eq!(got.to_bits(), want.to_bits(), "{} {inner}", kernels.isa().name());
                    }
                }
            }
        }
    }
}

#[test]
fn vector_kernels_match_f64_and_each_other() {
    let mut rng = Rng(5);
    for len in [1usize, 7, 16, 31, 64, 129] {
        let x: Vec<f32> = (0..len).map(|_| 4.0 * rng.float()).collect();
        let w: Vec<f32> = (0..len).map(|_| rng.float()).collect();
        for kernels in accelerated() {
            let mut out = vec![0.0; len];
            kernels.rms_norm(&x, &w, 1e-6, &mut out);
            let mean: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / len as f64;
            for i in 0..len {
                let want = f64::from(x[i]) / (mean + 1e-6).sqrt() * f64::from(w[i]);
                assert!((f64::from(out[i]) - want).abs() <= 1e-6 * want.abs() + 1e-12);
            }
            kernels.swiglu(&x, &w, &mut out);
            for i in 0..len {
                let gate = f64::from(x[i]);
                let want = gate / (1.0 + (-gate).exp()) * f64::from(w[i]);
                assert!((f64::from(out[i]) - want).abs() <= 1e-6 * want.abs() + 1e-12, "{gate}");
            }
            kernels.sigmoid_gate(&x, &w, &mut out);
            for i in 0..len {
                let want = f64::from(w[i]) / (1.0 + (-f64::from(x[i])).exp());
                assert!((f64::from(out[i]) - want).abs() <= 1e-6 * want.abs() + 1e-12, "{}", x[i]);
            }
            let (alpha, limit) = (1.702, 0.5);
            kernels.clamped_swiglu(alpha, limit, &x, &w, &mut out);
            for i in 0..len {
                let gate = f64::from(x[i]).min(0.5);
                let want = gate / (1.0 + (-gate * f64::from(alpha)).exp())
                    * (f64::from(w[i]).clamp(-0.5, 0.5) + 1.0);
                assert!((f64::from(out[i]) - want).abs() <= 1e-6 * want.abs() + 1e-12, "{gate}");
            }
            let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(kernels.max(&x), top);
            let (mut soft, shift) = (x.clone(), moe_run_runtime::exp::shift_of(top));
            let sum = kernels.exp_sum(&mut soft, shift);
            let scale = (-f64::from(shift) * std::f64::consts::LN_2).exp();
            let want: f64 = x.iter().map(|x| f64::from(*x).exp() * scale).sum();
            assert!((sum - want).abs() <= 1e-6 * want);
            for (soft, x) in soft.iter().zip(&x) {
                assert_eq!(soft.to_bits(), moe_run_runtime::exp::exp_shifted(*x, shift).to_bits());
            }
        }
    }
}

#[test]
fn quantized_activations_keep_what_is_not_finite_visible() {
    let mut x = vec![1.0f32; 256];
    x[40] = f32::NAN;
    x[64..96].fill(0.0);
    let (mut q, mut scale) = (vec![1i8; 256], vec![1.0; 8]);
    let (mut s16, mut s32) = (vec![1; 16], vec![1; 8]);
    Kernels::detect().quantize(&x, 32, &mut q, &mut scale, &mut s16, &mut s32);
    assert!(scale[1].is_nan() && q[32..64].iter().all(|q| *q == 0));
    assert_eq!((scale[2], q[64]), (0.0, 0));
    assert_eq!((scale[0], q[0], s16[0], s32[0]), (1.0 / 127.0, 127, -16 * 127, -32 * 127));
}

#[test]
fn halves_are_widened_exactly() {
    let halves: Vec<half::f16> = (0..=u16::MAX).map(half::f16::from_bits).filter(|h| !h.is_nan()).collect();
    for kernels in accelerated() {
        for count in [0, 1, 15, 16, 33, halves.len()] {
            let mut out = vec![0.0; count];
            kernels.widen_halves(&halves[..count], &mut out);
            assert!(halves.iter().zip(&out).all(|(h, x)| h.to_f32() == *x), "{}", kernels.isa().name());
        }
    }
}

#[test]
fn weighing_matches_plain_sums() {
    let mut rng = Rng(6);
    for kernels in accelerated() {
        for (rows, keys, width) in [(1, 3, 64), (13, 33, 40), (8, 64, 128), (5, 1, 7)] {
            let p: Vec<f32> = (0..rows * 70).map(|_| rng.float()).collect();
            let v: Vec<f32> = (0..keys * width).map(|_| rng.float()).collect();
            let mut out = vec![1.0; rows * width];
            kernels.weigh(&p, 70, rows, &v, width, &mut out);
            for r in 0..rows {
                for i in 0..width {
                    let want: f32 = 1.0 + (0..keys).map(|k| p[r * 70 + k] * v[k * width + i]).sum::<f32>();
                    assert!((out[r * width + i] - want).abs() < 1e-4);
                }
            }
        }
    }
    assert_eq!(MAX_SUBS, 16);
}
