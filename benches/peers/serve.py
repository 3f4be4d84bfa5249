#!/usr/bin/env python3
"""Load test of `moe-run serve` in turns with llama.cpp's server on the same files, or of any one server that runs.

    cargo build --release
    chrt -f 11 benches/peers/serve.py --prefix 'chrt -f 10' MODEL.gguf…       # both, in turns; a table
    benches/peers/serve.py --url http://127.0.0.1:8080 --clients 1,8           # one that runs, whoever wrote it

What is measured (--tests):
  crowd    1 to 32 clients at once, each with a prompt of 128 ids of its own and 64 tokens out: tokens/s of all together,
           and of their generation alone (less the time that the same takes with one token out)
  prefix   16 clients whose prompts share 1500 ids and end in 16 of their own: time to the first token
  arrival  8 clients generate, then a prompt of 2000 ids comes: the time between the others' tokens until it is read,
           against --max-step-ms
  single   one client's generation beside `moe-run bench`, which is `run` without text
  memory   resident memory of an idle server beside `moe-run` at the end of an answer

llama.cpp's server is built from the source distribution of llama-cpp-python on PyPI (--peers DIR, kept for the next time; some
ten minutes), or given (--llama-server FILE). Every prompt begins in its own way, so that no cache helps where none is meant to.
"""

import argparse
import datetime
import json
import os
import pathlib
import shlex
import socket
import statistics
import subprocess
import sys
import tarfile
import time
import urllib.request

import load
from compare import ROOT, note, processor

# How many experts of a layer a step of N tokens touches, of 128 with 8 a token, were routing uniform; and what that makes of one
# client's speed where memory is the limit: ../shared/design/SERVING.md.
CURVE = {1: 1.0, 2: 1.3, 4: 1.6, 8: 1.9, 16: 2.5, 32: 3.8, 64: 6.8}
PROMPT, OUT = 128, 64
SHARED, OWN = 1500, 16
ARRIVAL, LONG = 8, 2000


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=pathlib.Path, metavar="MODEL")
    parser.add_argument("--url", help="measure this server alone: the crowd")
    parser.add_argument("--tests", default="crowd,prefix,arrival,single,memory")
    parser.add_argument("--clients", default="1,2,4,8,16,32")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side; medians count (default 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--max-step-ms", type=int, default=100, help="of moe-run, while a prompt arrives (default 100)")
    parser.add_argument("--prefix", default="", help="command that servers are run with, such as 'chrt -f 10'")
    parser.add_argument("--moe-run", type=pathlib.Path, default=ROOT / "target/release/moe-run", metavar="FILE")
    parser.add_argument("--llama-server", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--alone", action="store_true", help="moe-run without llama.cpp beside it")
    parser.add_argument("--peers", type=pathlib.Path, default=ROOT / "target/peers", metavar="DIR")
    parser.add_argument("--output", type=pathlib.Path, help="also write the table here")
    args = parser.parse_args()
    args.clients = [int(n) for n in args.clients.split(",")]
    args.tests = args.tests.split(",")
    if bool(args.models) == bool(args.url):
        parser.error("wanted models, or --url")
    return args


def build_llama_server(peers):
    """llama.cpp's server, built for this machine from llama-cpp-python's source."""
    server = peers / "llama-server/bin/llama-server"
    if server.exists():
        return server
    note("building llama.cpp's server (some ten minutes) …")
    venv = peers / "serve-venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [venv / "bin/python", "-m", "pip"]
    subprocess.run([*pip, "install", "cmake", "ninja"], check=True, stdout=sys.stderr)
    # Of this package alone the source, without what it depends on.
    only = ["--no-deps", "--no-binary", "llama-cpp-python", "llama-cpp-python"]
    subprocess.run([*pip, "download", "-d", peers / "source", *only], check=True, stdout=sys.stderr)
    archive = next((peers / "source").glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(peers / "source", filter="data")
    source = archive.parent / archive.name.removesuffix(".tar.gz") / "vendor/llama.cpp"
    options = [f"-D{o}" for o in ("CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON", "LLAMA_CURL=OFF", "LLAMA_BUILD_TESTS=OFF")]
    path = {**os.environ, "PATH": f"{(venv / 'bin').absolute()}:{os.environ['PATH']}"}
    cmake = lambda *command: subprocess.run(["cmake", *command], check=True, env=path, stdout=sys.stderr)
    cmake("-S", source, "-B", peers / "llama-server", "-G", "Ninja", *options)
    cmake("--build", peers / "llama-server", "--target", "llama-server")
    return server


class Server:
    """A process that serves, until it is left."""

    def __init__(self, name, command, args):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [*shlex.split(args.prefix), *map(str, command), "--host", "127.0.0.1", "--port", str(self.port)]
        self.name, self.url = name, f"http://127.0.0.1:{self.port}"
        self.log = open(f"/tmp/serve-{name}.log", "w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        for _ in range(600):
            try:
                if urllib.request.urlopen(self.url + "/health", timeout=5).status == 200:
                    return
            except OSError:
                time.sleep(0.1)
            if self.process.poll() is not None:
                break
        sys.exit(f"{shlex.join(command)}: does not serve; see {self.log.name}")

    def memory(self):
        """Resident bytes: all, and those that are no file's."""
        status = dict(line.split(":", 1) for line in open(f"/proc/{self.process.pid}/status"))
        return [int(status[key].split()[0]) * 1024 for key in ("VmRSS", "RssAnon")]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def ours(model, parallel, context, args, *more):
    command = [args.moe_run, "serve", "-m", model, "--backend", "cpu", "--threads", args.threads, "--parallel", parallel]
    return Server("moe-run", [*command, "--ctx-size", context, "--pool-tokens", parallel * context, "--quiet", *more], args)


def theirs(model, parallel, context, args):
    command = [args.llama_server, "-m", model, "-t", args.threads, "-tb", args.threads, "-np", parallel]
    return Server("llama.cpp", [*command, "-c", parallel * context], args)


def sides(args):
    return [ours] if args.alone else [ours, theirs]


def crowd(url, clients, seed):
    """Tokens/s of all together; and of generation alone: what the tokens behind the first took beyond a run of one token each. (The
    moments at which tokens come would say more of who runs when on a few cores.)"""
    def run(kind, tokens):
        streams = [load.Stream(url, load.prompt(PROMPT, f"{seed}/{kind}/{i}"), tokens) for i in range(clients)]
        return load.run(streams), streams

    prompts, _ = run("prompts", 1)
    took, streams = run("all", OUT)
    tokens = sum(stream.tokens for stream in streams)
    return {"tokens_per_s": tokens / took, "generation_per_s": (tokens - clients) / max(took - prompts, 1e-6)}


def medians(runs):
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def in_turns(args, start, run):
    """Each side's server, one after the other, as often as there are rounds: lists of results by side."""
    results = {}
    for round_ in range(args.rounds):
        for side in sides(args) if round_ % 2 == 0 else reversed(sides(args)):
            with start(side) as server:
                # Pages and caches of a server that has just started are cold.
                load.run([load.Stream(server.url, load.prompt(PROMPT, f"warm/{round_}/{i}"), 8) for i in range(2)])
                results.setdefault(server.name, []).append(run(server, round_))
    return results


def cell(value, digits=1):
    return "–" if value is None else f"{value:.{digits}f}"


def ratio(a, b, digits=2):
    return "–" if a is None or b is None else f"**{a / b:.{digits}f}**"


def test_crowd(model, args):
    def run(server, round_):
        return {n: crowd(server.url, n, f"{server.name}/{round_}/{n}") for n in args.clients}

    results = in_turns(args, lambda side: side(model, max(args.clients), 256, args), run)
    table = {name: {n: medians([run[n] for run in runs]) for n in args.clients} for name, runs in results.items()}
    mine, other = table["moe-run"], table.get("llama.cpp", {})
    lines = [
        "| model | clients | tokens/s | llama.cpp | ratio | generation alone | llama.cpp | ratio | × one client | the curve | of it |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for n in args.clients:
        a, b = mine[n], other.get(n, {"tokens_per_s": None, "generation_per_s": None})
        one = mine.get(1, {}).get("generation_per_s")
        gain = a["generation_per_s"] / one if one and a["generation_per_s"] else None
        lines.append(
            f"| {model.stem} | {n} | {cell(a['tokens_per_s'])} | {cell(b['tokens_per_s'])} "
            f"| {ratio(a['tokens_per_s'], b['tokens_per_s'])} | {cell(a['generation_per_s'])} | {cell(b['generation_per_s'])} "
            f"| {ratio(a['generation_per_s'], b['generation_per_s'])} | {cell(gain, 2)} | {CURVE[n]} | {ratio(gain, CURVE[n])} |"
        )
    return lines


def test_prefix(model, args):
    def run(server, round_):
        shared = load.prompt(SHARED, f"shared/{round_}")
        streams = [load.Stream(server.url, shared + load.prompt(OWN, f"own/{round_}/{i}"), 16) for i in range(16)]
        load.run(streams)
        first = [stream.first for stream in streams]
        cached = sum(stream.cached_tokens for stream in streams)
        return {"median": statistics.median(first), "last": max(first), "cached": cached}

    results = in_turns(args, lambda side: side(model, 16, 2048, args), run)
    table = {name: medians(runs) for name, runs in results.items()}
    mine, other = table["moe-run"], table.get("llama.cpp", dict.fromkeys(["median", "last"]))
    lines = ["| model | 16 clients, 1500 ids in common | moe-run s | llama.cpp s | ratio |", "|---|---|---:|---:|---:|"]
    for key, what in [("median", "time to the first token, median"), ("last", "time to the last one's first token")]:
        lines.append(f"| {model.stem} | {what} | {cell(mine[key], 3)} | {cell(other[key], 3)} | {ratio(mine[key], other[key])} |")
    lines.append(f"| {model.stem} | ids that were cached | {cell(mine['cached'], 0)} | {cell(other.get('cached'), 0)} | |")
    return lines


def test_arrival(model, args):
    def run(server, round_):
        streams = [load.Stream(server.url, load.prompt(PROMPT, f"a/{round_}/{i}"), 600) for i in range(ARRIVAL)]
        long = load.Stream(server.url, load.prompt(LONG, f"long/{round_}"), 4)
        load.run(streams, [(32, long)])
        gaps = [gap for stream in streams for gap in stream.gaps(long.began, long.events[0])]
        return {"p99": 1e3 * load.share(gaps, 0.99), "most": 1e3 * max(gaps), "first": long.first}

    def start(side):
        more = ["--max-step-ms", args.max_step_ms] if side is ours else []
        return side(model, ARRIVAL + 1, 2304, args, *more)

    table = {name: medians(runs) for name, runs in in_turns(args, start, run).items()}
    mine, other = table["moe-run"], table.get("llama.cpp", dict.fromkeys(["p99", "most", "first"]))
    lines = [f"| model | {ARRIVAL} clients generate, a prompt of {LONG} comes | moe-run | llama.cpp |", "|---|---|---:|---:|"]
    step = f"(--max-step-ms {args.max_step_ms})"
    for key, what in [("p99", f"between tokens, 99th percentile, ms {step}"), ("most", "between tokens, most, ms"), ("first", "the prompt's first token, s")]:
        lines.append(f"| {model.stem} | {what} | {cell(mine[key])} | {cell(other[key])} |")
    return lines


def test_single(model, args):
    bench = [*shlex.split(args.prefix), str(args.moe_run), "bench", "-m", str(model), "--backend", "cpu", "-p", "1"]
    bench += ["--depth", str(PROMPT), "-n", "256", "--threads", str(args.threads), "--repetitions", "1", "--json"]
    served, alone = [], []
    for round_ in range(args.rounds):
        with ours(model, 1, 1024, args) as server:
            for _ in range(2):
                stream = load.Stream(server.url, load.prompt(PROMPT, f"s/{round_}/{_}"), 256)
                load.run([stream])
            served.append((stream.tokens - 1) / (stream.events[-1] - stream.events[0]))
        results = json.loads(subprocess.run(bench, check=True, capture_output=True).stdout)["results"]
        alone.append(next(r["tokens_per_second"] for r in results if r["kind"] == "generation"))
    mine, run = statistics.median(served), statistics.median(alone)
    return [
        "| model | one client, tokens/s | `run` | ratio |", "|---|---:|---:|---:|",
        f"| {model.stem} | {cell(mine)} | {cell(run)} | {ratio(mine, run)} |",
    ]


def test_memory(model, args):
    run = [str(args.moe_run), "-m", str(model), "--backend", "cpu", "--threads", str(args.threads), "--ctx-size", "4096"]
    run += ["--tokens", "3,14,15,92", "-n", "4", "--temp", "0", "--quiet"]
    child = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{shlex.join(run)}: exit {os.waitstatus_to_exitcode(status)}")
    peak = usage.ru_maxrss * 1024
    with ours(model, 1, 4096, args) as server:
        idle, anonymous = server.memory()
        load.run([load.Stream(server.url, [3, 14, 15, 92], 4)])
        after, anonymous_after = server.memory()
    mb = lambda value: f"{value / 1e6:.1f}"
    return [
        "| model | `run`'s peak, MB | an idle server | after an answer | of it no file's, idle | after an answer |",
        "|---|---:|---:|---:|---:|---:|",
        f"| {model.stem} | {mb(peak)} | {mb(idle)} | {mb(after)} | {mb(anonymous)} | {mb(anonymous_after)} |",
    ]


TESTS = {"crowd": test_crowd, "prefix": test_prefix, "arrival": test_arrival, "single": test_single, "memory": test_memory}


def main():
    args = arguments()
    if args.url:
        for clients in args.clients:
            best = max((crowd(args.url, clients, f"{time.time()}") for _ in range(args.rounds)), key=lambda r: r["tokens_per_s"])
            print(json.dumps({"clients": clients, **best}), flush=True)
        return
    if not args.alone:
        args.llama_server = args.llama_server or build_llama_server(args.peers)
    version = subprocess.run([args.moe_run, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    lines = [
        f"- date: {datetime.date.today().isoformat()}",
        f"- machine: {processor()}, {os.cpu_count()} hardware threads; load average at the start {os.getloadavg()[0]:.1f}",
        f"- {version}, {args.threads} threads; {args.rounds} rounds in turns, medians"
        + (f"; servers under `{args.prefix}`" if args.prefix else ""),
    ]
    print("\n".join(lines), flush=True)
    for model in args.models:
        for test in args.tests:
            note(f"{model.name}: {test}")
            table = ["", *TESTS[test](model, args)]
            print("\n".join(table), flush=True)
            lines += table
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
