"use strict";
// A conversation with the model that serves this page. Texts are only ever put in as text.
const $ = (id) => document.getElementById(id);
let messages = [];
let running = null;

const headers = () => {
  const all = { "content-type": "application/json" };
  if ($("key").value) all.authorization = "Bearer " + $("key").value;
  return all;
};

const add = (kind, text) => {
  const article = document.createElement("article");
  article.className = kind;
  const body = document.createElement("div");
  body.textContent = text;
  article.append(body);
  $("messages").append(article);
  article.scrollIntoView({ block: "end" });
  return { article, body };
};

// A part that is shown on request.
const folded = (title, content) => {
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  summary.textContent = title;
  details.append(summary, content);
  return details;
};

const failure = async (response) => {
  const text = await response.text();
  try { return JSON.parse(text).error.message; } catch { return response.status + " " + text.slice(0, 500); }
};

// The values of an event stream, one by one.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

const asked = () => {
  const system = $("system").value.trim();
  const body = {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
  };
  if ($("temperature").value !== "") body.temperature = Number($("temperature").value);
  if ($("max-tokens").value !== "") body.max_tokens = Number($("max-tokens").value);
  if ($("routing").checked) body.routing = true;
  return JSON.stringify(body);
};

const follow = async (response, shown) => {
  let answer = "", thinking = null, experts = null, usage = null, calls = "", first = 0;
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    if (event.usage) usage = event.usage;
    const delta = event.choices?.[0]?.delta ?? {};
    const isNear = $("messages").scrollHeight - $("messages").scrollTop - $("messages").clientHeight < 80;
    if (delta.content || delta.reasoning_content) first ||= performance.now();
    if (delta.reasoning_content) {
      if (!thinking) shown.article.prepend(folded("Reasoning", thinking = document.createElement("div")));
      thinking.textContent += delta.reasoning_content;
    }
    for (const { layers } of event.choices?.[0]?.routing ?? []) {
      if (!experts) shown.article.append(folded("Experts of each token, by layer", experts = document.createElement("pre")));
      const text = JSON.stringify(delta.content ?? delta.reasoning_content ?? "");
      experts.textContent += text + "  " + Object.entries(layers).map(([layer, ids]) => layer + ": " + ids.join(" ")).join(" | ") + "\n";
    }
    for (const call of delta.tool_calls ?? []) calls += (call.function?.name ? "\n→ " + call.function.name + " " : "") + (call.function?.arguments ?? "");
    answer += delta.content ?? "";
    shown.body.textContent = answer + calls;
    if (isNear) shown.article.scrollIntoView({ block: "end" });
  }
  return { answer, usage, first };
};

const send = async () => {
  const text = $("text").value;
  if (running || !text.trim()) return;
  $("text").value = "";
  messages.push({ role: "user", content: text });
  add("user", text);
  const shown = add("assistant", "");
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  const conversation = messages;
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: asked(), signal: running.signal,
    });
    if (!response.ok) throw new Error(await failure(response));
    const { answer, usage, first } = await follow(response, shown);
    conversation.push({ role: "assistant", content: answer });
    if (usage) {
      const seconds = (performance.now() - first) / 1000;
      const speed = usage.completion_tokens > 1 && first ? " · " + ((usage.completion_tokens - 1) / seconds).toFixed(1) + " tokens/s" : "";
      const footer = document.createElement("footer");
      footer.textContent = `${usage.prompt_tokens} tokens in (${usage.prompt_tokens_details.cached_tokens} cached) · ${usage.completion_tokens} out${speed}`;
      shown.article.append(footer);
    }
  } catch (error) {
    if (error.name === "AbortError") conversation.push({ role: "assistant", content: shown.body.textContent });
    else {
      conversation.pop();
      shown.article.remove();
      add("error", error.message);
    }
  }
  running = null;
  $("send").hidden = false;
  $("stop").hidden = true;
  $("text").focus();
};

const stop = () => running?.abort();

$("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", () => {
  stop();
  messages = [];
  $("messages").replaceChildren();
  $("text").focus();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });

const name = async () => {
  const response = await fetch("v1/models", { headers: headers() });
  if (response.ok) $("model").textContent = (await response.json()).data[0].id;
};
$("key").addEventListener("change", name);
name().catch(() => {});
