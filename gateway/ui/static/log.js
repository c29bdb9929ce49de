// The tail of the log, the latest line first.

import { byId, h, setText } from "./dom.js";
import { clock, count, outcomeMark, seconds } from "./format.js";

const KEPT = 500;
const LEVELS = [["all", "All"], ["trouble", "Warnings"]];
const TROUBLE = new Set(["warning", "error", "critical"]);
const APART = new Set(["event", "level", "timestamp"]);

export class LogView {
  constructor(onRequest) {
    this.lines = [];
    this.skipped = 0;
    this.words = [];
    this.level = "all";
    this.paused = false;
    this.onRequest = onRequest;
    byId("log-filter").addEventListener("input", (event) => {
      this.words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      this.redraw();
    });
    this.buttons = LEVELS.map(([level, label]) =>
      h("button", { type: "button", "aria-pressed": level === this.level, onclick: () => this.show(level) }, label),
    );
    byId("levels").append(...this.buttons);
    byId("pause").addEventListener("click", () => this.pause());
  }

  show(level) {
    this.level = level;
    this.buttons.forEach((button, index) => button.setAttribute("aria-pressed", LEVELS[index][0] === level));
    this.redraw();
  }

  pause() {
    this.paused = !this.paused;
    byId("pause").setAttribute("aria-pressed", this.paused);
    setText(byId("pause"), this.paused ? "Go on" : "Pause");
    if (!this.paused) this.redraw();
  }

  clear() {
    this.lines = [];
    this.skipped = 0;
    byId("log").replaceChildren();
  }

  add(lines = [], skipped = 0) {
    this.skipped += skipped;
    const fresh = lines.map((line) => ({ line, text: Object.values(line).join(" ").toLowerCase() }));
    this.lines.push(...fresh);
    this.lines.splice(0, this.lines.length - KEPT);
    if (!this.paused) this.prepend(fresh);
    this.tell();
  }

  redraw() {
    byId("log").replaceChildren();
    this.prepend(this.lines);
    this.tell();
  }

  prepend(entries) {
    const list = byId("log");
    const elements = entries.slice(-KEPT).filter((entry) => this.matches(entry)).map((entry) => this.draw(entry.line));
    list.prepend(...elements.reverse());
    while (list.children.length > KEPT) list.lastChild.remove();
  }

  matches({ line, text }) {
    return (this.level === "all" || TROUBLE.has(line.level)) && this.words.every((word) => text.includes(word));
  }

  tell() {
    const shown = byId("log").children.length;
    setText(byId("log-count"), this.skipped ? `${count(this.skipped)} lines left out` : "");
    byId("no-lines").hidden = shown > 0;
    setText(byId("no-lines"), this.lines.length ? "No line matches." : "No lines yet.");
  }

  draw(line) {
    const time = h("time", { datetime: line.timestamp }, clock(new Date(line.timestamp)));
    const isEnd = line.event === "request finished";
    return h("li", { class: line.level }, time, isEnd ? this.finished(line) : this.other(line));
  }

  finished(line) {
    const id = h("button", { type: "button", class: "link", onclick: () => this.onRequest(line.request_id) }, line.request_id);
    const facts = [line.node || "no node", span(line), `${count(line.output_tokens)} tok`];
    if (line.attempts > 1) facts.push(`attempt ${line.attempts}`);
    if (line.detail) facts.push(line.detail);
    return h("span", {}, id, h("b", { class: outcomeMark(line.outcome) }, ` ${line.outcome} `), h("span", { class: "muted" }, facts.join(" · ")));
  }

  other(line) {
    const facts = Object.entries(line).filter(([name]) => !APART.has(name)).map(([name, value]) => `${name}=${said(value)}`);
    const level = TROUBLE.has(line.level) ? h("b", { class: line.level === "warning" ? "warm" : "bad" }, `${line.level} `) : null;
    return h("span", {}, level, `${line.event} `, h("span", { class: "muted" }, facts.join(" ")));
  }
}

// First token and end, one unit for both.
function span({ ttft_s: first, e2e_s: end }) {
  return first === null ? seconds(end) : `${first.toFixed(2)} / ${seconds(Math.max(end, 0.1))}`;
}

function said(value) {
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
