#!/usr/bin/env python3
"""Small models of architectures whose own code takes too much to carry, and their stages in float64, by the formulas of
fixtures/arch/<name>/README.md: a second evaluation beside the reference's, in plain Python, a token at a time.

    small-arch-cases.py write DIR [ARCH]   writes DIR/<arch>/tiny.gguf and tiny.stages.safetensors
    small-arch-cases.py check GGUF STAGES  evaluates a model (F32, F16, BF16, MXFP4), and compares every stage with a file of them
"""

import json
import math
import random
import struct
import sys
from pathlib import Path

import small_arch_deepseek4
from small_arch_files import F16, F32, I32, read_gguf, read_stages, write_gguf, write_stages


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b))


def rms(x, w, eps):
    r = 1 / math.sqrt(math.fsum(v * v for v in x) / len(x) + eps)
    return [v * r * g for v, g in zip(x, w)]


def silu(x):
    return x / (1 + math.exp(-x))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(x):
    top = max(x)
    e = [math.exp(v - top) for v in x]
    return [v / math.fsum(e) for v in e]


def best(values, k):
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


def rotate(x, position, freqs, half):
    out, n = list(x), len(freqs)
    for i, f in enumerate(freqs):
        a, b = (i, i + n) if half else (2 * i, 2 * i + 1)
        c, s = math.cos(position * f), math.sin(position * f)
        out[a], out[b] = x[a] * c - x[b] * s, x[b] * c + x[a] * s
    return out


class Model:
    """Keys and tensors of a file, and the stages of its tokens as they are evaluated."""

    def __init__(self, meta, tensors):
        self.arch = meta["general.architecture"]
        self.meta, self.tensors, self.rows, self.stages, self.state, self.chosen = meta, tensors, {}, {}, {}, None

    def key(self, rest, default=None):
        return self.meta.get(f"{self.arch}.{rest}", default)

    def vec(self, name):
        return self.tensors[name][1]

    def mat(self, name, expert=None):
        if (name, expert) not in self.rows:
            shape, values = self.tensors[name]
            (out, inner), at = shape[-2:], 0
            if expert is not None:
                at = expert * out * inner
            rows = [values[at + i * inner : at + (i + 1) * inner] for i in range(out)]
            self.rows[name, expert] = rows
        return self.rows[name, expert]

    def mul(self, name, x, expert=None):
        return [dot(row, x) for row in self.mat(name, expert)]

    def keep(self, stage, row):
        self.stages.setdefault(stage, []).append(list(row))

    def swiglu(self, blk, x, of="", expert=None):
        gate = self.mul(f"{blk}ffn_gate{of}.weight", x, expert)
        up = self.mul(f"{blk}ffn_up{of}.weight", x, expert)
        act = [silu(g) * u for g, u in zip(gate, up)]
        return self.mul(f"{blk}ffn_down{of}.weight", act, expert)

    def run(self, tokens):
        if self.arch == "deepseek4":
            return small_arch_deepseek4.run(self, tokens)
        eps = self.key("attention.layer_norm_rms_epsilon")
        layers = self.key("block_count") - self.key("nextn_predict_layers", 0)
        mixer, ffn = EVALUATORS[self.arch]
        for position, token in enumerate(tokens):
            x = list(self.mat("token_embd.weight")[token])
            self.keep("embedding", x)
            for i in range(layers):
                at, blk = f"layer-{i}/", f"blk.{i}."
                h = rms(x, self.vec(blk + "attn_norm.weight"), eps)
                self.keep(at + "attn_norm", h)
                out = mixer(self, i, at, blk, h, position, eps)
                self.keep(at + "attn_out", out)
                x = [a + b for a, b in zip(x, out)]
                self.keep(at + "post_attn_residual", x)
                h = rms(x, self.vec(blk + "ffn_norm.weight"), eps)
                self.keep(at + "ffn_norm", h)
                x = [a + b for a, b in zip(x, ffn(self, i, at, blk, h))]
                self.keep(at + "post_ffn_residual", x)
            x = rms(x, self.vec("output_norm.weight"), eps)
            self.keep("final_norm", x)
            self.keep("lm_head", self.mul("output.weight", x))
        stages = {name: ([len(rows), len(rows[0])], sum(rows, [])) for name, rows in self.stages.items()}
        for name in [name for name in stages if "index_" in name]:
            # A row a token, of as many positions as the last one sees.
            rows = [row + [0.0] * (len(tokens) - len(row)) for row in self.stages[name]]
            stages[name] = ([len(tokens)] * 2, sum(rows, []))
        for (i, what), rows in self.state.items():
            if what in ("conv_state", "ssm_state"):
                stages[f"layer-{i}/{what}"] = ([len(rows), len(rows[0])], sum(map(list, rows), []))
        return stages


# Mixers.


def attend(m, i, q, k, v, heads, scale, seen=None):
    """softmax(scale · q·k)·v of each head over what layer i has cached, this token's included."""
    keys, values = m.state.setdefault((i, "keys"), []), m.state.setdefault((i, "values"), [])
    keys.append(k)
    values.append(v)
    out = []
    for head in range(heads):
        group = head * len(k) // heads
        of = [p for p in range(len(keys)) if seen is None or seen[p]]
        share = softmax([scale * dot(q[head], keys[p][group]) for p in of])
        for c in range(len(v[group])):
            out.append(math.fsum(s * values[p][group][c] for s, p in zip(share, of)))
    return out


def split(x, heads):
    width = len(x) // heads
    return [x[h * width : (h + 1) * width] for h in range(heads)]


def grove_attention(m, i, at, blk, h, position, eps):
    heads, kv_heads, d = m.key("attention.head_count"), m.key("attention.head_count_kv"), m.key("attention.key_length")
    freqs = [m.key("rope.freq_base") ** (-2 * j / d) for j in range(d // 2)]
    placed = {}
    for name, n in (("q", heads), ("k", kv_heads)):
        w = m.vec(f"{blk}attn_{name}_norm.weight")
        normed = [rms(x, w, eps) for x in split(m.mul(f"{blk}attn_{name}.weight", h), n)]
        m.keep(f"{at}{name}_norm", sum(normed, []))
        placed[name] = [rotate(x, position, freqs, True) for x in normed]
        m.keep(f"{at}{name}_post_rope", sum(placed[name], []))
    v = split(m.mul(blk + "attn_v.weight", h), kv_heads)
    out = attend(m, i, placed["q"], placed["k"], v, heads, d**-0.5)
    m.keep(at + "attention", out)
    return m.mul(blk + "attn_output.weight", out)


def jamba_mixer(m, i, at, blk, h, position, eps):
    kv_heads = m.key("attention.head_count_kv")[i]
    if kv_heads:
        heads = m.key("attention.head_count")
        q, k, v = (split(m.mul(f"{blk}attn_{n}.weight", h), c) for n, c in (("q", heads), ("k", kv_heads), ("v", kv_heads)))
        out = attend(m, i, q, k, v, heads, len(q[0]) ** -0.5)
        m.keep(at + "attention", out)
        return m.mul(blk + "attn_output.weight", out)
    inner, size, rank = m.key("ssm.inner_size"), m.key("ssm.state_size"), m.key("ssm.time_step_rank")
    kernel = m.key("ssm.conv_kernel")
    both = m.mul(blk + "ssm_in.weight", h)
    x, z = both[:inner], both[inner:]
    past = m.state.setdefault((i, "conv_state"), [[0.0] * (kernel - 1) for _ in range(inner)])
    w, bias = m.vec(blk + "ssm_conv1d.weight"), m.vec(blk + "ssm_conv1d.bias")
    mixed = [silu(dot(w[c * kernel : (c + 1) * kernel], past[c] + [x[c]]) + bias[c]) for c in range(inner)]
    for c in range(inner):
        past[c] = past[c][1:] + [x[c]]
    m.keep(at + "conv_out", mixed)
    parts = m.mul(blk + "ssm_x.weight", mixed)
    parts = {"dt": parts[:rank], "b": parts[rank : rank + size], "c": parts[rank + size :]}
    for name in parts:
        parts[name] = rms(parts[name], m.vec(f"{blk}ssm_{name}_norm.weight"), eps)
        m.keep(f"{at}ssm_{name}_norm", parts[name])
    dt = m.mul(blk + "ssm_dt.weight", parts["dt"])
    a, d, dt_bias = m.vec(blk + "ssm_a"), m.vec(blk + "ssm_d"), m.vec(blk + "ssm_dt.bias")
    state = m.state.setdefault((i, "ssm_state"), [[0.0] * size for _ in range(inner)])
    out = []
    for c in range(inner):
        delta = math.log1p(math.exp(dt[c] + dt_bias[c]))
        for n in range(size):
            state[c][n] = math.exp(delta * a[c * size + n]) * state[c][n] + delta * mixed[c] * parts["b"][n]
        out.append((dot(state[c], parts["c"]) + d[c] * mixed[c]) * silu(z[c]))
    m.keep(at + "ssm_out", out)
    return m.mul(blk + "ssm_out.weight", out)


def yarn(m, n):
    """Frequencies of the rotated pairs, and what the scores' scale is multiplied by."""
    theta = m.key("rope.freq_base")
    freqs = [theta ** (-2 * j / n) for j in range(n // 2)]
    if m.key("rope.scaling.type") != "yarn":
        return freqs, 1.0
    factor, original = m.key("rope.scaling.factor"), m.key("rope.scaling.original_context_length")
    at = lambda turns: n * math.log(original / (2 * math.pi * turns)) / (2 * math.log(theta))
    low = max(0, math.floor(at(m.key("rope.scaling.yarn_beta_fast"))))
    high = min(n - 1, math.ceil(at(m.key("rope.scaling.yarn_beta_slow"))))
    ramp = [min(max((j - low) / max(high - low, 0.001), 0), 1) for j in range(n // 2)]
    stretch = 1 + m.key("rope.scaling.yarn_log_multiplier") * math.log(factor)
    return [f * (1 - r) + f / factor * r for f, r in zip(freqs, ramp)], stretch * stretch


def sparse_latent_attention(m, i, at, blk, h, position, eps):
    heads, rope, rank = m.key("attention.head_count"), m.key("rope.dimension_count"), m.key("attention.kv_lora_rank")
    head_dim, v_dim = m.key("attention.key_length_mla"), m.key("attention.value_length_mla")
    nope, latent_eps = head_dim - rope, 1e-6
    freqs, stretch = yarn(m, rope)
    qr = rms(m.mul(blk + "attn_q_a.weight", h), m.vec(blk + "attn_q_a_norm.weight"), latent_eps)
    m.keep(at + "q_a_norm", qr)
    both = m.mul(blk + "attn_kv_a_mqa.weight", h)
    c = rms(both[:rank], m.vec(blk + "attn_kv_a_norm.weight"), latent_eps)
    m.keep(at + "kv_a_norm", c)
    k_p = rotate(both[rank:], position, freqs, False)
    types = m.key("attention.indexer.types", [True] * (i + 1))
    if types[i]:
        m.chosen = indexer(m, i, at, blk, h, qr, position, freqs)
    q = split(m.mul(blk + "attn_q_b.weight", qr), heads)
    # Unabsorbed: each head's own key and value.
    w_k = [m.mat(blk + "attn_k_b.weight", head) for head in range(heads)]
    k = [[dot([row[j] for row in w_k[n]], c) for j in range(nope)] + k_p for n in range(heads)]
    v = [m.mul(blk + "attn_v_b.weight", c, n) for n in range(heads)]
    q = [x[:nope] + rotate(x[nope:], position, freqs, False) for x in q]
    out = attend(m, i, q, k, v, heads, head_dim**-0.5 * stretch, m.chosen)
    assert len(out) == heads * v_dim
    m.keep(at + "attention", out)
    return m.mul(blk + "attn_output.weight", out)


def indexer(m, i, at, blk, h, qr, position, freqs):
    heads, d, top_k = (m.key("attention.indexer." + n) for n in ("head_count", "key_length", "top_k"))
    half = m.arch == "deepseek32"
    q = [rotate(x, position, freqs, half) for x in split(m.mul(blk + "indexer.attn_q_b.weight", qr), heads)]
    k = m.mul(blk + "indexer.attn_k.weight", h)
    mean = math.fsum(k) / d
    scale = 1 / math.sqrt(math.fsum((x - mean) ** 2 for x in k) / d + 1e-6)
    w, bias = m.vec(blk + "indexer.k_norm.weight"), m.vec(blk + "indexer.k_norm.bias")
    k = [(x - mean) * scale * g + b for x, g, b in zip(k, w, bias)]
    keys = m.state.setdefault((i, "index_keys"), [])
    keys.append(rotate(k, position, freqs, half))
    w = [x / math.sqrt(heads * d) for x in m.mul(blk + "indexer.proj.weight", h)]
    scores = [math.fsum(w[n] * max(dot(q[n], key), 0) for n in range(heads)) for key in keys]
    chosen = set(best(scores, top_k))
    seen = [1.0 if p in chosen else 0.0 for p in range(len(keys))]
    m.keep(at + "index_scores", scores)
    m.keep(at + "index_selected", seen)
    return seen


# Feed-forward parts.


def grove_experts(m, i, at, blk, h):
    logits = m.mul(blk + "ffn_gate_inp.weight", h)
    m.keep(at + "moe_logits", logits)
    p, k, experts = softmax(logits), m.key("expert_used_count"), m.key("expert_count")
    ids = best(p, k)
    weights = [p[e] / math.fsum(p[e] for e in ids) for e in ids]
    m.keep(at + "moe_topk_ids", ids)
    m.keep(at + "moe_router", weights)
    each = [m.swiglu(blk, h, "_exps", e) for e in ids]
    routed = [math.fsum(w * y[j] for w, y in zip(weights, each)) for j in range(len(h))]
    m.keep(at + "moe_routed_out", routed)
    chunks = [e // m.key("experts_per_group") for e in ids[: min(k, experts // 2)]]
    shares = [p[c] / math.fsum(p[c] for c in chunks) for c in chunks]
    m.keep(at + "chunk_ids", chunks)
    m.keep(at + "chunk_weights", shares)
    each = [m.swiglu(blk, routed, "_chexps", c) for c in chunks]
    small = [math.fsum(w * y[j] for w, y in zip(shares, each)) for j in range(len(h))]
    out = [a + m.key("expert_group_scale") * b for a, b in zip(routed, small)]
    m.keep(at + "moe_ffn_out", out)
    return out


def jamba_ffn(m, i, at, blk, h):
    if blk + "ffn_gate_inp.weight" not in m.tensors:
        out = m.swiglu(blk, h)
        m.keep(at + "ffn_out", out)
        return out
    logits = m.mul(blk + "ffn_gate_inp.weight", h)
    m.keep(at + "moe_logits", logits)
    p = softmax(logits)
    ids = best(p, m.key("expert_used_count"))
    m.keep(at + "moe_topk_ids", ids)
    m.keep(at + "moe_router", [p[e] for e in ids])
    each = [m.swiglu(blk, h, "_exps", e) for e in ids]
    out = [math.fsum(p[e] * y[j] for e, y in zip(ids, each)) for j in range(len(h))]
    m.keep(at + "moe_ffn_out", out)
    return out


def deepseek_ffn(m, i, at, blk, h):
    if i < m.key("leading_dense_block_count", 0):
        out = m.swiglu(blk, h)
        m.keep(at + "ffn_out", out)
        return out
    logits = m.mul(blk + "ffn_gate_inp.weight", h)
    m.keep(at + "moe_logits", logits)
    s = [sigmoid(x) for x in logits]
    ranked = [a + b for a, b in zip(s, m.vec(blk + "exp_probs_b.bias"))]
    groups, used = m.key("expert_group_count", 1), m.key("expert_group_used_count", 1)
    if groups > 1:
        size = len(s) // groups
        scores = [sum(sorted(ranked[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        open_groups = set(best(scores, used))
        ranked = [v if e // size in open_groups else -math.inf for e, v in enumerate(ranked)]
    ids = best(ranked, m.key("expert_used_count"))
    scale = m.key("expert_weights_scale") / math.fsum(s[e] for e in ids)
    m.keep(at + "moe_topk_ids", ids)
    m.keep(at + "moe_router", [s[e] * scale for e in ids])
    each = [m.swiglu(blk, h, "_exps", e) for e in ids]
    shared = m.swiglu(blk, h, "_shexp")
    m.keep(at + "shexp_out", shared)
    out = [math.fsum(s[e] * scale * y[j] for e, y in zip(ids, each)) + shared[j] for j in range(len(h))]
    m.keep(at + "moe_ffn_out", out)
    return out


EVALUATORS = {
    "grovemoe": (grove_attention, grove_experts),
    "jamba": (jamba_mixer, jamba_ffn),
    "deepseek32": (sparse_latent_attention, deepseek_ffn),
    "glm-dsa": (sparse_latent_attention, deepseek_ffn),
}


# Small models at random.

D, VOCAB = 16, 20


def common(arch, layers):
    return {
        "general.architecture": arch,
        "block_count": layers,
        "context_length": 256,
        "embedding_length": D,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "vocab_size": VOCAB,
    }


def latent(layers):
    return {
        "feed_forward_length": 32,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "rope.freq_base": 10000.0,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_gating_func": 2,
        "expert_feed_forward_length": 8,
        "expert_shared_count": 1,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "leading_dense_block_count": 0,
        "attention.q_lora_rank": 12,
        "attention.kv_lora_rank": 16,
        "attention.key_length": 20,
        "attention.value_length": 16,
        "attention.key_length_mla": 12,
        "attention.value_length_mla": 8,
        "rope.dimension_count": 4,
        "attention.indexer.head_count": 2,
        "attention.indexer.key_length": 8,
        "attention.indexer.top_k": 4,
    }


def latent_tensors(own):
    shapes = {
        "attn_q_a": [12, D],
        "attn_q_a_norm": [12],
        "attn_q_b": [24, 12],
        "attn_kv_a_mqa": [20, D],
        "attn_kv_a_norm": [16],
        "attn_k_b": [2, 16, 8],
        "attn_v_b": [2, 8, 16],
        "attn_output": [D, 16],
        "ffn_gate_inp": [4, D],
        "exp_probs_b.bias": [4],
        "ffn_gate_shexp": [8, D],
        "ffn_up_shexp": [8, D],
        "ffn_down_shexp": [D, 8],
    }
    shapes |= experts("exps", 4)
    if own:
        shapes |= {
            "indexer.attn_q_b": [16, 12],
            "indexer.attn_k": [8, D],
            "indexer.k_norm": [8],
            "indexer.k_norm.bias": [8],
            "indexer.proj": [2, D],
        }
    return shapes


def experts(of, count, width=8):
    return {f"ffn_gate_{of}": [count, width, D], f"ffn_up_{of}": [count, width, D], f"ffn_down_{of}": [count, D, width]}


def small_models():
    grove = common("grovemoe", 1) | {
        "feed_forward_length": 32,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 8,
        "attention.value_length": 8,
        "rope.freq_base": 1000000.0,
        "expert_count": 6,
        "expert_used_count": 3,
        "expert_feed_forward_length": 8,
        "expert_chunk_feed_forward_length": 8,
        "experts_per_group": 2,
        "expert_group_scale": 0.5,
    }
    shapes = {"attn_q": [16, D], "attn_k": [8, D], "attn_v": [8, D], "attn_output": [D, 16]}
    shapes |= {"attn_q_norm": [8], "attn_k_norm": [8], "ffn_gate_inp": [6, D]}
    yield grove, [shapes | experts("exps", 6) | experts("chexps", 3)]

    jamba = common("jamba", 2) | {
        "feed_forward_length": 8,
        "attention.head_count": 2,
        "attention.head_count_kv": [0, 1],
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 20,
        "ssm.state_size": 20,
        "ssm.time_step_rank": 4,
        "expert_count": 4,
        "expert_used_count": 2,
    }
    mamba = {
        "ssm_in": [40, D],
        "ssm_conv1d": [20, 4],
        "ssm_conv1d.bias": [20],
        "ssm_x": [44, 20],
        "ssm_dt_norm": [4],
        "ssm_b_norm": [20],
        "ssm_c_norm": [20],
        "ssm_dt": [20, 4],
        "ssm_dt.bias": [20],
        "ssm_a": [20, 20],
        "ssm_d": [20],
        "ssm_out": [D, 20],
    }
    attention = {"attn_q": [D, D], "attn_k": [8, D], "attn_v": [8, D], "attn_output": [D, D]}
    dense = {"ffn_gate": [8, D], "ffn_up": [8, D], "ffn_down": [D, 8]}
    yield jamba, [mamba | dense, attention | {"ffn_gate_inp": [4, D]} | experts("exps", 4)]

    deepseek = common("deepseek32", 1) | latent(1) | {
        "expert_group_count": 2,
        "expert_group_used_count": 1,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 8.0,
        "rope.scaling.original_context_length": 32,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "rope.scaling.yarn_log_multiplier": 0.1,
    }
    yield deepseek, [latent_tensors(True)]

    glm = common("glm-dsa", 2) | latent(2) | {
        "leading_dense_block_count": 1,
        "attention.indexer.types": [True, False],
    }
    first = {k: v for k, v in latent_tensors(True).items() if not k.startswith(("ffn_", "exp_"))}
    yield glm, [first | dense | {"ffn_gate": [32, D], "ffn_up": [32, D], "ffn_down": [D, 32]}, latent_tensors(False)]


    own, layers, model = small_arch_deepseek4.small(D, VOCAB)
    yield common("deepseek4", 3) | own, layers, model


def numbers(name, shape, rng):
    """What F16 holds exactly: norms far from 1, biases that matter."""
    count = math.prod(shape)
    half = lambda x: struct.unpack("<e", struct.pack("<e", x))[0]
    if name == "ffn_gate_tid2eid":
        return [float(e) for _ in range(shape[0]) for e in rng.sample(range(4), shape[1])]
    if name == "ssm_a":
        return [half(-math.exp(rng.uniform(-1.5, 1.5))) for _ in range(count)]
    if "norm" in name and not name.endswith("bias"):
        return [half(rng.uniform(0.4, 1.8)) for _ in range(count)]
    spread = 0.4 if len(shape) == 1 else shape[-1] ** -0.5 * (2.0 if name == "ffn_gate_inp" else 1.0)
    return [half(rng.gauss(0, spread)) for _ in range(count)]


def write(folder, only=None):
    for meta, layers, *of_model in small_models():
        arch = meta.pop("general.architecture")
        if only not in (None, arch):
            continue
        named = {"general.architecture": arch, "tokenizer.ggml.model": "none"}
        named |= {f"{arch}.{key}": value for key, value in meta.items()}
        shapes = {"token_embd.weight": [VOCAB, D], "output_norm.weight": [D], "output.weight": [VOCAB, D]}
        shapes |= of_model[0] if of_model else {}
        for i, layer in enumerate(layers):
            layer = {"attn_norm": [D], "ffn_norm": [D]} | layer
            for name, shape in layer.items():
                bare = name.endswith(".bias") or name in ("ssm_a", "ssm_d")
                shapes[f"blk.{i}.{name}" + ("" if bare else ".weight")] = shape
        for seed in range(1000):
            rng = random.Random(f"{arch} {seed}")
            plain = {n: (s, numbers(n.split(".", 2)[-1].removesuffix(".weight"), s, rng)) for n, s in shapes.items()}
            tokens = [rng.randrange(VOCAB) for _ in range(18 if arch == "deepseek4" else 9)]
            model = Model(named, plain)
            stages = model.run(tokens)
            if margin(model) > 0.02:
                break
        else:
            raise SystemExit(f"{arch}: no choice without a thin margin")
        floats = ("norm", "ssm_a", "ssm_d", "conv1d", "bias", "ffn_gate_inp", "proj", "hc_", "_ape", "sinks")
        kind = lambda n: I32 if "tid2eid" in n else F32 if any(f in n for f in floats) else F16
        tensors = {n: (s, v, kind(n)) for n, (s, v) in plain.items()}
        out = Path(folder) / arch
        out.mkdir(parents=True, exist_ok=True)
        write_gguf(out / "tiny.gguf", named, tensors)
        about = {"tokens": json.dumps(tokens), "reference": "scripts/small-arch-cases.py, float64", "seed": str(seed)}
        write_stages(out / "tiny.stages.safetensors", stages, about)
        print(arch, seed, sum(f.stat().st_size for f in out.glob("tiny.*")), "bytes")


def margin(model):
    """By how much the last that is chosen stands before the first that is not, at least: of experts' logits (with a bias: of what
    it is added to), and of positions."""
    least = math.inf
    for stage, rows in model.stages.items():
        at, _, name = stage.rpartition("/")
        for t, row in enumerate(rows):
            if name == "moe_logits":
                bias = model.tensors.get(at.replace("layer-", "blk.") + ".exp_probs_b.bias")
                gate = small_arch_deepseek4.root_softplus if model.arch == "deepseek4" else sigmoid
                values = [gate(x) + b for x, b in zip(row, bias[1])] if bias else row
                chosen = model.stages[at + "/moe_topk_ids"][t]
                # With groups any two of the values may decide.
                pairs = [abs(a - b) for i, a in enumerate(values) for b in values[:i]]
                if at.replace("layer-", "blk.") + ".ffn_gate_tid2eid.weight" in model.tensors:
                    # A table chooses: only their order is open.
                    pairs = [abs(values[a] - values[b]) for i, a in enumerate(chosen) for b in chosen[:i]]
                elif model.key("expert_group_count", 1) == 1:
                    rest = [v for e, v in enumerate(values) if e not in chosen]
                    pairs = [min(values[e] for e in chosen) - max(rest)]
                least = min(least, *pairs)
            if name == "index_scores":
                seen = model.stages[at + "/index_selected"][t]
                rest = [s for s, c in zip(row, seen) if not c]
                if rest:
                    least = min(least, min(s for s, c in zip(row, seen) if c) - max(rest))
    return least


def check(gguf, path):
    stages, tokens = read_stages(path)
    found = Model(*read_gguf(gguf)).run(tokens)
    worst = 0.0
    for name, wanted in sorted(stages.items()):
        values = found[name][1]
        norm = math.sqrt(sum(x * x for x in wanted)) or 1.0
        off = math.sqrt(sum((a - b) ** 2 for a, b in zip(values, wanted, strict=True))) / norm
        worst = max(worst, off)
        if off > 1e-5:
            print(f"{name}: {off:.2e}")
    print(f"{len(stages)} stages, the worst {worst:.2e}")
    return worst > 1e-5


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", folder, *only]:
            write(folder, *only)
        case ["check", gguf, stages]:
            sys.exit(check(gguf, stages))
        case _:
            sys.exit(__doc__)
