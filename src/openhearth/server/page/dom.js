// Building DOM nodes. Text becomes text nodes: nothing here, or anywhere on this page, parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element. props: attributes; `on…` are listeners; null, undefined and false are left out. */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

export const byId = (id) => document.getElementById(id);

const ICONS = {
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "M5 12l5 5 9-10",
  edit: "M4 20l1-5L16 4l4 4L9 19zM13 7l4 4",
  again: "M20 12a8 8 0 1 1-2.3-5.6L20 9M20 4v5h-5",
  branch: "M6 4v9M6 20a2 2 0 1 0 0-4 2 2 0 0 0 0 4zM18 10a2 2 0 1 0 0-4 2 2 0 0 0 0 4zM18 10c0 4-6 3-10 6",
  tokens: "M4 20V10M10 20V4M16 20v-8M22 20H2",
  back: "M15 5l-7 7 7 7",
  forward: "M9 5l7 7-7 7",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13",
  down: "M12 5v14M6 13l6 6 6-6",
};

/** Return a decorative icon; the button that holds it has a name of its own. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Return a button that shows an icon and is called `label`. */
export function iconButton(name, label, onclick, props = {}) {
  return h("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick, ...props },
    icon(name));
}

/** Return a random id; `crypto.randomUUID` is missing where a page came over plain HTTP. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0"))
    .join("");
}
