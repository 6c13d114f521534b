// What the official JavaScript client makes of a server, as one JSON document on stdout.
import OpenAI from "openai";

const [baseURL, question] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: question }];
const greedy = { model: "tiny", temperature: 0 };
const found = {};

const chat = await client.chat.completions.create({ ...greedy, messages, max_tokens: 12, logprobs: true });
found.chat = chat.choices[0].message.content;
found.logprobs = chat.choices[0].logprobs.content.map((token) => token.logprob);
found.usage = chat.usage.total_tokens;

const chunks = await client.chat.completions.create({
  ...greedy, messages, max_tokens: 12, stream: true, stream_options: { include_usage: true } });
found.streamed = "";
for await (const chunk of chunks) {
  found.streamed += chunk.choices[0]?.delta?.content ?? "";
  found.streamedUsage = chunk.usage?.total_tokens ?? found.streamedUsage;
}

const runner = client.chat.completions.stream({
  ...greedy, messages, logit_bias: { 2: 100 }, max_tokens: 12 });
found.ended = (await runner.finalChatCompletion()).choices[0].finish_reason;

const completion = await client.completions.create({ ...greedy, prompt: question, max_tokens: 12 });
found.completion = completion.choices[0].text;

const vectors = await client.embeddings.create({ model: "tiny", input: [question, "a"] });
found.embeddings = vectors.data.map((one) => Array.from(one.embedding));

const response = await client.responses.create({ ...greedy, input: question, max_output_tokens: 12 });
found.response = response.output_text;
const events = await client.responses.create({
  ...greedy, input: "and?", previous_response_id: response.id, max_output_tokens: 12, stream: true });
found.events = [];
found.followed = "";
for await (const event of events) {
  found.events.push(event.type);
  if (event.type === "response.output_text.delta") found.followed += event.delta;
}
found.retrieved = (await client.responses.retrieve(response.id)).output[0].content[0].text;
found.items = [];
for await (const item of client.responses.inputItems.list(response.id)) found.items.push(item.content[0].text);
await client.responses.delete(response.id);

found.models = [];
for await (const model of client.models.list()) found.models.push(model.id);

found.errors = [];
for (const ask of [
  () => client.responses.retrieve(response.id),
  () => client.chat.completions.create({ model: "none", messages }),
  () => client.chat.completions.create({ ...greedy, messages, n: 0 }),
]) {
  try { await ask(); } catch (error) { found.errors.push([error.constructor.name, error.status, error.param]); }
}

const controller = new AbortController();
const endless = await client.chat.completions.create(
  { ...greedy, messages, logit_bias: { 2: -100 }, stream: true }, { signal: controller.signal });
for await (const _ of endless) { controller.abort(); }
console.log(JSON.stringify(found));
