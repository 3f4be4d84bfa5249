#!/usr/bin/env python3
"""Dumps the stages of a transformers Qwen3 or Qwen3-MoE run into a safetensors file for `moe-run parity --against`.

    dump-transformers-stages.py MODEL --tokens 1,2,3 -o stages.safetensors

MODEL is a directory (or hub name) of a model, or a .gguf file, which transformers dequantizes.
Needs torch, transformers and safetensors (and gguf and accelerate for a .gguf file).
"""
import argparse
import json
import os

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3_moe


def load(path):
    # The keyword's name changed with 4.56.
    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    kwargs = {"dtype" if release >= (4, 56) else "torch_dtype": torch.float64, "attn_implementation": "eager"}
    if release >= (5, 0):
        kwargs["experts_implementation"] = "eager"  # the grouped product takes no float64
    if not path.endswith(".gguf"):
        return AutoModelForCausalLM.from_pretrained(path, **kwargs)
    folder, name = os.path.split(os.path.abspath(path))
    config = AutoConfig.from_pretrained(folder, gguf_file=name)
    # transformers maps no key of a GGUF file to the experts' width and would take Qwen3MoeConfig's default.
    from gguf import GGUFReader

    width = GGUFReader(path).fields.get("qwen3moe.expert_feed_forward_length")
    if width is not None:
        config.moe_intermediate_size = int(width.contents())
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, config=config, **kwargs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", required=True, help="ids, separated by commas")
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    tokens = [int(t) for t in args.tokens.split(",")]
    count = len(tokens)
    model = load(args.model).eval()
    stages = {}

    def keep(name, value):
        stages[name] = value.detach().reshape(count, -1).to(torch.float32).contiguous()

    def on(module, name, take=lambda inputs, output: output):
        module.register_forward_hook(lambda _, inputs, output: keep(name, take(inputs, output)))

    def first(_, output):
        return output[0] if isinstance(output, tuple) else output

    def chosen(at, _, ids, weights):
        keep(f"{at}/moe_topk_ids", ids)
        keep(f"{at}/moe_router", weights)

    on(model.model.embed_tokens, "embedding")
    on(model.model.norm, "final_norm")
    on(model.lm_head, "lm_head")
    current = {}
    for index, layer in enumerate(model.model.layers):
        at = f"layer-{index}"
        attention = layer.self_attn
        on(layer.input_layernorm, f"{at}/attn_norm")
        for part in ("q_proj", "k_proj", "v_proj"):
            on(getattr(attention, part), f"{at}/{part}")
        on(attention.q_norm, f"{at}/q_norm")
        on(attention.k_norm, f"{at}/k_norm")
        on(attention.o_proj, f"{at}/attention", lambda inputs, _: inputs[0])
        on(attention.o_proj, f"{at}/attn_out")
        on(layer.post_attention_layernorm, f"{at}/post_attn_residual", lambda inputs, _: inputs[0])
        on(layer.post_attention_layernorm, f"{at}/ffn_norm")
        on(layer.mlp, f"{at}/moe_ffn_out" if hasattr(layer.mlp, "gate") else f"{at}/ffn_out", first)
        on(layer, f"{at}/post_ffn_residual", first)
        attention.register_forward_pre_hook(lambda *_, i=index: current.update(layer=i))
        if hasattr(layer.mlp, "gate"):
            router = layer.mlp.gate
            # The logits by the router's own weight: what the gate module returns differs between releases.
            router.register_forward_hook(
                lambda m, inputs, _, at=at: keep(f"{at}/moe_logits", inputs[0].reshape(count, -1) @ m.weight.T)
            )
            # Where the experts are one module, it is given what the router chose.
            layer.mlp.experts.register_forward_pre_hook(lambda _, inputs, at=at: chosen(at, *inputs))

    # RoPE and the softmax are functions: wrapped for the time of the run.
    modules = [qwen3_moe]
    try:
        from transformers.models.qwen3 import modeling_qwen3

        modules.append(modeling_qwen3)
    except ImportError:
        pass
    for module in modules:
        rope, eager = module.apply_rotary_pos_emb, module.eager_attention_forward

        def apply(q, k, *rest, rope=rope, **named):
            q, k = rope(q, k, *rest, **named)
            at = f"layer-{current['layer']}"
            keep(f"{at}/q_post_rope", q[0].transpose(0, 1))
            keep(f"{at}/k_post_rope", k[0].transpose(0, 1))
            return q, k

        def attend(*inputs, eager=eager, **named):
            output, weights = eager(*inputs, **named)
            stages[f"layer-{current['layer']}/attn_softmax"] = weights[0].detach().to(torch.float32).contiguous()
            return output, weights

        module.apply_rotary_pos_emb, module.eager_attention_forward = apply, attend

    with torch.no_grad():
        model(torch.tensor([tokens]), use_cache=False)

    for index, layer in enumerate(model.model.layers):
        at = f"layer-{index}"
        parts = [stages.pop(f"{at}/{part}") for part in ("q_proj", "k_proj", "v_proj")]
        stages[f"{at}/qkv_matmul"] = torch.cat(parts, dim=1).contiguous()
        if f"{at}/moe_logits" in stages and f"{at}/moe_topk_ids" not in stages:
            # Older releases choose in the block's forward, out of sight: by its own steps.
            config = model.config
            gate = torch.softmax(stages[f"{at}/moe_logits"].double(), dim=-1)
            weights, ids = torch.topk(gate, config.num_experts_per_tok, dim=-1)
            if config.norm_topk_prob:
                weights = weights / weights.sum(dim=-1, keepdim=True)
            stages[f"{at}/moe_topk_ids"] = ids.to(torch.float32).contiguous()
            stages[f"{at}/moe_router"] = weights.to(torch.float32).contiguous()
    metadata = {"tokens": json.dumps(tokens), "reference": "Hugging Face transformers, float64"}
    save_file(stages, args.output, metadata=metadata)
    print(f"{args.output}: {len(stages)} stages of {count} tokens")


if __name__ == "__main__":
    main()
