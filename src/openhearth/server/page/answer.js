// One answer on its way: a request, and what its chunks add to a message of the tree.

import { ServerError, streamChat } from "./api.js";
import { requestBody } from "./settings.js";

/** How an answer ended: the server's `finish_reason`, or one of ours. */
export const STATES = {
  streaming: "", stop: "", tool_calls: "The model called a tool; this page has none.",
  length: "Cut off: the longest answer, or the context, was reached.", stopped: "Stopped.",
  broken: "Interrupted: the page was closed before the answer ended.", error: "",
};

/** Return a message for an answer that begins. */
export function newAnswer(settings) {
  return { role: "assistant", content: "", reasoning: "", model: settings.model, format: settings.format,
    state: "streaming", error: "", tokens: [], timing: null };
}

/** Write an answer into `node` as it comes, calling `changed` after each piece. Ends without throwing. */
export async function writeAnswer(node, settings, path, signal, changed) {
  const started = performance.now();
  let first = null;
  let usage = null;
  let state = "stop";
  try {
    for await (const chunk of streamChat(requestBody(settings, path), signal)) {
      usage = chunk.usage ?? usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      if (addChoice(node, choice)) first ??= performance.now();
      if (choice.finish_reason) state = choice.finish_reason;
      changed();
    }
  } catch (error) {
    state = error.name === "AbortError" ? "stopped" : "error";
    if (state === "error") node.error = messageOf(error);
  }
  node.state = state;
  node.timing = timingOf(started, first, usage);
  changed();
}

/** Add a chunk's choice to the message; returns whether it had any text. */
function addChoice(node, { delta, logprobs }) {
  const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
  node.reasoning += reasoning;
  node.content += delta.content ?? "";
  for (const token of logprobs?.content ?? []) node.tokens.push(token);
  return Boolean(reasoning || delta.content);
}

function messageOf(error) {
  if (!(error instanceof ServerError)) return `The page failed: ${error.message}`;
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  return `${error.message}${wait}`;
}

function timingOf(started, first, usage) {
  if (first === null) return null;
  const seconds = (performance.now() - first) / 1000;
  return { first_s: (first - started) / 1000, seconds, prompt_tokens: usage?.prompt_tokens ?? 0,
    completion_tokens: usage?.completion_tokens ?? 0,
    cached_tokens: usage?.prompt_tokens_details?.cached_tokens ?? 0 };
}

/** Return counts and speed in words. */
export function timingText(timing) {
  if (!timing?.completion_tokens) return "";
  const speed = timing.completion_tokens > 1 && timing.seconds > 0
    ? `${((timing.completion_tokens - 1) / timing.seconds).toFixed(1)} tokens/s` : null;
  return [`${timing.completion_tokens} tokens`, speed, `first after ${timing.first_s.toFixed(2)} s`]
    .filter(Boolean).join(" · ");
}
