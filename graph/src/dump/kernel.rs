//! What a backend says about the kernel behind a launch, for plans that are dumped.

use serde::Serialize;

/// The kernel of a launch, or of its phases together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KernelInfo {
    /// The entry point, with the variant that was chosen: `expert_matmul_q4_k (split 4)`.
    pub name: String,
    /// Workgroups (blocks, or tasks of a thread pool) along x, y, z, for a step of the plan's largest sizes.
    pub grid: Option<[u32; 3]>,
    /// Threads of one workgroup along x, y, z.
    pub workgroup: Option<[u32; 3]>,
    /// How many times the device is given work: kernels of a launch that follow each other count each. `None` where the
    /// backend does not say.
    pub dispatches: Option<usize>,
    /// The kernel's source as the device compiler gets it, where the backend keeps it: `--show-shader` prints it.
    #[serde(skip)]
    pub source: Option<String>,
}
