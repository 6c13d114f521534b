// Questions in the middle of the screen: the browser's own dialogs, which hold the focus and give it back.

import { h } from "../dom.js";

/** Ask for a yes; resolves to whether it came. */
export function confirmDialog(title, text, action) {
  return openDialog(title, [h("p", {}, text)], action).then((form) => form !== null);
}

/** Ask for a line of text; resolves to it, or to null. */
export async function askDialog(title, label, value) {
  const field = h("input", { name: "value", value, required: true, maxlength: "200", autocomplete: "off" });
  const form = await openDialog(title, [h("label", {}, label, field)], "Save");
  return form && form.get("value").trim();
}

/** Show a dialog with a form; resolves to its data, or to null when it was left. */
export function openDialog(title, content, action) {
  return new Promise((resolve) => {
    const heading = h("h2", { id: "dialog-title" }, title);
    const cancel = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
    const form = h("form", { method: "dialog" }, heading, content,
      h("div", { class: "row end" }, cancel, h("button", { class: "primary", value: "yes" }, action)));
    const dialog = h("dialog", { "aria-labelledby": "dialog-title", onclose: () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? new FormData(form) : null);
    } }, form);
    document.body.append(dialog);
    dialog.showModal();
    dialog.querySelector("input")?.select();
  });
}
