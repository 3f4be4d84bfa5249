//! GLM-5, 5.1 and 5.2: DeepSeek-V3.2 without YaRN and without groups of experts; in 5.2 some layers take the positions that an
//! earlier layer's indexer chose.
//!
//! Definition: Hugging Face transformers, `models/glm_moe_dsa/modeling_glm_moe_dsa.py`.

use super::Architecture;
use super::blocks::decoder;
use super::deepseek2::DECODER;
use super::deepseek32::with_indexers;
use crate::config::{ConfigError, ModelConfig, Reader};
use crate::gguf::keys::arch;
use crate::ir::RopePairing;

pub(super) const ROW: Architecture =
    Architecture { name: "glm-dsa", configure, lower: |l| decoder::lower(l, &DECODER) };

/// Files of 5.2 without the key that says which layers have an indexer are told by their context: from so many tokens on.
const GLM_5_2_CONTEXT: usize = 1 << 20;

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    let own = match read.opt_flags(arch::INDEXER_TYPES)? {
        Some(own) => own,
        None => {
            // The first three, then every fourth.
            let shares = read.dimension(arch::CONTEXT_LENGTH)? >= GLM_5_2_CONTEXT;
            let own = |layer: usize| !shares || layer < 3 || layer % 4 == 2;
            (0..read.num_hidden_layers()?).map(own).collect()
        }
    };
    with_indexers(read, RopePairing::Interleaved, &own)
}
