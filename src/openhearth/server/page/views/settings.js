// The settings of the open conversation, and the model picker.

import { byId, h } from "../dom.js";
import { DEFAULTS, NUMBERS, mistakeIn, mistakesIn } from "../settings.js";

const LAST = "openhearth.settings";

/** Return the settings that a new conversation begins with: those that were used last. */
export function lastSettings() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(LAST) ?? "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

/** The panel of settings. onchange: called after each change of `settings`. */
export class SettingsPanel {
  constructor(onchange) {
    this.onchange = onchange;
    this.picker = byId("model");
    byId("numbers").append(...NUMBERS.map(numberField));
    this.fields = [...document.querySelectorAll("[data-setting]")];
    for (const field of this.fields) {
      field.addEventListener(field.tagName === "SELECT" || field.type === "checkbox" ? "change" : "input",
        () => this.#take(field));
    }
    byId("reset").addEventListener("click", () => {
      Object.assign(this.settings, DEFAULTS, { model: this.settings.model });
      this.#changed();
      this.show(this.settings);
    });
  }

  /** Offer models; the first one where the conversation's own is not among them. */
  offer(models) {
    this.models = models.map((model) => model.id);
    this.picker.replaceChildren(...models.map(({ id, parent }) => (
      h("option", { value: id }, parent ? `${id} (adapter of ${parent})` : id))));
    this.picker.disabled = models.length === 0;
  }

  /** Show settings, and change them from now on. */
  show(settings) {
    this.settings = settings;
    if (this.models?.length && !this.models.includes(settings.model)) [settings.model] = this.models;
    for (const field of this.fields) {
      const value = settings[field.dataset.setting];
      if (field.type === "checkbox") field.checked = value;
      else field.value = value;
    }
    this.#mark();
  }

  #take(field) {
    this.settings[field.dataset.setting] = field.type === "checkbox" ? field.checked : field.value.trim() === ""
      ? "" : field.value;
    this.#changed();
    this.#mark();
  }

  #changed() {
    localStorage.setItem(LAST, JSON.stringify(this.settings));
    this.onchange();
  }

  #mark() {
    byId("schema-row").hidden = this.settings.format !== "json_schema";
    for (const field of this.fields) {
      const mistake = mistakeIn(this.settings, field.dataset.setting);
      if (mistake) field.setAttribute("aria-invalid", "true");
      else field.removeAttribute("aria-invalid");
      const note = byId(`mistake-${field.dataset.setting}`);
      if (note) note.textContent = mistake;
    }
  }

  /** Return the first field that is wrong, null when all is well. */
  firstMistake() {
    const [name] = mistakesIn(this.settings);
    return this.fields.find((field) => field.dataset.setting === name) ?? null;
  }
}

function numberField([name, label, , , , what]) {
  return h("div", { class: "field" },
    h("label", { for: `set-${name}` }, label),
    h("input", { id: `set-${name}`, inputmode: "decimal", "data-setting": name, autocomplete: "off",
      placeholder: name === "seed" ? "random" : "model’s own", "aria-describedby": `about-${name} mistake-${name}` }),
    h("p", { class: "about", id: `about-${name}` }, what),
    h("p", { class: "mistake", id: `mistake-${name}`, role: "alert" }));
}
