// Reasoning that a server left in the text: `<think>…</think>` at its very beginning.

const OPEN = "<think>";
const CLOSE = "</think>";

/** Return {reasoning, answer, isOpen} of a text; while it grows, a tag that is half there is held back. */
export function splitThinking(text, { grows }) {
  const start = text.length - text.trimStart().length;
  const body = text.slice(start);
  if (!body.startsWith(OPEN)) {
    const isBeginning = grows && body !== "" && OPEN.startsWith(body);
    return { reasoning: "", answer: isBeginning ? "" : text, isOpen: false };
  }
  const end = body.indexOf(CLOSE);
  if (end >= 0) {
    return {
      reasoning: body.slice(OPEN.length, end).trim(), answer: body.slice(end + CLOSE.length).trimStart(),
      isOpen: false,
    };
  }
  let inside = body.slice(OPEN.length);
  for (let length = CLOSE.length - 1; grows && length > 0; length -= 1) {
    if (inside.endsWith(CLOSE.slice(0, length))) {
      inside = inside.slice(0, -length);
      break;
    }
  }
  return { reasoning: inside.trim(), answer: "", isOpen: grows };
}
