#!/usr/bin/env python3
"""Runs moe-run and llama.cpp alternately on the same files with the same threads, and prints the ratios.

llama.cpp comes with the source distribution of llama-cpp-python on PyPI, built natively into a virtual environment
(--venv, kept for the next time). Both sides are timed inside their own process on random valid tokens, after a run that
warms up; `first token` is a whole process: start, load, eight tokens of prompt, one token out. A ratio is moe-run's
median over llama.cpp's; its spread is the smallest and the largest ratio of an alternation.

    cargo build --release && benches/peers/compare.py --output TABLE.md MODEL.gguf…
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FIRST_TOKEN_PROMPT = ["3", "14", "15", "92", "65", "35", "89", "79"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=pathlib.Path, metavar="MODEL")
    parser.add_argument("--moe-run", type=pathlib.Path, default=ROOT / "target/release/moe-run", metavar="FILE")
    parser.add_argument("--venv", type=pathlib.Path, default=ROOT / "target/peers", metavar="DIR")
    parser.add_argument("--threads", default="1,2", help="numbers of threads (default 1,2)")
    parser.add_argument("--alternations", type=int, default=5, help="runs of each side (default 5)")
    parser.add_argument("--depth", type=int, default=4096, help="depth of the deep generation test; 0 leaves it out")
    parser.add_argument("--prefix", default="", help="command that both sides are run with, such as 'chrt -f 10'")
    parser.add_argument("--output", type=pathlib.Path, help="also write the table here")
    args = parser.parse_args()
    args.prefix = shlex.split(args.prefix)
    args.threads = [int(n) for n in args.threads.split(",")]
    for file in [*args.models, args.moe_run]:
        if not file.is_file():
            parser.error(f"{file}: no such file")
    if args.alternations < 1:
        parser.error("--alternations: wanted 1 or more")
    return args


def note(text):
    print(text, file=sys.stderr, flush=True)


def install(venv):
    """llama-cpp-python in a virtual environment, built for this machine; gives its version and the environment's
    site-packages."""
    python = venv / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    find = "import importlib.metadata as m; print(m.version('llama-cpp-python'))"
    found = subprocess.run([python, "-c", find], capture_output=True, text=True)
    if found.returncode != 0:
        note("building llama-cpp-python (several minutes) …")
        env = dict(os.environ, CMAKE_ARGS="-DGGML_NATIVE=ON")
        pip = [python, "-m", "pip", "install", "--no-cache-dir", "--no-binary", "llama-cpp-python", "llama-cpp-python"]
        subprocess.run(pip, check=True, env=env, stdout=sys.stderr)
        found = subprocess.run([python, "-c", find], capture_output=True, text=True, check=True)
    where = "import sysconfig; print(sysconfig.get_path('platlib'))"
    site = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True)
    return found.stdout.strip(), pathlib.Path(site.stdout.strip())


def build_peer(venv, site):
    """Compiles llama_cpp.c against the library and the headers of the package."""
    headers = sorted(site.rglob("llama.h"))
    libraries = sorted(site.rglob("libllama.so")) or sorted(site.rglob("libllama.dylib"))
    if not headers or not libraries:
        sys.exit(f"{site}: llama.h or libllama is missing; delete {venv} and run again")
    lib, peer = libraries[0].parent, venv / "llama_cpp"
    compiler = os.environ.get("CC", "cc")
    link = ["-L", lib, f"-Wl,-rpath,{lib}", f"-Wl,-rpath-link,{lib}", "-lllama", "-lggml", "-lggml-base"]
    command = [compiler, "-O2", "-Wall", "-I", headers[0].parent, HERE / "llama_cpp.c", "-o", peer, *link]
    subprocess.run(command, check=True)
    return peer


def run_json(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(str(c) for c in command)}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def wall_seconds(command):
    command = [str(c) for c in command]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - start
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return seconds


class Ours:
    name = "moe-run"

    def __init__(self, binary, prefix):
        self.command = [*prefix, binary]

    def bench(self, model, threads, prompt, gen, depth):
        result = run_json([
            *self.command, "bench", "-m", model, "--backend", "cpu", "--threads", threads, "-p", prompt, "-n", gen,
            "--depth", depth, "--repetitions", 1, "--json",
        ])
        speed = {r["kind"]: r["tokens_per_second"] for r in result["results"]}
        deep = next(r for r in result["results"] if r["kind"] == "generation")
        return {
            "prompt": speed.get("prompt"),
            "generation": speed["generation"],
            "memory": result["peak_memory_bytes"],
            "share": deep["share_of_read"],
            "read": deep["read_gb_per_second"],
        }

    def first_token(self, model, threads):
        return wall_seconds([
            *self.command, "-m", model, "--backend", "cpu", "--threads", threads, "--tokens",
            ",".join(FIRST_TOKEN_PROMPT), "-n", 1, "--temp", 0,
        ])


class Theirs:
    name = "llama.cpp"

    def __init__(self, peer, prefix):
        self.command = [*prefix, peer]

    def bench(self, model, threads, prompt, gen, depth):
        result = run_json([*self.command, model, threads, prompt, gen, depth, 1])
        speed = lambda count, seconds: count / statistics.median(seconds) if seconds else None
        return {
            "prompt": speed(prompt, result["prompt_seconds"]),
            "generation": speed(gen, result["generation_seconds"]),
            "memory": result["peak_memory_bytes"],
        }

    def first_token(self, model, threads):
        return wall_seconds([*self.command, model, threads, "first-token", *FIRST_TOKEN_PROMPT])


def alternate(sides, alternations, run):
    """Runs both sides so many times, in turns, the first of each turn changing: lists of results by side."""
    results = {side.name: [] for side in sides}
    for i in range(alternations):
        for side in sides if i % 2 == 0 else reversed(sides):
            results[side.name].append(run(side))
    return results


def row(label, unit, scale, digits, results, pick):
    """A line of the table: medians, their ratio, the spread of the ratios of the alternations."""
    ours, theirs = ([pick(r) * scale for r in results[name]] for name in ("moe-run", "llama.cpp"))
    mine, other = statistics.median(ours), statistics.median(theirs)
    ratios = [a / b for a, b in zip(ours, theirs)]
    return (
        f"| {label} | {unit} | {mine:.{digits}f} | {other:.{digits}f} | **{mine / other:.2f}** "
        f"| {min(ratios):.2f} – {max(ratios):.2f} |"
    )


def measure(sides, model, threads, args):
    tag = f"{model.stem} | {threads}"
    rows = []
    note(f"{model.name}, {threads} threads: pp512, tg128")
    flat = alternate(sides, args.alternations, lambda s: s.bench(model, threads, 512, 128, 0))
    rows.append(row(f"{tag} | pp512", "tokens/s", 1, 1, flat, lambda r: r["prompt"]))
    rows.append(row(f"{tag} | tg128", "tokens/s", 1, 1, flat, lambda r: r["generation"]))
    shares = [("tg128", flat)]
    if args.depth > 0:
        note(f"{model.name}, {threads} threads: tg32 at depth {args.depth}")
        deep = alternate(sides, args.alternations, lambda s: s.bench(model, threads, 0, 32, args.depth))
        rows.append(row(f"{tag} | tg32 @ d{args.depth}", "tokens/s", 1, 1, deep, lambda r: r["generation"]))
        shares.append((f"tg32 @ d{args.depth}", deep))
    note(f"{model.name}, {threads} threads: first token")
    first = alternate(sides, args.alternations, lambda s: s.first_token(model, threads))
    rows.append(row(f"{tag} | first token", "ms", 1000, 0, first, lambda r: r))
    rows.append(row(f"{tag} | peak memory", "MB", 1e-6, 0, flat, lambda r: r["memory"]))
    median = lambda results, key: statistics.median(r[key] for r in results["moe-run"])
    limits = [
        f"| {tag} | {name} | {median(results, 'read'):.1f} | {100 * median(results, 'share'):.0f} % |"
        for name, results in shares
    ]
    return rows, limits


def processor():
    """The processor's name, and its family and model, which tell generations apart that share a name."""
    text = pathlib.Path("/proc/cpuinfo").read_text()
    field = lambda name: re.search(rf"^{name}\s*:\s*(.*)$", text, re.M)
    name, family, model = field("model name"), field("cpu family"), field("model")
    what = name.group(1) if name else "unknown processor"
    return f"{what} (family {family.group(1)}, model {model.group(1)})" if family and model else what


def main():
    args = arguments()
    version, site = install(args.venv)
    sides = [Ours(args.moe_run, args.prefix), Theirs(build_peer(args.venv, site), args.prefix)]
    ours = subprocess.run([args.moe_run, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    # A bench of one token tells which commit the program was built from.
    probe = [args.moe_run, "bench", "--backend", "cpu", "-p", 1, "-n", 0, "--repetitions", 1, "--json"]
    commit = run_json(probe)["commit"] or "unknown"
    lines = [
        f"- date: {datetime.date.today().isoformat()}",
        f"- machine: {processor()}, {os.cpu_count()} hardware threads",
        f"- {ours}, commit {commit}; llama.cpp of llama-cpp-python {version}, native build",
        f"- {args.alternations} alternations; load average at the start {os.getloadavg()[0]:.1f}"
        + (f"; both under `{shlex.join(args.prefix)}`" if args.prefix else ""),
        "",
        "| model | threads | test | unit | moe-run | llama.cpp | ratio | spread |",
        "|---|---:|---|---|---:|---:|---:|---:|",
    ]
    limits = [
        "",
        "| model | threads | test | read loop GB/s | moe-run's share of it |",
        "|---|---:|---|---:|---:|",
    ]
    for model in args.models:
        for threads in args.threads:
            rows, shares = measure(sides, model, threads, args)
            lines += rows
            limits += shares
            note("\n".join(rows))
    text = "\n".join(lines + limits) + "\n"
    print(text, end="")
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
