// Conversations to a JSON document and back. What is read is checked: a file may come from anyone.

import { newId } from "./dom.js";
import { ROOT } from "./tree.js";
import { DEFAULTS } from "./settings.js";

export const FORMAT = "openhearth-conversations";

/** Return a document that holds conversations. */
export function toDocument(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

/** Return the conversations of a document, under new ids. Throws Error that says what is wrong. */
export function fromDocument(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`the file is no JSON document: ${error.message}`);
  }
  if (value?.format !== FORMAT || value.version !== 1 || !Array.isArray(value.conversations)) {
    throw new Error(`the file is no export of this page: expected format "${FORMAT}", version 1`);
  }
  return value.conversations.map(readConversation);
}

function readConversation(value, place) {
  const where = `conversation ${place + 1}`;
  const nodes = value?.nodes;
  if (typeof nodes?.[ROOT] !== "object") throw new Error(`${where} has no messages`);
  const kept = {};
  const waiting = [[ROOT, null]];
  while (waiting.length) {
    const [id, parent] = waiting.pop();
    const node = nodes[id];
    if (!/^[0-9A-Za-z]{1,64}$/.test(id) || !Object.hasOwn(nodes, id) || Object.hasOwn(kept, id)) throw new Error(`${where} is no tree of messages`);
    kept[id] = readNode(node, id, parent, where);
    for (const child of kept[id].children) waiting.push([child, id]);
  }
  return {
    id: newId(), title: text(value.title).slice(0, 200), created: number(value.created),
    updated: number(value.updated), settings: readSettings(value.settings), nodes: kept,
  };
}

function readNode(node, id, parent, where) {
  if (!Array.isArray(node.children) || !node.children.every((child) => typeof child === "string")) {
    throw new Error(`${where} is no tree of messages`);
  }
  const shown = node.children.includes(node.shown) ? node.shown : null;
  const links = { id, parent, children: [...node.children], shown };
  if (id === ROOT) return links;
  if (node.role !== "user" && node.role !== "assistant") {
    throw new Error(`${where} has a message of role \`${String(node.role).slice(0, 40)}\``);
  }
  return {
    ...links, role: node.role, content: text(node.content), reasoning: text(node.reasoning),
    model: text(node.model), format: text(node.format) || "text", created: number(node.created), state: text(node.state) || "stop",
    error: text(node.error), tokens: Array.isArray(node.tokens) ? node.tokens.map(readTokens) : [],
    timing: node.timing && typeof node.timing === "object"
      ? Object.fromEntries(Object.entries(node.timing).map(([name, value]) => [name, number(value)])) : null,
  };
}

function readToken(token) {
  return {
    token: text(token?.token), logprob: number(token?.logprob),
    bytes: Array.isArray(token?.bytes) ? token.bytes.map(number) : null,
  };
}

function readTokens(token) {
  const others = Array.isArray(token?.top_logprobs) ? token.top_logprobs : [];
  return { ...readToken(token), top_logprobs: others.map(readToken) };
}

function readSettings(given) {
  const settings = { ...DEFAULTS };
  for (const name of Object.keys(DEFAULTS)) {
    if (typeof given?.[name] === typeof DEFAULTS[name]) settings[name] = given[name];
  }
  return settings;
}

const text = (value) => (typeof value === "string" ? value : "");
const number = (value) => (Number.isFinite(value) ? value : 0);
