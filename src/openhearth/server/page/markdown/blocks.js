// Markdown's blocks: paragraphs, headings, lists, quotes, code, tables, rules. Source of the rules: CommonMark
// 0.31.2, section 4 and 5; tables as in GitHub's extension. No HTML blocks and no link definitions.
//
// A block is {type, source, …}: two blocks of equal type and source are equal, so a text that grows changes its last
// block only.

const MOST_NESTED = 16;
const LOOK_BACK = 60; // lines that are read to know whether a paragraph may go on without its marker
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const FENCE = /^( {0,3})(`{3,}|~{3,})(.*)$/;
const QUOTE = /^ {0,3}>[ \t]?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?=[ \t]|$)/;
const UNDERLINE = /^ {0,3}(=+|-+)[ \t]*$/;
const DELIMITER_ROW = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** Return the blocks of a text. */
export function parseBlocks(text) {
  return parseLines(text.replace(/\r\n?/g, "\n").replaceAll("\0", "\ufffd").split("\n"), 0);
}

const isBlank = (line) => line.trim() === "";
const indentOf = (line) => line.length - line.trimStart().length;
const dedent = (line, width) => line.slice(Math.min(width, indentOf(line)));

function parseLines(lines, depth) {
  const blocks = [];
  let place = 0;
  while (place < lines.length) {
    if (isBlank(lines[place])) {
      place += 1;
      continue;
    }
    const [block, end] = readBlock(lines, place, depth);
    blocks.push({ ...block, source: lines.slice(place, end).join("\n") });
    place = end;
  }
  return blocks;
}

function readBlock(lines, place, depth) {
  const line = lines[place];
  if (indentOf(line) >= 4) return readIndented(lines, place);
  const fence = fenceOf(line);
  if (fence) return readFence(lines, place, fence);
  const heading = HEADING.exec(line);
  if (heading) {
    const text = line.trim().slice(heading[1].length).trim().replace(/(^|[ \t])#+$/, "").trim();
    return [{ type: "heading", level: heading[1].length, text }, place + 1];
  }
  if (RULE.test(line)) return [{ type: "rule" }, place + 1];
  if (depth < MOST_NESTED && QUOTE.test(line)) return readQuote(lines, place, depth);
  if (depth < MOST_NESTED && ITEM.test(line)) return readList(lines, place, depth);
  if (isTable(lines, place)) return readTable(lines, place);
  return readParagraph(lines, place);
}

function fenceOf(line) {
  const found = FENCE.exec(line);
  return found && !(found[2][0] === "`" && found[3].includes("`")) ? found : null;
}

function readFence(lines, place, [, indent, marks, rest]) {
  const inside = [];
  let end = place + 1;
  let isClosed = false;
  for (; end < lines.length && !isClosed; end += 1) {
    const line = lines[end].trim();
    isClosed = indentOf(lines[end]) < 4 && line.length >= marks.length && line === marks[0].repeat(line.length);
    if (!isClosed) inside.push(dedent(lines[end], indent.length));
  }
  const language = rest.trim().split(/\s/)[0];
  return [{ type: "code", language, text: inside.join("\n") + (inside.length ? "\n" : "") }, end];
}

function readIndented(lines, place) {
  const inside = [];
  let end = place;
  while (end < lines.length && (isBlank(lines[end]) || indentOf(lines[end]) >= 4)) {
    inside.push(lines[end].slice(4));
    end += 1;
  }
  while (isBlank(inside.at(-1))) {
    inside.pop();
    end -= 1;
  }
  return [{ type: "code", language: "", text: `${inside.join("\n")}\n` }, end];
}

/** Return whether a line begins a block that can cut a paragraph short. */
function cutsParagraph(line) {
  if (indentOf(line) >= 4) return false;
  if (fenceOf(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  return item !== null && !isBlank(line.slice(item[0].length)) && (!/\d/.test(item[2]) || item[2].slice(0, -1) === "1");
}

/** Return whether a line outside of a quote or item may go on with a paragraph in it. */
const mayBeLazy = (line) => !cutsParagraph(line) && (indentOf(line) >= 4 || !ITEM.test(line));

/** Return whether a quote's or item's last line leaves a paragraph open that the next line may go on with. */
function leavesParagraphOpen(inside) {
  let fence = null, isTabular = false, before = "", line = "";
  for (const marked of inside.slice(-LOOK_BACK)) {
    before = line;
    line = withoutMarkers(marked);
    const found = fenceOf(line);
    if (fence) fence = found && found[2].startsWith(fence) && isBlank(found[3]) ? null : fence;
    else if (found) fence = found[2];
    isTabular = !isBlank(line) && (isTabular || (line.includes("|") && DELIMITER_ROW.test(line)));
  }
  return !fence && !isTabular && !isBlank(line) && !fenceOf(line) && !HEADING.test(line) && !RULE.test(line)
    && (indentOf(line) < 4 || !isBlank(before));
}

function withoutMarkers(line) {
  for (let depth = 0; depth < MOST_NESTED; depth += 1) {
    const found = QUOTE.exec(line) ?? (RULE.test(line) ? null : ITEM.exec(line));
    if (!found) return line;
    line = line.slice(found[0].length);
    if (line.startsWith(" ")) line = line.slice(1);
  }
  return line;
}

function readQuote(lines, place, depth) {
  const inside = [];
  let end = place;
  for (; end < lines.length && !isBlank(lines[end]); end += 1) {
    if (QUOTE.test(lines[end])) inside.push(lines[end].replace(QUOTE, ""));
    else if (mayBeLazy(lines[end]) && leavesParagraphOpen(inside)) inside.push(lines[end].trimStart());
    else break;
  }
  return [{ type: "quote", blocks: parseLines(inside, depth + 1) }, end];
}

const kindOf = (marker) => marker.at(-1);

function readList(lines, place, depth) {
  const marker = ITEM.exec(lines[place])[2];
  const isOrdered = /\d/.test(marker);
  const items = [];
  let isLoose = false;
  let end = place;
  while (end < lines.length) {
    const found = indentOf(lines[end]) < 4 && !RULE.test(lines[end]) && ITEM.exec(lines[end]);
    if (!found || kindOf(found[2]) !== kindOf(marker)) break;
    const [inside, after] = readItem(lines, end, found);
    const blocks = parseLines(inside, depth + 1);
    items.push(blocks);
    end = after;
    isLoose ||= hasBlankBetween(inside, blocks);
    let next = end;
    while (next < lines.length && isBlank(lines[next])) next += 1;
    const following = next < lines.length && indentOf(lines[next]) < 4 && !RULE.test(lines[next])
      && ITEM.exec(lines[next]);
    if (!following || kindOf(following[2]) !== kindOf(marker)) break;
    isLoose ||= next > end;
    end = next;
  }
  return [{ type: "list", isOrdered, start: isOrdered ? Number.parseInt(marker, 10) : 1, isLoose, items }, end];
}

/** Return the lines of an item without its marker, and where it ends; blank lines at its end are not its own. */
function readItem(lines, place, [all, , marker]) {
  const rest = lines[place].slice(all.length);
  const spaces = indentOf(rest);
  const width = all.length + (isBlank(rest) || spaces > 4 ? 1 : spaces);
  const inside = [isBlank(rest) ? "" : rest.slice(width - all.length)];
  let end = place + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    if (isBlank(line)) {
      if (inside.length === 1 && inside[0] === "") break; // an item begins with one blank line at most
      inside.push("");
    } else if (indentOf(line) >= width) inside.push(line.slice(width));
    else if (inside.at(-1) !== "" && mayBeLazy(line) && leavesParagraphOpen(inside)) {
      inside.push(line.trimStart());
    } else break;
  }
  while (inside.length > 1 && inside.at(-1) === "") {
    inside.pop();
    end -= 1;
  }
  return [inside, end];
}

function hasBlankBetween(inside, blocks) {
  if (blocks.length < 2) return false;
  let place = 0;
  return blocks.some((block, index) => {
    const before = place;
    while (isBlank(inside[place] ?? "x")) place += 1;
    const isApart = index > 0 && place > before;
    place += block.source.split("\n").length;
    return isApart;
  });
}

function isTable(lines, place) {
  const next = lines[place + 1];
  return next !== undefined && lines[place].includes("|") && DELIMITER_ROW.test(next) && next.includes("-")
    && cellsOf(lines[place]).length === cellsOf(next).length;
}

function cellsOf(line) {
  const cells = [];
  let cell = "";
  const row = line.trim().replace(/^\|/, "");
  for (let place = 0; place < row.length; place += 1) {
    if (row[place] === "\\" && row[place + 1] === "|") {
      cell += "|";
      place += 1;
    } else if (row[place] === "|") {
      cells.push(cell.trim());
      cell = "";
    } else cell += row[place];
  }
  if (cell.trim()) cells.push(cell.trim());
  return cells;
}

function readTable(lines, place) {
  const aligns = cellsOf(lines[place + 1]).map((cell) => {
    const isLeft = cell.startsWith(":"), isRight = cell.endsWith(":");
    return isLeft && isRight ? "center" : isRight ? "right" : isLeft ? "left" : "";
  });
  const fit = (cells) => aligns.map((_, column) => cells[column] ?? "");
  const rows = [];
  let end = place + 2;
  while (end < lines.length && !isBlank(lines[end]) && !cutsParagraph(lines[end])) {
    rows.push(fit(cellsOf(lines[end])));
    end += 1;
  }
  return [{ type: "table", aligns, head: fit(cellsOf(lines[place])), rows }, end];
}

function readParagraph(lines, place) {
  let end = place + 1;
  while (end < lines.length && !isBlank(lines[end])) {
    const underline = indentOf(lines[end]) < 4 && UNDERLINE.exec(lines[end]);
    if (underline) {
      const text = textOf(lines, place, end);
      return [{ type: "heading", level: underline[1][0] === "=" ? 1 : 2, text }, end + 1];
    }
    if (cutsParagraph(lines[end]) || isTable(lines, end)) break;
    end += 1;
  }
  return [{ type: "paragraph", text: textOf(lines, place, end) }, end];
}

const textOf = (lines, from, to) => lines.slice(from, to).map((line) => line.trimStart()).join("\n").trimEnd();
