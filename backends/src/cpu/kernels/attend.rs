//! The pieces of attention: probabilities × values with softmax's running rescale around it.

/// `out[row][0..width] += Σ_key p[row · p_stride + key] · v[key · width ..]`, keys ascending; `v` holds as many keys as
/// fit. `width` may be any number; runs of 16 elements are kept in registers for 8 rows at a time.
#[inline(always)]
pub fn weigh(p: &[f32], p_stride: usize, rows: usize, v: &[f32], width: usize, out: &mut [f32]) {
    let mut row = 0;
    while row + 8 <= rows {
        weigh_rows::<8>(&p[row * p_stride..], p_stride, v, width, &mut out[row * width..]);
        row += 8;
    }
    if row + 4 <= rows {
        weigh_rows::<4>(&p[row * p_stride..], p_stride, v, width, &mut out[row * width..]);
        row += 4;
    }
    while row < rows {
        weigh_rows::<1>(&p[row * p_stride..], p_stride, v, width, &mut out[row * width..]);
        row += 1;
    }
}

#[inline(always)]
fn weigh_rows<const ROWS: usize>(p: &[f32], p_stride: usize, v: &[f32], width: usize, out: &mut [f32]) {
    let keys = v.len() / width;
    let p: [&[f32]; ROWS] = std::array::from_fn(|r| &p[r * p_stride..][..keys]);
    let mut at = 0;
    while at + 16 <= width {
        let mut sums = [[0.0f32; 16]; ROWS];
        for r in 0..ROWS {
            sums[r].copy_from_slice(&out[r * width + at..][..16]);
        }
        for (key, v) in v.chunks_exact(width).enumerate() {
            let Some((v, _)) = v[at..].split_first_chunk::<16>() else { return };
            for r in 0..ROWS {
                for i in 0..16 {
                    sums[r][i] = p[r][key].mul_add(v[i], sums[r][i]);
                }
            }
        }
        for r in 0..ROWS {
            out[r * width + at..][..16].copy_from_slice(&sums[r]);
        }
        at += 16;
    }
    for r in 0..ROWS {
        for i in at..width {
            for (key, v) in v.chunks_exact(width).enumerate() {
                out[r * width + i] = p[r][key].mul_add(v[i], out[r * width + i]);
            }
        }
    }
}
