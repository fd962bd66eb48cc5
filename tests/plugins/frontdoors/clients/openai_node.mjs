// OpenAI's own client for JavaScript, in Node.
import OpenAI from "../browser/node_modules/openai/index.mjs";
import assert from "node:assert/strict";

const urls = JSON.parse(process.argv[2]);
const MODEL = "org/tiny";
const TEXT = "one two three";
const JSON_ANSWER = { answer: "yes" };
const messages = [{ role: "user", content: "hello" }];
const schema = {
  type: "object",
  properties: { answer: { type: "string" } },
  required: ["answer"],
  additionalProperties: false,
};
const format = { type: "json_schema", json_schema: { name: "answer", schema } };
const tool = { type: "function", function: { name: "reply", parameters: schema } };

const client = (url, options = {}) =>
  new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0, ...options });
const chat = (url, extra = {}) =>
  client(url).chat.completions.create({ model: MODEL, messages, ...extra });
async function rejects(kind, call) {
  try {
    await call();
  } catch (error) {
    assert.ok(error instanceof kind, String(error));
    return error;
  }
  return assert.fail(`no ${kind.name}`);
}

const checks = {
  async answers() {
    const answer = await chat(urls.full);
    assert.equal(answer.choices[0].message.content, TEXT);
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.ok(answer.usage.completion_tokens > 0);
  },
  async streams() {
    const options = { stream: true, stream_options: { include_usage: true } };
    let text = "", usage = null;
    for await (const chunk of await chat(urls.full, options)) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, TEXT);
    assert.ok(usage.completion_tokens > 0);
  },
  async completions() {
    const made = client(urls.full).completions;
    const answer = await made.create({ model: MODEL, prompt: "fox" });
    assert.equal(answer.choices[0].text, TEXT);
    let text = "";
    for await (const part of await made.create({ model: MODEL, prompt: "fox", stream: true })) {
      text += part.choices[0].text;
    }
    assert.equal(text, TEXT);
  },
  async "stop strings"() {
    const answer = await chat(urls.full, { stop: ["three"] });
    assert.equal(answer.choices[0].message.content, "one two ");
  },
  async "several answers"() {
    const answer = await chat(urls.full, { n: 2 });
    assert.deepEqual(answer.choices.map((one) => one.message.content), [TEXT, TEXT]);
  },
  async logprobs() {
    const answer = await chat(urls.full, { logprobs: true, top_logprobs: 2 });
    const found = answer.choices[0].logprobs.content;
    assert.equal(found.map((entry) => entry.token).join(""), TEXT);
  },
  async "JSON schema"() {
    const answer = await chat(urls.full, { response_format: format });
    assert.deepEqual(JSON.parse(answer.choices[0].message.content), JSON_ANSWER);
  },
  async "JSON schema without the feature"() {
    const call = () => chat(urls.plain, { response_format: format });
    const error = await rejects(OpenAI.BadRequestError, call);
    assert.equal(error.param, "response_format");
    assert.equal(error.code, "unsupported_parameter");
  },
  async "forced tool call"() {
    const choice = { type: "function", function: { name: "reply" } };
    const answer = await chat(urls.full, { tools: [tool], tool_choice: choice });
    const [call] = answer.choices[0].message.tool_calls;
    assert.equal(call.function.name, "reply");
    assert.deepEqual(JSON.parse(call.function.arguments), JSON_ANSWER);
  },
  async "free choice of tools"() {
    await chat(urls.full, { tools: [tool] });
  },
  async "errors by class"() {
    const bad = await rejects(OpenAI.BadRequestError, () => chat(urls.full, { temperature: 9 }));
    assert.equal(bad.param, "temperature");
    const long = await rejects(OpenAI.BadRequestError, () =>
      chat(urls.full, { max_tokens: 100000 }));
    assert.equal(long.code, "context_length_exceeded");
    await rejects(OpenAI.NotFoundError, () => chat(urls.full, { model: "other" }));
    await rejects(OpenAI.AuthenticationError, () => chat(urls.keys));
    await rejects(OpenAI.RateLimitError, () => chat(urls["full queue"]));
    await rejects(OpenAI.InternalServerError, () => chat(urls.nobody));
  },
  async retries() {
    for (const name of ["busy once", "down once"]) {
      const made = client(urls[name], { maxRetries: 1 });
      const answer = await made.chat.completions.create({ model: MODEL, messages });
      assert.equal(answer.choices[0].message.content, TEXT);
    }
  },
  async timeouts() {
    const made = client(urls.slow, { timeout: 500 });
    await rejects(OpenAI.APIConnectionTimeoutError, () =>
      made.chat.completions.create({ model: MODEL, messages }));
  },
  async "leaving a stream"() {
    for await (const chunk of await chat(urls.slow, { stream: true })) {
      assert.ok(chunk.id);
      break;
    }
  },
  async "response headers"() {
    const headers = { "X-Request-Id": "mine" };
    const { data, response } = await client(urls.full)
      .chat.completions.create({ model: MODEL, messages }, { headers }).withResponse();
    assert.equal(response.headers.get("x-request-id"), "mine");
    assert.equal(data._request_id, "mine");
  },
  async models() {
    const names = [];
    for await (const model of client(urls.full).models.list()) names.push(model.id);
    assert.deepEqual(names, [MODEL]);
    assert.equal((await client(urls.full).models.retrieve(MODEL)).id, MODEL);
  },
};

const said = {};
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    said[name] = "yes";
  } catch (error) {
    console.error(name, error);
    said[name] = `${error.constructor.name}: ${error.message}`.slice(0, 500);
  }
}
console.log(JSON.stringify(said));
