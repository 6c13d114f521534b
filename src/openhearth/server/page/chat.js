// The conversation that is open, and the answers that are being written: what the buttons do.
//
// An answer goes on while another conversation is looked at; each conversation has one at a time.

import { newAnswer, writeAnswer } from "./answer.js";
import * as tree from "./tree.js";

const SAVE_MS = 1000;

/** Changes conversations, keeps them, and tells `listener` {changed(), streamed(node), listed(), failed(error)}. */
export class Chat {
  constructor(store, listener) {
    Object.assign(this, { store, listener, conversation: null });
    this.running = new Map(); // id of a conversation -> {conversation, node, controller}
    this.removed = new Set();
    this.savedAt = 0;
  }

  /** Begin an empty conversation; it is kept with its first message. */
  begin(settings) {
    this.conversation = tree.newConversation(settings);
    this.listener.changed();
  }

  /** Open a kept conversation; returns whether there is one. */
  async open(id) {
    const found = this.running.get(id)?.conversation ?? await this.store.get(id);
    if (!found) return false;
    for (const node of Object.values(found.nodes)) {
      if (node.state === "streaming" && !this.running.has(id)) node.state = "broken";
    }
    this.conversation = found;
    this.listener.changed();
    return true;
  }

  get path() {
    return tree.shownPath(this.conversation);
  }

  get isRunning() {
    return this.running.has(this.conversation.id);
  }

  /** Send what the user wrote, below what is shown. */
  async send(text) {
    const last = this.path.at(-1)?.id ?? tree.ROOT;
    const asked = tree.addMessage(this.conversation, last, { role: "user", content: text });
    this.conversation.title ||= tree.titleOf(this.conversation);
    await this.answer(asked);
  }

  /** Write an answer below a message. */
  async answer(asked) {
    const { conversation } = this;
    if (this.running.has(conversation.id)) return;
    const path = [...tree.pathBefore(conversation, asked), asked];
    const node = tree.addMessage(conversation, asked.id, newAnswer(conversation.settings));
    const controller = new AbortController();
    this.running.set(conversation.id, { conversation, node, controller });
    await this.#save(conversation);
    this.listener.changed();
    this.listener.listed();
    await writeAnswer(node, conversation.settings, path, controller.signal, () => this.#grew(conversation, node));
    this.running.delete(conversation.id);
    await this.#save(conversation);
    if (this.conversation === conversation) this.listener.changed();
    this.listener.listed();
  }

  #grew(conversation, node) {
    if (Date.now() - this.savedAt > SAVE_MS) this.#save(conversation);
    if (this.conversation === conversation) this.listener.streamed(node);
  }

  /** End the answer that is being written here. */
  stop() {
    this.running.get(this.conversation.id)?.controller.abort();
  }

  /** Write another answer beside one. */
  async regenerate(node) {
    await this.answer(this.conversation.nodes[node.parent]);
  }

  /** Put another text beside a message, and answer it where it is the user's. */
  async edit(node, text) {
    const { role, model, format } = node;
    const beside = role === "user" ? { role, content: text }
      : { role, content: text, reasoning: "", model, format, state: "stop", error: "", tokens: [], timing: null };
    const added = tree.addMessage(this.conversation, node.parent, beside);
    if (role === "user") await this.answer(added);
    else await this.#keep();
  }

  /** Show another version of a message. */
  async turn(node, step) {
    tree.showSibling(this.conversation, node, step);
    await this.#keep();
  }

  /** End what is shown at a message, so that the next one begins a branch. */
  async branch(node) {
    tree.endAt(this.conversation, node);
    await this.#keep();
  }

  /** Show what came after a message again. */
  async rejoin(node) {
    tree.showNewest(this.conversation, node);
    await this.#keep();
  }

  /** Keep the conversation's settings, where the conversation is kept at all. */
  async keepSettings() {
    if (this.path.length) await this.#save(this.conversation);
  }

  /** Give a conversation another title. */
  async rename(id, title) {
    const found = this.#live(id) ?? await this.store.get(id);
    found.title = title;
    await this.store.put(found);
    this.listener.listed();
  }

  /** Delete a conversation; an answer that is being written for it ends. */
  async remove(id) {
    this.removed.add(id);
    this.running.get(id)?.controller.abort();
    this.running.delete(id);
    await this.store.remove(id);
    this.listener.listed();
  }

  #live(id) {
    return this.running.get(id)?.conversation ?? (this.conversation.id === id ? this.conversation : null);
  }

  async #keep() {
    await this.#save(this.conversation);
    this.listener.changed();
  }

  async #save(conversation) {
    if (this.removed.has(conversation.id)) return;
    this.savedAt = conversation.updated = Date.now();
    try {
      await this.store.put(conversation);
    } catch (error) {
      this.listener.failed(error); // no room, most likely; the conversation goes on unkept
    }
  }
}
