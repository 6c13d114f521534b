// The messages that are shown, and keeping the newest words in sight unless the reader looks elsewhere.

import { byId, h } from "../dom.js";
import { siblingsOf } from "../tree.js";
import { MessageView } from "./message.js";

const NEAR = 80; // pixels from the end at which a reader counts as being there

/** Shows a conversation's path. */
export class ThreadView {
  constructor(chat) {
    this.chat = chat;
    this.element = byId("thread");
    this.scroller = byId("scroller");
    this.toEnd = byId("to-end");
    this.views = new Map();
    this.isAtEnd = true;
    this.frame = 0;
    this.scroller.addEventListener("scroll", () => this.#noteScroll(), { passive: true });
    this.toEnd.addEventListener("click", () => this.scrollToEnd());
  }

  /** Show the open conversation. */
  show() {
    const { chat } = this;
    const isSame = this.shownId === chat.conversation.id;
    const focused = isSame && this.#focused();
    if (!isSame) this.views.clear();
    this.shownId = chat.conversation.id;
    const before = this.views;
    this.views = new Map(chat.path.map((node) => [node.id, before.get(node.id) ?? this.#build(node)]));
    for (const view of this.views.values()) view.update();
    this.#place([...this.views.values()].map((view) => view.element));
    byId("welcome").hidden = this.views.size > 0;
    if (focused && !this.element.contains(document.activeElement)) this.#focusAgain(focused);
    if (!isSame || chat.isRunning) this.scrollToEnd();
  }

  /** Return which button of which message has the focus, null when it is elsewhere. */
  #focused() {
    const message = document.activeElement.closest("#thread > .message");
    const place = [...this.element.children].indexOf(message);
    return message && { place, name: document.activeElement.ariaLabel };
  }

  /** The messages' buttons were built anew: focus the same one, or its neighbour, or the field below. */
  #focusAgain({ place, name }) {
    const buttons = [...(this.element.children[place]?.querySelectorAll(".actions button:enabled") ?? [])];
    (buttons.find((button) => button.ariaLabel === name) ?? buttons[0] ?? byId("prompt")).focus();
  }

  #build(node) {
    return new MessageView(node, {
      chat: this.chat, busy: () => this.chat.isRunning,
      siblings: (one) => siblingsOf(this.chat.conversation, one),
    });
  }

  /** Put elements into the thread; those that stay are not moved, so that focus and selection stay too. */
  #place(elements) {
    for (const child of [...this.element.children]) if (!elements.includes(child)) child.remove();
    elements.forEach((element, place) => {
      if (this.element.children[place] !== element) this.element.insertBefore(element, this.element.children[place]);
    });
  }

  /** Show what was added to a message, at most once a frame. */
  grow(node) {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.views.get(node.id)?.update();
      if (this.isAtEnd) this.scrollToEnd();
    });
  }

  scrollToEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#noteScroll();
  }

  #noteScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR;
    this.toEnd.hidden = this.isAtEnd;
  }
}

/** Return the welcome's line about a model. */
export function welcomeText(model) {
  return h("p", {}, model ? `${model} runs on this server. ` : "",
    "Conversations stay in this browser; nothing is sent anywhere else.");
}
