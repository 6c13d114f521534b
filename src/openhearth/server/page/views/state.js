// The server's state: is it ready, what it does, what memory it holds, and what keys used, for those who may see it.
// Asks only while it is looked at, and only for paths that the server has.

import { isServed, send } from "../api.js";
import { byId, h } from "../dom.js";

const EVERY_MS = 2000;
const MOST_POINTS = 90;
const STATE = "/v1/server/state";
const METRICS = "/metrics";

/** Shows the state while it is on the screen. */
export class StateView {
  constructor() {
    this.points = [];
    byId("metrics").addEventListener("toggle", (event) => event.target.open && this.#showMetrics());
    document.addEventListener("visibilitychange", () => this.#schedule(0));
  }

  /** Begin or end showing. */
  show(isShown) {
    this.isShown = isShown;
    byId("metrics").hidden = !isServed(METRICS);
    this.#schedule(0);
  }

  #schedule(wait) {
    clearTimeout(this.timer);
    if (this.isShown && document.visibilityState === "visible") this.timer = setTimeout(() => this.#update(), wait);
  }

  async #update() {
    const [ready, state] = [await readyText(), await readState()];
    byId("ready").textContent = ready.text;
    byId("ready").className = ready.isWell ? "well" : "unwell";
    if (state.value) this.#showState(state.value);
    else byId("state").replaceChildren(h("p", { class: "soft" }, state.reason));
    if (byId("metrics").open) await this.#showMetrics();
    this.#schedule(EVERY_MS);
  }

  #showState(state) {
    this.points = [...this.points, state.tokens_per_second].slice(-MOST_POINTS);
    const { models } = state;
    const sum = (name) => models.reduce((total, model) => total + model[name], 0);
    byId("state").replaceChildren(
      h("dl", { class: "figures" },
        figure("Tokens per second", state.tokens_per_second.toFixed(1), sparkline(this.points)),
        figure("Answers being written", String(sum("running"))),
        figure("Waiting in line", `${sum("waiting")} of ${sum("max_waiting")}`, bar(sum("waiting"), sum("max_waiting"))),
        state.memory && figure("Memory of the server", bytesText(state.memory.process_bytes),
          bar(state.memory.process_bytes, state.memory.total_bytes),
          `${bytesText(state.memory.available_bytes)} of ${bytesText(state.memory.total_bytes)} are free`),
        figure("Up for", secondsText(state.uptime_s), null, `version ${state.version}`)),
      ...section("Models", table(["Model", "Adapters", "Context", "Cache pages in use", "Tokens read", "from cache",
        "Tokens drawn"], models.map(modelRow))),
      ...keysSection(state));
  }

  async #showMetrics() {
    const field = byId("metrics-text");
    try {
      field.textContent = await (await send(METRICS)).text();
    } catch (error) {
      field.textContent = error.message;
    }
  }
}

async function readyText() {
  try {
    await send("/ready");
    return { text: "Ready", isWell: true };
  } catch (error) {
    return { text: `Not ready: ${error.message}`, isWell: false };
  }
}

async function readState() {
  if (!isServed(STATE)) return { reason: "This server does not report its queue, speed, memory or keys." };
  try {
    return { value: await (await send(STATE)).json() };
  } catch (error) {
    return { reason: error.message };
  }
}

function modelRow(model) {
  const { pages, tokens } = model;
  const held = Math.round(100 * pages.used / pages.all);
  return [model.name, model.adapters.join(", ") || "none", count(model.context_tokens),
    `${count(pages.used)} of ${count(pages.all)} (${held} %)`, count(tokens.prompt), count(tokens.cached),
    count(tokens.drawn)];
}

/** All keys for an admin, else the visitor's own. */
function keysSection(state) {
  const keys = state.keys ?? (state.key ? [state.key] : []);
  if (!keys.length) return [];
  return section(state.keys ? "Keys" : "Your key", table(
    ["Key", "Role", "State", "Requests this minute", "Tokens this minute", "today", "this month", "ever"],
    keys.map((key) => [key.name, key.role, key.state, ...["requests_per_minute", "tokens_per_minute",
      "tokens_per_day", "tokens_per_month", "tokens_total"].map((name) => used(key, name))])));
}

function used(key, name) {
  const most = key.limits?.[name];
  return most ? `${count(key.used[name])} of ${count(most)}` : count(key.used[name]);
}

const section = (title, content) => [h("h2", {}, title), content];

function figure(name, value, drawing = null, note = "") {
  return h("div", {}, h("dt", {}, name), h("dd", {}, h("strong", {}, value), drawing,
    note && h("span", { class: "soft" }, note)));
}

function bar(value, most) {
  const element = h("span", { class: "bar", "aria-hidden": "true" });
  element.style.setProperty("--share", String(most ? Math.min(1, value / most) : 0));
  return element;
}

/** Return a line of the last values; the number beside it says the newest. */
function sparkline(points) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  const highest = Math.max(1, ...points);
  svg.setAttribute("viewBox", `0 0 ${MOST_POINTS} 24`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "sparkline");
  line.setAttribute("points", points.map((value, place) => (
    `${MOST_POINTS - points.length + place},${(23 - 22 * value / highest).toFixed(1)}`)).join(" "));
  svg.append(line);
  return svg;
}

function table(names, rows) {
  return h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Table" }, h("table", {},
    h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map(([first, ...others]) => h("tr", {}, h("th", { scope: "row" }, first),
      others.map((cell) => h("td", {}, cell)))))));
}

const count = (number) => number.toLocaleString("en").replaceAll(",", "\u202f");

function bytesText(bytes) {
  return bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${Math.round(bytes / 2 ** 20)} MiB`;
}

function secondsText(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}
