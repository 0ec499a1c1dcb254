// The gateway's API as the page uses it: models, a streamed chat, the place in the queue, and errors as sentences.
"use strict";

class ApiError extends Error {
  constructor(message, { status = 0, retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const PLACE_SECONDS = 3;
const UNREACHABLE = "The gateway does not answer: check your connection, and try again.";
const CUT = "The answer was cut off, as by a restart of the gateway: try again.";

function newRequestId() {
  return `chat-${Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

async function errorOf(response) {
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  let message;
  try {
    message = (await response.json()).error.message;
  } catch {
    message = null;
  }
  message ||= `The gateway answered with status ${response.status}: try again, or ask its operator.`;
  return new ApiError(message, { status: response.status, retryAfter });
}

async function request(path, key, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", credentials: "omit", ...options, headers: { ...options.headers, authorization: `Bearer ${key}` } });
  } catch (error) {
    if (error.name === "AbortError" || error.name === "TimeoutError") throw error;
    throw new ApiError(UNREACHABLE);
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function listModels(key) {
  return (await (await request("/v1/models", key)).json()).data;
}

// Returns the place of a request that waits or runs; null where the gateway does not know it yet. The state is `blocked` while
// the browser does not even send the question: it opens six connections to an http address, and other tabs may have them.
async function findPlace(key, id) {
  try {
    return await (await request(`/v1/queue/${id}`, key, { signal: AbortSignal.timeout(PLACE_SECONDS * 1000) })).json();
  } catch (error) {
    return error.name === "TimeoutError" ? { state: "blocked" } : null;
  }
}

async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(CUT);
    }
    if (chunk.done) return;
    const lines = (buffer + chunk.value).split("\n");
    buffer = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}

// Yields what arrives: {text}, {thought}, {tokens}, {finish}.
async function* streamChat(key, id, body, signal) {
  const response = await request("/v1/chat/completions", key, {
    method: "POST",
    headers: { "content-type": "application/json", "x-request-id": id },
    body: JSON.stringify(body),
    signal,
  });
  const queueMs = Number(response.headers.get("x-bedplate-queue-ms")) || 0;
  yield { queueSeconds: queueMs / 1000, fallback: response.headers.get("x-bedplate-fallback") };
  let finished = false;
  for await (const data of readEvents(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(event.error.message || CUT);
    const choice = event.choices?.[0];
    const thought = choice?.delta?.reasoning ?? choice?.delta?.reasoning_content;
    if (thought) yield { thought };
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) {
      finished = true;
      yield { finish: choice.finish_reason };
    }
    if (event.usage) yield { tokens: event.usage.completion_tokens };
  }
  if (!finished) throw new ApiError(CUT);
}

// The request as it was sent, without the key and the images' data.
function asCurl(body) {
  const shown = JSON.stringify(body, (_, value) => (typeof value === "string" && value.startsWith("data:image/") ? `${value.slice(0, value.indexOf(","))},…` : value), 2);
  return [
    `curl -N '${location.origin}/v1/chat/completions' \\`,
    '  -H "Authorization: Bearer $OPENAI_API_KEY" \\',
    '  -H "Content-Type: application/json" \\',
    `  -d '${shown.replaceAll("'", "'\\''")}'`,
  ].join("\n");
}
