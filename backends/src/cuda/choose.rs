//! The best token of a row of logits, or the candidates of a sampler, chosen on the device: kernels/argmax.cu.

use super::compile::CudaExecutable;
use super::driver::{KernelLaunch, Param};
use super::ops::{self, int};
use crate::error::BackendError;
use crate::executable::{Executable, MAX_CANDIDATES, best_candidates, nan_logit};
use moe_run_graph::ids::TokenId;

/// The rank of a NaN in kernels/argmax.cu.
const RANK_NAN: u32 = u32::MAX;

/// The logit of a rank: the inverse of `rank_of` in kernels/common/top_k.cuh.
fn logit_of(rank: u32) -> f32 {
    f32::from_bits(if rank & 0x8000_0000 != 0 { rank & 0x7fff_ffff } else { !rank })
}

/// The token that argmax found, unless it found a NaN.
pub(super) fn chosen([token, is_nan]: [u32; 2]) -> Result<TokenId, BackendError> {
    if is_nan == 0 { Ok(TokenId(token)) } else { Err(nan_logit(token as usize)) }
}

impl CudaExecutable {
    /// The kernels that choose the best token of a row of the last step's logits and write it to `token`.
    pub fn argmax_kernels(&self, row: usize, token: Param) -> Result<Vec<KernelLaunch>, BackendError> {
        let (logits, width) = self.logits_row(row)?;
        let parts = width.div_ceil(1024).clamp(1, ops::ARGMAX_PARTS);
        let best = self.scratch.argmax_parts.slice(0, 8 * parts as u64);
        let flag = self.scratch.argmax.slice(4, 4);
        let launch = |kernel, blocks: usize, threads, params| KernelLaunch {
            kernel,
            grid: [blocks as u32, 1, 1],
            threads,
            shared_bytes: 0,
            params,
        };
        Ok(vec![
            launch("argmax_part", parts, 256, vec![logits, best, int(width)]),
            launch("argmax_final", 1, 64, vec![best, token, flag, int(parts)]),
        ])
    }

    pub fn download_token(&self, address: u64, out: &mut [u32]) -> Result<(), BackendError> {
        let downloaded = self.driver.download(address, bytemuck::cast_slice_mut(out));
        downloaded.map_err(|e| self.failed_last(e))
    }

    /// [`Executable::candidates`].
    pub fn choose_candidates(
        &mut self,
        row: usize,
        count: usize,
        out: &mut Vec<(TokenId, f32)>,
    ) -> Result<(), BackendError> {
        let count = count.clamp(1, MAX_CANDIDATES);
        let (logits, width) = self.logits_row(row)?;
        let parts = width.div_ceil(ops::TOP_PART_ELEMS).max(ops::ARGMAX_PARTS.min(width.div_ceil(1024)));
        if parts > ops::ARGMAX_PARTS {
            let mut all = Vec::new();
            self.logits(row, &mut all)?;
            return best_candidates(&all, count, out);
        }
        let best = self.scratch.top_parts.slice(0, 8 * (parts * count) as u64);
        let chosen = self.scratch.top.slice(0, 8 * count as u64);
        let launches = [
            KernelLaunch {
                kernel: "top_part",
                grid: [parts as u32, 1, 1],
                threads: 256,
                shared_bytes: 4 * width.div_ceil(parts) as u32,
                params: vec![logits, best, int(width), int(count)],
            },
            KernelLaunch {
                kernel: "top_final",
                grid: [1, 1, 1],
                threads: 64,
                shared_bytes: 0,
                params: vec![best, chosen, int(parts), int(count)],
            },
        ];
        self.launch(&launches, || "candidates".into())?;
        let mut found = vec![0u32; 2 * count];
        self.download_token(self.scratch.top.address(), &mut found)?;
        out.clear();
        for pair in found.chunks_exact(2) {
            match pair[0] {
                RANK_NAN => return Err(nan_logit(pair[1] as usize)),
                0 => break,
                rank => out.push((TokenId(pair[1]), logit_of(rank))),
            }
        }
        out.retain(|(_, logit)| *logit > f32::NEG_INFINITY);
        Ok(())
    }
}
