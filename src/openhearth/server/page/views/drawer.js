// A panel at the side: beside the page where there is room, over it where there is none. Over the page it holds the
// focus, Escape closes it, and the button that opened it has the focus again.

import { byId } from "../dom.js";

/** A panel with a button that opens and closes it. */
export class Drawer {
  /** panel, button: ids. room: a media query under which it stands beside the page. name: for remembering. */
  constructor(panel, button, room, { isOpenAtFirst }) {
    this.panel = byId(panel);
    this.button = byId(button);
    this.room = matchMedia(room);
    this.name = `openhearth.${panel}`;
    this.wish = (localStorage.getItem(this.name) ?? String(isOpenAtFirst)) === "true";
    this.button.addEventListener("click", () => this.toggle(!this.isOpen));
    this.panel.querySelector(".close").addEventListener("click", () => this.toggle(false));
    this.panel.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !this.room.matches) this.toggle(false);
    });
    this.room.addEventListener("change", () => this.#set(this.room.matches && this.wish));
    byId("shade").addEventListener("click", () => this.isOpen && !this.room.matches && this.toggle(false));
    this.#set(this.room.matches && this.wish);
  }

  get isOpen() {
    return !this.panel.hidden;
  }

  /** Open or close, and move the focus with it. */
  toggle(isOpen) {
    if (this.room.matches) localStorage.setItem(this.name, String(this.wish = isOpen));
    this.#set(isOpen);
    if (isOpen && !this.room.matches) this.panel.querySelector(".close").focus();
    else if (!isOpen) this.button.focus();
  }

  /** Close it where it lies over the page. */
  leave() {
    if (!this.room.matches && this.isOpen) this.#set(false);
  }

  #set(isOpen) {
    const isOver = isOpen && !this.room.matches;
    this.panel.hidden = !isOpen;
    this.button.setAttribute("aria-expanded", String(isOpen));
    byId("shade").hidden = !isOver;
    for (const other of document.querySelectorAll("body > :not(dialog, script, #shade, #status)")) {
      other.inert = isOver && other !== this.panel;
    }
  }
}
