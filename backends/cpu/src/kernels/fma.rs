//! The one f32 kernel: 16 columns of a row-major matrix times up to 8 rows of multipliers. It serves products with f32
//! activations, attention's scores, and attention's weighted values; only the strides differ.

/// A kernel for a fixed number of rows: `(count, w, w_stride, x, x_next, x_token, out, out_stride)`.
pub type Fma = unsafe fn(usize, *const f32, usize, *const f32, usize, usize, *mut f32, usize);

/// Two blocks of 16 columns at once: as [`Fma`], with two `w` and two `out`.
pub type FmaPair = unsafe fn(usize, [*const f32; 2], usize, *const f32, usize, usize, [*mut f32; 2], usize);

/// The portable versions for 1 to 8 rows.
pub const FMA: [Fma; 8] = [fma::<1>, fma::<2>, fma::<3>, fma::<4>, fma::<5>, fma::<6>, fma::<7>, fma::<8>];

/// `out[t][0..16] += Σ_k w[k · w_stride ..][0..16] · x[k · x_next + t · x_token]` for `T` rows and `count` values of k,
/// k ascending, fused.
///
/// # Safety
/// Every index above lies in the buffer behind its pointer.
unsafe fn fma<const T: usize>(
    count: usize,
    w: *const f32,
    w_stride: usize,
    x: *const f32,
    x_next: usize,
    x_token: usize,
    out: *mut f32,
    out_stride: usize,
) {
    for t in 0..T {
        // SAFETY: the caller's promise; `[f32; 16]` has the alignment of f32.
        unsafe {
            let out = &mut *out.add(t * out_stride).cast::<[f32; 16]>();
            let mut sums = *out;
            for k in 0..count {
                let weights = &*w.add(k * w_stride).cast::<[f32; 16]>();
                let x = *x.add(k * x_next + t * x_token);
                for i in 0..16 {
                    sums[i] = weights[i].mul_add(x, sums[i]);
                }
            }
            *out = sums;
        }
    }
}
