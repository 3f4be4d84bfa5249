#!/usr/bin/env python3
"""Compiles every kernels/*.cu with NVRTC and measures it with ptxas; no GPU and no CUDA installation is needed.

The compilers come from PyPI wheels (nvidia-cuda-nvrtc-cu12 12.2.140 and 12.9.86, nvidia-cuda-nvcc-cu12 12.9.86), which are
unpacked under --wheels (default: target/nvrtc) on first use.

  scripts/nvrtc-check.py            compile all, compare PTX and table with the committed ones; exit 1 where they differ
  scripts/nvrtc-check.py --update   write kernels/ptx/*.ptx.z (deflated) and kernels/ptxas-table.txt

PTX made by NVRTC 12.2 loads on any driver from CUDA 12.2 on; sm_100 and sm_120 are checked with the newer NVRTC, whose
PTX is not embedded: the driver compiles the older text for them.
"""
import argparse
import ctypes
import hashlib
import json
import multiprocessing
import pathlib
import re
import subprocess
import sys
import zipfile
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
OLD, NEW, PTXAS = ("nvidia-cuda-nvrtc-cu12", "12.2.140"), ("nvidia-cuda-nvrtc-cu12", "12.9.86"), ("nvidia-cuda-nvcc-cu12", "12.9.86")
EMBEDDED = [75, 80, 90]  # compute capabilities whose PTX is committed: it loads on these and all later chips
NEWER = [100, 120]       # compiled and measured with the newer NVRTC
OPTIONS = ["--std=c++17"]


def wheel(base, name, version):
    """The directory of an unpacked wheel, fetched through pip if it is not there."""
    target = base / f"{name}-{version}"
    if not target.exists():
        base.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(base),
                        f"{name}=={version}"], check=True)
        found = list(base.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
        with zipfile.ZipFile(found[0]) as archive:
            archive.extractall(target)
    return target


class Nvrtc:
    def __init__(self, directory):
        lib = directory / "nvidia/cuda_nvrtc/lib"
        # The builtins library is opened by name when a program is compiled: load it first.
        for builtins in sorted(lib.glob("libnvrtc-builtins.so*")):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(str(lib / "libnvrtc.so.12"))

    def compile(self, path, arch):
        program = ctypes.c_void_p()
        source = path.read_bytes()
        self.check(self.lib.nvrtcCreateProgram(ctypes.byref(program), source, path.name.encode(), 0, None, None))
        options = [f"--gpu-architecture=compute_{arch}", f"--include-path={KERNELS}"] + OPTIONS
        array = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        code = self.lib.nvrtcCompileProgram(program, len(options), array)
        size = ctypes.c_size_t()
        self.lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self.lib.nvrtcGetProgramLog(program, log)
        text = log.value.decode().strip()
        if code != 0:
            raise SystemExit(f"{path.name} for compute_{arch}:\n{text}")
        if text:
            print(f"{path.name} for compute_{arch}:\n{text}")
        self.check(self.lib.nvrtcGetPTXSize(program, ctypes.byref(size)))
        ptx = ctypes.create_string_buffer(size.value)
        self.check(self.lib.nvrtcGetPTX(program, ptx))
        self.lib.nvrtcDestroyProgram(ctypes.byref(program))
        return ptx.value.decode()

    @staticmethod
    def check(code):
        if code != 0:
            raise SystemExit(f"NVRTC error {code}")


def measure(ptxas, path, arch):
    """kernel → [registers, spilled bytes, local bytes, shared bytes] of a PTX file as ptxas reports them."""
    run = subprocess.run([str(ptxas), "-v", f"--gpu-name=sm_{arch}", "-o", "/dev/null", str(path)], capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(run.stderr)
    result = {}
    for part in re.split(r"Compiling entry function '", run.stderr)[1:]:
        name = part.split("'")[0]
        spill = sum(int(n) for n in re.findall(r"(\d+) bytes spill", part))
        registers = int(re.search(r"Used (\d+) registers", part).group(1))
        local = int(re.search(r"(\d+) bytes stack frame", part).group(1))
        shared = re.search(r"(\d+) bytes smem", part)
        result[name] = [registers, spill, local, int(shared.group(1)) if shared else 0]
    return result


def headers_of(path, seen):
    """Adds the headers that a source includes, by themselves or through others."""
    for name in re.findall(r'#include "([^"]+)"', path.read_text(encoding="utf-8")):
        header = next(p for p in (path.parent / name, KERNELS / name) if p.exists())
        if header not in seen:
            seen.add(header)
            headers_of(header, seen)
    return seen


def compile_and_measure(job):
    """One file for one architecture: its PTX and its numbers, kept under --wheels by the hash of what they come from."""
    wheels, path, arch = job
    headers = b"".join(p.read_bytes() for p in sorted(headers_of(path, set())))
    key = hashlib.sha256(repr((OLD, NEW, PTXAS, OPTIONS, "in a process of its own", arch, path.name)).encode() + headers + path.read_bytes()).hexdigest()
    kept = wheels / "kept"
    kept.mkdir(exist_ok=True)
    ptx, numbers = kept / f"{key}.ptx", kept / f"{key}.json"
    if not numbers.exists():
        compiler = Nvrtc(wheel(wheels, *(NEW if arch in NEWER else OLD)))
        ptx.write_text(compiler.compile(path, arch))
        ptxas = wheel(wheels, *PTXAS) / "nvidia/cuda_nvcc/bin/ptxas"
        numbers.write_text(json.dumps(measure(ptxas, ptx, arch)))
    return ptx.read_text(), json.loads(numbers.read_text())


def sources_hash():
    """FNV-1a (64 bits) over name, NUL, text, NUL of every device source in order of name; backends/cuda checks the same."""
    h = 0xCBF29CE484222325
    for path in sorted(list(KERNELS.glob("*.cu")) + list(KERNELS.glob("common/*.cuh")), key=lambda p: p.relative_to(KERNELS).as_posix()):
        for byte in path.relative_to(KERNELS).as_posix().encode() + b"\0" + path.read_bytes() + b"\0":
            h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def strip(ptx):
    """PTX without its comments and empty lines: the compiler's version lines say nothing that matters here."""
    lines = (line.rstrip() for line in ptx.splitlines())
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("//"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--arch", type=int, help="compile for this compute capability alone and print its lines; compare nothing")
    parser.add_argument("--jobs", type=int, default=4, help="processes at a time")
    parser.add_argument("--wheels", type=pathlib.Path, default=ROOT / "target/nvrtc")
    args = parser.parse_args()
    for needed in (OLD, NEW, PTXAS):
        wheel(args.wheels, *needed)
    (wheel(args.wheels, *PTXAS) / "nvidia/cuda_nvcc/bin/ptxas").chmod(0o755)

    sources = sorted(KERNELS.glob("*.cu"))
    if args.arch:
        with multiprocessing.Pool(args.jobs, maxtasksperchild=1) as pool:
            done = pool.map(compile_and_measure, [(args.wheels, path, args.arch) for path in sources], chunksize=1)
        for _, numbers in done:
            for name, row in numbers.items():
                print(name.ljust(34), "/".join(map(str, row)))
        return 0
    wrong, rows, hashed = [], {}, sources_hash()
    (KERNELS / "ptx").mkdir(exist_ok=True)
    jobs = [(args.wheels, path, arch) for arch in EMBEDDED + NEWER for path in sources]
    # A process a compilation: NVRTC numbers calls and registers on from what the process compiled before.
    with multiprocessing.Pool(args.jobs, maxtasksperchild=1) as pool:
        done = pool.map(compile_and_measure, jobs, chunksize=1)
    if sources_hash() != hashed:
        raise SystemExit("the sources were changed meanwhile: nothing was compared or written, run it again")
    for arch in EMBEDDED + NEWER:
        mine = [result for (_, _, a), result in zip(jobs, done) if a == arch]
        texts = [text for text, _ in mine]
        for _, numbers in mine:
            for name, row in numbers.items():
                rows.setdefault(name, {})[arch] = row
        if arch in EMBEDDED:
            # One file an architecture: the sources' hash, then the kernels' texts, each behind a line that starts a module.
            joined = f"//sources {sources_hash()}\n"
            joined += "".join(f"//module {path.stem}\n{strip(text)}\n" for path, text in zip(sources, texts))
            target = KERNELS / f"ptx/compute_{arch}.ptx.z"
            if args.update:
                target.write_bytes(zlib.compress(joined.encode(), 9))
            elif not target.exists() or zlib.decompress(target.read_bytes()) != joined.encode():
                wrong.append(f"{target.relative_to(ROOT)} is not what the sources compile to")

    lines = ["# registers/spilled bytes/local bytes/static shared bytes of each kernel, by ptxas 12.9.86; scripts/nvrtc-check.py --update",
             "kernel".ljust(34) + "".join(f"sm_{a}".rjust(16) for a in EMBEDDED + NEWER)]
    for name in sorted(rows):
        lines.append(name.ljust(34) + "".join("/".join(map(str, rows[name][a])).rjust(16) for a in EMBEDDED + NEWER))
    table = "\n".join(lines) + "\n"
    path = KERNELS / "ptxas-table.txt"
    if args.update:
        path.write_text(table)
    elif not path.exists() or path.read_text() != table:
        wrong.append("kernels/ptxas-table.txt differs:\n" + table)
    spilled = [f"{n} sm_{a}: {r[1]} bytes spilled, {r[2]} local" for n, by in rows.items() for a, r in by.items() if r[1] or r[2]]
    print(f"{len(sources)} files, {len(rows)} kernels, {len(EMBEDDED + NEWER)} architectures; in local memory: {', '.join(spilled) or 'nothing'}")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
