"""What a server counts, read by Prometheus' own parser, beside what answers and /tokenize say: python serve_metrics.py http://HOST:PORT"""

import json
import sys
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

URL = sys.argv[1]


def post(path, body):
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"content-type": "application/json"})
    return json.load(urllib.request.urlopen(request))


def metrics():
    text = urllib.request.urlopen(URL + "/metrics").read().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {}
    for family in families.values():
        assert family.documentation and family.type in ("gauge", "counter", "histogram"), family
        for sample in family.samples:
            assert ":" not in sample.name
            samples[(sample.name, sample.labels.get("le"))] = sample.value
    for name, family in families.items():
        if family.type == "histogram":
            buckets = [s for s in family.samples if s.name == name + "_bucket"]
            bounds = [float(s.labels["le"]) for s in buckets]
            assert bounds == sorted(bounds) and bounds[-1] == float("inf")
            values = [s.value for s in buckets]
            assert values == sorted(values) and values[-1] == samples[(name + "_count", None)]
    return {name: value for (name, bound), value in samples.items() if bound is None}, set(families)


def tokens(text, **more):
    return post("/tokenize", {"content": text, **more})["tokens"]


before, families = metrics()
wanted = "requests_running requests_waiting prompt_tokens prompt_tokens_cached generated_tokens kv_blocks_used kv_blocks_total"
wanted += " time_to_first_token_seconds time_between_tokens_seconds queue_seconds step_seconds"
missing = {f"moe_run_{name}" for name in wanted.split()} - families
assert not missing, missing

# Usage is what /tokenize says of the prompt and of the answer.
prompts, read, cached, out, text = ["Hi", "Why is the sky blue? " * 20, "Why is the sky blue? " * 20], 0, 0, 0, ""
for prompt in prompts:
    answer = post("/v1/completions", {"prompt": prompt, "max_tokens": 12, "temperature": 0})
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(tokens(prompt, add_special=True)), usage
    text = answer["choices"][0]["text"]
    ended = answer["choices"][0]["finish_reason"] == "stop"
    assert ended or usage["completion_tokens"] == 12, answer
    assert usage["completion_tokens"] >= len(tokens(text, parse_special=False)), (usage, text)
    read += usage["prompt_tokens"]
    cached += usage["prompt_tokens_details"]["cached_tokens"]
    out += usage["completion_tokens"]
messages = [{"role": "user", "content": "What is 2+2?"}]
chat = post("/v1/chat/completions", {"messages": messages, "temperature": 0})
rendered = post("/apply-template", {"messages": messages})["prompt"]
text = chat["choices"][0]["message"]["content"]
assert chat["usage"]["prompt_tokens"] == len(tokens(rendered)), chat
assert chat["usage"]["completion_tokens"] == len(tokens(text, parse_special=False)), chat
assert post("/detokenize", {"tokens": tokens(text)})["content"] == text
read += chat["usage"]["prompt_tokens"]
cached += chat["usage"]["prompt_tokens_details"]["cached_tokens"]
out += chat["usage"]["completion_tokens"]

after, _ = metrics()
grown = {name: after[name] - before[name] for name in after}
assert cached > 0 and grown["moe_run_prompt_tokens_cached_total"] == cached, grown
assert grown["moe_run_prompt_tokens_total"] == read - cached, grown
assert grown["moe_run_generated_tokens_total"] == out, grown
assert grown["moe_run_time_to_first_token_seconds_count"] == len(prompts) + 1, grown
assert grown["moe_run_time_between_tokens_seconds_count"] == out - len(prompts) - 1, grown
assert after["moe_run_kv_blocks_used"] == 0 and after["moe_run_requests_running"] == 0
print(text)
