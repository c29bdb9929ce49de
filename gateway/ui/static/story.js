// A request's story as a picture: what was foreseen, what happened, who else could have had it.

import { h, s } from "./dom.js";
import { count, outcomeMark, percent, seconds, short } from "./format.js";

const WIDTH = 640;
const LEFT = 76;

export function storyOf(told) {
  const decision = told.decisions.at(-1);
  return h("div", { class: "story" }, summary(told), picture(told), facts(told), told.decisions.map((one) => candidates(one, one === decision)).reverse());
}

function summary({ actual, decisions }) {
  const state = actual.outcome ?? "still runs";
  const tiles = [
    ["Outcome", h("b", { class: outcomeMark(actual.outcome) }, state)],
    ["Node", decisions.at(-1)?.node || "none"],
    ["First token", seconds(actual.ttft_s)],
    ["Whole answer", seconds(actual.e2e_s)],
    ["Prompt", `${count(actual.prompt_tokens)} tok`],
    ["Answer", `${count(actual.output_tokens)} tok`],
  ];
  return h("dl", { class: "tiles" }, tiles.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

// Two lanes on one axis of time: the chosen node's forecast, and what happened.
function picture({ decisions, actual, moves }) {
  const first = decisions[0];
  if (!first) return h("p", { class: "empty" }, "It was never placed.");
  const forecast = first.scores.find((score) => score.node === first.node)?.forecast ?? null;
  const placed = first.decision_s;
  const ends = [actual.e2e_s, actual.ttft_s, forecast && placed + forecast.e2e_s[2], ...moves.map((move) => move.after_s + (move.took_s ?? 0))];
  const most = Math.max(0.001, ...ends.filter((end) => end !== null && end !== undefined));
  const x = (at) => LEFT + (Math.min(at, most) / most) * (WIDTH - LEFT - 8);
  const label = (y, text) => s("text", { x: 0, y: y + 11, class: "lane" }, text);
  const block = (from, to, y, kind, title) =>
    s("rect", { x: x(from), y, width: Math.max(1.5, x(to) - x(from)), height: 14, rx: 2, class: kind }, s("title", {}, title));
  const parts = [];
  let y = 4;
  if (forecast) {
    const [, t50, t90] = forecast.ttft_s, [, e50, e90] = forecast.e2e_s;
    parts.push(label(y, "forecast"), block(placed, placed + t50, y, "wait", `first token, p50: ${seconds(t50)}`), block(placed + t50, placed + e50, y, "answer", `whole answer, p50: ${seconds(e50)}`), block(placed + e50, placed + e90, y, "maybe", `whole answer, p90: ${seconds(e90)}`));
    parts.push(s("path", { d: `M${x(placed + t90)} ${y - 2}v18`, class: "mark" }, s("title", {}, `first token, p90: ${seconds(t90)}`)));
    y += 24;
  }
  parts.push(label(y, "happened"), block(0, placed, y, "decide", `to the first placement: ${seconds(placed)}`));
  if (actual.ttft_s !== null) parts.push(block(placed, actual.ttft_s, y, "wait", `first token after ${seconds(actual.ttft_s)}`));
  if (actual.e2e_s !== null) parts.push(block(actual.ttft_s ?? placed, actual.e2e_s, y, actual.ttft_s === null ? "wait" : "answer", `ended after ${seconds(actual.e2e_s)}`));
  for (const move of moves) {
    const to = move.after_s + (move.took_s ?? 0);
    parts.push(s("path", { d: `M${x(move.after_s)} ${y - 3}v20M${x(to)} ${y - 3}v20M${x(move.after_s)} ${y - 3}H${x(to)}`, class: "move" }, s("title", {}, moveWords(move))));
  }
  y += 24;
  for (let tick = 0; tick <= 4; tick++) {
    const at = (most * tick) / 4;
    const anchor = tick === 0 ? "start" : tick === 4 ? "end" : "middle";
    parts.push(s("text", { x: x(at), y: y + 8, class: "tick", "text-anchor": anchor }, tick ? seconds(at) : "0"));
  }
  const key = [["decide", "placing"], ["wait", "to the first token"], ["answer", "answer"], ...(forecast ? [["maybe", "up to p90"]] : []), ...(moves.length ? [["move", "move"]] : [])];
  const drawn = s("svg", { viewBox: `0 0 ${WIDTH} ${y + 12}`, role: "img", "aria-label": words(actual, forecast) }, parts);
  return h("figure", { class: "picture" }, drawn, h("figcaption", { class: "legend" }, key.map(([kind, text]) => h("span", { class: "key" }, h("i", { class: kind }), text))));
}

function words(actual, forecast) {
  const said = forecast ? `Forecast: first token in ${seconds(forecast.ttft_s[1])}, whole answer in ${seconds(forecast.e2e_s[1])}. ` : "";
  return `${said}Happened: first token after ${seconds(actual.ttft_s)}, end after ${seconds(actual.e2e_s)}.`;
}

function moveWords(move) {
  const gap = move.gap_s === null ? "" : `; its client waited ${seconds(move.gap_s)}`;
  const detail = move.detail ? ` (${move.detail})` : "";
  return `after ${seconds(move.after_s)}, ${move.source} → ${move.destination || "another node"}, ${move.why}: ${move.outcome.replaceAll("_", " ")}${detail}${gap}`;
}

function facts(told) {
  const lines = [];
  if (told.belief) {
    const [p50, p90] = told.belief;
    const most = p50 === p90 ? "" : `, at most ${count(p90)} in nine of ten cases`;
    const what = told.decisions.length > 1 ? "what was left of the answer" : "the answer";
    lines.push(`Believed length of ${what}: ${count(p50)} tokens${most} (${told.belief_source}).`);
  }
  if (told.actual.cached_tokens) lines.push(`${count(told.actual.cached_tokens)} tokens of the prompt were found in the node's cache.`);
  lines.push(...told.moves.map((move) => `Move ${moveWords(move)}.`));
  return h("ul", { class: "facts" }, lines.map((line) => h("li", {}, line)));
}

function candidates(decision, open) {
  const title = `Attempt ${decision.attempt}: ${decision.node || "no node"}, by ${decision.policy} in ${seconds(decision.decision_s)}`;
  const costs = decision.scores.map((score) => score.cost ?? 0);
  const ends = decision.scores.map((score) => score.forecast?.e2e_s[2] ?? 0);
  const most = { cost: Math.max(...costs, 1e-9), end: Math.max(...ends, 1e-9) };
  const foreseen = decision.scores.some((score) => score.forecast);
  const heads = ["Node", `Cost (${decision.unit})`, ...(foreseen ? ["First token · whole answer", "Harm", "Cached"] : []), ""];
  const table = h(
    "table",
    { class: "candidates" },
    h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col", class: head === "Harm" || head === "Cached" ? "num" : "" }, head)))),
    h("tbody", {}, decision.scores.map((score) => candidate(score, decision, most, foreseen))),
  );
  return h(
    "details",
    { open },
    h("summary", {}, title),
    h("p", { class: "reason" }, decision.reason),
    h("div", { class: "scroll-x" }, table),
    decision.more ? h("p", { class: "muted" }, `and ${count(decision.more)} more`) : null,
  );
}

function candidate(score, decision, most, foreseen) {
  const chosen = score.node === decision.node;
  const cost = bars("", score.cost === null ? "–" : number(score.cost, decision.unit), bar(0, score.cost ?? 0, most.cost, "cost"));
  const forecast = score.forecast;
  const cells = [];
  if (foreseen) {
    const times = forecast
      ? bars("times", `${seconds(forecast.ttft_s[1])} · ${seconds(forecast.e2e_s[1])}`, bar(0, forecast.ttft_s[1], most.end, "wait"), bar(forecast.ttft_s[1], forecast.e2e_s[1], most.end, "answer"), bar(forecast.e2e_s[1], forecast.e2e_s[2], most.end, "maybe"))
      : bars("times", "–");
    cells.push(times, h("td", { class: "num" }, forecast ? seconds(forecast.harm_s) : "–"), h("td", { class: "num" }, forecast ? short(forecast.cached_tokens) : "–"));
  }
  const risk = forecast && forecast.preempted > 0.005 ? `somebody preempted in ${percent(forecast.preempted)}` : "";
  const said = [chosen ? "chosen" : "", score.note, risk].filter(Boolean).join("; ");
  return h("tr", { class: chosen ? "chosen" : "" }, h("th", { scope: "row" }, score.node), cost, cells, h("td", { class: "words" }, said));
}

// A cell with a number and, below it, its bar.
function bars(kind, text, ...parts) {
  return h("td", { class: kind }, h("div", { class: "bars" }, h("span", {}, text), parts));
}

function bar(from, to, most, kind) {
  const element = h("i", { class: `bar-part ${kind}`, "aria-hidden": true });
  element.style.setProperty("left", `${(from / most) * 100}%`);
  element.style.setProperty("width", `${Math.max(0, ((to - from) / most) * 100)}%`);
  return element;
}

function number(value, unit) {
  if (unit === "s") return seconds(value);
  return Math.abs(value) >= 100 ? count(value) : String(Number(value.toPrecision(3)));
}
