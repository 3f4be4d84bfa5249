"""DeepSeek-V4 for small-arch-cases.py: the formulas of fixtures/arch/deepseek4/README.md, a token at a time, and a small model."""

import math


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b))


def rms(x, w, eps):
    r = 1 / math.sqrt(math.fsum(v * v for v in x) / len(x) + eps)
    return [v * r * g for v, g in zip(x, w)] if w else [v * r for v in x]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(x):
    top = max(x)
    e = [math.exp(v - top) for v in x]
    return [v / math.fsum(e) for v in e]


def best(values, k):
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


def split(x, heads):
    d = len(x) // heads
    return [x[i * d : (i + 1) * d] for i in range(heads)]


def frequencies(m, ratio):
    n = m.key("rope.dimension_count")
    theta = m.key("attention.compress_rope_freq_base") if ratio else m.key("rope.freq_base")
    plain = [theta ** (-2 * i / n) for i in range(n // 2)]
    if not ratio:
        return plain
    factor, original = m.key("rope.scaling.factor"), m.key("rope.scaling.original_context_length")
    at = lambda beta: n * math.log(original / (2 * math.pi * beta)) / (2 * math.log(theta))
    low = max(0, math.floor(at(m.key("rope.scaling.yarn_beta_fast"))))
    high = min(n - 1, math.ceil(at(m.key("rope.scaling.yarn_beta_slow"))))
    ramp = [min(max((i - low) / max(high - low, 0.001), 0), 1) for i in range(n // 2)]
    return [f * (1 - r) + f / factor * r for f, r in zip(plain, ramp)]


def turn(x, position, freqs):
    """The last elements, in adjacent pairs."""
    out, first = list(x), len(x) - 2 * len(freqs)
    for i, f in enumerate(freqs):
        a, b, c, s = first + 2 * i, first + 2 * i + 1, math.cos(position * f), math.sin(position * f)
        out[a], out[b] = x[a] * c - x[b] * s, x[b] * c + x[a] * s
    return out


def gates(m, of, x, eps):
    """pre, post and comb [j][k] of the streams x."""
    n, tiny = len(x), m.key("hyper_connection.epsilon")
    w = m.mul(of + "_fn.weight", rms(sum(x, []), None, eps))
    scale, base = m.vec(of + "_scale.weight"), m.vec(of + "_base.weight")
    part = lambda i, at, count: [w[at + j] * scale[i] + base[at + j] for j in range(count)]
    pre = [sigmoid(v) + tiny for v in part(0, 0, n)]
    if len(scale) == 1:
        return pre, None, None
    post = [2 * sigmoid(v) for v in part(1, n, n)]
    comb = [[v + tiny for v in softmax(row)] for row in split(part(2, 2 * n, n * n), n)]
    for step in range(2 * m.key("hyper_connection.sinkhorn_iterations") - 1):
        if step % 2 == 0:
            sums = [math.fsum(row[k] for row in comb) + tiny for k in range(n)]
            comb = [[v / s for v, s in zip(row, sums)] for row in comb]
        else:
            comb = [[v / (math.fsum(row) + tiny) for v in row] for row in comb]
    return pre, post, comb


def mixed(pre, x):
    return [math.fsum(p * v for p, v in zip(pre, column)) for column in zip(*x)]


def connected(x, y, post, comb):
    n = len(x)
    rows = range(len(y))
    return [[post[k] * y[i] + math.fsum(comb[j][k] * x[j][i] for j in range(n)) for i in rows] for k in range(n)]


def entry(m, i, blk, of, h, position, ratio, freqs, eps):
    """The entries so far, of what `of` names."""
    a, b = m.mul(f"{blk}{of}_kv.weight", h), m.mul(f"{blk}{of}_gate.weight", h)
    b = [v + w for v, w in zip(b, m.mat(f"{blk}{of}_ape.weight")[position % ratio])]
    brought = m.state.setdefault((i, of), [])
    brought.append((a, b))
    entries = m.state.setdefault((i, of + " entries"), [])
    if (position + 1) % ratio == 0:
        first, d = position + 1 - ratio, len(m.vec(f"{blk}{of}_norm.weight"))
        overlaps, out = ratio == 4, []
        for c in range(d):
            slots = [(p, c) for p in range(first - ratio, first)] if overlaps and first > 0 else []
            slots += [(p, c + d if overlaps else c) for p in range(first, position + 1)]
            shares = softmax([brought[p][1][j] for p, j in slots])
            out.append(math.fsum(s * brought[p][0][j] for s, (p, j) in zip(shares, slots)))
        entries.append(turn(rms(out, m.vec(f"{blk}{of}_norm.weight"), eps), first, freqs))
    return entries


def attention(m, i, at, blk, h, position, eps):
    ratio, heads = m.key("attention.compress_ratios")[i], m.key("attention.head_count")
    freqs = frequencies(m, ratio)
    latent = rms(m.mul(blk + "attn_q_a.weight", h), m.vec(blk + "attn_q_a_norm.weight"), eps)
    q = [turn(rms(x, None, eps), position, freqs) for x in split(m.mul(blk + "attn_q_b.weight", latent), heads)]
    kv = rms(m.mul(blk + "attn_kv.weight", h), m.vec(blk + "attn_kv_a_norm.weight"), eps)
    cache = m.state.setdefault((i, "kv"), [])
    cache.append(turn(kv, position, freqs))
    seen = cache[-m.key("attention.sliding_window") :]
    if ratio:
        entries = entry(m, i, blk, "attn_compressor", h, position, ratio, freqs, eps)
        if ratio == 4:
            entries = [e for e, s in zip(entries, indexer(m, i, at, blk, h, latent, position, freqs, eps)) if s]
        seen = seen + entries
    d, sinks, out = len(kv), m.vec(blk + "attn_sinks.weight"), []
    for x, sink in zip(q, sinks):
        shares = softmax([dot(x, k) / math.sqrt(d) for k in seen] + [sink])
        out.append(turn([math.fsum(s * k[j] for s, k in zip(shares, seen)) for j in range(d)], -position, freqs))
    groups, rank = m.key("attention.output_group_count"), m.key("attention.output_lora_rank")
    rows = m.mat(blk + "attn_output_a.weight")
    low = [dot(rows[g * rank + r], x) for g, x in enumerate(split(sum(out, []), groups)) for r in range(rank)]
    return m.mul(blk + "attn_output_b.weight", low)


def indexer(m, i, at, blk, h, latent, position, freqs, eps):
    heads, d, top_k = (m.key("attention.indexer." + n) for n in ("head_count", "key_length", "top_k"))
    q = [turn(x, position, freqs) for x in split(m.mul(blk + "indexer.attn_q_b.weight", latent), heads)]
    entries = entry(m, i, blk, "indexer_compressor", h, position, 4, freqs, eps)
    w = [x / math.sqrt(heads * d) for x in m.mul(blk + "indexer.proj.weight", h)]
    scores = [math.fsum(w[n] * max(dot(q[n], e), 0) for n in range(heads)) for e in entries]
    chosen = set(best(scores, top_k))
    seen = [1.0 if e in chosen else 0.0 for e in range(len(entries))]
    m.keep(at + "index_scores", scores)
    m.keep(at + "index_selected", seen)
    return seen


def root_softplus(x):
    return math.sqrt(max(x, 0) + math.log1p(math.exp(-abs(x))))


def ffn(m, i, at, blk, h, token):
    def swiglu(of, limit, expert=None):
        gate = [min(x, limit) for x in m.mul(f"{blk}ffn_gate{of}.weight", h, expert)]
        up = [min(max(x, -limit), limit) for x in m.mul(f"{blk}ffn_up{of}.weight", h, expert)]
        return m.mul(f"{blk}ffn_down{of}.weight", [g * sigmoid(g) * u for g, u in zip(gate, up)], expert)

    logits = m.mul(blk + "ffn_gate_inp.weight", h)
    m.keep(at + "moe_logits", logits)
    s = [root_softplus(x) for x in logits]
    if i < m.key("hash_layer_count"):
        ids = sorted(m.mat(blk + "ffn_gate_tid2eid.weight")[token], key=lambda e: -s[int(e)])
    else:
        ids = best([a + b for a, b in zip(s, m.vec(blk + "exp_probs_b.bias"))], m.key("expert_used_count"))
    ids = [int(e) for e in ids]
    scale = m.key("expert_weights_scale") / math.fsum(s[e] for e in ids)
    m.keep(at + "moe_topk_ids", ids)
    m.keep(at + "moe_router", [s[e] * scale for e in ids])
    each = [swiglu("_exps", m.key("swiglu_clamp_exp")[i], e) for e in ids]
    shared = swiglu("_shexp", m.key("swiglu_clamp_shexp")[i])
    out = [math.fsum(s[e] * scale * y[j] for e, y in zip(ids, each)) + shared[j] for j in range(len(h))]
    m.keep(at + "moe_ffn_out", out)
    return out


def run(m, tokens):
    eps = m.key("attention.layer_norm_rms_epsilon")
    for position, token in enumerate(tokens):
        x = list(m.mat("token_embd.weight")[token])
        m.keep("embedding", x)
        x = [x] * m.key("hyper_connection.count")
        for i in range(m.key("block_count")):
            at, blk = f"layer-{i}/", f"blk.{i}."
            pre, post, comb = gates(m, blk + "hc_attn", x, eps)
            h = rms(mixed(pre, x), m.vec(blk + "attn_norm.weight"), eps)
            out = attention(m, i, at, blk, h, position, eps)
            m.keep(at + "attn_out", out)
            x = connected(x, out, post, comb)
            pre, post, comb = gates(m, blk + "hc_ffn", x, eps)
            h = rms(mixed(pre, x), m.vec(blk + "ffn_norm.weight"), eps)
            x = connected(x, ffn(m, i, at, blk, h, token), post, comb)
        h = rms(mixed(gates(m, "output_hc", x, eps)[0], x), m.vec("output_norm.weight"), eps)
        m.keep("final_norm", h)
        m.keep("lm_head", m.mul("output.weight", h))
    stages = {}
    for name, rows in m.stages.items():
        width = len(tokens) // 4 if "index_" in name else len(rows[0])
        stages[name] = ([len(rows), width], sum((row + [0.0] * (width - len(row)) for row in rows), []))
    return stages


def small(D, vocab):
    """Keys, and the shapes of each layer's tensors and of the model's own."""
    meta = {
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 8,
        "attention.value_length": 8,
        "attention.q_lora_rank": 12,
        "attention.sliding_window": 5,
        "attention.indexer.head_count": 2,
        "attention.indexer.key_length": 8,
        "attention.indexer.top_k": 2,
        "attention.output_group_count": 2,
        "attention.output_lora_rank": 4,
        "attention.compress_ratios": [0, 4, 128, 0],
        "attention.compress_rope_freq_base": 160000.0,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": 4,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "hyper_connection.count": 2,
        "hyper_connection.sinkhorn_iterations": 3,
        "hyper_connection.epsilon": 1e-3,
        "hash_layer_count": 1,
        "embedding_length_out": 2 * D,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_gating_func": 4,
        "expert_feed_forward_length": 8,
        "expert_shared_count": 1,
        "expert_weights_scale": 1.5,
        "expert_weights_norm": True,
        "swiglu_clamp_exp": [0.5, 0.5, 0.5],
        "swiglu_clamp_shexp": [0.25, 0.25, 0.25],
    }
    every = {
        "attn_q_a": [12, D],
        "attn_q_a_norm": [12],
        "attn_q_b": [16, 12],
        "attn_kv": [8, D],
        "attn_kv_a_norm": [8],
        "attn_sinks": [2],
        "attn_output_a": [8, 8],
        "attn_output_b": [D, 8],
        "ffn_gate_inp": [4, D],
        "ffn_gate_shexp": [8, D],
        "ffn_up_shexp": [8, D],
        "ffn_down_shexp": [D, 8],
        "ffn_gate_exps": [4, 8, D],
        "ffn_up_exps": [4, 8, D],
        "ffn_down_exps": [4, D, 8],
    }
    for of in ("hc_attn", "hc_ffn"):
        every |= {of + "_fn": [8, 2 * D], of + "_base": [8], of + "_scale": [3]}

    def compressor(of, ratio):
        rows = 16 if ratio == 4 else 8
        return {f"{of}_kv": [rows, D], f"{of}_gate": [rows, D], f"{of}_ape": [ratio, rows], f"{of}_norm": [8]}

    bias = {"exp_probs_b.bias": [4]}
    first = every | {"ffn_gate_tid2eid": [vocab, 2]}
    second = every | bias | compressor("attn_compressor", 4) | compressor("indexer_compressor", 4)
    second |= {"indexer.attn_q_b": [16, 12], "indexer.proj": [2, D]}
    model = {"output_hc_fn.weight": [2, 2 * D], "output_hc_base.weight": [2], "output_hc_scale.weight": [1]}
    return meta, [first, second, every | bias | compressor("attn_compressor", 128)], model
