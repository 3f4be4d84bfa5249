#!/usr/bin/env python3
"""Random load on a running `moe-run serve` for some minutes: whole answers and streams, clients that leave in the middle, prompts with
beginnings in common, bodies that are refused. Prints the server's resident memory as time goes, and in the end whether all blocks are free.

    moe-run serve --parallel 8 --max-queue 64 & benches/peers/soak.py http://127.0.0.1:8080 --pid $! --minutes 30

Exit 1 where a request fails with a status of 500 or more but 503, the server ends, blocks stay, or the memory of the last third is
more than a tenth (and 8 MB) above that of the second. Standard library only.
"""

import argparse
import http.client
import json
import random
import sys
import threading
import time
import urllib.parse
import urllib.request

WORDS = "river stone light paper green window market seven quiet bridge winter garden engine letter ocean silver".split()


def body(choose):
    """A path and a body."""
    words = lambda count, of=choose: " ".join(of.choice(WORDS) for _ in range(count))
    shared = words(60, random.Random(choose.randrange(3))) if choose.random() < 0.5 else ""
    text = f"{shared} {words(choose.randrange(1, 60))}"
    common = {"max_tokens": choose.choice([1, 8, 40, 200]), "temperature": choose.choice([0, 0.8, 1.5]), "stream": choose.random() < 0.6}
    kind = choose.randrange(8)
    if kind == 0:
        return "/v1/completions", {"prompt": text, "n": 3, "logprobs": 2, **common}
    if kind == 1:
        return "/v1/messages", {"messages": [{"role": "user", "content": text}], **common}
    if kind == 2:
        common["max_output_tokens"] = common.pop("max_tokens")
        return "/v1/responses", {"input": text, **common}
    if kind == 3:
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
        format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        return "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "response_format": format_, **common}
    if kind == 4:
        return "/v1/completions", choose.choice([{"prompt": 3}, {"prompt": "a " * 100_000}, {"prompt": text, "temperature": "hot"}, []])
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "routing": choose.random() < 0.1, **common}


class Load:
    def __init__(self, url):
        self.url, self.end, self.counts, self.lock, self.failures = url, 0.0, {}, threading.Lock(), []

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def client(self, seed):
        choose = random.Random(seed)
        while time.monotonic() < self.end:
            path, asked = body(choose)
            connection = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=900)
            try:
                connection.request("POST", path, json.dumps(asked), {"Content-Type": "application/json"})
                if choose.random() < 0.15:
                    time.sleep(choose.random() * 0.3)
                    self.count("left")
                    continue
                response = connection.getresponse()
                if choose.random() < 0.15:
                    response.read(200)
                    self.count("left in mid-stream")
                    continue
                text = response.read()
                self.count(response.status)
                if response.status >= 500 and response.status != 503:
                    self.failures.append(f"{path} {response.status}: {text[:300]!r}")
            except OSError as error:
                self.failures.append(f"{path}: {error}")
            finally:
                connection.close()


def resident(pid):
    return next(int(line.split()[1]) * 1024 for line in open(f"/proc/{pid}/status") if line.startswith("RssAnon"))


def metric(url, name):
    text = urllib.request.urlopen(url + "/metrics", timeout=60).read().decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--pid", type=int, required=True, help="the server's")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=12)
    args = parser.parse_args()
    load = Load(urllib.parse.urlparse(args.url))
    started = time.monotonic()
    load.end = started + 60 * args.minutes
    clients = [threading.Thread(target=load.client, args=(seed,)) for seed in range(args.clients)]
    for client in clients:
        client.start()
    seen = []
    while any(client.is_alive() for client in clients):
        time.sleep(min(15, max(1, args.minutes * 2)))
        minute = (time.monotonic() - started) / 60
        seen.append((minute, resident(args.pid)))
        print(f"{minute:5.1f} min: {seen[-1][1] / 1e6:7.1f} MB that are no file's; {load.counts}", flush=True)
    for client in clients:
        client.join()
    for _ in range(100):
        used = metric(args.url, "moe_run_kv_blocks_used")
        if used == 0:
            break
        time.sleep(0.1)
    third = lambda at: max(memory for minute, memory in seen if at <= minute * 3 / seen[-1][0] <= at + 1)
    middle, last = third(1), third(2)
    print(f"memory: {seen[0][1] / 1e6:.1f} MB at first, {middle / 1e6:.1f} in the middle, {last / 1e6:.1f} at last; blocks used: {used:.0f}")
    if load.failures:
        print("\n".join(load.failures[:10]))
    sys.exit(1 if load.failures or used or last > max(1.1 * middle, middle + 8e6) else 0)


if __name__ == "__main__":
    main()
