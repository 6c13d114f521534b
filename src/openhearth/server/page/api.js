// What the page asks the server: paths of this origin only, in OpenAI's dialect where it has one.

import { readKey } from "./key.js";
import { readEvents } from "./sse.js";

/** What the server answered instead. status is 0 where no answer came. */
export class ServerError extends Error {
  constructor(message, { status = 0, code = "", field = "", retryAfter = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, field, retryAfter });
  }
}

let served = { version: "", needs_key: false, paths: [] };

/** Learn which paths this server has: the page asks for no other. */
export async function readServed() {
  served = await (await send("page/served.json")).json();
  return served;
}

export const isServed = (path) => served.paths.includes(path);
export const needsKey = () => served.needs_key;

/** Send a request and return the response. Throws ServerError; AbortError when `signal` ends it. */
export async function send(path, { body, signal } = {}) {
  const key = readKey();
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  let reply;
  try {
    reply = await fetch(path.replace(/^\//, ""), {
      method: body === undefined ? "GET" : "POST", headers, signal, cache: "no-store", credentials: "omit",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is `hearth serve` still running?");
  }
  if (!reply.ok) throw await refusalOf(reply);
  return reply;
}

async function refusalOf(reply) {
  const text = await reply.text();
  let error;
  try {
    error = JSON.parse(text).error;
  } catch {
    error = null;
  }
  const message = (typeof error === "string" ? error : error?.message) || text.slice(0, 400) || reply.statusText;
  return new ServerError(message, {
    status: reply.status, code: error?.code ?? "", field: error?.param ?? "",
    retryAfter: reply.headers.get("retry-after") ?? "",
  });
}

/** Return {id, parent} of models and adapters; a server that says whose adapter one is gives it as the parent. */
export async function listModels() {
  return (await (await send("v1/models")).json()).data;
}

/** Yield the chunks of a streamed chat completion. Throws ServerError when it breaks off. */
export async function* streamChat(body, signal) {
  const reply = await send("v1/chat/completions", { body, signal });
  for await (const data of readEvents(reply.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, { status: reply.status, code: chunk.error.code });
    yield chunk;
  }
  throw new ServerError("The connection ended before the answer did.");
}
