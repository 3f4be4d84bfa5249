// OpenAI's client for Node against a running server: node serve_openai.mjs http://HOST:PORT FOLDER_WITH_NODE_MODULES
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";

const [url, folder] = process.argv.slice(2);
const { default: OpenAI, BadRequestError, NotFoundError } = createRequire(path.join(folder, "x.js"))("openai");
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is 2+2?" }];
const asked = { model: "any", messages, temperature: 0 };

const whole = await client.chat.completions.create({ ...asked, logprobs: true, top_logprobs: 2 });
const text = whole.choices[0].message.content;
assert.equal(whole.choices[0].finish_reason, "stop");
assert.equal(whole.choices[0].logprobs.content.length, whole.usage.completion_tokens);
assert.equal(whole.choices[0].logprobs.content.map((token) => token.token).join(""), text);

let streamed = "", usage = null;
const stream = await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.deepEqual(usage.total_tokens, whole.usage.total_tokens);

// The client's own runner of streams, and a stream that is left in the middle.
const runner = client.chat.completions.stream(asked);
assert.equal((await runner.finalChatCompletion()).choices[0].message.content, text);
const left = await client.chat.completions.create({ ...asked, max_tokens: 1000, ignore_eos: true, stream: true });
for await (const _ of left) break;
left.controller.abort();

const parameters = { type: "object", properties: { at: { type: "string" } }, required: ["at"] };
const tools = [{ type: "function", function: { name: "look", parameters } }];
const called = await client.chat.completions.create({ ...asked, tools, max_tokens: 4 });
assert.equal(called.choices[0].message.role, "assistant");
const schema = { type: "object", properties: { n: { type: "integer", maximum: 9, minimum: 0 } }, required: ["n"], additionalProperties: false };
const held = await client.chat.completions.create({
  ...asked, response_format: { type: "json_schema", json_schema: { name: "n", schema, strict: true } },
});
assert.ok(Number.isInteger(JSON.parse(held.choices[0].message.content).n));

const completion = await client.completions.create({ model: "any", prompt: "Hi", max_tokens: 3, temperature: 0 });
assert.equal(completion.object, "text_completion");
const response = await client.responses.create({ model: "any", input: "What is 2+2?", temperature: 0 });
assert.equal(response.output_text, text);
let deltas = "";
for await (const event of await client.responses.create({ model: "any", input: "What is 2+2?", temperature: 0, stream: true })) {
  if (event.type === "response.output_text.delta") deltas += event.delta;
}
assert.equal(deltas, text);
const name = (await client.models.list()).data[0].id;
assert.equal((await client.models.retrieve(name)).id, name);

await assert.rejects(client.chat.completions.create({ ...asked, temperature: 9 }), (error) =>
  error instanceof BadRequestError && error.param === "temperature" && error.code === "invalid_value");
await assert.rejects(client.models.retrieve("another"), NotFoundError);
console.log(text);
