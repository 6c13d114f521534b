// What a conversation asks of the model, and the request that follows from it. A setting that is left empty is not
// sent: the server then takes what the model's makers recommend.

export const DEFAULTS = {
  model: "", system: "", temperature: "", top_p: "", top_k: "", min_p: "", repetition_penalty: "",
  presence_penalty: "", frequency_penalty: "", max_completion_tokens: "", seed: "", stop: "",
  reasoning_effort: "", format: "text", schema: "", logprobs: false,
};

/** Number fields: name, label, lowest, highest, step, what it does. */
export const NUMBERS = [
  ["temperature", "Temperature", 0, 2, 0.05, "0 always takes the likeliest token."],
  ["top_p", "Top p", 0, 1, 0.01, "Only the likeliest tokens up to this mass."],
  ["top_k", "Top k", 0, 100000, 1, "Only this many of the likeliest tokens; 0 is off."],
  ["min_p", "Min p", 0, 1, 0.01, "No token below this share of the likeliest."],
  ["repetition_penalty", "Repetition penalty", 0.01, 100, 0.01, "Above 1: repeats are less likely."],
  ["presence_penalty", "Presence penalty", -2, 2, 0.1, "Taken from tokens that the answer has."],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.1, "Taken once per occurrence."],
  ["max_completion_tokens", "Longest answer (tokens)", 1, 2147483647, 1, "All that fits when empty."],
  ["seed", "Seed", 0, 9007199254740991, 1, "The same seed gives the same answer."],
];

const TOP_LOGPROBS = 8;

/** Return a setting's mistake in words, "" for none. */
export function mistakeIn(settings, name) {
  const value = settings[name];
  const row = NUMBERS.find(([field]) => field === name);
  if (row && value !== "") {
    const [, , lowest, highest, step] = row;
    const number = Number(value);
    if (!(number >= lowest && number <= highest)) return `A number from ${lowest} to ${highest}.`;
    if (step === 1 && !Number.isInteger(number)) return "A whole number.";
  }
  if (name === "stop" && stopsOf(value).length > 4) return "At most four lines.";
  if (name === "schema" && settings.format === "json_schema") return mistakeInSchema(value);
  return "";
}

function mistakeInSchema(source) {
  try {
    const schema = JSON.parse(source);
    return schema !== null && typeof schema === "object" && !Array.isArray(schema) ? ""
      : "A schema is a JSON object.";
  } catch (error) {
    return source.trim() ? `This is no JSON: ${error.message}` : "A schema is missing.";
  }
}

/** Return the names of settings that are wrong. */
export const mistakesIn = (settings) => Object.keys(DEFAULTS).filter((name) => mistakeIn(settings, name));

/** Return the body of `POST /v1/chat/completions`. path: messages, first to last. */
export function requestBody(settings, path) {
  const messages = path.map(({ role, content }) => ({ role, content }));
  if (settings.system.trim()) messages.unshift({ role: "system", content: settings.system });
  const body = { model: settings.model, messages, stream: true, stream_options: { include_usage: true } };
  for (const [name] of NUMBERS) {
    if (settings[name] !== "") body[name] = Number(settings[name]);
  }
  const stops = stopsOf(settings.stop);
  if (stops.length) body.stop = stops;
  if (settings.reasoning_effort) body.reasoning_effort = settings.reasoning_effort;
  if (settings.logprobs) Object.assign(body, { logprobs: true, top_logprobs: TOP_LOGPROBS });
  if (settings.format === "json_object") body.response_format = { type: "json_object" };
  if (settings.format === "json_schema") {
    body.response_format = {
      type: "json_schema",
      json_schema: { name: "answer", schema: JSON.parse(settings.schema), strict: true },
    };
  }
  return body;
}

const stopsOf = (text) => text.split("\n").filter((line) => line !== "");
