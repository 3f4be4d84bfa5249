#!/usr/bin/env python3
"""Load of an OpenAI-compatible server: tokens/s, time to the first token and between tokens, by number of clients.

    moe-run serve -m model.gguf --parallel 32 --ctx-size 2048 &
    benches/peers/serve.py http://127.0.0.1:8080 --clients 1,2,4,8,16,32

Every prompt begins with words of its own, so that no cache helps; --shared-prefix WORDS puts so many in front that all have in common.
Any server that streams /v1/completions can be measured beside it, in turns. Standard library only.
"""

import argparse
import http.client
import json
import random
import threading
import time
import urllib.parse

WORDS = "river stone light paper green window market seven quiet bridge winter garden engine letter ocean silver".split()


def words(count, seed):
    choose = random.Random(seed)
    return " ".join(choose.choice(WORDS) for _ in range(count))


def request(url, prompt, tokens, out):
    """One streamed completion: the moments at which text came."""
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=600)
    body = {"model": "any", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True,
            "stream_options": {"include_usage": True}}
    began = time.perf_counter()
    connection.request("POST", url.path.rstrip("/") + "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{response.status}: {response.read(500)!r}")
    moments, usage = [], {}
    for line in response:
        if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
            continue
        event = json.loads(line[6:])
        usage = event.get("usage") or usage
        if any(choice.get("text") for choice in event.get("choices", [])):
            moments.append(time.perf_counter())
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    out.append((began, moments, usage.get("completion_tokens", len(moments)), usage.get("prompt_tokens", 0), cached))


def share(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def measure(url, clients, args, round_):
    prefix = words(args.shared_prefix, 0)
    out = []
    prompts = [words(args.prompt_words, f"{round_}/{clients}/{i}/{time.time()}") for i in range(clients)]
    threads = [threading.Thread(target=request, args=(url, f"{prefix} {p}".strip(), args.tokens, out)) for p in prompts]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if len(out) < clients:
        raise SystemExit("a client failed")
    between = [b - a for _, moments, *_ in out for a, b in zip(moments, moments[1:])]
    first = [moments[0] - start for start, moments, *_ in out if moments]
    generated = sum(tokens for _, _, tokens, _, _ in out)
    return {"clients": clients, "tokens_per_s": round(generated / took, 1), "first_token_s": round(share(first, 0.5), 3),
            "between_p50_ms": round(1e3 * share(between, 0.5), 1), "between_p99_ms": round(1e3 * share(between, 0.99), 1),
            "prompt_tokens": sum(o[3] for o in out), "cached_tokens": sum(o[4] for o in out)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--clients", default="1,2,4,8,16")
    parser.add_argument("--tokens", type=int, default=64, help="to generate, each")
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--shared-prefix", type=int, default=0, metavar="WORDS")
    parser.add_argument("--rounds", type=int, default=3, help="the best one counts")
    args = parser.parse_args()
    url = urllib.parse.urlparse(args.url)
    for clients in map(int, args.clients.split(",")):
        best = max((measure(url, clients, args, r) for r in range(args.rounds)), key=lambda r: r["tokens_per_s"])
        print(json.dumps(best), flush=True)


if __name__ == "__main__":
    main()
