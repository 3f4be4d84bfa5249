"""GGUF files and files of stages (safetensors), as small-arch-cases.py reads and writes them."""

import json
import math
import struct
from pathlib import Path

F32, F16, I32, BF16, MXFP4 = 0, 1, 26, 30, 39


def read_gguf(path):
    data = Path(path).read_bytes()
    at = 24
    tensors, keys = struct.unpack_from("<QQ", data, 8)
    sizes = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def take(code):
        nonlocal at
        value = struct.unpack_from("<" + code, data, at)
        at += struct.calcsize("<" + code)
        return value[0]

    def string():
        nonlocal at
        length = take("Q")
        at += length
        return data[at - length : at].decode()

    def value(kind):
        if kind == 8:
            return string()
        if kind == 9:
            of = take("I")
            return [value(of) for _ in range(take("Q"))]
        return take(sizes[kind])

    meta = {}
    for _ in range(keys):
        name = string()
        meta[name] = value(take("I"))
    infos = []
    for _ in range(tensors):
        name = string()
        dims = [take("Q") for _ in range(take("I"))]
        kind, offset = take("I"), take("Q")
        infos.append((name, dims[::-1], kind, offset))
    base = (at + 31) // 32 * 32
    out = {}
    for name, shape, kind, offset in infos:
        count = math.prod(shape)
        out[name] = (shape, decoded(data, base + offset, kind, count))
    return meta, out


def decoded(data, at, kind, count):
    if kind == BF16:
        halves = struct.unpack_from(f"<{count}H", data, at)
        return list(struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *[h << 16 for h in halves])))
    if kind == MXFP4:
        magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
        values = magnitudes + [-x for x in magnitudes]
        out = []
        for block in range(count // 32):
            exponent, *codes = data[at + 17 * block : at + 17 * (block + 1)]
            for shift in (0, 4):
                out += [values[code >> shift & 15] * 2.0 ** (exponent - 127) for code in codes]
        return out
    code = {F32: "f", F16: "e", I32: "i"}[kind]
    return list(struct.unpack_from(f"<{count}{code}", data, at))


def write_gguf(path, meta, tensors):
    def string(text):
        return struct.pack("<Q", len(text.encode())) + text.encode()

    def value(v):
        if isinstance(v, bool):
            return 7, struct.pack("<?", v)
        if isinstance(v, int):
            return 4, struct.pack("<I", v)
        if isinstance(v, float):
            return 6, struct.pack("<f", v)
        if isinstance(v, str):
            return 8, string(v)
        kind = value(v[0])[0]
        return 9, struct.pack("<IQ", kind, len(v)) + b"".join(value(x)[1] for x in v)

    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta))
    for key, v in meta.items():
        kind, body = value(v)
        out += string(key) + struct.pack("<I", kind) + body
    body = b""
    for name, (shape, values, kind) in tensors.items():
        body += bytes(-len(body) % 32)
        out += string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        out += struct.pack("<IQ", kind, len(body))
        code = {F32: "f", F16: "e", I32: "i"}[kind]
        body += struct.pack(f"<{len(values)}{code}", *(map(int, values) if kind == I32 else values))
    Path(path).write_bytes(out + bytes(-len(out) % 32) + body)


def write_stages(path, stages, meta):
    head, body = {"__metadata__": meta}, b""
    for name, (shape, values) in sorted(stages.items()):
        data = struct.pack(f"<{len(values)}f", *values)
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + body)


def read_stages(path):
    data = Path(path).read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    head = json.loads(data[8 : 8 + length])
    meta = head.pop("__metadata__")
    stages = {}
    for name, info in head.items():
        begin, end = info["data_offsets"]
        stages[name] = struct.unpack_from(f"<{(end - begin) // 4}f", data, 8 + length + begin)
    return stages, json.loads(meta["tokens"])


# Arithmetic.
