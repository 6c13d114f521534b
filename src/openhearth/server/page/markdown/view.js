// Markdown to DOM nodes, while it arrives: blocks that did not change keep their nodes, with whatever the reader
// selected in them.

import { copyText } from "../clipboard.js";
import { h } from "../dom.js";
import { parseBlocks } from "./blocks.js";
import { parseInline } from "./inline.js";

const TOP_HEADING = 3; // the page has the title as h1 and each message as h2

/** Return nodes of inline Markdown. */
function inlineNodes(text) {
  return parseInline(text).map(inlineNode);
}

function inlineNode(node) {
  if (typeof node === "string") return node;
  const children = node.children.map(inlineNode);
  if (node.tag !== "a") return h(node.tag, {}, children);
  const rel = "noopener noreferrer nofollow";
  return h("a", { href: node.href, rel, target: "_blank" }, node.isImage ? "image: " : null, children);
}

const BUILD = {
  paragraph: ({ text }) => h("p", {}, inlineNodes(text)),
  heading: ({ rank, text }) => h(`h${Math.min(6, TOP_HEADING + rank)}`, {}, inlineNodes(text)),
  rule: () => h("hr"),
  quote: ({ blocks }) => h("blockquote", {}, blocks.map(buildBlock)),
  list: buildList,
  code: buildCode,
  table: buildTable,
};

/** Number headings by how many they stand below, whatever levels a model began with: no level is left out. */
function rankHeadings(blocks, above = []) {
  for (const block of blocks) {
    if (block.type === "heading") {
      while (above.at(-1) >= block.level) above.pop();
      block.rank = above.push(block.level) - 1;
    }
    for (const inner of block.items ?? [block.blocks ?? []]) rankHeadings(inner, above);
  }
  return blocks;
}

/** Return the node of one block. */
function buildBlock(block) {
  return BUILD[block.type](block);
}

function buildList({ isOrdered, start, isLoose, items }) {
  return h(isOrdered ? "ol" : "ul", { start: isOrdered && start !== 1 ? start : null }, items.map((blocks) => {
    const [first, ...others] = blocks;
    const isPlain = !isLoose && first?.type === "paragraph";
    return h("li", {}, isPlain ? inlineNodes(first.text) : first && buildBlock(first),
      others.map((block) => (!isLoose && block.type === "paragraph" ? inlineNodes(block.text) : buildBlock(block))));
  }));
}

function buildCode({ language, text }) {
  const code = h("code", {}, text);
  const button = h("button", { type: "button", class: "quiet small" }, "Copy");
  button.addEventListener("click", async () => {
    const worked = await copyText(code.textContent);
    button.textContent = worked ? "Copied" : "Not allowed";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return h("figure", { class: "code" },
    h("figcaption", {}, h("span", {}, language || "text"), button), h("pre", { tabindex: "0" }, code));
}

function buildTable({ aligns, head, rows }) {
  const row = (cells, tag) => h("tr", {}, cells.map((cell, column) => h(
    tag, { "data-align": aligns[column] || null, scope: tag === "th" ? "col" : null }, inlineNodes(cell))));
  return h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Table" },
    h("table", {}, h("thead", {}, row(head, "th")), h("tbody", {}, rows.map((cells) => row(cells, "td")))));
}

/** Shows a Markdown text that grows inside an element. */
export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.blocks = [];
  }

  /** Show a text. */
  show(text) {
    const blocks = rankHeadings(parseBlocks(text));
    const { element } = this;
    let same = 0;
    while (same < blocks.length && same < this.blocks.length && isSame(blocks[same], this.blocks[same])) same += 1;
    if (!this.#grew(blocks, same)) {
      while (element.childNodes.length > same) element.lastChild.remove();
      for (const block of blocks.slice(same)) element.append(buildBlock(block));
    }
    this.blocks = blocks;
  }

  /** Return whether only the last block changed, and is code whose text could be put in place. */
  #grew(blocks, same) {
    const [last, before] = [blocks.at(-1), this.blocks.at(-1)];
    const isGrown = same === blocks.length - 1 && blocks.length === this.blocks.length
      && last.type === "code" && before.type === "code" && last.language === before.language;
    if (isGrown) this.element.lastChild.querySelector("code").firstChild.data = last.text;
    return isGrown;
  }

  /** Return the texts of the blocks from one on that will not change any more. */
  settledTexts(from, isDone) {
    const end = isDone ? this.blocks.length : this.blocks.length - 1;
    return this.blocks.slice(from, Math.max(from, end)).map((block, index) => (block.type === "code"
      ? `Code, ${block.text.split("\n").length - 1} lines.` : this.element.childNodes[from + index].textContent));
  }
}

const isSame = (one, other) => one.type === other.type && one.source === other.source;
