// One message: its text, what was thought before it, how it ended, and what can be done with it.

import { STATES, timingText } from "../answer.js";
import { Speaker, say } from "../announce.js";
import { copyText } from "../clipboard.js";
import { h, icon, iconButton } from "../dom.js";
import { MarkdownView } from "../markdown/view.js";
import { splitThinking } from "../thinking.js";
import { tokensView } from "./tokens.js";

/** Return a message's reasoning and answer, wherever the server put them. */
function partsOf(node) {
  const grows = node.state === "streaming";
  if (node.reasoning) return { reasoning: node.reasoning, answer: node.content, isOpen: grows && !node.content };
  return splitThinking(node.content, { grows });
}

/** Return an answer that was asked for as JSON as a block of code, set out where it is whole. */
function asJson(answer) {
  let text = answer;
  try {
    text = JSON.stringify(JSON.parse(answer), null, 2);
  } catch {
    // still on its way, or cut off: shown as it is
  }
  return answer && `~~~~~~json\n${text}\n~~~~~~`;
}

/** Shows one message. actions: {chat, siblings(node), busy()}. */
export class MessageView {
  constructor(node, actions) {
    Object.assign(this, { node, actions, speaker: new Speaker(), shownTokens: null });
    const isUser = node.role === "user";
    const name = `name-${node.id}`;
    this.body = h("div", { class: isUser ? "text plain" : "text prose" });
    this.markdown = isUser ? null : new MarkdownView(this.body);
    this.notes = h("div", { class: "notes" });
    this.footer = h("footer", { class: "actions" });
    this.reasoning = isUser ? null : this.#buildReasoning();
    this.element = h("article", { class: `message ${node.role}`, "aria-labelledby": name, "data-id": node.id },
      h("h2", { id: name }, isUser ? "You" : node.model || "Assistant"),
      this.reasoning, this.body, this.notes, this.footer);
    this.update();
  }

  #buildReasoning() {
    this.thoughts = h("div", { class: "prose" });
    this.thoughtsView = new MarkdownView(this.thoughts);
    this.summary = h("summary", {}, "Reasoning");
    const details = h("details", { class: "reasoning", hidden: true }, this.summary, this.thoughts);
    details.addEventListener("toggle", () => this.#showThoughts());
    return details;
  }

  #showThoughts() {
    if (this.reasoning.open) this.thoughtsView.show(this.parts.reasoning);
  }

  /** Show what the message is now. */
  update() {
    const { node } = this;
    if (this.markdown) this.#updateAnswer();
    else this.body.textContent = node.content;
    const isStreaming = node.state === "streaming";
    this.element.toggleAttribute("aria-busy", isStreaming);
    this.element.classList.toggle("streaming", isStreaming);
    if (!isStreaming) this.#updateEnd();
    else if (this.footer.childNodes.length) this.footer.replaceChildren();
  }

  #updateAnswer() {
    const { node } = this;
    const isStreaming = node.state === "streaming";
    this.parts = partsOf(node);
    this.markdown.show(node.format === "text" ? this.parts.answer : asJson(this.parts.answer));
    this.body.classList.toggle("waiting", isStreaming && !node.content && !node.reasoning);
    this.reasoning.hidden = !this.parts.reasoning && !this.parts.isOpen;
    this.summary.textContent = this.parts.isOpen ? "Reasoning…" : "Reasoning";
    this.#showThoughts();
    if (isStreaming) {
      this.wasStreaming = true;
      this.speaker.follow(this.markdown, false);
    } else if (this.wasStreaming) {
      this.wasStreaming = false;
      if (node.state === "error") say("The answer failed.");
      else this.speaker.follow(this.markdown, true);
    }
  }

  #updateEnd() {
    const { node } = this;
    const isAnswer = node.role === "assistant";
    const note = isAnswer && (STATES[node.state] ?? `Ended: ${node.state}.`);
    const timing = isAnswer && timingText(node.timing);
    this.notes.replaceChildren(...[
      node.error && h("div", { class: "error", role: "alert" }, h("strong", {}, "The server did not answer. "),
        node.error),
      note && h("p", { class: "soft" }, note),
      timing && h("p", { class: "soft timing" }, timing),
    ].filter(Boolean));
    this.footer.replaceChildren(...this.#buttons());
  }

  #buttons() {
    const { node, actions: { chat } } = this;
    const isAnswer = node.role === "assistant";
    const busy = this.actions.busy();
    return [
      ...this.#versions(),
      iconButton("copy", "Copy", (event) => this.#copy(event.currentTarget)),
      iconButton("edit", "Edit", () => this.edit(), { disabled: busy }),
      isAnswer && iconButton("again", "Regenerate", () => chat.regenerate(node), { disabled: busy }),
      isAnswer && node.children.length > 0 && node.shown !== null
        && iconButton("branch", "Branch from here", () => chat.branch(node), { disabled: busy }),
      isAnswer && node.tokens.length > 0 && iconButton("tokens", "Token probabilities", () => this.#toggleTokens(),
        { "aria-expanded": String(this.shownTokens !== null) }),
      node.shown === null && node.children.length > 0
        && h("button", { type: "button", class: "quiet", onclick: () => chat.rejoin(node), disabled: busy },
          "Show what followed"),
    ].filter(Boolean);
  }

  #versions() {
    const { node, actions } = this;
    const siblings = actions.siblings(node);
    if (siblings.length < 2) return [];
    const place = siblings.indexOf(node.id);
    const busy = actions.busy();
    const turn = (step) => actions.chat.turn(node, step);
    return [h("span", { class: "versions", role: "group", "aria-label": "Versions" },
      iconButton("back", "Version before", () => turn(-1), { disabled: busy || place === 0 }),
      h("span", {}, `${place + 1} / ${siblings.length}`),
      iconButton("forward", "Version after", () => turn(1), { disabled: busy || place === siblings.length - 1 }))];
  }

  async #copy(button) {
    const text = this.parts ? this.parts.answer : this.node.content;
    const worked = await copyText(text);
    say(worked ? "Copied." : "The browser does not allow copying.");
    button.replaceChildren(icon(worked ? "check" : "copy"));
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  }

  #toggleTokens() {
    if (this.shownTokens) this.shownTokens.remove();
    this.shownTokens = this.shownTokens ? null : tokensView(this.node.tokens);
    if (this.shownTokens) this.notes.after(this.shownTokens);
    this.footer.querySelector("[aria-label='Token probabilities']")
      .setAttribute("aria-expanded", String(this.shownTokens !== null));
  }

  /** Put the text into a field; what is saved stands beside the old one. */
  edit() {
    const { node, actions } = this;
    const field = h("textarea", { "aria-label": "Text of the message", rows: "3" });
    field.value = this.parts ? this.parts.answer : node.content;
    const leave = () => {
      form.replaceWith(this.body);
      this.footer.hidden = false;
      this.footer.querySelector("[aria-label='Edit']")?.focus();
    };
    const form = h("form", { class: "edit", onsubmit: (event) => {
      event.preventDefault();
      if (!field.value.trim()) return;
      leave();
      actions.chat.edit(node, field.value);
    }, onkeydown: (event) => {
      if (event.key === "Escape") leave();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    } }, field, h("div", { class: "row end" },
      h("button", { type: "button", onclick: leave }, "Cancel"),
      h("button", { class: "primary" }, node.role === "user" ? "Send" : "Save")));
    this.body.replaceWith(form);
    this.footer.hidden = true;
    field.focus();
  }
}
