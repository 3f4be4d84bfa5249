//! The one home of GGUF's names: metadata keys and tensor names. Elsewhere Hugging Face's names are used.
//!
//! Keys of the shape `<architecture>.<rest>` are built by [`arch_key`] from the constants of [`arch`], tensor names of a
//! layer (`blk.<i>.<rest>`) by [`blk`] from those of [`layer`].

/// `general.architecture`: string, the architecture's name.
pub const GENERAL_ARCHITECTURE: &str = "general.architecture";
/// `general.alignment`: u32, alignment of tensor data in bytes; 32 when absent.
pub const GENERAL_ALIGNMENT: &str = "general.alignment";
/// `general.name`: string, the model's name.
pub const GENERAL_NAME: &str = "general.name";
/// `general.basename`: string, the model's name without size and fine-tune.
pub const GENERAL_BASENAME: &str = "general.basename";
/// `general.size_label`: string, such as "128x1.8B".
pub const GENERAL_SIZE_LABEL: &str = "general.size_label";
/// `general.type`: string, "model" for a whole model.
pub const GENERAL_TYPE: &str = "general.type";
/// `general.file_type`: u32, the name of the mixture of formats (15 is Q4_K_M).
pub const GENERAL_FILE_TYPE: &str = "general.file_type";
/// `general.quantization_version`: u32, 2 for the formats of today.
pub const GENERAL_QUANTIZATION_VERSION: &str = "general.quantization_version";

/// `imatrix.datasets`: strings, the texts that an importance file was made from.
pub const IMPORTANCE_DATASETS: &str = "imatrix.datasets";
/// `imatrix.chunk_count`: u32, how many chunks of them.
pub const IMPORTANCE_CHUNK_COUNT: &str = "imatrix.chunk_count";
/// `imatrix.chunk_size`: u32, tokens of a chunk.
pub const IMPORTANCE_CHUNK_SIZE: &str = "imatrix.chunk_size";
/// What the keys begin with that name the importance file which a model was quantized with.
pub const QUANTIZE_IMPORTANCE_PREFIX: &str = "quantize.imatrix.";
/// `quantize.imatrix.file`: string.
pub const QUANTIZE_IMPORTANCE_FILE: &str = "quantize.imatrix.file";
/// `quantize.imatrix.dataset`: string, its text.
pub const QUANTIZE_IMPORTANCE_DATASET: &str = "quantize.imatrix.dataset";
/// `quantize.imatrix.entries_count`: u32, how many tensors it speaks of.
pub const QUANTIZE_IMPORTANCE_ENTRIES: &str = "quantize.imatrix.entries_count";
/// `quantize.imatrix.chunks_count`: u32, how many chunks of text it is made from.
pub const QUANTIZE_IMPORTANCE_CHUNKS: &str = "quantize.imatrix.chunks_count";

/// `split.no`: u16, number of this part, from 0.
pub const SPLIT_NO: &str = "split.no";
/// `split.count`: u16, how many parts the model has.
pub const SPLIT_COUNT: &str = "split.count";
/// `split.tensors.count`: i32, how many tensors all parts hold together.
pub const SPLIT_TENSORS_COUNT: &str = "split.tensors.count";

/// `tokenizer.ggml.model`: string, the kind of tokenizer ("gpt2" is byte-level BPE).
pub const TOKENIZER_MODEL: &str = "tokenizer.ggml.model";
/// What [`TOKENIZER_MODEL`] says in a file without a tokenizer, and what it said in older ones.
pub const TOKENIZER_MODEL_NONE: [&str; 2] = ["none", "no_vocab"];
/// `tokenizer.ggml.pre`: string, the pre-tokenizer ("qwen2").
pub const TOKENIZER_PRE: &str = "tokenizer.ggml.pre";
/// `tokenizer.ggml.tokens`: strings, one per id.
pub const TOKENIZER_TOKENS: &str = "tokenizer.ggml.tokens";
/// `tokenizer.ggml.token_type`: i32 per id (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte).
pub const TOKENIZER_TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
/// `tokenizer.ggml.merges`: strings "left right", best first.
pub const TOKENIZER_MERGES: &str = "tokenizer.ggml.merges";
/// `tokenizer.ggml.bos_token_id`: u32.
pub const TOKENIZER_BOS: &str = "tokenizer.ggml.bos_token_id";
/// `tokenizer.ggml.eos_token_id`: u32.
pub const TOKENIZER_EOS: &str = "tokenizer.ggml.eos_token_id";
/// `tokenizer.ggml.eot_token_id`: u32, end of a turn.
pub const TOKENIZER_EOT: &str = "tokenizer.ggml.eot_token_id";
/// `tokenizer.ggml.eom_token_id`: u32, end of a message.
pub const TOKENIZER_EOM: &str = "tokenizer.ggml.eom_token_id";
/// `tokenizer.ggml.padding_token_id`: u32.
pub const TOKENIZER_PADDING: &str = "tokenizer.ggml.padding_token_id";
/// `tokenizer.ggml.add_bos_token`: bool, whether a prompt begins with the BOS token.
pub const TOKENIZER_ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
/// `tokenizer.ggml.add_eos_token`: bool.
pub const TOKENIZER_ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
/// `tokenizer.ggml.scores`: f32 per id, how good a piece of SentencePiece is.
pub const TOKENIZER_SCORES: &str = "tokenizer.ggml.scores";
/// `tokenizer.ggml.add_space_prefix`: bool, whether a text of SentencePiece's gets a space in front (absent: it does).
pub const TOKENIZER_ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
/// `tokenizer.ggml.remove_extra_whitespaces`: bool, whether of several spaces one is left, and none at the ends.
pub const TOKENIZER_REMOVE_EXTRA_WHITESPACES: &str = "tokenizer.ggml.remove_extra_whitespaces";
/// `tokenizer.chat_template`: string, Jinja.
pub const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
/// What all tokenizer keys begin with, the chat template's included.
pub const TOKENIZER_PREFIX: &str = "tokenizer.";

/// `general.sampling.temp`: f32, the temperature that the model's makers advise.
pub const SAMPLING_TEMP: &str = "general.sampling.temp";
/// `general.sampling.top_k`: i32.
pub const SAMPLING_TOP_K: &str = "general.sampling.top_k";
/// `general.sampling.top_p`: f32.
pub const SAMPLING_TOP_P: &str = "general.sampling.top_p";
/// `general.sampling.min_p`: f32.
pub const SAMPLING_MIN_P: &str = "general.sampling.min_p";
/// `general.sampling.penalty_repeat`: f32.
pub const SAMPLING_PENALTY_REPEAT: &str = "general.sampling.penalty_repeat";

/// What follows `<architecture>.` in a key.
pub mod arch {
    /// num_hidden_layers: u32.
    pub const BLOCK_COUNT: &str = "block_count";
    /// Tokens the model was trained to see: u32.
    pub const CONTEXT_LENGTH: &str = "context_length";
    /// hidden_size: u32.
    pub const EMBEDDING_LENGTH: &str = "embedding_length";
    /// intermediate_size of dense layers: u32, or one per layer.
    pub const FEED_FORWARD_LENGTH: &str = "feed_forward_length";
    /// num_attention_heads: u32, or one per layer.
    pub const HEAD_COUNT: &str = "attention.head_count";
    /// num_key_value_heads: u32, or one per layer.
    pub const HEAD_COUNT_KV: &str = "attention.head_count_kv";
    /// head_dim of queries and keys: u32.
    pub const KEY_LENGTH: &str = "attention.key_length";
    /// head_dim of values: u32.
    pub const VALUE_LENGTH: &str = "attention.value_length";
    /// q_lora_rank of latent attention: u32; absent or 0: queries have no latent.
    pub const Q_LORA_RANK: &str = "attention.q_lora_rank";
    /// kv_lora_rank of latent attention: u32.
    pub const KV_LORA_RANK: &str = "attention.kv_lora_rank";
    /// head_dim of queries and keys where key_length speaks of latents: u32.
    pub const KEY_LENGTH_MLA: &str = "attention.key_length_mla";
    /// head_dim of values where value_length speaks of latents: u32.
    pub const VALUE_LENGTH_MLA: &str = "attention.value_length_mla";
    /// head_dim of queries and keys in layers with a window: u32.
    pub const KEY_LENGTH_SWA: &str = "attention.key_length_swa";
    /// head_dim of values in layers with a window: u32.
    pub const VALUE_LENGTH_SWA: &str = "attention.value_length_swa";
    /// Heads of an indexer: u32.
    pub const INDEXER_HEAD_COUNT: &str = "attention.indexer.head_count";
    /// head_dim of an indexer: u32.
    pub const INDEXER_KEY_LENGTH: &str = "attention.indexer.key_length";
    /// Positions that an indexer chooses for a query: u32.
    pub const INDEXER_TOP_K: &str = "attention.indexer.top_k";
    /// Whether a layer has an indexer of its own; else it takes what the last one before it chose: bool a layer.
    pub const INDEXER_TYPES: &str = "attention.indexer.types";
    /// Positions that are kept as one entry, a layer: u32, 0 for a layer with a window alone.
    pub const COMPRESS_RATIOS: &str = "attention.compress_ratios";
    /// RoPE's base in layers with entries: f32.
    pub const COMPRESS_ROPE_FREQ_BASE: &str = "attention.compress_rope_freq_base";
    /// Groups of heads that o_proj's first part has rows for: u32.
    pub const OUTPUT_GROUP_COUNT: &str = "attention.output_group_count";
    /// Rows that it has for each: u32.
    pub const OUTPUT_LORA_RANK: &str = "attention.output_lora_rank";
    /// Streams of hyper-connections: u32.
    pub const HYPER_CONNECTION_COUNT: &str = "hyper_connection.count";
    /// How often their mixing is brought to sums of 1: u32.
    pub const HYPER_CONNECTION_ITERATIONS: &str = "hyper_connection.sinkhorn_iterations";
    /// Added to their gates and sums: f32.
    pub const HYPER_CONNECTION_EPSILON: &str = "hyper_connection.epsilon";
    /// The first so many layers take their experts by token: u32.
    pub const HASH_LAYER_COUNT: &str = "hash_layer_count";
    /// Elements of all streams: u32.
    pub const EMBEDDING_LENGTH_OUT: &str = "embedding_length_out";
    /// The last so many layers read keys and values of earlier ones: u32.
    pub const SHARED_KV_LAYERS: &str = "attention.shared_kv_layers";
    /// How much queries grow with the logarithm of their position: f32.
    pub const TEMPERATURE_SCALE: &str = "attention.temperature_scale";
    /// Positions in which they do not: u32.
    pub const TEMPERATURE_LENGTH: &str = "attention.temperature_length";
    /// rms_norm_eps: f32.
    pub const RMS_EPS: &str = "attention.layer_norm_rms_epsilon";
    /// Bounds of the routed experts' SwiGLU, one a layer: f32, 0 for none.
    pub const SWIGLU_CLAMP_EXP: &str = "swiglu_clamp_exp";
    /// Bounds of the shared expert's and dense layers' SwiGLU, one a layer: f32, 0 for none.
    pub const SWIGLU_CLAMP_SHEXP: &str = "swiglu_clamp_shexp";
    /// Every so many-th layer has experts: u32.
    pub const MOE_EVERY_N_LAYERS: &str = "moe_every_n_layers";
    /// rope_theta: f32.
    pub const ROPE_FREQ_BASE: &str = "rope.freq_base";
    /// How many of a head's dimensions are rotated: u32.
    pub const ROPE_DIMENSION_COUNT: &str = "rope.dimension_count";
    /// Kind of RoPE scaling: string ("none", "linear", "yarn").
    pub const ROPE_SCALING_TYPE: &str = "rope.scaling.type";
    /// Factor of the RoPE scaling: f32.
    pub const ROPE_SCALING_FACTOR: &str = "rope.scaling.factor";
    /// Context before RoPE scaling: u32.
    pub const ROPE_SCALING_ORIG_CTX: &str = "rope.scaling.original_context_length";
    /// The factor of linear scaling under its old name: f32.
    pub const ROPE_SCALE_LINEAR: &str = "rope.scale_linear";
    /// Multiplies RoPE's cosines and sines: f32.
    pub const ROPE_SCALING_ATTN_FACTOR: &str = "rope.scaling.attn_factor";
    /// Whether the model was trained with the scaling: bool.
    pub const ROPE_SCALING_FINETUNED: &str = "rope.scaling.finetuned";
    /// How much of YaRN's stretching is mixed in: f32.
    pub const ROPE_SCALING_YARN_EXT_FACTOR: &str = "rope.scaling.yarn_ext_factor";
    /// Stands in place of YaRN's 1 + 0.1 · ln(factor): f32.
    pub const ROPE_SCALING_YARN_ATTN_FACTOR: &str = "rope.scaling.yarn_attn_factor";
    /// Turns within the original context from which a pair is not stretched: f32.
    pub const ROPE_SCALING_YARN_BETA_FAST: &str = "rope.scaling.yarn_beta_fast";
    /// Turns within the original context up to which a pair is stretched fully: f32.
    pub const ROPE_SCALING_YARN_BETA_SLOW: &str = "rope.scaling.yarn_beta_slow";
    /// 0.1 · mscale_all_dim: the scores are multiplied by (1 + this · ln(factor))²: f32.
    pub const ROPE_SCALING_YARN_LOG_MULTIPLIER: &str = "rope.scaling.yarn_log_multiplier";
    /// How many of a head's dimensions are rotated in layers with a window: u32.
    pub const ROPE_DIMENSION_COUNT_SWA: &str = "rope.dimension_count_swa";
    /// Pairs that each of a position's axes rotates: 4 i32; on text all axes say the same.
    pub const ROPE_DIMENSION_SECTIONS: &str = "rope.dimension_sections";
    /// Multiplies the scores in place of 1/√head_dim: f32.
    pub const ATTENTION_SCALE: &str = "attention.scale";
    /// Multiplies the values: f32.
    pub const ATTENTION_VALUE_SCALE: &str = "attention.value_scale";
    /// Bound of q, k and v on both sides: f32.
    pub const CLAMP_KQV: &str = "attention.clamp_kqv";
    /// Slope of position biases: f32.
    pub const MAX_ALIBI_BIAS: &str = "attention.max_alibi_bias";
    /// Positions that a query sees in layers with a window, its own included: u32.
    pub const SLIDING_WINDOW: &str = "attention.sliding_window";
    /// Whether a layer has the window: bool or number a layer, or one number, a period.
    pub const SLIDING_WINDOW_PATTERN: &str = "attention.sliding_window_pattern";
    /// rope_theta of layers with a window: f32.
    pub const ROPE_FREQ_BASE_SWA: &str = "rope.freq_base_swa";
    /// Scores are cap · tanh(scores / cap): f32.
    pub const ATTN_LOGIT_SOFTCAPPING: &str = "attn_logit_softcapping";
    /// Logits are cap · tanh(logits / cap): f32.
    pub const FINAL_LOGIT_SOFTCAPPING: &str = "final_logit_softcapping";
    /// Multiplies the embedding: f32.
    pub const EMBEDDING_SCALE: &str = "embedding_scale";
    /// Multiplies what each part adds to the residual stream: f32.
    pub const RESIDUAL_SCALE: &str = "residual_scale";
    /// Divides the logits, or multiplies them, as the architecture says: f32.
    pub const LOGIT_SCALE: &str = "logit_scale";
    /// Layout of the weights in the checkpoint: string.
    pub const TENSOR_DATA_LAYOUT: &str = "tensor_data_layout";
    /// Of [`BLOCK_COUNT`], the last so many only predict further tokens for a draft: u32.
    pub const NEXTN_PREDICT_LAYERS: &str = "nextn_predict_layers";
    /// The first so many layers that add vision features: u32.
    pub const DEEPSTACK_LAYERS: &str = "n_deepstack_layers";
    /// Elements of a further input of every layer: u32.
    pub const EMBEDDING_LENGTH_PER_LAYER_INPUT: &str = "embedding_length_per_layer_input";
    /// num_experts: u32.
    pub const EXPERT_COUNT: &str = "expert_count";
    /// num_experts_per_tok: u32.
    pub const EXPERT_USED_COUNT: &str = "expert_used_count";
    /// moe_intermediate_size: u32.
    pub const EXPERT_FEED_FORWARD_LENGTH: &str = "expert_feed_forward_length";
    /// norm_topk_prob: bool.
    pub const EXPERT_WEIGHTS_NORM: &str = "expert_weights_norm";
    /// Factor on the experts' weights: f32.
    pub const EXPERT_WEIGHTS_SCALE: &str = "expert_weights_scale";
    /// The router's gate: u32 (0 unstated, 1 softmax, 2 sigmoid, 3 softmax over the chosen).
    pub const EXPERT_GATING_FUNC: &str = "expert_gating_func";
    /// n_group: experts are routed in so many groups: u32.
    pub const EXPERT_GROUP_COUNT: &str = "expert_group_count";
    /// topk_group: of which so many are chosen first: u32.
    pub const EXPERT_GROUP_USED_COUNT: &str = "expert_group_used_count";
    /// n_shared_experts: u32.
    pub const EXPERT_SHARED_COUNT: &str = "expert_shared_count";
    /// Width of the shared expert: u32.
    pub const EXPERT_SHARED_FEED_FORWARD_LENGTH: &str = "expert_shared_feed_forward_length";
    /// first_k_dense_replace: the first so many layers are dense: u32.
    pub const LEADING_DENSE_BLOCK_COUNT: &str = "leading_dense_block_count";
    /// Every so many-th layer has experts: u32.
    pub const INTERLEAVE_MOE_LAYER_STEP: &str = "interleave_moe_layer_step";
    /// Width of the small experts that runs of experts share: u32.
    pub const EXPERT_CHUNK_FEED_FORWARD_LENGTH: &str = "expert_chunk_feed_forward_length";
    /// Experts that share a small one: u32.
    pub const EXPERTS_PER_GROUP: &str = "experts_per_group";
    /// Factor on what the small experts give: f32.
    pub const EXPERT_GROUP_SCALE: &str = "expert_group_scale";
    /// What is added to the variance by LayerNorm: f32.
    pub const LAYER_NORM_EPS: &str = "attention.layer_norm_epsilon";
    /// Elements of the space that experts work in, where it is not the hidden one: u32.
    pub const MOE_LATENT_SIZE: &str = "moe_latent_size";
    /// Tokens that a recurrent layer's convolution reaches back over, its own included: u32.
    pub const SSM_CONV_KERNEL: &str = "ssm.conv_kernel";
    /// Elements of a recurrent layer's state along its keys: u32.
    pub const SSM_STATE_SIZE: &str = "ssm.state_size";
    /// Key heads of a delta net, groups of mamba2: u32.
    pub const SSM_GROUP_COUNT: &str = "ssm.group_count";
    /// Value heads of a delta net, heads of mamba2: u32.
    pub const SSM_TIME_STEP_RANK: &str = "ssm.time_step_rank";
    /// Elements of all of these heads: u32.
    pub const SSM_INNER_SIZE: &str = "ssm.inner_size";
    /// Elements of a head of Kimi delta attention: u32.
    pub const KDA_HEAD_DIM: &str = "kda.head_dim";
    /// Whether the logarithm of Kimi delta attention's decay is bounded: bool.
    pub const KDA_SAFE_GATE: &str = "kda.safe_gate";
    /// The least that this logarithm comes to: f32.
    pub const KDA_GATE_LOWER_BOUND: &str = "kda.gate_lower_bound";
    /// Every so many-th layer has attention, the others are recurrent: u32.
    pub const FULL_ATTENTION_INTERVAL: &str = "full_attention_interval";
    /// Whether a layer is recurrent: bool a layer.
    pub const RECURRENT_LAYERS: &str = "attention.recurrent_layers";
    /// Tokens that a short convolution reaches back over, its own included: u32.
    pub const SHORTCONV_L_CACHE: &str = "shortconv.l_cache";
    /// vocab_size where no tokenizer says it: u32.
    pub const VOCAB_SIZE: &str = "vocab_size";
}

/// Tensors of the whole model.
pub mod tensor {
    /// Embedding table, `[vocab_size, hidden_size]`.
    pub const TOKEN_EMBD: &str = "token_embd.weight";
    /// Final norm, `[hidden_size]`.
    pub const OUTPUT_NORM: &str = "output_norm.weight";
    /// The final norm of LFM2, in spite of its name, `[hidden_size]`.
    pub const TOKEN_EMBD_NORM: &str = "token_embd_norm.weight";
    /// lm_head, `[vocab_size, hidden_size]`; the embedding table serves where it is absent.
    pub const OUTPUT: &str = "output.weight";
    /// How streams come together at the end: `[n, n · hidden_size]`.
    pub const OUTPUT_HC_FN: &str = "output_hc_fn.weight";
    /// `[n]`.
    pub const OUTPUT_HC_BASE: &str = "output_hc_base.weight";
    /// `[1]`.
    pub const OUTPUT_HC_SCALE: &str = "output_hc_scale.weight";
    /// Embedding table of further inputs of the layers, `[vocab_size, layers · their width]`.
    pub const PER_LAYER_TOKEN_EMBD: &str = "per_layer_token_embd.weight";
    /// The hidden state's part of those inputs, `[layers · their width, hidden_size]`.
    pub const PER_LAYER_MODEL_PROJ: &str = "per_layer_model_proj.weight";
    /// Norm of that part, of each layer's by itself, `[their width]`.
    pub const PER_LAYER_PROJ_NORM: &str = "per_layer_proj_norm.weight";
    /// The final norm's bias, `[hidden_size]`.
    pub const OUTPUT_NORM_BIAS: &str = "output_norm.bias";
    /// lm_head's bias, `[vocab_size]`.
    pub const OUTPUT_BIAS: &str = "output.bias";
    /// What divides RoPE's frequencies within the original context, `[rope_dims / 2]`.
    pub const ROPE_FACTORS_SHORT: &str = "rope_factors_short.weight";
    /// What divides them beyond it.
    pub const ROPE_FACTORS_LONG: &str = "rope_factors_long.weight";
    /// What divides RoPE's frequencies, `[rope_dims / 2]`.
    pub const ROPE_FREQS: &str = "rope_freqs.weight";
}

/// What follows `blk.<i>.` in the name of a layer's tensor.
pub mod layer {
    /// Norm before attention, `[hidden_size]`.
    pub const ATTN_NORM: &str = "attn_norm.weight";
    /// Its bias.
    pub const ATTN_NORM_BIAS: &str = "attn_norm.bias";
    /// q_proj, `[num_attention_heads · head_dim, hidden_size]`.
    pub const ATTN_Q: &str = "attn_q.weight";
    /// k_proj, `[num_key_value_heads · head_dim, hidden_size]`.
    pub const ATTN_K: &str = "attn_k.weight";
    /// v_proj, `[num_key_value_heads · head_dim, hidden_size]`.
    pub const ATTN_V: &str = "attn_v.weight";
    /// q_proj, k_proj and v_proj in one tensor, their rows in this order.
    pub const ATTN_QKV: &str = "attn_qkv.weight";
    /// Their biases in one tensor, in the same order.
    pub const ATTN_QKV_BIAS: &str = "attn_qkv.bias";
    /// q_a_proj, `[q_lora_rank, hidden_size]`.
    pub const ATTN_Q_A: &str = "attn_q_a.weight";
    /// Norm of the queries' latent, `[q_lora_rank]`.
    pub const ATTN_Q_A_NORM: &str = "attn_q_a_norm.weight";
    /// q_b_proj, `[num_attention_heads · head_dim, q_lora_rank]`.
    pub const ATTN_Q_B: &str = "attn_q_b.weight";
    /// kv_a_proj_with_mqa, `[kv_lora_rank + rotated dims, hidden_size]`.
    pub const ATTN_KV_A_MQA: &str = "attn_kv_a_mqa.weight";
    /// Norm of the latent of keys and values, `[kv_lora_rank]`.
    pub const ATTN_KV_A_NORM: &str = "attn_kv_a_norm.weight";
    /// kv_b_proj, `[num_attention_heads · (nope + v), kv_lora_rank]`: of each head k's rows, then v's.
    pub const ATTN_KV_B: &str = "attn_kv_b.weight";
    /// Its k rows, of each head transposed, `[num_attention_heads, kv_lora_rank, nope]`.
    pub const ATTN_K_B: &str = "attn_k_b.weight";
    /// Its v rows, `[num_attention_heads, v, kv_lora_rank]`.
    pub const ATTN_V_B: &str = "attn_v_b.weight";
    /// Queries of an indexer, `[its heads · head_dim, q_lora_rank]`.
    pub const INDEXER_ATTN_Q_B: &str = "indexer.attn_q_b.weight";
    /// Its key, `[its head_dim, hidden_size]`.
    pub const INDEXER_ATTN_K: &str = "indexer.attn_k.weight";
    /// LayerNorm of its key, `[its head_dim]`.
    pub const INDEXER_K_NORM: &str = "indexer.k_norm.weight";
    /// Its bias, `[its head_dim]`.
    pub const INDEXER_K_NORM_BIAS: &str = "indexer.k_norm.bias";
    /// What weighs its heads, `[its heads, hidden_size]`.
    pub const INDEXER_PROJ: &str = "indexer.proj.weight";
    /// What its windows' positions bring, `[2 · its head_dim, hidden_size]`, what weighs that, and the bias of each position's weight.
    pub const INDEXER_COMPRESSOR_KV: &str = "indexer_compressor_kv.weight";
    /// As [`INDEXER_COMPRESSOR_KV`] says.
    pub const INDEXER_COMPRESSOR_GATE: &str = "indexer_compressor_gate.weight";
    /// `[ratio, 2 · its head_dim]`.
    pub const INDEXER_COMPRESSOR_APE: &str = "indexer_compressor_ape.weight";
    /// Norm of its entries, `[its head_dim]`.
    pub const INDEXER_COMPRESSOR_NORM: &str = "indexer_compressor_norm.weight";
    /// What windows' positions bring, `[head_dim or twice that, hidden_size]`.
    pub const ATTN_COMPRESSOR_KV: &str = "attn_compressor_kv.weight";
    /// What weighs it, the same shape.
    pub const ATTN_COMPRESSOR_GATE: &str = "attn_compressor_gate.weight";
    /// The bias of that, `[ratio, head_dim or twice that]`.
    pub const ATTN_COMPRESSOR_APE: &str = "attn_compressor_ape.weight";
    /// Norm of entries, `[head_dim]`.
    pub const ATTN_COMPRESSOR_NORM: &str = "attn_compressor_norm.weight";
    /// Keys, which are values too, `[head_dim, hidden_size]`.
    pub const ATTN_KV: &str = "attn_kv.weight";
    /// First part of o_proj, `[groups · rank, heads of a group · head_dim]`.
    pub const ATTN_OUTPUT_A: &str = "attn_output_a.weight";
    /// Its second, `[hidden_size, groups · rank]`.
    pub const ATTN_OUTPUT_B: &str = "attn_output_b.weight";
    /// How streams meet attention: `[(2 + n)·n, n · hidden_size]`.
    pub const HC_ATTN_FN: &str = "hc_attn_fn.weight";
    /// `[(2 + n)·n]`.
    pub const HC_ATTN_BASE: &str = "hc_attn_base.weight";
    /// `[3]`.
    pub const HC_ATTN_SCALE: &str = "hc_attn_scale.weight";
    /// How streams meet the feed-forward part: `[(2 + n)·n, n · hidden_size]`.
    pub const HC_FFN_FN: &str = "hc_ffn_fn.weight";
    /// `[(2 + n)·n]`.
    pub const HC_FFN_BASE: &str = "hc_ffn_base.weight";
    /// `[3]`.
    pub const HC_FFN_SCALE: &str = "hc_ffn_scale.weight";
    /// Experts of each token, `[vocab_size, num_experts_per_tok]`, I32.
    pub const FFN_GATE_TID2EID: &str = "ffn_gate_tid2eid.weight";
    /// The selection bias of a model's variant that sees images.
    pub const EXP_PROBS_B_VL: &str = "exp_probs_b_vl";
    /// q_proj's bias.
    pub const ATTN_Q_BIAS: &str = "attn_q.bias";
    /// k_proj's bias.
    pub const ATTN_K_BIAS: &str = "attn_k.bias";
    /// v_proj's bias.
    pub const ATTN_V_BIAS: &str = "attn_v.bias";
    /// Norm of queries: `[head_dim]` of each head, `[num_attention_heads · head_dim]` of the whole row.
    pub const ATTN_Q_NORM: &str = "attn_q_norm.weight";
    /// Norm of keys: `[head_dim]` of each head, `[num_key_value_heads · head_dim]` of the whole row.
    pub const ATTN_K_NORM: &str = "attn_k_norm.weight";
    /// Gate of what a recurrent layer gives, `[its heads · dim, hidden_size]`.
    pub const ATTN_GATE: &str = "attn_gate.weight";
    /// The logarithm's base of a recurrent layer's decay, −exp(A_log), `[heads]`.
    pub const SSM_A: &str = "ssm_a";
    /// What is added to a recurrent layer's time steps, `[heads]`.
    pub const SSM_DT_BIAS: &str = "ssm_dt.bias";
    /// A recurrent layer's convolution, `[channels, kernel]`.
    pub const SSM_CONV1D: &str = "ssm_conv1d.weight";
    /// Kimi delta attention's convolution of queries, `[heads · dim, kernel]`.
    pub const SSM_CONV1D_Q: &str = "ssm_conv1d_q.weight";
    /// Kimi delta attention's convolution of keys, `[heads · dim, kernel]`.
    pub const SSM_CONV1D_K: &str = "ssm_conv1d_k.weight";
    /// Kimi delta attention's convolution of values, `[heads · dim, kernel]`.
    pub const SSM_CONV1D_V: &str = "ssm_conv1d_v.weight";
    /// Kimi delta attention's decay: `[dim, hidden_size]` with [`SSM_F_B`] behind it, else `[heads · dim, hidden_size]`.
    pub const SSM_F_A: &str = "ssm_f_a.weight";
    /// The second matrix of Kimi delta attention's decay, `[heads · dim, dim]`.
    pub const SSM_F_B: &str = "ssm_f_b.weight";
    /// Kimi delta attention's gate: `[dim, hidden_size]` with [`SSM_G_B`] behind it, else `[heads · dim, hidden_size]`.
    pub const SSM_G_A: &str = "ssm_g_a.weight";
    /// The second matrix of Kimi delta attention's gate, `[heads · dim, dim]`.
    pub const SSM_G_B: &str = "ssm_g_b.weight";
    /// Time steps of a delta net, `[heads, hidden_size]`.
    pub const SSM_ALPHA: &str = "ssm_alpha.weight";
    /// Gate, inputs and time steps of mamba2, `[2 · heads · dim + 2 · groups · state + heads, hidden_size]`; in old files of
    /// Qwen3-Next queries, keys, values and gate of each key head in turn.
    pub const SSM_IN: &str = "ssm_in.weight";
    /// Bias of a recurrent layer's convolution, `[channels]`.
    pub const SSM_CONV1D_BIAS: &str = "ssm_conv1d.bias";
    /// What mamba1's time steps, B and C are made of, `[time_step_rank + 2 · state, channels]`.
    pub const SSM_X: &str = "ssm_x.weight";
    /// Mamba1's time steps, `[channels, time_step_rank]`.
    pub const SSM_DT: &str = "ssm_dt.weight";
    /// Norm of what they are made of, `[time_step_rank]`.
    pub const SSM_DT_NORM: &str = "ssm_dt_norm.weight";
    /// Norm of mamba1's B, `[state]`.
    pub const SSM_B_NORM: &str = "ssm_b_norm.weight";
    /// Norm of mamba1's C, `[state]`.
    pub const SSM_C_NORM: &str = "ssm_c_norm.weight";
    /// What of mamba2's inputs goes past the state, `[heads]`.
    pub const SSM_D: &str = "ssm_d";
    /// How much a delta net writes, `[heads, hidden_size]`.
    pub const SSM_BETA: &str = "ssm_beta.weight";
    /// Both in one tensor: for each key head the rows of beta of its value heads, then those of alpha.
    pub const SSM_BA: &str = "ssm_ba.weight";
    /// Norm of what a recurrence gives: `[dim]` of each head, or `[groups, elements of a group]`.
    pub const SSM_NORM: &str = "ssm_norm.weight";
    /// Out of a recurrent layer, `[hidden_size, heads · dim]`.
    pub const SSM_OUT: &str = "ssm_out.weight";
    /// Gate, second gate and input of a short convolution, `[3 · hidden_size, hidden_size]`.
    pub const SHORTCONV_IN_PROJ: &str = "shortconv.in_proj.weight";
    /// A short convolution, `[hidden_size, kernel]`.
    pub const SHORTCONV_CONV: &str = "shortconv.conv.weight";
    /// Out of a short convolution, `[hidden_size, hidden_size]`.
    pub const SHORTCONV_OUT_PROJ: &str = "shortconv.out_proj.weight";
    /// An extra logit a head in the softmax's denominator, `[num_attention_heads]`.
    pub const ATTN_SINKS: &str = "attn_sinks.weight";
    /// o_proj, `[hidden_size, num_attention_heads · head_dim]`.
    pub const ATTN_OUTPUT: &str = "attn_output.weight";
    /// DBRX's norm before the feed-forward part, `[hidden_size]`.
    pub const ATTN_OUTPUT_NORM: &str = "attn_output_norm.weight";
    /// o_proj's bias.
    pub const ATTN_OUTPUT_BIAS: &str = "attn_output.bias";
    /// In some architectures the norm before the feed-forward part, in others one behind attention, `[hidden_size]`.
    pub const POST_ATTENTION_NORM: &str = "post_attention_norm.weight";
    /// Norm before the feed-forward part, `[hidden_size]`.
    pub const FFN_NORM: &str = "ffn_norm.weight";
    /// Its bias.
    pub const FFN_NORM_BIAS: &str = "ffn_norm.bias";
    /// Router, `[num_experts, hidden_size]`.
    pub const FFN_GATE_INP: &str = "ffn_gate_inp.weight";
    /// Norm in front of a router that has one of its own, `[hidden_size]`.
    pub const FFN_GATE_INP_SCALE: &str = "ffn_gate_inp.scale";
    /// A factor of each expert's weight, `[num_experts]`.
    pub const FFN_DOWN_EXPS_SCALE: &str = "ffn_down_exps.scale";
    /// Norm behind the feed-forward part, `[hidden_size]`.
    pub const POST_FFW_NORM: &str = "post_ffw_norm.weight";
    /// Norm behind an MLP that stands beside experts, `[hidden_size]`.
    pub const POST_FFW_NORM_1: &str = "post_ffw_norm_1.weight";
    /// Norm before those experts, `[hidden_size]`.
    pub const PRE_FFW_NORM_2: &str = "pre_ffw_norm_2.weight";
    /// Norm behind them, `[hidden_size]`.
    pub const POST_FFW_NORM_2: &str = "post_ffw_norm_2.weight";
    /// A factor of the residual stream at the layer's end, `[1]`.
    pub const LAYER_OUTPUT_SCALE: &str = "layer_output_scale.weight";
    /// Gate of the layer's further input, `[its width, hidden_size]`.
    pub const INP_GATE: &str = "inp_gate.weight";
    /// What takes it to the hidden state, `[hidden_size, its width]`.
    pub const PROJ: &str = "proj.weight";
    /// Norm of that, `[hidden_size]`.
    pub const POST_NORM: &str = "post_norm.weight";
    /// What is added to the router's gate values for the choice, `[num_experts]`.
    pub const EXP_PROBS_B: &str = "exp_probs_b.bias";
    /// The same under the name that some converters give it.
    pub const EXP_PROBS_B_PLAIN: &str = "exp_probs_b";
    /// Bias of the router, `[num_experts]`.
    pub const FFN_GATE_INP_BIAS: &str = "ffn_gate_inp.bias";
    /// Experts' gate_proj, `[num_experts, moe_intermediate_size, hidden_size]`.
    pub const FFN_GATE_EXPS: &str = "ffn_gate_exps.weight";
    /// Experts' up_proj, `[num_experts, moe_intermediate_size, hidden_size]`.
    pub const FFN_UP_EXPS: &str = "ffn_up_exps.weight";
    /// Experts' gate_proj and up_proj in one tensor, `[num_experts, 2 · moe_intermediate_size, hidden_size]`: of each expert
    /// the rows of gate_proj, then those of up_proj.
    pub const FFN_GATE_UP_EXPS: &str = "ffn_gate_up_exps.weight";
    /// Experts' down_proj, `[num_experts, hidden_size, moe_intermediate_size]`.
    pub const FFN_DOWN_EXPS: &str = "ffn_down_exps.weight";
    /// Gate_proj of the small experts that runs of experts share, `[their number, their width, hidden_size]`.
    pub const FFN_GATE_CHEXPS: &str = "ffn_gate_chexps.weight";
    /// Their up_proj, `[their number, their width, hidden_size]`.
    pub const FFN_UP_CHEXPS: &str = "ffn_up_chexps.weight";
    /// Their down_proj, `[their number, hidden_size, their width]`.
    pub const FFN_DOWN_CHEXPS: &str = "ffn_down_chexps.weight";
    /// Biases of the experts' gate_proj, `[num_experts, moe_intermediate_size]`.
    pub const FFN_GATE_EXPS_BIAS: &str = "ffn_gate_exps.bias";
    /// Biases of the experts' up_proj, `[num_experts, moe_intermediate_size]`.
    pub const FFN_UP_EXPS_BIAS: &str = "ffn_up_exps.bias";
    /// The biases of both in one tensor, `[num_experts, 2 · moe_intermediate_size]`.
    pub const FFN_GATE_UP_EXPS_BIAS: &str = "ffn_gate_up_exps.bias";
    /// Biases of the experts' down_proj, `[num_experts, hidden_size]`.
    pub const FFN_DOWN_EXPS_BIAS: &str = "ffn_down_exps.bias";
    /// Gate of the shared expert, `[1, hidden_size]`.
    pub const FFN_GATE_INP_SHEXP: &str = "ffn_gate_inp_shexp.weight";
    /// Into the experts' narrower space, `[its width, hidden_size]`.
    pub const FFN_LATENT_DOWN: &str = "ffn_latent_down.weight";
    /// Out of it, `[hidden_size, its width]`.
    pub const FFN_LATENT_UP: &str = "ffn_latent_up.weight";
    /// The shared expert's gate_proj, `[its width, hidden_size]`.
    pub const FFN_GATE_SHEXP: &str = "ffn_gate_shexp.weight";
    /// The shared expert's up_proj, `[its width, hidden_size]`.
    pub const FFN_UP_SHEXP: &str = "ffn_up_shexp.weight";
    /// The shared expert's down_proj, `[hidden_size, its width]`.
    pub const FFN_DOWN_SHEXP: &str = "ffn_down_shexp.weight";
    /// Dense gate_proj, `[intermediate_size, hidden_size]`.
    pub const FFN_GATE: &str = "ffn_gate.weight";
    /// The first expert's gate_proj in files that hold each expert by itself.
    pub const FFN_GATE_FIRST_EXPERT: &str = "ffn_gate.0.weight";
    /// Dense up_proj, `[intermediate_size, hidden_size]`.
    pub const FFN_UP: &str = "ffn_up.weight";
    /// Dense down_proj, `[hidden_size, intermediate_size]`.
    pub const FFN_DOWN: &str = "ffn_down.weight";
}

/// `<architecture>.<rest>`: `arch_key("qwen3moe", arch::BLOCK_COUNT)` is "qwen3moe.block_count".
pub fn arch_key(architecture: &str, rest: &str) -> String {
    format!("{architecture}.{rest}")
}

/// `blk.<layer>.<rest>`: `blk(3, layer::ATTN_Q)` is "blk.3.attn_q.weight".
pub fn blk(layer: usize, rest: &str) -> String {
    format!("blk.{layer}.{rest}")
}

/// The layer and the rest of a name that [`blk`] makes; a name without a layer is all rest.
pub fn split_blk(name: &str) -> (Option<usize>, &str) {
    let in_layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match in_layer.and_then(|(layer, rest)| Some((layer.parse().ok()?, rest))) {
        Some((layer, rest)) => (Some(layer), rest),
        None => (None, name),
    }
}
