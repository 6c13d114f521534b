// The list of conversations: search, open, rename, delete, export, import.

import { say } from "../announce.js";
import { byId, h, iconButton } from "../dom.js";
import { fromDocument, toDocument } from "../transfer.js";
import { askDialog, confirmDialog, openDialog } from "./dialogs.js";

/** Shows what a store holds. onremoved: takes the id of a conversation that is gone. */
export class Sidebar {
  constructor(store, chat, { onremoved }) {
    Object.assign(this, { store, chat, onremoved, turn: 0 });
    this.list = byId("conversations");
    this.search = byId("search");
    this.search.addEventListener("input", () => this.show());
    byId("export-all").addEventListener("click", async () => this.#export(await store.all(), "conversations"));
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", (event) => this.#import(event.target));
  }

  /** Show the conversations that hold what is searched for. */
  async show() {
    const turn = this.turn += 1;
    const wanted = this.search.value.trim().toLowerCase();
    const found = (await this.store.all()).filter((one) => !wanted || textOf(one).includes(wanted));
    if (turn !== this.turn) return; // a newer search has begun
    const focused = document.activeElement?.closest?.("#conversations li")?.dataset.id;
    const action = document.activeElement?.getAttribute("aria-label");
    this.list.replaceChildren(...found.map((one) => this.#row(one)));
    this.mark();
    byId("found").textContent = found.length ? "" : wanted ? "Nothing found." : "No conversations yet.";
    byId("export-all").disabled = !found.length;
    if (focused) this.#focusAgain(focused, action);
  }

  /** Mark the conversation that is open. */
  mark() {
    for (const item of this.list.children) {
      const link = item.querySelector("a");
      if (item.dataset.id === this.chat.conversation.id) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  #row(one) {
    const title = one.title || "Untitled";
    return h("li", { "data-id": one.id },
      h("a", { href: `#/c/${one.id}` }, title),
      h("span", { class: "tools" },
        iconButton("edit", `Rename “${title}”`, () => this.#rename(one, title)),
        iconButton("down", `Export “${title}”`, () => this.#export([one], title)),
        iconButton("trash", `Delete “${title}”`, () => this.#remove(one, title))));
  }

  /** The list was built anew: focus what had the focus. */
  #focusAgain(id, action) {
    const row = [...this.list.children].find((item) => item.dataset.id === id);
    const same = row && [...row.querySelectorAll("button")].find((button) => button.ariaLabel === action);
    (same ?? row?.querySelector("a") ?? this.search).focus();
  }

  async #rename(one, before) {
    const title = await askDialog("Rename conversation", "Title", before);
    if (title) await this.chat.rename(one.id, title);
  }

  async #remove(one, title) {
    if (!await confirmDialog("Delete conversation?", `“${title}” is in this browser only and cannot be had again.`,
      "Delete")) return;
    await this.chat.remove(one.id);
    this.onremoved(one.id);
    say("Deleted.");
  }

  #export(conversations, name) {
    const url = URL.createObjectURL(new Blob([toDocument(conversations)], { type: "application/json" }));
    h("a", { href: url, download: `${name.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  async #import(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    try {
      const conversations = fromDocument(await file.text());
      for (const conversation of conversations) await this.store.put(conversation);
      await this.show();
      say(`${conversations.length} conversations imported.`);
    } catch (error) {
      await openDialog("Nothing was imported", [h("p", {}, `${file.name}: ${error.message}`)], "Close");
    }
  }
}

const textOf = (one) => [one.title, ...Object.values(one.nodes).map((node) => node.content ?? "")].join("\n")
  .toLowerCase();
