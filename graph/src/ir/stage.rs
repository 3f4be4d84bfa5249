//! The stages that can be tapped, in execution order, with their names.

use serde::{Serialize, Serializer};
use std::fmt;

/// Whether a stage belongs to a layer or to the whole model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StageScope {
    /// Named `<stage>`.
    Model,
    /// Named `layer-<N>/<stage>`.
    Layer,
}

macro_rules! stages {
    ($($(#[$doc:meta])* $variant:ident $name:literal $scope:ident;)*) => {
        /// A place in the forward pass that has a name. Declared in execution order, which [`Ord`] follows in a layer.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Stage { $($(#[$doc])* $variant,)* }

        impl Stage {
            /// All stages in execution order.
            pub const ALL: &'static [Stage] = &[$(Stage::$variant,)*];

            /// The name used on the command line, in files and in JSON.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Stage::$variant => $name,)* }
            }

            /// Per layer, or for the whole model.
            #[must_use]
            pub fn scope(self) -> StageScope {
                match self { $(Stage::$variant => StageScope::$scope,)* }
            }
        }
    };
}

stages! {
    /// Token embedding rows [T, D].
    Embedding "embedding" Model;
    /// RMSNorm before attention [T, D].
    AttnNorm "attn_norm" Layer;
    /// The queries' latent before its norm, where they have one [T, q_lora_rank].
    QAProj "q_a_proj" Layer;
    /// The queries' latent after its norm, where they have one [T, q_lora_rank].
    QANorm "q_a_norm" Layer;
    /// The latent that keys and values are made of, after its norm [T, kv_lora_rank].
    KvANorm "kv_a_norm" Layer;
    /// q, k, v after their matmuls, side by side [T, (H+2G)·d].
    QkvMatmul "qkv_matmul" Layer;
    /// The same after the bias, where the model has one.
    QkvBias "qkv_bias" Layer;
    /// Per-head RMSNorm of q, before RoPE [T, H·d].
    QNorm "q_norm" Layer;
    /// Per-head RMSNorm of k, before RoPE [T, G·d].
    KNorm "k_norm" Layer;
    /// Per-head RMSNorm of v [T, G·dv].
    VNorm "v_norm" Layer;
    /// Latent attention: the part of each query's head that is not rotated [T, H·nope].
    QNope "q_nope" Layer;
    /// Latent attention: the part that is, before RoPE [T, H·rope].
    QPe "q_pe" Layer;
    /// q after RoPE; of latent attention the rotated part [T, H·d].
    QPostRope "q_post_rope" Layer;
    /// k after RoPE, before the cache's rounding [T, G·d].
    KPostRope "k_post_rope" Layer;
    /// Latent attention: q_nope through each head's k matrix [T, H·kv_lora_rank].
    QAbsorbed "q_absorbed" Layer;
    /// Latent attention: what meets the cache [T, H·(kv_lora_rank + rope)].
    QLatent "q_latent" Layer;
    /// Latent attention: what is cached, before its rounding [T, kv_lora_rank + rope].
    KLatent "k_latent" Layer;
    /// Compressed attention: the entry that is kept at a position which completes one, after RoPE, before its rounding [T, d].
    Compressed "compressed" Layer;
    /// The same of its indexer [T, d].
    IndexCompressed "index_compressed" Layer;
    /// What an indexer ranks positions by [1, T, S]; 0 after the query's position.
    IndexScores "index_scores" Layer;
    /// 1 at the positions that it chose [1, T, S], 0 elsewhere.
    IndexSelected "index_selected" Layer;
    /// q·kᵀ·scale [H, T, S]; 0 after the query's position.
    AttnScores "attn_scores" Layer;
    /// After mask and softmax [H, T, S].
    AttnSoftmax "attn_softmax" Layer;
    /// Latent attention: softmax · latents, before each head's v matrix [T, H·kv_lora_rank]. Compressed attention: softmax · keys,
    /// before they are turned back [T, H·d].
    AttnLatent "attn_latent" Layer;
    /// softmax · v, before o_proj; times the output gate where that is a tensor of its own [T, H·d].
    Attention "attention" Layer;
    /// The output gate after its function [T, H·d], or one a head [T, H].
    AttnGate "attn_gate" Layer;
    /// softmax · v times the output gate that q_proj gives beside the queries [T, H·d].
    AttentionGated "attention_gated" Layer;
    /// A causal convolution's result after its bias and activation [T, channels].
    ConvOut "conv_out" Layer;
    /// A short convolution's result times its gate [T, D].
    ConvGated "conv_gated" Layer;
    /// Mamba1: what its time steps are made of, after its norm [T, time_step_rank].
    SsmDtNorm "ssm_dt_norm" Layer;
    /// Mamba1: B after its norm [T, state_size].
    SsmBNorm "ssm_b_norm" Layer;
    /// Mamba1: C after its norm [T, state_size].
    SsmCNorm "ssm_c_norm" Layer;
    /// How much of a token a recurrence writes [T, heads].
    SsmBeta "ssm_beta" Layer;
    /// What a recurrence keeps of its state [T, heads].
    SsmDecay "ssm_decay" Layer;
    /// What a recurrence gives, before the gated norm [T, heads·dim].
    SsmOut "ssm_out" Layer;
    /// After it [T, heads·dim].
    SsmNorm "ssm_norm" Layer;
    /// The last inputs of a causal convolution behind the last token, oldest first [channels, kernel − 1].
    ConvState "conv_state" Layer;
    /// A recurrence's state behind the last token [heads, ..].
    SsmState "ssm_state" Layer;
    /// What attention or another mixer adds to the residual stream, after its last product [T, D].
    AttnOut "attn_out" Layer;
    /// RMSNorm of attn_out, where there is one [T, D].
    PostAttnNorm "post_attn_norm" Layer;
    /// Residual stream after attention [T, D].
    PostAttnResidual "post_attn_residual" Layer;
    /// RMSNorm before the experts [T, D].
    FfnNorm "ffn_norm" Layer;
    /// RMSNorm before the experts where ffn_norm is that before an MLP beside them [T, D].
    FfnNorm2 "ffn_norm_2" Layer;
    /// Router logits [T, E].
    MoeLogits "moe_logits" Layer;
    /// Chosen experts, best first [T, K].
    MoeTopkIds "moe_topk_ids" Layer;
    /// Their weights as applied [T, K].
    MoeRouter "moe_router" Layer;
    /// What experts of a narrower space read [T, its width].
    MoeLatentIn "moe_latent_in" Layer;
    /// gate_proj's output [T, K, F]; [T, F] in a dense layer.
    FfnGate "ffn_gate" Layer;
    /// up_proj's output [T, K, F]; [T, F] in a dense layer.
    FfnUp "ffn_up" Layer;
    /// act(gate) [T, K, F], silu in most models; [T, F] in a dense layer.
    FfnSilu "ffn_silu" Layer;
    /// act(gate) · up [T, K, F], what the activation makes of both; [T, F] in a dense layer.
    FfnSwigl "ffn_swigl" Layer;
    /// The shared expert's gate_proj [T, its width].
    ShexpFfnGate "shexp_ffn_gate" Layer;
    /// The shared expert's up_proj [T, its width].
    ShexpFfnUp "shexp_ffn_up" Layer;
    /// silu(gate) of the shared expert [T, its width].
    ShexpFfnSilu "shexp_ffn_silu" Layer;
    /// silu(gate) · up of the shared expert [T, its width].
    ShexpFfnSwigl "shexp_ffn_swigl" Layer;
    /// The shared expert's output before its gate [T, D].
    ShexpOut "shexp_out" Layer;
    /// The shared expert's gate before its function [T, 1].
    ShexpLogit "shexp_logit" Layer;
    /// The shared expert's gate after its function [T, 1].
    ShexpGate "shexp_gate" Layer;
    /// The shared expert's output times its gate [T, D].
    ShexpGated "shexp_gated" Layer;
    /// down_proj's output before weighting [T, K, D]; [T, D] in a dense layer.
    FfnOut "ffn_out" Layer;
    /// Σ weight · ffn_out of experts of a narrower space, in it [T, its width].
    MoeLatentOut "moe_latent_out" Layer;
    /// Σ weight · ffn_out alone, where moe_ffn_out has more [T, D].
    MoeRoutedOut "moe_routed_out" Layer;
    /// The small experts that runs of experts share, one for each chosen expert [T, K].
    ChunkIds "chunk_ids" Layer;
    /// Their weights, before the factor on all of them [T, K].
    ChunkWeights "chunk_weights" Layer;
    /// Σ weight · ffn_out, and the gated shared expert where there is one [T, D].
    MoeFfnOut "moe_ffn_out" Layer;
    /// Each expert's output before weighting where ffn_out is that of an MLP beside them [T, K, D].
    MoeExpertOut "moe_expert_out" Layer;
    /// RMSNorm of the MLP beside the experts [T, D].
    PostFfnNorm1 "post_ffn_norm_1" Layer;
    /// RMSNorm of the experts beside it [T, D].
    PostFfnNorm2 "post_ffn_norm_2" Layer;
    /// RMSNorm of the feed-forward part's output, where there is one [T, D].
    PostFfnNorm "post_ffn_norm" Layer;
    /// Residual stream after the experts [T, D]; alias `layer_output`.
    PostFfnResidual "post_ffn_residual" Layer;
    /// RMSNorm before lm_head [R, D].
    FinalNorm "final_norm" Model;
    /// Logits [R, vocab].
    LmHead "lm_head" Model;
}

impl Stage {
    /// The stage of a name, case-insensitive, aliases included.
    #[must_use]
    pub fn parse(name: &str) -> Option<Stage> {
        let name = name.trim().to_ascii_lowercase();
        if name == "layer_output" {
            return Some(Stage::PostFfnResidual);
        }
        Stage::ALL.iter().copied().find(|s| s.name() == name)
    }

    /// `layer-<N>/<stage>`, or `<stage>` for a stage of the whole model.
    #[must_use]
    pub fn path(self, layer: Option<usize>) -> String {
        match layer {
            Some(layer) => format!("layer-{layer}/{}", self.name()),
            None => self.name().to_owned(),
        }
    }
}

/// Which axis of a stage's value runs over the step's positions, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowAxis {
    /// `[T, ..]`.
    Tokens,
    /// `[R, ..]`: the rows whose logits the step asked for.
    LogitsRows,
    /// `[H, T, S]`.
    HeadsTokensCached,
}

impl RowAxis {
    /// The axis of a stage.
    #[must_use]
    pub fn of(stage: Stage) -> RowAxis {
        match stage {
            Stage::AttnScores | Stage::AttnSoftmax | Stage::IndexScores | Stage::IndexSelected => {
                RowAxis::HeadsTokensCached
            }
            Stage::FinalNorm | Stage::LmHead => RowAxis::LogitsRows,
            _ => RowAxis::Tokens,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Stage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
