"""A random Qwen3-MoE model in both forms: a transformers directory and an F32 GGUF file of the same weights.

    random_qwen3_moe.py DIRECTORY        writes DIRECTORY/hf and DIRECTORY/model.gguf
"""
import sys
from pathlib import Path

import gguf
import torch
import transformers
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

ROPE_THETA = 50000.0
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
}

root = Path(sys.argv[1])
torch.manual_seed(7)
new_rope = int(transformers.__version__.split(".")[0]) >= 5
rope = {"rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA}} if new_rope else {"rope_theta": ROPE_THETA}
config = Qwen3MoeConfig(
    vocab_size=160, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    num_experts=8, num_experts_per_tok=3, moe_intermediate_size=96, intermediate_size=128, norm_topk_prob=True,
    decoder_sparse_step=1, mlp_only_layers=[], max_position_embeddings=256, rms_norm_eps=1e-6,
    tie_word_embeddings=False, **rope,
)
model = Qwen3MoeForCausalLM(config)
with torch.no_grad():
    for name, weight in model.named_parameters():
        # Norms far from 1 and apart from each other, so that a skipped one shows; products of about unit size.
        if weight.dim() == 1:
            weight.copy_(0.5 + torch.rand_like(weight) * (2.0 if "k_norm" in name else 1.0))
        else:
            weight.copy_(torch.randn_like(weight) * (1.0 if "embed" in name else weight.shape[-1] ** -0.5))
model.save_pretrained(root / "hf")
state = model.state_dict()

writer = gguf.GGUFWriter(root / "model.gguf", "qwen3moe")
writer.add_block_count(config.num_hidden_layers)
writer.add_context_length(config.max_position_embeddings)
writer.add_embedding_length(config.hidden_size)
writer.add_feed_forward_length(config.intermediate_size)
writer.add_expert_feed_forward_length(config.moe_intermediate_size)
writer.add_head_count(config.num_attention_heads)
writer.add_head_count_kv(config.num_key_value_heads)
writer.add_key_length(config.head_dim)
writer.add_value_length(config.head_dim)
writer.add_expert_count(config.num_experts)
writer.add_expert_used_count(config.num_experts_per_tok)
writer.add_rope_freq_base(ROPE_THETA)
writer.add_layer_norm_rms_eps(config.rms_norm_eps)
writer.add_vocab_size(config.vocab_size)


def put(name, weight):
    writer.add_tensor(name, weight.to(torch.float32).contiguous().numpy())


put("token_embd.weight", state["model.embed_tokens.weight"])
put("output_norm.weight", state["model.norm.weight"])
put("output.weight", state["lm_head.weight"])
for layer in range(config.num_hidden_layers):
    of = f"model.layers.{layer}"
    for part, name in PARTS.items():
        put(f"blk.{layer}.{name}.weight", state[f"{of}.{part}.weight"])
    fused = state.get(f"{of}.mlp.experts.gate_up_proj")
    if fused is not None:
        gate, up = fused.chunk(2, dim=1)
        down = state[f"{of}.mlp.experts.down_proj"]
    else:
        gate, up, down = (
            torch.stack([state[f"{of}.mlp.experts.{e}.{part}.weight"] for e in range(config.num_experts)])
            for part in ("gate_proj", "up_proj", "down_proj")
        )
    for name, weight in (("gate", gate), ("up", up), ("down", down)):
        put(f"blk.{layer}.ffn_{name}_exps.weight", weight)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
