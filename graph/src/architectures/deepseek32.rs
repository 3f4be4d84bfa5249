//! DeepSeek-V3.2: DeepSeek-V3 with an indexer in every layer, whose choice of positions latent attention sees.
//!
//! Definition: Hugging Face transformers, `models/deepseek_v32/modeling_deepseek_v32.py`.

use super::Architecture;
use super::blocks::decoder;
use super::deepseek2::{DECODER, configure_with};
use crate::config::{ConfigError, ModelConfig, MoeDefaults, Reader};
use crate::ir::{GateKind, GroupScore, RopePairing};

pub(super) const ROW: Architecture =
    Architecture { name: "deepseek32", configure, lower: |l| decoder::lower(l, &DECODER) };

/// Added to the mean square of the latents' norms, whatever the file says of the others: the models' code has it.
const LATENT_NORM_EPS: f32 = 1e-6;

fn configure(read: &Reader<'_>) -> Result<ModelConfig, ConfigError> {
    // Unlike latent attention's own, the indexer's rotation pairs an element with that half the rotated ones further on.
    let own = vec![true; read.num_hidden_layers()?];
    with_indexers(read, RopePairing::Half, &own)
}

/// DeepSeek-V3's model, with indexers in the layers that `own` says.
pub(super) fn with_indexers(
    read: &Reader<'_>,
    pairing: RopePairing,
    own: &[bool],
) -> Result<ModelConfig, ConfigError> {
    let defaults = MoeDefaults { gate: GateKind::Sigmoid, norm_topk_prob: true };
    let mut model = configure_with(read, &defaults, None, |_| GroupScore::BestTwo)?;
    for layer in &mut model.layers {
        if let Some(latent) = &mut layer.attention.latent {
            latent.norm_eps = Some(LATENT_NORM_EPS);
        }
    }
    read.indexers(&mut model, pairing, own)?;
    Ok(model)
}
