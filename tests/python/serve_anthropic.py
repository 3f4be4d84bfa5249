"""Anthropic's own client against a running server: python serve_anthropic.py http://HOST:PORT"""

import sys

import anthropic

client = anthropic.Anthropic(base_url=sys.argv[1], api_key="none", max_retries=0)
# Later versions of the client have no argument for the temperature.
asked = {"model": "any", "max_tokens": 50, "extra_body": {"temperature": 0}, "messages": [{"role": "user", "content": "What is 2+2?"}]}

whole = client.messages.create(**asked)
text = whole.content[0].text
assert (whole.role, whole.stop_reason, whole.content[0].type) == ("assistant", "end_turn", "text"), whole
events = list(client.messages.create(**asked, stream=True))
assert events[0].type == "message_start" and events[-1].type == "message_stop"
assert "".join(e.delta.text for e in events if e.type == "content_block_delta") == text
with client.messages.stream(**asked) as stream:
    assert "".join(stream.text_stream) == text
    final = stream.get_final_message()
assert final.content[0].text == text and final.usage.output_tokens == whole.usage.output_tokens
counted = client.messages.count_tokens(model="any", messages=asked["messages"])
usage = whole.usage
assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
cut = client.messages.create(**{**asked, "max_tokens": 2})
assert cut.stop_reason == "max_tokens"
stopped = client.messages.create(**asked, stop_sequences=[" = "])
assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " = ")

# A system prompt in blocks, tools, and the conversation that a call makes.
tool = {"name": "look", "description": "Looks", "input_schema": {
    "type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}}
history = asked["messages"] + [
    {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "it"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "4"}]},
]
system = [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}]
answer = client.messages.create(**{**asked, "messages": history, "max_tokens": 4}, tools=[tool], system=system)
assert answer.role == "assistant"

# An answer goes on with the assistant's last message.
begun = client.messages.create(**{**asked, "messages": asked["messages"] + [{"role": "assistant", "content": "2 + 2"}]})
assert begun.content[0].text == " = 4", begun

for fields, word in [({"extra_body": {"temperature": 9}}, "temperature"), ({"messages": []}, "messages"), ({"system": 3}, "system")]:
    try:
        client.messages.create(**{**asked, **fields})
        raise AssertionError(f"{fields} was answered")
    except anthropic.BadRequestError as error:
        assert error.body["error"]["type"] == "invalid_request_error", error
        assert error.body["error"]["message"].startswith(word), error
print(text)
