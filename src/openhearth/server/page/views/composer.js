// Where a message is written and sent, and an answer is stopped.

import { byId } from "../dom.js";

/** The form below the thread. onsend: takes the text, returns whether it was taken. */
export class Composer {
  constructor({ onsend, onstop }) {
    this.field = byId("prompt");
    this.sendButton = byId("send");
    this.stopButton = byId("stop");
    this.form = byId("composer");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send(onsend);
    });
    this.field.addEventListener("keydown", (event) => {
      const isTouch = matchMedia("(pointer: coarse)").matches; // where Enter is the way to a new line
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || isTouch) return;
      event.preventDefault();
      this.#send(onsend);
    });
    this.field.addEventListener("input", () => this.#fit());
    this.stopButton.addEventListener("click", onstop);
    document.addEventListener("keydown", (event) => {
      const isElsewhere = event.target.closest("dialog, form.edit, aside, nav");
      if (event.key === "Escape" && this.isRunning && !isElsewhere) onstop();
    });
  }

  #send(onsend) {
    const text = this.field.value;
    if (!text.trim() || this.isRunning || !onsend(text)) return;
    this.field.value = "";
    this.#fit();
  }

  #fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight + 2}px`;
  }

  /** Show whether an answer is being written; the focus does not fall off a button that goes. */
  show(isRunning) {
    const hadFocus = [this.sendButton, this.stopButton].includes(document.activeElement);
    this.isRunning = isRunning;
    this.sendButton.hidden = isRunning;
    this.stopButton.hidden = !isRunning;
    if (hadFocus) this.field.focus();
  }

  focus() {
    this.field.focus();
  }
}
