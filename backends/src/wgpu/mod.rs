//! Stage 5 on wgpu: Vulkan, Metal and DX12.

pub mod shader;
