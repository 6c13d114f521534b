// The page: what is where, and which address shows what. `#/c/ID` is a conversation, `#/state` the server's state,
// anything else a new conversation.

import { say } from "./announce.js";
import { listModels, needsKey, readServed } from "./api.js";
import { Chat } from "./chat.js";
import { byId, h } from "./dom.js";
import { isKept, readKey, writeKey } from "./key.js";
import { Store } from "./store.js";
import { Composer } from "./views/composer.js";
import { openDialog } from "./views/dialogs.js";
import { Drawer } from "./views/drawer.js";
import { SettingsPanel, lastSettings } from "./views/settings.js";
import { Sidebar } from "./views/sidebar.js";
import { StateView } from "./views/state.js";
import { ThreadView, welcomeText } from "./views/thread.js";

class Page {
  constructor(store) {
    this.store = store;
    this.chat = new Chat(store, {
      changed: () => this.#changed(), streamed: (node) => this.thread.grow(node), listed: () => this.sidebar.show(),
      failed: (error) => this.notice(`The browser could not keep this conversation: ${error.message}`),
    });
    this.thread = new ThreadView(this.chat);
    this.composer = new Composer({ onsend: (text) => this.#send(text), onstop: () => this.chat.stop() });
    this.panel = new SettingsPanel(() => this.chat.keepSettings());
    this.sidebar = new Sidebar(store, this.chat, { onremoved: (id) => this.#removed(id) });
    this.state = new StateView();
    this.drawers = {
      list: new Drawer("sidebar", "show-sidebar", "(min-width: 60rem)", { isOpenAtFirst: true }),
      settings: new Drawer("settings", "show-settings", "(min-width: 80rem)", { isOpenAtFirst: false }),
    };
    byId("new").addEventListener("click", () => this.#begin());
    byId("key").addEventListener("click", () => this.askKey());
    byId("notice-key").addEventListener("click", () => this.askKey());
    byId("skip").addEventListener("click", (event) => {
      event.preventDefault();
      this.composer.focus();
    });
    addEventListener("hashchange", () => this.#route());
  }

  /** Ask the server what it has, then show what the address says. */
  async start() {
    this.chat.begin(lastSettings());
    if (!this.store.isKept) this.notice("This browser keeps nothing: conversations are gone with this page.");
    try {
      await readServed();
    } catch (error) {
      this.notice(error.message);
    }
    await this.#offerModels();
    await this.#route();
    await this.sidebar.show();
  }

  async #offerModels() {
    if (needsKey() && !readKey()) {
      this.notice("This server wants an API key.", { offersKey: true });
      return;
    }
    try {
      this.panel.offer(await listModels());
      this.notice("");
      this.#showSettings();
    } catch (error) {
      this.notice(error.message, { offersKey: error.status === 401 });
    }
    this.#welcome();
  }

  #showSettings() {
    const { settings } = this.chat.conversation;
    const wanted = settings.model;
    this.panel.show(settings);
    if (wanted && wanted !== settings.model) {
      this.notice(`${wanted} is not served here; ${settings.model} answers what is asked next.`);
    }
  }

  /** Show a line above the thread; "" removes it. */
  notice(text, { offersKey = false } = {}) {
    byId("notice").hidden = !text;
    byId("notice-text").textContent = text;
    byId("notice-key").hidden = !offersKey;
  }

  async #route() {
    const [, place, id] = location.hash.split("/");
    const isState = place === "state";
    byId("chat").hidden = isState;
    byId("server").hidden = !isState;
    if (isState) byId("to-state").setAttribute("aria-current", "page");
    else byId("to-state").removeAttribute("aria-current");
    this.state.show(isState);
    const { chat } = this;
    if (place === "c" && id !== chat.conversation.id && !await chat.open(id)) {
      history.replaceState(null, "", "#/");
      say("That conversation is not in this browser.");
    }
    if (!isState && place !== "c" && chat.path.length) chat.begin({ ...chat.conversation.settings });
    this.#title();
    this.drawers.list.leave();
    if (isState) byId("server").querySelector("h1").focus();
  }

  #begin() {
    if (location.hash.startsWith("#/c/") || location.hash === "#/state") location.hash = "#/";
    this.drawers.list.leave();
    this.composer.focus();
  }

  #changed() {
    const { chat } = this;
    this.thread.show();
    this.#showSettings();
    this.composer.show(chat.isRunning);
    this.#title();
    this.#welcome();
    this.sidebar.mark();
  }

  #title() {
    const title = this.chat.conversation.title;
    const isState = !byId("server").hidden;
    byId("title").textContent = title || "New conversation";
    byId("title").classList.toggle("unseen", !this.chat.path.length);
    document.title = isState ? "Server · hearth" : title ? `${title} · hearth` : "hearth";
  }

  #welcome() {
    byId("welcome-text").replaceChildren(welcomeText(this.chat.conversation.settings.model));
  }

  /** Send what was written; returns whether it was taken. */
  #send(text) {
    const mistake = this.panel.firstMistake();
    if (mistake) {
      if (!this.drawers.settings.isOpen) this.drawers.settings.toggle(true);
      mistake.closest("details")?.setAttribute("open", "");
      mistake.focus();
      return false;
    }
    if (!this.chat.conversation.settings.model) {
      say("No model is there to answer.");
      return false;
    }
    say("Sent.");
    this.thread.isAtEnd = true;
    this.chat.send(text);
    history.replaceState(null, "", `#/c/${this.chat.conversation.id}`);
    return true;
  }

  #removed(id) {
    if (this.chat.conversation.id === id) {
      history.replaceState(null, "", "#/");
      this.chat.begin({ ...this.chat.conversation.settings });
    }
    this.sidebar.search.focus();
  }

  /** Ask for the API key. */
  async askKey() {
    const field = h("input", { name: "key", type: "password", value: readKey(), autocomplete: "off", spellcheck: "false" });
    const keep = h("input", { name: "keep", type: "checkbox", checked: isKept() });
    const form = await openDialog("API key", [
      h("label", {}, "Key", field),
      h("label", { class: "check" }, keep, "Keep it in this browser"),
      h("p", { class: "soft" }, "It is sent to this server alone, and kept nowhere but here. Empty forgets it."),
    ], "Save");
    if (!form) return;
    writeKey(form.get("key").trim(), form.get("keep") !== null);
    await this.#offerModels();
  }
}

new Page(await Store.open()).start();
