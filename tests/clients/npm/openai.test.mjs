// The npm package `openai`: each feature as users call it, and each of its error classes.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const model = process.env.MODEL;
const keys = JSON.parse(process.env.FAULTY_KEYS);
const client = new OpenAI({ maxRetries: 0, timeout: 120_000 }); // reads OPENAI_BASE_URL and OPENAI_API_KEY
const hello = [{ role: "user", content: "Say hello." }];
const tool = {
  type: "function",
  function: {
    name: "get_weather",
    description: "weather of a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const weather = [{ role: "user", content: "What is the weather in Paris?" }];

function faulty(key = keys.any, maxRetries = 0) {
  return new OpenAI({ baseURL: process.env.FAULTY_URL, apiKey: key, maxRetries, timeout: 30_000 });
}

async function collect(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

test("models", async () => {
  const ids = (await collect(await client.models.list())).map((entry) => entry.id);
  assert.ok(ids.includes(model));
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("chat with usage", async () => {
  const answer = await client.chat.completions.create({ model, messages: hello, max_tokens: 8 });
  assert.ok(answer.choices[0].message.content);
  assert.ok(answer.usage.prompt_tokens > 0 && answer.usage.completion_tokens > 0);
  assert.ok(answer._request_id);
});

test("stream without and with usage", async () => {
  const request = { model, messages: hello, max_tokens: 8, stream: true };
  const plain = await collect(await client.chat.completions.create(request));
  assert.ok(plain.every((chunk) => chunk.choices.length === 1 && !chunk.usage));
  assert.ok(plain.map((chunk) => chunk.choices[0].delta.content ?? "").join(""));
  const counted = await collect(
    await client.chat.completions.create({ ...request, stream_options: { include_usage: true } }),
  );
  assert.deepEqual(counted.at(-1).choices, []);
  assert.ok(counted.at(-1).usage.completion_tokens > 0);
});

test("tools", async () => {
  const request = { model, messages: weather, tools: [tool], temperature: 0, max_tokens: 60 };
  if (!process.env.TOOLS) {
    await assert.rejects(client.chat.completions.create(request), OpenAI.BadRequestError);
    return;
  }
  const answer = await client.chat.completions.create(request);
  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(call.function.name, "get_weather");
  assert.ok("city" in JSON.parse(call.function.arguments));
  const final = await client.chat.completions.stream(request).finalChatCompletion();
  assert.equal(final.choices[0].message.tool_calls[0].function.name, "get_weather");
});

test("JSON mode", async () => {
  const answer = await client.chat.completions.create({
    model,
    messages: [{ role: "user", content: "Give a JSON object with one short field." }],
    response_format: { type: "json_object" },
    max_tokens: 200,
    temperature: 0,
  });
  assert.equal(typeof JSON.parse(answer.choices[0].message.content), "object");
});

test("legacy completions", async () => {
  const answer = await client.completions.create({ model, prompt: "One, two,", max_tokens: 6 });
  assert.ok(answer.choices[0].text);
  assert.ok(answer.usage.completion_tokens > 0);
});

test("embeddings", async () => {
  const answer = await client.embeddings.create({ model, input: ["one", "two"] });
  assert.equal(answer.data.length, 2);
  assert.equal(typeof answer.data[0].embedding[0], "number");
  assert.ok(answer.usage.prompt_tokens > 0);
});

test("responses and their stream", async () => {
  const request = { model, input: "Say hello.", max_output_tokens: 16 };
  const answer = await client.responses.create(request);
  assert.ok(answer.output_text);
  assert.ok(answer.usage.output_tokens > 0);
  const events = await collect(await client.responses.create({ ...request, stream: true }));
  const kinds = events.map((event) => event.type);
  assert.equal(kinds[0], "response.created");
  assert.ok(kinds.includes("response.output_text.delta"));
  assert.ok(["response.completed", "response.incomplete"].includes(kinds.at(-1)));
});

const send = (client, model, more = {}) =>
  client.chat.completions.create({ model, messages: hello, max_tokens: 4, ...more });

test("AuthenticationError", async () => {
  await assert.rejects(send(faulty("sk-wrong"), "good"), (error) => {
    assert.ok(error instanceof OpenAI.AuthenticationError);
    return error.code === "invalid_api_key";
  });
  await assert.rejects(send(faulty(keys.expired), "good"), /expired/);
});

test("NotFoundError", async () => {
  for (const [key, model] of [[keys.any, "none"], [keys["good-only"], "broken"]]) {
    await assert.rejects(send(faulty(key), model), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      return error.code === "model_not_found";
    });
  }
});

test("RateLimitError", async () => {
  const client = faulty(keys["once-npm"]);
  const refused = (error) => {
    assert.ok(error instanceof OpenAI.RateLimitError);
    return Number(error.headers.get("retry-after")) >= 1;
  };
  await assert.rejects(send(client, "good").then(() => send(client, "good")), refused);
});

test("BadRequestError", async () => {
  for (const more of [{ messages: "hello" }, { max_tokens: 0 }, { n: 2 }]) {
    await assert.rejects(send(faulty(), "good", more), OpenAI.BadRequestError);
  }
  const long = { messages: [{ role: "user", content: "word ".repeat(5000) }] };
  await assert.rejects(send(faulty(), "good", long), (error) => error.code === "context_length_exceeded");
});

test("InternalServerError", async () => {
  for (const model of ["broken", "garbage", "cut", "gone"]) {
    await assert.rejects(send(faulty(), model), OpenAI.InternalServerError);
  }
});

test("a time-out is one call", async () => {
  const start = Date.now();
  await assert.rejects(send(faulty(keys.any, 2), "silent"), (error) => error.status === 504);
  assert.ok(Date.now() - start < 4000);
});

test("an error inside a stream", async () => {
  await assert.rejects(async () => {
    await collect(await send(faulty(), "cut", { stream: true }));
  }, OpenAI.APIError);
});
