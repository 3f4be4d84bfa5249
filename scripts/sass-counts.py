#!/usr/bin/env python3
"""Counts the instructions of the decode step's kernels in their machine code; no GPU and no CUDA installation is needed.

The kernels are compiled as scripts/nvrtc-check.py does it (same PTX, with line numbers), translated by ptxas and listed by
nvdisasm (wheel nvidia-cuda-nvdisasm 13.5.37). Of each kernel and format the loop over chunks is counted: 2 chunks of 32
elements a lane and row, so 2048 elements of each row a warp. Both sides of branches in it count: a warp whose lanes part runs both.

  scripts/sass-counts.py            compare with kernels/sass-table.txt; exit 1 where it differs
  scripts/sass-counts.py --update   write it
"""
import argparse
import collections
import hashlib
import importlib.util
import json
import multiprocessing
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("nvrtc_check", HERE / "nvrtc-check.py")
nvrtc = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nvrtc)

NVDISASM = ("nvidia-cuda-nvdisasm", "13.5.37")
SOURCES = ["norm_matmul", "matmul_residual", "route_gate_up", "router_gate_up", "down_combine", "gate_up", "gated_matmul"]
# Chips, and the embedded PTX that their driver translates.
CHIPS = {86: 80, 89: 80, 90: 90, 120: 90}
FORMATS = ["Q4_K", "Q5_K", "Q6_K", "Q8_0", "MXFP4"]
PRODUCTS = 16  # dot products of four bytes of a row in an iteration: 2 chunks of 32 elements
NORM_FOURS = 8  # kernels/common/staged.cuh
# Instructions of the pipe that takes a warp in two cycles (integers, logic, shifts, comparisons, minima, byte permutations).
HALF_RATE = re.compile(r"^(IADD3?|VIADD|VIMNMX|LOP3?|SHF|SHL|SHR|ISETP|PRMT|SEL|FSEL|FSETP|FMNMX|IMNMX|LEA|PLOP3|BMSK|SGXT|ISCADD|"
                       r"IABS|MOV|P2R|R2P|FLO|POPC|CSEL|FCHK)\b")


def functions(path):
    """For each line of a source the function or struct that it stands in."""
    names, now, struct = [None], None, None
    for line in path.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"struct (\w+)", line):
            struct = now = found.group(1)
        elif found := re.match(r"(?:template.*> )?(?:static )?(?:DEVICE|inline)\b[^(]*?(\w+)\(", line):
            struct, now = None, found.group(1)
        names.append(struct or now)
    return names


def instructions(listing):
    """The first function of a listing: (opcode, operands, predicate, [(file, line), …]) of each instruction, and labels."""
    code, labels, frames, fresh = [], {}, [], True
    for line in listing.splitlines():
        if line.startswith("\t.section\t.text.") and code:
            break
        if found := re.match(r'\s*//## File "([^"]+)", line (\d+)', line):
            frames = [] if fresh else frames
            fresh = False
            frames.append((found.group(1).split("/")[-1], int(found.group(2))))
        elif found := re.match(r"(\.L_x_\d+):", line):
            labels[found.group(1)] = len(code)
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?);", line):
            code.append((found.group(2), found.group(3), found.group(1), tuple(frames)))
            fresh = True
    return code, labels


def loops(code, labels):
    """First and last instruction of each loop: what a branch backwards spans, but for those out of a warp's slow paths."""
    found = {}
    for i, (op, operands, predicate, _) in enumerate(code):
        target = re.search(r"\.L_x_\d+", operands)
        if op.split(".")[0] != "BRA" or not target:
            continue
        first = labels[target.group(0)]
        slow = not predicate and any(code[j][0].startswith("WARPSYNC") for j in range(max(0, i - 12), i))
        if first < i and not slow:
            found[first] = max(found.get(first, 0), i)
    return sorted(found.items())


def count(code):
    """Instructions, of them half-rate ones, loads of 16 bytes, other loads from global memory."""
    ops = [op for op, _, _, _ in code if not op.startswith("NOP")]
    loads = [op for op in ops if op.startswith("LDG")]
    wide = sum("128" in op for op in loads)
    return [len(ops), sum(bool(HALF_RATE.match(op)) for op in ops), wide, len(loads) - wide]


def measure(listing, source):
    """What → count, of one kernel."""
    code, labels = instructions(listing)
    files = {p.name: functions(p) for p in [source, *nvrtc.headers_of(source, set())]}
    inside = [{files[f][n] for f, n in frames if f in files and n < len(files[f])} for _, _, _, frames in code]
    spans, rows = loops(code, labels), {}

    def keep(what, counted):
        # Where a kernel has several copies of a loop, the longest.
        if what not in rows or counted > rows[what]:
            rows[what] = counted

    for first, last in spans:
        body, names = code[first : last + 1], collections.Counter(n for s in inside[first : last + 1] for n in s)
        if any((f, l) != (first, last) and first <= f and l <= last for f, l in spans):
            continue
        products = sum(op.startswith("IDP") for op, _, _, _ in body)
        if names["lane_dot_chunks"] and products and products % PRODUCTS == 0:
            name = max(FORMATS, key=lambda f: names[f])
            if names[name]:
                keep(f"{name} x{products // PRODUCTS}", count(body))
        elif names["stage_q8_by"] and not names["lane_dot_chunks"]:
            quads = max(1, sum(op.startswith("F2I") for op, _, _, _ in body) // 4)
            keep("stage", [round(n / quads) for n in count(body)])
        elif names["warp_best"]:
            counted = count(body)
            if "choose" not in rows or counted < rows["choose"]:
                rows["choose"] = counted # of the fewest experts
    norm = [i for i, names in enumerate(inside) if "stage_normed" in names and "post_normed" not in names]
    if norm:
        rows["norm"] = [round(n / NORM_FOURS) for n in count([code[i] for i in norm])]
    return rows


def listed(job):
    """The rows of one source on one chip, kept under --wheels by the hash of what they come from."""
    wheels, source, chip = job
    path = nvrtc.KERNELS / f"{source}.cu"
    headers = b"".join(p.read_bytes() for p in sorted(nvrtc.headers_of(path, set())))
    tool = pathlib.Path(__file__).read_bytes()
    kept = wheels / "kept" / (hashlib.sha256(repr((chip, source)).encode() + tool + headers + path.read_bytes()).hexdigest() + ".sass")
    kept.parent.mkdir(exist_ok=True)
    if not kept.exists():
        nvrtc.OPTIONS.append("-lineinfo")
        ptx, cubin = kept.with_suffix(".ptx"), kept.with_suffix(".cubin")
        ptx.write_text(nvrtc.Nvrtc(nvrtc.wheel(wheels, *nvrtc.OLD)).compile(path, CHIPS[chip]))
        ptxas = nvrtc.wheel(wheels, *nvrtc.PTXAS) / "nvidia/cuda_nvcc/bin/ptxas"
        subprocess.run([ptxas, "-lineinfo", f"--gpu-name=sm_{chip}", "-o", cubin, ptx], check=True)
        nvdisasm = nvrtc.wheel(wheels, *NVDISASM) / "nvidia/cu13/bin/nvdisasm"
        listing = subprocess.run([nvdisasm, "-c", "-gi", cubin], check=True, capture_output=True, text=True).stdout
        kept.write_text(json.dumps(measure(listing, path)))
        ptx.unlink()
        cubin.unlink()
    return json.loads(kept.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--jobs", type=int, default=4, help="processes at a time")
    parser.add_argument("--wheels", type=pathlib.Path, default=nvrtc.ROOT / "target/nvrtc")
    args = parser.parse_args()
    for needed in (nvrtc.OLD, nvrtc.PTXAS, NVDISASM):
        nvrtc.wheel(args.wheels, *needed)
    for tool in ("ptxas", "nvdisasm"):
        for found in args.wheels.glob(f"*/nvidia/*/bin/{tool}"):
            found.chmod(0o755)
    hashed = nvrtc.sources_hash()
    jobs = [(args.wheels, source, chip) for chip in CHIPS for source in SOURCES]
    with multiprocessing.Pool(args.jobs, maxtasksperchild=1) as pool:
        done = dict(zip([(s, c) for _, s, c in jobs], pool.map(listed, jobs, chunksize=1)))
    if nvrtc.sources_hash() != hashed:
        raise SystemExit("the sources were changed meanwhile: nothing was compared or written, run it again")
    lines = ["# instructions/half-rate ones/16-byte loads/other global loads, by ptxas 12.9.86 and nvdisasm 13.5.37;",
             "# scripts/sass-counts.py --update. FORMAT xR: the loop over chunks of R rows, 2 chunks a lane and row. stage: four",
             "# elements a thread put in 8 bits; norm: the same with a norm; choose: one expert chosen by one warp.",
             f"# sources {hashed}",
             f"{'kernel':17}{'what':10}" + "".join(f"sm_{chip}".rjust(16) for chip in CHIPS)]
    for source in SOURCES:
        whats = sorted({what for chip in CHIPS for what in done[source, chip]})
        for what in whats:
            cells = ["/".join(map(str, done[source, chip].get(what, ["-"]))).rjust(16) for chip in CHIPS]
            lines.append(f"{source:17}{what.replace(' ', '.'):10}" + "".join(cells))
    table, path = "\n".join(lines) + "\n", nvrtc.KERNELS / "sass-table.txt"
    if args.update:
        path.write_text(table)
    elif not path.exists() or path.read_text() != table:
        print("kernels/sass-table.txt differs:\n" + table, file=sys.stderr)
        return 1
    print(f"{len(SOURCES)} kernels, {len(CHIPS)} chips, {len(lines) - 5} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
