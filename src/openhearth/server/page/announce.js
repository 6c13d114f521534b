// What a screen reader is told: short notes, and an answer paragraph by paragraph, never word by word.

import { byId } from "./dom.js";

const EVERY_MS = 3000;

/** Have a text spoken when the reader is free. */
export function say(text) {
  const region = byId("status");
  region.textContent = "";
  requestAnimationFrame(() => { region.textContent = text; });
}

/** Speaks an answer's finished blocks, some at a time. */
export class Speaker {
  #spoken = 0;

  #saidAt = 0;

  /** Speak what is settled of a `MarkdownView`; all of it at the end. */
  follow(view, isDone) {
    if (!isDone && performance.now() - this.#saidAt < EVERY_MS) return;
    const texts = view.settledTexts(this.#spoken, isDone);
    this.#spoken += texts.length;
    if (!texts.length && !isDone) return;
    this.#saidAt = performance.now();
    say([...texts, isDone ? "End of the answer." : ""].join("\n").trim());
  }
}
