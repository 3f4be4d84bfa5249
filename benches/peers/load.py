"""Many streamed completions at once from one thread, which only notes when bytes come and reads them afterwards: on a machine of two
cores, a client that parses while the server computes would measure itself. Standard library only."""

import json
import random
import selectors
import socket
import time
import urllib.parse


def prompt(tokens, seed, below=1000):
    """Ids of a prompt that begins like no other one; small ids are tokens of any vocabulary."""
    choose = random.Random(seed)
    return [choose.randrange(10, below) for _ in range(tokens)]


class Stream:
    """One streamed completion: bytes with the moments at which they came."""

    def __init__(self, url, ids, tokens):
        self.url = urllib.parse.urlparse(url)
        body = json.dumps({
            "model": "any", "prompt": ids, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True,
            "stream_options": {"include_usage": True},
        })
        path = self.url.path.rstrip("/") + "/v1/completions"
        head = f"POST {path} HTTP/1.1\r\nHost: {self.url.netloc}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        self.request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        self.parts = []
        self.began = None
        self.events = self.tokens = self.prompt_tokens = self.cached_tokens = None

    def begin(self, selector):
        self.socket = socket.create_connection((self.url.hostname, self.url.port or 80), timeout=60)
        self.began = time.perf_counter()
        self.socket.sendall(self.request)
        self.socket.setblocking(False)
        selector.register(self.socket, selectors.EVENT_READ, self)

    def read(self, selector):
        """Takes what has come; whether that was the end."""
        part = self.socket.recv(1 << 16)
        if part:
            self.parts.append((time.perf_counter(), part))
            return False
        selector.unregister(self.socket)
        self.socket.close()
        self.parse()
        return True

    def parse(self):
        """The moments at which text came, and the usage."""
        everything = b"".join(part for _, part in self.parts)
        if not everything.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{self.url.netloc}: {everything[:600]!r}")
        if b"data: [DONE]" not in everything[-64:]:
            raise SystemExit(f"{self.url.netloc}: a stream without an end: {everything[-300:]!r}")
        self.events, usage, rest = [], {}, b""
        for moment, part in self.parts:
            # Frames of a chunked body stand between lines: an event is one line.
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    usage = event.get("usage") or usage
                    if event.get("choices") and event["choices"][0].get("finish_reason") is None:
                        self.events.append(moment)
        self.tokens, self.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
        self.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)

    @property
    def first(self):
        """Seconds from the request to the first text."""
        return self.events[0] - self.began

    def gaps(self, after=0.0, before=float("inf")):
        """Seconds between texts, of those that ended in a stretch of time."""
        pairs = zip(self.events, self.events[1:])
        return [b - a for a, b in pairs if after <= b <= before]


def run(streams, later=()):
    """Runs streams, all begun at once; `later` has streams with the share of the others' expected events after which each
    begins. The seconds until the last one ended."""
    selector = selectors.DefaultSelector()
    started = time.perf_counter()
    for stream in streams:
        stream.begin(selector)
    waiting, left = list(later), len(streams) + len(later)
    while left:
        for key, _ in selector.select():
            left -= key.data.read(selector)
        # A part is an event or some: near enough to say how far the streams are.
        while waiting and min(len(stream.parts) for stream in streams) >= waiting[0][0]:
            waiting.pop(0)[1].begin(selector)
        if waiting and left == len(waiting):
            raise SystemExit("the streams ended before the next one was to begin")
    return time.perf_counter() - started


def share(values, part):
    """The value below which that part of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")
