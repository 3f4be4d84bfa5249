"""OpenAI's own client against a running server: python serve_openai.py http://HOST:PORT"""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
messages = [{"role": "user", "content": "What is 2+2?"}]
asked = {"model": "any", "messages": messages, "temperature": 0}

# Chat: whole, streamed, by the client's own helper.
whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
text = whole.choices[0].message.content
assert whole.choices[0].finish_reason == "stop" and whole.choices[0].message.role == "assistant", whole
assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
assert "".join(token.token for token in whole.choices[0].logprobs.content) == text
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
assert chunks[0].choices[0].delta.role == "assistant"
assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens and not chunks[-1].choices
assert chunks[-2].choices[0].finish_reason == "stop"
with client.chat.completions.stream(**asked) as stream:
    kinds = {event.type for event in stream}
    assert stream.get_final_completion().choices[0].message.content == text
assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
several = client.chat.completions.create(**{**asked, "temperature": 1}, n=3, seed=5, max_completion_tokens=8, stop=["zzz"])
again = client.chat.completions.create(**{**asked, "temperature": 1}, n=3, seed=5, max_completion_tokens=8, stop=["zzz"])
assert [c.index for c in several.choices] == [0, 1, 2] and several.choices == again.choices
cut = client.chat.completions.create(**asked, max_tokens=2)
assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 2

# Tools are taken, and so is the conversation that a call makes.
tool = {"type": "function", "function": {"name": "look", "description": "Looks", "parameters": {
    "type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}}}
call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
history = messages + [{"role": "assistant", "content": None, "tool_calls": [call]},
                      {"role": "tool", "tool_call_id": "call_1", "content": "4"}]
answer = client.chat.completions.create(**{**asked, "messages": history}, tools=[tool], max_tokens=4)
assert answer.choices[0].message.role == "assistant"

# Completions.
completion = client.completions.create(model="any", prompt=["Hi", "Why"], max_tokens=3, temperature=0, logprobs=1)
assert [c.index for c in completion.choices] == [0, 1] and completion.choices[0].finish_reason in ("length", "stop")
assert len(completion.choices[0].logprobs.tokens) <= 3
parts = list(client.completions.create(model="any", prompt="Hi", max_tokens=3, temperature=0, stream=True))
assert "".join(part.choices[0].text for part in parts) == completion.choices[0].text

# Responses.
response = client.responses.create(model="any", input="What is 2+2?", temperature=0)
assert response.output_text == text and response.status == "completed", response
assert response.usage.output_tokens == whole.usage.completion_tokens
assert response.usage.input_tokens == whole.usage.prompt_tokens
events = list(client.responses.create(model="any", input=[{"role": "user", "content": "What is 2+2?"}], temperature=0, stream=True))
assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
assert events[0].type == "response.created" and events[-1].type == "response.completed"
assert events[-1].response.output_text == text
with client.responses.stream(model="any", input="What is 2+2?", temperature=0) as stream:
    for _ in stream:
        pass
    assert stream.get_final_response().output_text == text
cut = client.responses.create(model="any", input="What is 2+2?", temperature=0, max_output_tokens=2)
assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"

# Models.
name = client.models.list().data[0].id
assert client.models.retrieve(name).id == name

# Errors: of the client's own types, with the field that is wrong.
for fields, param, code in [
    ({"temperature": 9}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"messages": [{"role": "user", "content": "word " * 100_000}]}, "messages", "context_length_exceeded"),
    ({"messages": []}, "messages", "invalid_value"),
]:
    try:
        client.chat.completions.create(**{**asked, **fields})
        raise AssertionError(f"{fields.keys()} was answered")
    except openai.BadRequestError as error:
        assert (error.param, error.code, error.type) == (param, code, "invalid_request_error"), error
try:
    client.models.retrieve("another")
    raise AssertionError("another model was found")
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error
print(text)
