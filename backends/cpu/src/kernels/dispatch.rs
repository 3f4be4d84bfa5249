//! Which instruction set runs: found once, when the program starts to compute, and handed to every kernel.

use super::layout::{
    Lanes, PANEL_ROWS, Panel, PanelF32, PanelLayout, STEP_ELEMS, TILE_TOKENS, TileStep, WideLanes,
};
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::prefetch::Lookahead;
#[cfg(target_arch = "x86_64")]
use super::prefetch::ask;
use super::recurrent::{DeltaTile, ScanChannels, ScanToken};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use super::{fma, mul, recurrent, unpack, vector};
use half::f16;
use half::slice::HalfFloatSliceExt;
use moe_run_graph::ir::{ActivationFn, PointwiseFn, RopePairing};
use moe_run_graph::quant::Format;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::_MM_HINT_T1;

/// An instruction set that the kernels are written or compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the compiler's target has.
    Portable,
    /// aarch64 with NEON and its dot products.
    Neon,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
}

/// The kernels of one instruction set. Copy it freely: it is a tag that the constructor has checked against the CPU, and
/// how the processor wants weights asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kernels {
    pub(super) isa: Isa,
    pub(super) lookahead: Lookahead,
}

/// One safe method a kernel: the portable function, compiled for each instruction set.
macro_rules! compiled_for_each {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $path:path;)*) => {
        #[cfg(target_arch = "x86_64")]
        mod for_avx2 {
            use super::*;
            $(
                #[target_feature(enable = "avx2,fma,f16c")]
                pub fn $name($($arg: $ty),*) $(-> $ret)? { $path($($arg),*) }
            )*
        }
        #[cfg(target_arch = "x86_64")]
        mod for_avx512 {
            use super::*;
            $(
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
                pub fn $name($($arg: $ty),*) $(-> $ret)? { $path($($arg),*) }
            )*
        }
        impl Kernels {
            $(
                $(#[$doc])*
                pub fn $name(self, $($arg: $ty),*) $(-> $ret)? {
                    match self.isa {
                        // SAFETY: `Kernels` of this tag exist only where the CPU has the features.
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => unsafe { for_avx512::$name ($($arg),*) },
                        // SAFETY: as above.
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => unsafe { for_avx2::$name ($($arg),*) },
                        _ => $path($($arg),*),
                    }
                }
            )*
        }
    };
}

compiled_for_each! {
    /// x / sqrt(mean(x²) + eps) · w, for each run of `weight.len()` elements.
    fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = vector::rms_norm;
    /// Rotates each head in place.
    fn rope(pairing: RopePairing, head_dim: usize, cos_sin: &[f32], x: &mut [f32]) = vector::rope;
    /// silu(gate) · up.
    fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) = vector::swiglu;
    /// up ← silu(gate) · up, whole runs of 16.
    fn swiglu_in_place(gate: &[f32], up: &mut [f32]) = vector::swiglu_in_place;
    /// x ← silu(x), whole runs of 16.
    fn silu_in_place(x: &mut [f32]) = vector::silu_in_place;
    /// silu(gate).
    fn silu(gate: &[f32], out: &mut [f32]) = vector::silu_row;
    /// The gate of a clamped SwiGLU.
    fn clamped_silu(alpha: f32, limit: f32, gate: &[f32], out: &mut [f32]) = vector::clamped_silu_row;
    /// A clamped SwiGLU.
    fn clamped_swiglu(alpha: f32, limit: f32, gate: &[f32], up: &[f32], out: &mut [f32]) = vector::clamped_swiglu;
    /// GELU by its tanh form.
    fn gelu_tanh(gate: &[f32], out: &mut [f32]) = vector::gelu_tanh_row;
    /// gelu(gate) · up.
    fn geglu_tanh(gate: &[f32], up: &[f32], out: &mut [f32]) = vector::geglu_tanh;
    /// max(gate, 0).
    fn relu(gate: &[f32], out: &mut [f32]) = vector::relu_row;
    /// max(gate, 0) · up.
    fn reglu(gate: &[f32], up: &[f32], out: &mut [f32]) = vector::reglu;
    /// ln(1 + e^gate).
    fn softplus(gate: &[f32], out: &mut [f32]) = vector::softplus_row;
    /// ln(1 + e^gate) · up.
    fn softplus_gate(gate: &[f32], up: &[f32], out: &mut [f32]) = vector::softplus_gate;
    /// The gate of a SwiGLU with a limit.
    fn limited_silu(limit: f32, gate: &[f32], out: &mut [f32]) = vector::limited_silu_row;
    /// A SwiGLU with a limit.
    fn limited_swiglu(limit: f32, gate: &[f32], up: &[f32], out: &mut [f32]) = vector::limited_swiglu;
    /// What windows come to: see `recurrent::window_means`.
    fn window_means(state: &[f32], slots: usize, places: &[usize], out: &mut [f32]) = recurrent::window_means;
    /// A SwiGLU with a limit in front of its silu.
    fn bounded_swiglu(limit: f32, gate: &[f32], up: &[f32], out: &mut [f32]) = vector::bounded_swiglu;
    /// (x − mean) / sqrt(var + eps) · w + b, for each run of `weight.len()` elements; an empty b is 0.
    fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) = vector::layer_norm;
    /// A function of each element.
    fn pointwise(function: PointwiseFn, x: &[f32], out: &mut [f32]) = vector::pointwise;
    /// sigmoid(gate).
    fn sigmoid(gate: &[f32], out: &mut [f32]) = vector::sigmoid_row;
    /// sigmoid(gate) · up.
    fn sigmoid_gate(gate: &[f32], up: &[f32], out: &mut [f32]) = vector::sigmoid_gate;
    /// x / √(Σx² + eps) · scale.
    fn l2_norm(x: &[f32], eps: f32, scale: f32, out: &mut [f32]) = recurrent::l2_norm;
    /// Some tokens of the gated delta rule over some columns of a head's state.
    fn delta_rule(tile: DeltaTile<'_>, s: &mut [f32], stride: usize, out: &mut [f32]) = recurrent::delta_rule;
    /// A token of a causal convolution over some channels.
    fn causal_conv(taps: &[f32], bias: Option<&[f32]>, past: &mut [f32], x: &[f32], out: &mut [f32])
        = recurrent::causal_conv;
    /// A token of mamba2's scan over some rows of a head's state.
    fn ssm_scan(token: ScanToken<'_>, x: &[f32], s: &mut [f32], out: &mut [f32]) = recurrent::ssm_scan;
    /// A token of mamba1's scan over some channels.
    fn scan_channels(token: ScanChannels<'_>, x: &[f32], s: &mut [f32], out: &mut [f32]) = recurrent::scan_channels;
    /// What an indexer makes of its heads' products with a panel of keys.
    fn weigh_heads(w: &[f32], sums: &[Lanes]) -> Lanes = vector::weigh_heads;
    /// The largest element.
    fn max(x: &[f32]) -> f32 = vector::max;
    /// x ← e^x · 2^−shift, and its sum.
    fn exp_sum(x: &mut [f32], shift: f32) -> f64 = vector::exp_sum;
    /// 8-bit blocks of 32 or 256 elements, with negated sums over 16 and 32.
    fn quantize(x: &[f32], block: usize, q: &mut [i8], scale: &mut [f32], sums16: &mut [i32], sums32: &mut [i32])
        = vector::quantize;
    /// out += factor · x.
    fn add_scaled(factor: f32, x: &[f32], out: &mut [f32]) = vector::add_scaled;
    /// out += factor · x in f64.
    fn add_scaled_wide(factor: f32, x: &[f32], out: &mut [f64]) = vector::add_scaled_wide;
    /// f64 to f32.
    fn narrow(x: &[f64], out: &mut [f32]) = vector::narrow;
    /// [`Kernels::mul_wide`] where it has no kernel of its own.
    fn mul_wide_plain(w: &[Lanes], x: &[f32], out: &mut [WideLanes]) = vector::mul_wide;
    /// out *= factor.
    fn scale(factor: f32, out: &mut [f32]) = vector::scale;
    /// Experts' sums into tokens' sums: see `vector::combine`.
    fn combine(sums: &[Lanes], pairs: &[u32], weights: &[f32], per_tok: usize, width: usize, out: &mut [WideLanes])
        = vector::combine;
    /// out = a + b.
    fn add(a: &[f32], b: &[f32], out: &mut [f32]) = vector::add;
    /// Panel × tile, for layouts and tiles without a kernel of their own.
    fn mul_q8_plain(layout: PanelLayout, panel: &Panel, subs: usize, tile: TileStep<'_>, out: &mut [Lanes])
        = mul::mul_q8;
    /// An integer panel as f32.
    fn widen(layout: PanelLayout, elems: usize, from: &Panel, to: &mut PanelF32) = unpack::widen_panel;
}

impl Kernels {
    /// The best that this machine has.
    pub fn detect() -> Kernels {
        Isa::ALL.iter().rev().find_map(|isa| Kernels::with(*isa)).unwrap_or(Kernels::of(Isa::Portable))
    }

    fn of(isa: Isa) -> Kernels {
        Kernels { isa, lookahead: Lookahead::of_this_processor() }
    }

    /// The kernels of one instruction set; `None` where the CPU lacks it.
    pub fn with(isa: Isa) -> Option<Kernels> {
        isa.available().then(|| Kernels::of(isa))
    }

    /// act(gate).
    pub fn activate(self, activation: ActivationFn, gate: &[f32], out: &mut [f32]) {
        match activation {
            ActivationFn::Silu => self.silu(gate, out),
            ActivationFn::ClampedSwiglu { alpha, limit } => self.clamped_silu(alpha, limit, gate, out),
            ActivationFn::GeluTanh => self.gelu_tanh(gate, out),
            ActivationFn::Relu => self.relu(gate, out),
            ActivationFn::Softplus => self.softplus(gate, out),
            ActivationFn::LimitedSwiglu { limit } => self.limited_silu(limit, gate, out),
            ActivationFn::BoundedSwiglu { limit } => self.clamped_silu(1.0, limit, gate, out),
            ActivationFn::Sigmoid => self.sigmoid(gate, out),
        }
    }

    /// A gated activation of gate and up.
    pub fn gate(self, activation: ActivationFn, gate: &[f32], up: &[f32], out: &mut [f32]) {
        match activation {
            ActivationFn::Silu => self.swiglu(gate, up, out),
            ActivationFn::ClampedSwiglu { alpha, limit } => self.clamped_swiglu(alpha, limit, gate, up, out),
            ActivationFn::GeluTanh => self.geglu_tanh(gate, up, out),
            ActivationFn::Relu => self.reglu(gate, up, out),
            ActivationFn::Softplus => self.softplus_gate(gate, up, out),
            ActivationFn::LimitedSwiglu { limit } => self.limited_swiglu(limit, gate, up, out),
            ActivationFn::BoundedSwiglu { limit } => self.bounded_swiglu(limit, gate, up, out),
            ActivationFn::Sigmoid => self.sigmoid_gate(gate, up, out),
        }
    }

    /// The same kernels, asking otherwise: for measurements, and for tests that results do not depend on it.
    #[must_use]
    pub fn with_lookahead(self, lookahead: Lookahead) -> Kernels {
        Kernels { lookahead, ..self }
    }

    /// Which it is.
    pub fn isa(self) -> Isa {
        self.isa
    }

    /// Unpacks one step (`elems` elements from `bytes` on) of up to 16 rows of a quantized matrix, `stride_bytes` apart.
    ///
    /// # Panics
    /// If `bytes` does not hold the rows, or `elems` is no whole number of blocks or more than 256.
    pub fn unpack(
        self,
        format: Format,
        bytes: &[u8],
        stride_bytes: usize,
        rows: usize,
        elems: usize,
        panel: &mut Panel,
    ) {
        check_rows(format, bytes, stride_bytes, rows, elems);
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Avx512 && rows == PANEL_ROWS {
            // SAFETY: the tag is checked against the CPU, and the rows' extent above.
            unsafe { avx512::unpack::unpack(format, bytes.as_ptr(), stride_bytes, elems, panel) };
            return;
        }
        unpack::unpack_panel(format, bytes, stride_bytes, rows, elems, panel);
    }

    /// As [`Kernels::unpack`], to f32, for every format; `scratch` is overwritten.
    pub fn unpack_f32(
        self,
        format: Format,
        bytes: &[u8],
        stride_bytes: usize,
        rows: usize,
        elems: usize,
        scratch: &mut Panel,
        panel: &mut PanelF32,
    ) {
        if let Some(layout) = PanelLayout::of(format) {
            self.unpack(format, bytes, stride_bytes, rows, elems, scratch);
            return self.widen(layout, elems, scratch, panel);
        }
        check_rows(format, bytes, stride_bytes, rows, elems);
        #[cfg(target_arch = "x86_64")]
        if rows == PANEL_ROWS && elems.is_multiple_of(8) {
            let kernel = match self.isa {
                Isa::Avx512 => Some(avx512::unpack::unpack_floats as avx2::unpack::UnpackFloats),
                Isa::Avx2 => Some(avx2::unpack::unpack_floats as avx2::unpack::UnpackFloats),
                _ => None,
            };
            if let Some(kernel) = kernel {
                // SAFETY: as in `unpack`.
                return unsafe { kernel(format, bytes.as_ptr(), stride_bytes, elems, panel) };
            }
        }
        unpack::unpack_floats(format, bytes, stride_bytes, rows, elems, panel);
    }

    /// `out[token] += panel × tile` over `subs` sub-blocks; `out` has one entry for each of the tile's 1 to 8 tokens.
    ///
    /// # Panics
    /// If the tile is shorter than that.
    pub fn mul_q8(
        self,
        layout: PanelLayout,
        panel: &Panel,
        subs: usize,
        tile: TileStep<'_>,
        out: &mut [Lanes],
    ) {
        let (tokens, elems) = (out.len(), subs * layout.sub_elems);
        let scales = if tile.scale_per_step { 1 } else { elems.div_ceil(32) };
        assert!(elems <= STEP_ELEMS && tile.q.len() >= elems * tokens && tile.scale.len() >= scales * tokens);
        assert!(tile.neg_sums16.len() >= elems / 16 * tokens && tile.neg_sums32.len() >= elems / 32 * tokens);
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if layout.super_block == tile.scale_per_step {
            match self.isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => {
                    if let Some(kernel) = avx512::mul_for(layout, tokens) {
                        // SAFETY: the tag is checked against the CPU, the lengths above.
                        return unsafe { kernel(panel, subs, tile, out.as_mut_ptr()) };
                    }
                }
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => return unsafe { avx2::mul::mul(layout, panel, subs, tile, out) },
                // SAFETY: as above.
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => return unsafe { neon::mul::mul(layout, panel, subs, tile, out) },
                _ => {}
            }
        }
        self.mul_q8_plain(layout, panel, subs, tile, out);
    }

    /// f16 to f32, as many as both have.
    pub fn widen_halves(self, from: &[f16], to: &mut [f32]) {
        match self.isa {
            // SAFETY: the tag is checked against the CPU.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512::unpack::widen_halves(from, to) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2::unpack::widen_halves(from, to) },
            _ => from.convert_to_f32_slice(to),
        }
    }

    /// Asks for bytes that will be read soon.
    pub fn prefetch(self, bytes: &[u8]) {
        #[cfg(target_arch = "x86_64")]
        ask::<_MM_HINT_T1>(bytes.as_ptr(), bytes.len());
        #[cfg(not(target_arch = "x86_64"))]
        let _ = bytes;
    }

    /// `out[token][row] += Σ_k w[k][row] · x[k][token]` for 1 to 8 tokens.
    ///
    /// # Panics
    /// If `x` is shorter than that or `out` longer than 8.
    pub fn mul_f32(self, w: &[Lanes], x: &[f32], out: &mut [Lanes]) {
        let tokens = out.len();
        assert!(x.len() >= w.len() * tokens, "{} activations for {} × {tokens}", x.len(), w.len());
        let (w_at, x, out) = (w.as_ptr().cast(), x.as_ptr(), out.as_mut_ptr().cast());
        // SAFETY: w is [k][16], x is [k][tokens] by the assertion, out is [tokens][16].
        unsafe { self.fma()[tokens - 1](w.len(), w_at, PANEL_ROWS, x, tokens, 1, out, PANEL_ROWS) }
    }

    /// As [`Kernels::mul_f32`], in f64: for weights whose sums are defined so.
    ///
    /// # Panics
    /// As `mul_f32`.
    pub fn mul_wide(self, w: &[Lanes], x: &[f32], out: &mut [WideLanes]) {
        let tokens = out.len();
        assert!(x.len() >= w.len() * tokens, "{} activations for {} × {tokens}", x.len(), w.len());
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Avx512 {
            let kernel = avx512::MUL_WIDE[tokens - 1];
            // SAFETY: the tag is checked against the CPU, the lengths above.
            return unsafe { kernel(w.len(), w.as_ptr().cast(), x.as_ptr(), tokens, out.as_mut_ptr()) };
        }
        self.mul_wide_plain(w, x, out);
    }

    /// [`Kernels::mul_f32`] for two panels of as many elements, and as many sums.
    ///
    /// # Panics
    /// If the panels or the sums differ in length, or as `mul_f32`.
    pub fn mul_f32_pair(self, w: [&[Lanes]; 2], x: &[f32], out: [&mut [Lanes]; 2]) {
        let (tokens, count) = (out[0].len(), w[0].len());
        assert!(w[1].len() == count && out[1].len() == tokens && x.len() >= count * tokens);
        let [first, second] = out;
        let (w, out) = (w.map(|w| w.as_ptr().cast()), [first, second].map(|out| out.as_mut_ptr().cast()));
        // SAFETY: as in `mul_f32`, for each of the two; exclusive slices do not overlap.
        unsafe { self.fma_pair(tokens, count, w, PANEL_ROWS, x.as_ptr(), tokens, 1, out, PANEL_ROWS) }
    }

    /// `out[row][0..width] += Σ_key p[row · p_stride + key] · v[key · width ..]`, keys ascending, for as many keys as `v`
    /// holds.
    ///
    /// # Panics
    /// If `p` or `out` is shorter than that.
    pub fn weigh(self, p: &[f32], p_stride: usize, rows: usize, v: &[f32], width: usize, out: &mut [f32]) {
        let keys = v.len() / width;
        assert!(rows > 0 && p.len() >= (rows - 1) * p_stride + keys && out.len() >= rows * width);
        for first in (0..rows).step_by(TILE_TOKENS) {
            let some = TILE_TOKENS.min(rows - first);
            let p_at = p[first * p_stride..].as_ptr();
            for at in (0..width / 32 * 32).step_by(32) {
                let v = [v[at..].as_ptr(), v[at + 16..].as_ptr()];
                let out = out[first * width + at..].as_mut_ptr();
                // SAFETY: as below, for 32 columns; those of the second block follow the first's.
                unsafe {
                    let out = [out, out.add(16)];
                    self.fma_pair(some, keys, v, width, p_at, 1, p_stride, out, width);
                }
            }
            for at in (width / 32 * 32..width / 16 * 16).step_by(16) {
                let (v, out) = (v[at..].as_ptr(), out[first * width + at..].as_mut_ptr());
                // SAFETY: v is [keys][width] and out [rows][width], both with 16 columns from `at` on; p is
                // [rows][p_stride] with `keys` columns by the assertion.
                unsafe { self.fma()[some - 1](keys, v, width, p_at, 1, p_stride, out, width) }
            }
            for row in first..first + some {
                for i in width / 16 * 16..width {
                    for key in 0..keys {
                        let to = &mut out[row * width + i];
                        *to = p[row * p_stride + key].mul_add(v[key * width + i], *to);
                    }
                }
            }
        }
    }

    /// Two products of [`fma`] for `rows` rows.
    ///
    /// # Safety
    /// As `avx512::mul::fma_pair`.
    unsafe fn fma_pair(
        self,
        rows: usize,
        count: usize,
        w: [*const f32; 2],
        w_stride: usize,
        x: *const f32,
        x_next: usize,
        x_token: usize,
        out: [*mut f32; 2],
        out_stride: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if self.isa == Isa::Avx512 {
                return avx512::FMA_PAIR[rows - 1](count, w, w_stride, x, x_next, x_token, out, out_stride);
            }
            for (w, out) in w.into_iter().zip(out) {
                self.fma()[rows - 1](count, w, w_stride, x, x_next, x_token, out, out_stride);
            }
        }
    }

    fn fma(self) -> &'static [fma::Fma; 8] {
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::FMA,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::mul::FMA,
            _ => &fma::FMA,
        }
    }
}

fn check_rows(format: Format, bytes: &[u8], stride_bytes: usize, rows: usize, elems: usize) {
    let step_bytes = format.row_bytes(elems);
    assert!(rows <= PANEL_ROWS && elems <= STEP_ELEMS, "{rows} rows of {elems} elements in a panel");
    assert!(
        rows == 0 || step_bytes.is_some_and(|n| (rows - 1) * stride_bytes + n <= bytes.len()),
        "{rows} rows of {elems} elements of {format}, {stride_bytes} bytes apart, in {} bytes",
        bytes.len()
    );
}

impl Isa {
    /// From the plainest to the best.
    pub const ALL: &'static [Isa] = &[Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512];

    /// What devices and reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "NEON with dot products",
            Isa::Avx2 => "AVX2",
            Isa::Avx512 => "AVX-512 VNNI",
        }
    }

    /// Whether this CPU has it.
    pub fn available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[allow(unreachable_patterns, reason = "another architecture's")]
            _ => false,
        }
    }
}
