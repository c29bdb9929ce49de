// The page: connects, shows what comes, opens what is asked for.

import { Charts } from "./charts.js";
import { byId, h, setText } from "./dom.js";
import { clock, count, percent, rate, seconds, short } from "./format.js";
import { LogView } from "./log.js";
import { NodesTable, note } from "./nodes.js";
import { storyOf } from "./story.js";
import { Refused, events, getJson } from "./stream.js";

const KEY = "astrolabe-key";
const FIRST_PAUSE_S = 1;
const LAST_PAUSE_S = 10;
const STORY_S = 1;

const state = { about: null, now: {}, scaling: null, slo: null, connection: "connecting", panel: null };
const nodes = new NodesTable(openNode);
const log = new LogView(openRequest);
let charts = null;

// --- the stream --------------------------------------------------------------------------------------------------------

async function follow() {
  let pauseS = FIRST_PAUSE_S;
  for (;;) {
    try {
      for await (const [name, data] of events("stream", sessionStorage.getItem(KEY))) {
        pauseS = FIRST_PAUSE_S;
        if (name === "whole") whole(data);
        else if (name === "change") change(data);
        else if (name === "bye") break;
        connected("live");
      }
      connected("lost", "the gateway has ended the stream");
    } catch (error) {
      if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
        await askKey(error);
        continue;
      }
      connected("lost", error instanceof Refused ? error.message : "the gateway does not answer");
    }
    await new Promise((resolve) => setTimeout(resolve, pauseS * 1e3));
    pauseS = Math.min(LAST_PAUSE_S, pauseS * 2);
  }
}

function whole(data) {
  byId("login").hidden = true;
  byId("page").hidden = false;
  Object.assign(state, { about: data.about, now: data.now, scaling: data.scaling, slo: data.slo });
  charts ??= new Charts();
  charts.reset(data.timeline, data.slo);
  nodes.clear();
  nodes.update(data.nodes);
  log.clear();
  log.add(data.log);
  about();
  drawNow();
  drawScaling();
}

function change(data) {
  Object.assign(state.now, data.now);
  if (data.nodes || data.gone) nodes.update(data.nodes, data.gone);
  charts.add(data.samples);
  if (data.log) log.add(data.log, data.skipped_lines);
  if ("scaling" in data) {
    state.scaling = data.scaling;
    drawScaling();
  }
  if (data.now && "workers" in data.now) notice();
  drawNow();
  if (state.panel?.node) drawNode(state.panel.node);
}

function connected(now, why = "") {
  state.connection = now;
  const place = byId("connection");
  if (place.dataset.state !== now || why) {
    place.dataset.state = now;
    setText(place, now === "live" ? "live" : why);
    place.title = now === "live" ? "" : `last heard at ${clock(new Date())}`;
  }
  document.body.classList.toggle("stale", now !== "live");
}

// --- keys --------------------------------------------------------------------------------------------------------------

function askKey(error) {
  const form = byId("login");
  const had = sessionStorage.getItem(KEY);
  sessionStorage.removeItem(KEY);
  byId("page").hidden = true;
  byId("forget").hidden = true;
  form.hidden = false;
  setText(byId("login-error"), had ? error.message : error.status === 403 ? error.message : "");
  setText(byId("connection"), "");
  byId("key").focus();
  return new Promise((resolve) => {
    form.addEventListener(
      "submit",
      (event) => {
        event.preventDefault();
        sessionStorage.setItem(KEY, byId("key").value.trim());
        byId("key").value = "";
        resolve();
      },
      { once: true },
    );
  });
}

function about() {
  setText(byId("gateway"), state.about.gateway);
  byId("forget").hidden = !state.about.keys;
  notice();
}

function notice() {
  const { workers, log_level: level } = state.about;
  const said = [];
  const missing = workers - state.now.workers;
  if (missing > 0) said.push(`${missing} of ${workers} workers ${missing > 1 ? "do" : "does"} not answer: what they do now is not shown.`);
  if (level !== "debug" && level !== "info") said.push(`The gateway logs at level ${level}: finished requests are not in its log.`);
  byId("notice").hidden = !said.length;
  setText(byId("notice"), said.join(" "));
}

// --- now ---------------------------------------------------------------------------------------------------------------

const tiles = new Map();

function drawNow() {
  const { now } = state;
  const last = charts.last();
  const states = [...nodes.rows.values()].map((row) => row.node);
  const up = states.filter((node) => node.state === "up").length;
  const alarms = states.filter((node) => node.alarm).length;
  const promised = charts.minute("promised");
  const failed = charts.minute("failed");
  const kept = promised ? charts.minute("kept") / promised : null;
  const target = state.slo?.share ?? null;
  tile("Requests / s", last ? rate(last.placed_per_s) : "–", now.policy);
  tile("Under way", count(now.under_way), "");
  tile("Held", count(now.held), now.held ? `next waits ${seconds(now.wait_s)}` : "", now.held ? "warm" : "");
  tile("Within SLO", kept === null ? "–" : percent(kept, 1), kept === null ? "nothing promised" : `of ${count(promised)} in 1 min`, kept !== null && target !== null && kept < target ? "hot" : "");
  tile("Failed", count(failed), "in 1 min", failed ? "hot" : "");
  tile("Nodes up", `${up} / ${states.length}`, alarms ? `${alarms} to look at` : "", up < states.length || alarms ? "warm" : "");
  tile("Moves", count(now.moves), "under way");
}

function tile(name, value, sub, mark = "") {
  let parts = tiles.get(name);
  if (!parts) {
    parts = { value: h("dd"), sub: h("dd", { class: "sub" }) };
    byId("totals").append(h("div", {}, h("dt", {}, name), parts.value, parts.sub));
    tiles.set(name, parts);
  }
  setText(parts.value, value);
  setText(parts.sub, sub);
  if (parts.value.className !== mark) parts.value.className = mark;
}

function drawScaling() {
  const told = state.scaling;
  byId("scaling-section").hidden = !told;
  if (!told) return;
  const who = told.leads ? "this gateway leads" : told.leader ? `${told.leader} leads` : "another gateway leads";
  setText(byId("scaling-who"), [`rule ${told.rule}`, who, told.executes ? "" : "advice only"].filter(Boolean).join(" · "));
  const heads = ["Group", "Wanted", "Serving", "Starting", "Draining", "Stopping", "Bounds"];
  const rows = told.groups.map((group) => [group.name, group.wanted, group.serving, group.starting, group.draining, group.stopping, `${group.min}–${group.max}${group.blocked_s ? ` · starts fail, next try in ${group.blocked_s} s` : ""}`]);
  const table = h("table", {}, h("thead", {}, h("tr", {}, heads.map((head, index) => h("th", { scope: "col", class: index ? "num" : "" }, head)))), h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, index) => h(index ? "td" : "th", { class: index ? "num" : "" }, String(cell)))))));
  const trouble = [told.problem && `nothing can be started or stopped: ${told.problem}`, told.shortfall].filter(Boolean).map((text) => h("p", { class: "hot" }, text));
  const lines = told.decisions.map((one) => h("li", {}, h("time", {}, clock(new Date(one.at_s * 1e3))), h("span", {}, [...one.actions, one.held_back && `not done: ${one.held_back}`].filter(Boolean).join(", ") || one.changes.map(([group, had, wanted]) => `${group} ${had} → ${wanted}`).join(", "), h("span", { class: "muted" }, ` ${one.why}`))));
  byId("scaling").replaceChildren(h("div", { class: "scroll-x" }, table), h("div", {}, trouble, told.why ? h("p", { class: "muted" }, `Now: ${told.why}`) : null, h("ol", { class: "lines" }, lines)));
}

// --- the panel ---------------------------------------------------------------------------------------------------------

function openPanel(title, panel) {
  state.panel = panel;
  setText(byId("panel-title"), title);
  byId("panel-body").replaceChildren();
  if (!byId("panel").open) byId("panel").showModal();
  byId("panel-body").scrollTop = 0;
}

function openNode(key) {
  openPanel(nodes.rows.get(key).node.name, { node: key });
  drawNode(key);
}

function drawNode(key) {
  const row = nodes.rows.get(key);
  if (!row) {
    byId("panel-body").replaceChildren(h("p", { class: "empty" }, "This node has gone."));
    return;
  }
  const n = row.node;
  const or = (value, text) => (value === null ? "–" : text(value));
  const facts = [
    ["State", n.state],
    ["Note", note(n) || "–"],
    ["Address", n.address || "–"],
    ["Group", n.group || "–"],
    ["Model", n.model || "–"],
    ["Step times", n.profile || "–"],
    ["Running", `${or(n.running, count)} of ${count(n.seats)} seats`],
    ["Waiting", or(n.waiting, count)],
    ["KV used", or(n.kv, (share) => percent(share, 1))],
    ["Tokens due", or(n.tokens, short)],
    ["Preemptions since its start", or(n.preemptions, count)],
    ["Requests of this gateway", count(n.in_flight)],
    ["Moves", `${count(n.out)} away, ${count(n.into)} here`],
    ["Forecasts", n.use || "–"],
    ["Actual over forecast time", n.bias === null ? "nothing compared yet" : `${n.bias.toFixed(2)}, within a factor of ${n.spread.toFixed(2)}`],
    ["Prefix cache", n.cached === null ? "it does not tell, or is not believed" : `${percent(n.cached)} of its blocks`],
  ];
  byId("panel-body").replaceChildren(h("dl", { class: "facts-list" }, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

async function openRequest(id) {
  const panel = { request: id };
  openPanel(id, panel);
  let drawn = "";
  while (state.panel === panel) {
    try {
      const told = await getJson(`requests/${encodeURIComponent(id)}`, sessionStorage.getItem(KEY));
      if (state.panel !== panel) return;
      const now = JSON.stringify(told);
      if (now !== drawn) byId("panel-body").replaceChildren(storyOf(told));
      drawn = now;
      if (told.actual.outcome !== null) return;
    } catch (error) {
      if (state.panel === panel) byId("panel-body").replaceChildren(h("p", { class: "empty" }, error.message));
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, STORY_S * 1e3));
  }
}

// --- keyboard ----------------------------------------------------------------------------------------------------------

const SHORTCUTS = [
  ["n", "to the nodes", () => nodes.focus()],
  ["/", "filter the nodes", () => byId("node-filter").focus()],
  ["l", "filter the log", () => byId("log-filter").focus()],
  ["e", "a request's story, by its id", () => askRequest()],
  ["t", "10, 30 or 60 minutes", () => charts.next()],
  ["p", "stop the log, let it go on", () => log.pause()],
  ["?", "these keys", () => byId("help").showModal()],
];
const OTHERS = [["↑ ↓ PgUp PgDn Home End", "move through the nodes"], ["Enter", "open the node"], ["Esc", "close, or leave a field"]];

function askRequest() {
  byId("request-id").value = "";
  byId("ask").showModal();
}

function listen() {
  byId("shortcuts").append(...[...SHORTCUTS, ...OTHERS].flatMap(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)]));
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input");
    if (typing && event.key === "Escape") event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || byId("page").hidden || document.querySelector("dialog[open]")) return;
    const shortcut = SHORTCUTS.find(([key]) => key === event.key);
    if (!shortcut) return;
    event.preventDefault();
    shortcut[2]();
  });
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  byId("help-close").addEventListener("click", () => byId("help").close());
  byId("open-request").addEventListener("click", askRequest);
  byId("ask-cancel").addEventListener("click", () => byId("ask").close());
  byId("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("ask").close();
    openRequest(byId("request-id").value.trim());
  });
  byId("panel-close").addEventListener("click", () => byId("panel").close());
  byId("panel").addEventListener("close", () => (state.panel = null));
  byId("panel").addEventListener("click", (event) => {
    if (event.target === byId("panel")) byId("panel").close();
  });
  byId("forget").addEventListener("click", () => {
    sessionStorage.removeItem(KEY);
    location.reload();
  });
}

listen();
follow();
