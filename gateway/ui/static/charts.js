// The timeline: four small charts that share one cursor, drawn by uPlot.

import { byId, h, setText } from "./dom.js";
import { count, percent, rate } from "./format.js";
import uPlot from "./vendor/uplot.js";

const RANGES_MIN = [10, 30, 60];
const KEPT = 720;
const HEIGHT = 96;
const LOW_HEIGHT = 64;
const COUNTS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];

// `of`: a sample's value, null where there is none.
const CHARTS = [
  {
    title: "Requests per second",
    series: [
      { label: "placed", color: "--c1", of: (s) => s.placed_per_s, text: rate, fill: true },
      { label: "ended", color: "--c2", of: (s) => s.ended_per_s, text: rate },
    ],
  },
  {
    title: "Within SLO",
    range: [0, 1],
    ticks: (share) => percent(share),
    none: "no request has a service level",
    series: [{ label: "kept", color: "--c3", of: (s) => (s.promised ? s.kept / s.promised : null), text: (v) => percent(v, 1), gaps: true }],
    target: true,
  },
  {
    title: "Nodes",
    counts: true,
    series: [
      { label: "up", color: "--c1", of: (s) => s.nodes_up, text: count, fill: true, steps: true },
      { label: "wanted", color: "--c4", of: (s) => s.wanted, text: count, steps: true, dash: [4, 3] },
      { label: "starting", color: "--c3", of: (s) => s.starting, text: count, steps: true },
      { label: "leaving", color: "--c2", of: (s) => s.draining, text: count, steps: true },
    ],
  },
  {
    title: "Held, failed, moved",
    counts: true,
    series: [
      { label: "held", color: "--c4", of: (s) => s.held, text: count, fill: true },
      { label: "failed", color: "--c5", of: (s) => s.failed, text: count, bars: true },
      { label: "moved", color: "--c2", of: (s) => s.moves, text: count, bars: true },
    ],
  },
];

export class Charts {
  constructor() {
    this.samples = [];
    this.fields = [];
    this.everyS = 5;
    this.minutes = Number(sessionStorage.getItem("minutes")) || RANGES_MIN[0];
    this.buttons = RANGES_MIN.map((minutes) =>
      h("button", { type: "button", "aria-pressed": minutes === this.minutes, onclick: () => this.show(minutes) }, `${minutes} min`),
    );
    byId("ranges").append(...this.buttons);
    this.charts = CHARTS.map((spec) => this.make(spec));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild());
    new ResizeObserver(() => this.resize()).observe(byId("charts"));
  }

  make(spec) {
    const keys = spec.series.map((series) => h("span", { class: "value" }, "–"));
    const legend = spec.series.map((series, index) => {
      const dot = h("i");
      dot.style.setProperty("background", `var(${series.color})`);
      return h("span", { class: "key" }, dot, `${series.label} `, keys[index]);
    });
    const plot = h("div", { class: "plot" });
    const empty = h("p", { class: "empty", hidden: true }, spec.none ?? "");
    const element = h("figure", {}, h("figcaption", {}, h("b", {}, spec.title), h("span", { class: "legend" }, legend)), plot, empty);
    byId("charts").append(element);
    return { spec, keys, legend, plot, empty, uplot: null };
  }

  reset(timeline, slo) {
    this.fields = timeline.fields;
    this.everyS = timeline.every_s;
    this.target = slo?.share ?? null;
    const rows = timeline.columns[0]?.length ?? 0;
    this.samples = Array.from({ length: rows }, (_, row) => this.sample(timeline.columns.map((column) => column[row])));
    this.rebuild();
  }

  sample(values) {
    return Object.fromEntries(this.fields.map((name, index) => [name, values[index]]));
  }

  add(samples = []) {
    if (!samples.length) return;
    this.samples.push(...samples.map((values) => this.sample(values)));
    this.samples.splice(0, this.samples.length - KEPT);
    this.draw();
  }

  last() {
    return this.samples.at(-1) ?? null;
  }

  // Sums over the last minute.
  minute(field) {
    return this.samples.slice(-Math.round(60 / this.everyS)).reduce((sum, sample) => sum + sample[field], 0);
  }

  next() {
    this.show(RANGES_MIN[(RANGES_MIN.indexOf(this.minutes) + 1) % RANGES_MIN.length]);
  }

  show(minutes) {
    this.minutes = minutes;
    sessionStorage.setItem("minutes", minutes);
    this.buttons.forEach((button, index) => button.setAttribute("aria-pressed", RANGES_MIN[index] === minutes));
    this.draw();
  }

  data(spec) {
    const shown = this.shown();
    return [shown.map((sample) => sample.at_s), ...spec.series.map((series) => shown.map(series.of))];
  }

  shown() {
    const since = (this.last()?.at_s ?? Date.now() / 1e3) - this.minutes * 60;
    return this.samples.filter((sample) => sample.at_s >= since);
  }

  draw() {
    const end = this.last()?.at_s ?? Date.now() / 1e3;
    for (const chart of this.charts) {
      const data = this.data(chart.spec);
      chart.uplot?.setData(data, false);
      chart.uplot?.setScale("x", { min: end - this.minutes * 60, max: end });
      this.values(chart, data[0].length - 1, data);
      chart.legend.forEach((key, index) => (key.hidden = data[index + 1].every((value) => value === null)));
      chart.empty.hidden = !chart.spec.none || data.slice(1).some((values) => values.some((value) => value !== null));
      if (chart.spec.none) chart.plot.classList.toggle("none", !chart.empty.hidden);
    }
  }

  values(chart, at, data) {
    chart.spec.series.forEach((series, index) => {
      const value = data[index + 1][at];
      setText(chart.keys[index], value === null || value === undefined ? "–" : series.text(value));
    });
  }

  resize() {
    for (const chart of this.charts) {
      const width = chart.plot.clientWidth;
      if (width && chart.uplot && chart.uplot.width !== width) chart.uplot.setSize({ width, height: height() });
    }
  }

  rebuild() {
    for (const chart of this.charts) {
      chart.uplot?.destroy();
      chart.uplot = new uPlot(this.options(chart), this.data(chart.spec), chart.plot);
    }
    this.draw();
  }

  options(chart) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: color("--muted"), grid: { stroke: color("--grid"), width: 1 }, ticks: { show: false }, font: "10px system-ui, sans-serif" };
    const { spec } = chart;
    const hooks = {
      setCursor: [(u) => this.values(chart, u.cursor.idx ?? u.data[0].length - 1, u.data)],
      draw: spec.target ? [(u) => this.drawTarget(u, color("--muted"))] : [],
    };
    return {
      width: Math.max(120, chart.plot.clientWidth),
      height: height(),
      padding: [6, 16, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "timeline" }, drag: { x: false, y: false }, points: { size: 5 }, y: false },
      scales: { x: { time: true }, y: { range: spec.range ?? ((_, min, max) => [0, Math.max(1, max * 1.1)]) } },
      axes: [
        { ...axis, size: 20, gap: 5, space: 60, values: "{HH}:{mm}" },
        { ...axis, size: 38, gap: 4, space: height() === HEIGHT ? 26 : 16, incrs: spec.counts && COUNTS, values: (_, ticks) => ticks.map((tick) => (spec.ticks ? spec.ticks(tick) : tickText(tick))) },
      ],
      series: [{}, ...spec.series.map((series) => this.series(series, color(series.color)))],
      hooks,
    };
  }

  series(series, color) {
    return {
      stroke: color,
      width: 1.5,
      dash: series.dash,
      fill: series.bars ? color : series.fill ? `${color}22` : undefined,
      points: { show: series.gaps ? undefined : false, size: 3 },
      spanGaps: Boolean(series.gaps),
      paths: series.bars ? uPlot.paths.bars({ size: [0.8, 6] }) : series.steps ? uPlot.paths.stepped({ align: 1 }) : undefined,
    };
  }

  drawTarget(u, color) {
    if (this.target === null) return;
    const y = u.valToPos(this.target, "y", true);
    u.ctx.save();
    u.ctx.strokeStyle = color;
    u.ctx.setLineDash([4, 4]);
    u.ctx.beginPath();
    u.ctx.moveTo(u.bbox.left, y);
    u.ctx.lineTo(u.bbox.left + u.bbox.width, y);
    u.ctx.stroke();
    u.ctx.restore();
  }
}

function height() {
  return matchMedia("(max-width: 700px)").matches ? LOW_HEIGHT : HEIGHT;
}

function tickText(value) {
  return value >= 1000 ? `${value / 1000}k` : Number.isInteger(value) ? String(value) : value.toFixed(1);
}
