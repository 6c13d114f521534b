// An answer token by token: how likely each was, and what else could have come. One stop for the Tab key; arrows move.

import { h } from "../dom.js";

const LEVELS = [0.9, 0.6, 0.3, 0.1]; // probabilities under which a token is more of a surprise
const MOST_SHOWN = 4000;

const percent = (logprob) => {
  const value = 100 * Math.exp(logprob);
  return value >= 99.95 ? "100 %" : value < 0.05 ? "< 0.1 %" : `${value.toFixed(1)} %`;
};

/** Return a token's text so that it can be seen: spaces, line breaks, and bytes that are no whole character. */
function visible({ token, bytes }) {
  if (token.includes("\ufffd") && bytes) {
    return bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  }
  return token.replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
}

const quoted = (token) => `“${visible(token).replaceAll(" ", "␣")}”`;

/** Return an element that shows tokens. */
export function tokensView(tokens) {
  const detail = h("div", { class: "token-detail", "aria-live": "polite" },
    h("p", { class: "soft" }, "Point at a token, or move with the arrow keys, to see what else could have come."));
  const strip = h("div", { class: "token-strip", role: "group", "aria-label": "Tokens of the answer" });
  const buttons = tokens.slice(0, MOST_SHOWN).map((token, place) => {
    const level = LEVELS.filter((limit) => Math.exp(token.logprob) < limit).length;
    const show = () => showDetail(detail, token);
    return h("button", {
      type: "button", class: "token", tabindex: place ? "-1" : "0", "data-level": String(level),
      "aria-label": `${quoted(token)}, ${percent(token.logprob)}`, onpointerenter: show, onfocus: show,
    }, visible(token));
  });
  buttons.forEach((button, place) => strip.append(button, ...(tokens[place].token.includes("\n") ? [h("br")] : [])));
  strip.addEventListener("keydown", (event) => move(event, buttons));
  return h("section", { class: "tokens", "aria-label": "Probabilities" }, strip, detail,
    tokens.length > MOST_SHOWN ? h("p", { class: "soft" }, `The first ${MOST_SHOWN} of ${tokens.length}.`) : null);
}

function move(event, buttons) {
  const place = buttons.indexOf(document.activeElement);
  const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (place < 0 || next === undefined || !buttons[next]) return;
  event.preventDefault();
  buttons[place].tabIndex = -1;
  buttons[next].tabIndex = 0;
  buttons[next].focus();
}

function showDetail(detail, token) {
  const others = token.top_logprobs ?? [];
  const rows = others.some((other) => other.token === token.token) ? others : [token, ...others];
  detail.replaceChildren(
    h("p", {}, h("strong", {}, quoted(token)), ` was drawn with ${percent(token.logprob)}`),
    h("ol", { class: "alternatives" }, rows.map((other) => {
      const bar = h("span", { class: "bar", "aria-hidden": "true" });
      bar.style.setProperty("--share", String(Math.exp(other.logprob)));
      return h("li", { class: other.token === token.token ? "drawn" : null },
        h("span", { class: "name" }, quoted(other)), bar, h("span", { class: "share" }, percent(other.logprob)));
    })));
}
