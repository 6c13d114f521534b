// A conversation as a tree of messages. Every node knows its parent, its children in the order they came, and
// which of them is shown; null shows none, so that what is written next begins another branch.
//
// Functions change the conversation that they are given and touch nothing else.

import { newId } from "./dom.js";

export const ROOT = "root";

/** Return an empty conversation. settings: as in `settings.js`. */
export function newConversation(settings) {
  const now = Date.now();
  return {
    id: newId(), title: "", created: now, updated: now, settings: { ...settings },
    nodes: { [ROOT]: { id: ROOT, parent: null, children: [], shown: null } },
  };
}

/** Add a message below a node, show it, and return it. */
export function addMessage(conversation, parentId, message) {
  const node = { id: newId(), parent: parentId, children: [], shown: null, created: Date.now(), ...message };
  const parent = conversation.nodes[parentId];
  conversation.nodes[node.id] = node;
  parent.children.push(node.id);
  parent.shown = node.id;
  return node;
}

/** Return the messages that are shown, first to last. */
export function shownPath(conversation) {
  const path = [];
  for (let id = conversation.nodes[ROOT].shown; id !== null; id = conversation.nodes[id].shown) {
    path.push(conversation.nodes[id]);
  }
  return path;
}

/** Return the messages before a node, first to last. */
export function pathBefore(conversation, node) {
  const path = [];
  for (let id = node.parent; id !== ROOT; id = conversation.nodes[id].parent) path.unshift(conversation.nodes[id]);
  return path;
}

/** Return the ids of a node and of those beside it. */
export const siblingsOf = (conversation, node) => conversation.nodes[node.parent].children;

/** Show the sibling that is `step` places further. */
export function showSibling(conversation, node, step) {
  const siblings = siblingsOf(conversation, node);
  const next = siblings[siblings.indexOf(node.id) + step];
  if (next !== undefined) conversation.nodes[node.parent].shown = next;
}

/** End what is shown at a node; what is written next is another branch. */
export function endAt(conversation, node) {
  node.shown = null;
}

/** Show a node's newest child again. */
export function showNewest(conversation, node) {
  node.shown = node.children.at(-1) ?? null;
}

/** Return a title: the first line of the first message. */
export function titleOf(conversation) {
  const first = conversation.nodes[ROOT].children[0];
  const line = (first ? conversation.nodes[first].content : "").trim().split("\n")[0];
  return line.length > 80 ? `${line.slice(0, 79).replace(/\s\S{0,15}$/, "")}…` : line;
}
