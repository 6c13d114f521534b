// The inside of a paragraph: code, emphasis, links, breaks. Source of the rules: CommonMark 0.31.2, section 6;
// strikethrough and bare addresses as in GitHub's extension. HTML is text, and images are links: the page loads
// nothing from elsewhere.
//
// A node is a string or {tag, children, href?}. Work grows with the length of the text, whatever the text is.

const ESCAPABLE = /[!-/:-@[-`{-~]/;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const SPACE = /[\s\u00a0]/u;
const MOST_NESTED = 32; // emphasis in emphasis, brackets in an address
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", hellip: "…",
  mdash: "—", ndash: "–", rarr: "→", larr: "←", times: "×" };

/** Return the nodes of a text. */
export function parseInline(text) {
  return new Inline(text).parse();
}

/** Return an address that a link may have, null for any other: no `javascript:`, no `data:`. */
export function safeHref(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

class Inline {
  constructor(text) {
    this.text = text;
    this.place = 0;
    this.items = []; // strings, nodes, and delimiters {mark, count, opens, closes}
    this.brackets = [];
    this.ticks = null;
  }

  parse() {
    const plain = /[^\\`*_~[\]!<&\nh]+/y;
    while (this.place < this.text.length) {
      plain.lastIndex = this.place;
      const run = plain.exec(this.text);
      if (run) {
        this.#push(run[0]);
        this.place = plain.lastIndex;
      } else {
        this.#special(this.text[this.place]);
      }
    }
    return emphasise(this.items);
  }

  #push(item) {
    const last = this.items.length - 1;
    if (typeof item === "string" && typeof this.items[last] === "string") this.items[last] += item;
    else this.items.push(item);
  }

  #take(length, item = this.text.slice(this.place, this.place + length)) {
    this.#push(item);
    this.place += length;
  }

  #special(character) {
    const { text, place } = this;
    if (character === "\\") this.#escape();
    else if (character === "`") this.#code();
    else if (character === "*" || character === "_" || character === "~") this.#delimiter(character);
    else if (character === "[") this.#open(1);
    else if (character === "!" && text[place + 1] === "[") this.#open(2);
    else if (character === "]") this.#close();
    else if (character === "<") this.#autolink();
    else if (character === "&") this.#entity();
    else if (character === "\n") this.#lineEnd();
    else if (character === "h") this.#bareAddress();
    else this.#take(1);
  }

  #escape() {
    const next = this.text[this.place + 1] ?? "";
    if (next === "\n") this.#take(2, { tag: "br", children: [] });
    else if (ESCAPABLE.test(next)) this.#take(2, next);
    else this.#take(1);
  }

  #code() {
    this.ticks ??= runsOf(this.text, "`");
    let length = 1;
    while (this.text[this.place + length] === "`") length += 1;
    const end = this.ticks(length, this.place + length);
    if (end < 0) {
      this.#take(length);
      return;
    }
    let inside = this.text.slice(this.place + length, end).replaceAll("\n", " ");
    if (inside.startsWith(" ") && inside.endsWith(" ") && inside.trim()) inside = inside.slice(1, -1);
    this.#take(end + length - this.place, { tag: "code", children: [inside] });
  }

  #delimiter(mark) {
    let end = this.place;
    while (this.text[end] === mark) end += 1;
    const count = end - this.place;
    const before = before_(this.text, this.place);
    const after = end < this.text.length ? String.fromCodePoint(this.text.codePointAt(end)) : "\n";
    const spaceAfter = SPACE.test(after), spaceBefore = SPACE.test(before);
    const markAfter = PUNCTUATION.test(after), markBefore = PUNCTUATION.test(before);
    const left = !spaceAfter && (!markAfter || spaceBefore || markBefore);
    const right = !spaceBefore && (!markBefore || spaceAfter || markAfter);
    const isUnder = mark === "_";
    if (mark === "~" && count > 2) {
      this.#take(count);
      return;
    }
    this.items.push({ mark, count, original: count, opens: left && (!isUnder || !right || markBefore),
      closes: right && (!isUnder || !left || markAfter) });
    this.place = end;
  }

  #open(length) {
    this.brackets.push({ item: this.items.length, isImage: length === 2 });
    this.items.push(this.text.slice(this.place, this.place + length), ""); // "" keeps the bracket an item alone
    this.place += length;
  }

  #close() {
    const bracket = this.brackets.pop();
    const target = bracket && readTarget(this.text, this.place + 1);
    const href = target && safeHref(target.address);
    if (!href) {
      this.#take(1);
      return;
    }
    const children = emphasise(this.items.splice(bracket.item).slice(1));
    if (!bracket.isImage) this.brackets = []; // a link holds no link
    this.#take(target.end - this.place, { tag: "a", href, children, isImage: bracket.isImage });
  }

  #autolink() {
    const found = /<([a-z][a-z0-9+.-]{1,31}:[^\s<>]*|[^\s<>@]{1,64}@[a-z0-9.-]{1,253})>/iy;
    found.lastIndex = this.place;
    const matched = found.exec(this.text);
    const href = matched && safeHref(matched[1].includes(":") ? matched[1] : `mailto:${matched[1]}`);
    if (href) this.#take(matched[0].length, { tag: "a", href, children: [matched[1]] });
    else this.#take(1);
  }

  #entity() {
    const found = /&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|([a-z][a-z0-9]{1,31}));/iy;
    found.lastIndex = this.place;
    const matched = found.exec(this.text);
    const code = matched && (matched[1] ? Number(matched[1]) : Number.parseInt(matched[2], 16));
    if (!matched || (matched[3] && !Object.hasOwn(ENTITIES, matched[3]))) this.#take(1);
    else if (matched[3]) this.#take(matched[0].length, ENTITIES[matched[3]]);
    else this.#take(matched[0].length, code && code <= 0x10ffff ? String.fromCodePoint(code) : "\ufffd");
  }

  #lineEnd() {
    const last = this.items.length - 1;
    let isHard = false;
    if (typeof this.items[last] === "string") {
      isHard = this.items[last].endsWith("  ");
      this.items[last] = this.items[last].trimEnd();
    }
    this.#take(1, isHard ? { tag: "br", children: [] } : "\n");
    while (this.text[this.place] === " ") this.place += 1;
  }

  #bareAddress() {
    const found = /https?:\/\/[^\s<>`"*]+/y;
    found.lastIndex = this.place;
    const matched = /\w/.test(this.text[this.place - 1] ?? "") ? null : found.exec(this.text);
    if (!matched) {
      this.#take(1);
      return;
    }
    const address = trimAddress(matched[0]);
    const href = safeHref(address);
    if (href) this.#take(address.length, { tag: "a", href, children: [address] });
    else this.#take(1);
  }
}

function before_(text, place) {
  if (place === 0) return "\n";
  const code = text.charCodeAt(place - 1);
  return code >= 0xdc00 && code <= 0xdfff ? text.slice(place - 2, place) : text[place - 1];
}

/** Leave out marks at the end that belong to the sentence, and a bracket that the address does not open. */
function trimAddress(address) {
  let end = address.length;
  let surplus = address.split(")").length - address.split("(").length;
  for (;;) {
    const last = address[end - 1];
    if (/[?!.,:;'_~\]]/.test(last)) end -= 1;
    else if (last === ")" && surplus > 0) {
      surplus -= 1;
      end -= 1;
    } else return address.slice(0, end);
  }
}

/** Return (length, from) -> where the next run of that length of a character begins, -1 where none does. */
function runsOf(text, mark) {
  const places = new Map();
  for (let start = text.indexOf(mark); start >= 0;) {
    let end = start;
    while (text[end] === mark) end += 1;
    if (!places.has(end - start)) places.set(end - start, []);
    places.get(end - start).push(start);
    start = text.indexOf(mark, end);
  }
  const seen = new Map();
  return (length, from) => {
    const known = places.get(length) ?? [];
    let index = seen.get(length) ?? 0;
    while (index < known.length && known[index] < from) index += 1;
    seen.set(length, index);
    return known[index] ?? -1;
  };
}

/** Return {address, end} of `(address "title")` at a place, null where there is none. */
function readTarget(text, place) {
  if (text[place] !== "(") return null;
  const bracketed = /\([ \n]{0,9}<([^<>\n]{0,4000})>/y;
  bracketed.lastIndex = place;
  const matched = bracketed.exec(text);
  const found = matched ? { address: matched[1], end: bracketed.lastIndex } : readAddress(text, place + 1);
  const close = /(?:[ \n]{1,9}(?:"[^"]{0,1000}"|'[^']{0,1000}'))?[ \n]{0,9}\)/y;
  close.lastIndex = found.end;
  return close.exec(text) ? { address: found.address, end: close.lastIndex } : null;
}

/** Read an address up to a space or the bracket that it does not open. */
function readAddress(text, place) {
  let start = place, depth = 0;
  while (text[start] === " " || text[start] === "\n") start += 1;
  let end = start;
  for (; end < text.length && end - start < 4000 && !/[\s<>"]/.test(text[end]); end += 1) {
    if (text[end] === "(" && (depth += 1) > MOST_NESTED) break;
    if (text[end] === ")" && (depth -= 1) < 0) break;
  }
  return { address: text.slice(start, end), end };
}

/** Pair delimiters (CommonMark's "process emphasis") and return nodes without any. */
function emphasise(items) {
  const open = []; // entries {delimiter, start}: start is its place in `done`
  const done = [];
  const deadEnds = new Map(); // kind of closer -> openers below this depth do not fit
  for (const item of items) {
    if (item.mark === undefined) {
      done.push(item);
      continue;
    }
    if (item.closes) closeAll(item, open, done, deadEnds);
    if (item.count > 0) {
      if (item.opens) open.push({ delimiter: item, start: done.length });
      done.push(item);
    }
  }
  return done.map((item) => (item.mark === undefined ? item : item.mark.repeat(item.count)))
    .filter((item) => item !== "");
}

function closeAll(closer, open, done, deadEnds) {
  while (closer.count > 0) {
    const kind = `${closer.mark}${closer.original % 3}${closer.opens}${closer.mark === "~" ? closer.count : ""}`;
    const bottom = Math.min(deadEnds.get(kind) ?? 0, open.length);
    let depth = open.length - 1;
    while (depth >= bottom && !fits(open[depth].delimiter, closer)) depth -= 1;
    if (depth < bottom) {
      deadEnds.set(kind, open.length);
      return;
    }
    const { delimiter, start } = open[depth];
    const used = closer.mark === "~" ? closer.count : Math.min(delimiter.count, closer.count, 2);
    open.length = depth;
    const children = done.splice(start + 1)
      .map((item) => (item.mark === undefined ? item : item.mark.repeat(item.count)));
    delimiter.count -= used;
    closer.count -= used;
    if (delimiter.count > 0) open.push({ delimiter, start });
    else done.length = start;
    done.push(wrap(closer.mark, used, children));
  }
}

/** Return children inside their element; plain text between the marks where too many are nested already. */
function wrap(mark, used, children) {
  const depth = 1 + children.reduce((most, child) => Math.max(most, child.depth ?? 0), 0);
  if (depth > MOST_NESTED) return mark.repeat(used) + children.map(plainText).join("") + mark.repeat(used);
  return { tag: mark === "~" ? "del" : used === 2 ? "strong" : "em", children, depth };
}

const plainText = (node) => (typeof node === "string" ? node : node.children.map(plainText).join(""));

function fits(opener, closer) {
  if (opener.mark !== closer.mark) return false;
  if (opener.mark === "~") return opener.count === closer.count;
  const isOdd = (opener.closes || closer.opens) && (opener.original + closer.original) % 3 === 0
    && !(opener.original % 3 === 0 && closer.original % 3 === 0);
  return !isOdd;
}
