// The table of nodes: sorted, filtered, moved through by keys. Of a row only the cells that have changed are written.

import { byId, h, setText } from "./dom.js";
import { count, percent, short } from "./format.js";

const RANK = { down: 0, connecting: 1, draining: 2, leaving: 3, drained: 4, starting: 5, stopping: 5, up: 9 };
const dash = "–";
const number = (value, text = count) => (value === null ? dash : text(value));

// `show`: the text; `by`: what is sorted by (default: the field of that name); `mark`: a class of the cell.
const COLUMNS = [
  { id: "name", label: "Node", show: (n) => n.name, by: (n) => n.name },
  { id: "state", label: "State", show: (n) => (n.alarm ? `${n.state} !` : n.state), by: (n) => (n.alarm ? 0.5 : RANK[n.state] ?? 1), mark: (n) => `state ${n.state}${n.alarm ? " alarm" : ""}` },
  { id: "group", label: "Group", wide: true, show: (n) => n.group, by: (n) => n.group },
  { id: "running", label: "Running", num: true, title: "Requests in the engine's batch, of its seats", show: (n) => number(n.running) },
  { id: "waiting", label: "Waiting", num: true, title: "Queued at the node, reservations included", show: (n) => number(n.waiting), mark: (n) => (n.waiting > 0 ? "warm" : "") },
  { id: "kv", label: "KV used", num: true, title: "Share of the KV blocks in use", show: (n) => number(n.kv, percent), bar: (n) => n.kv ?? 0, mark: (n) => (n.kv > 0.95 ? "hot" : n.kv > 0.85 ? "warm" : "") },
  { id: "tokens", label: "Tokens due", num: true, wide: true, title: "Tokens still to compute, expected answers included", show: (n) => number(n.tokens, short) },
  { id: "in_flight", label: "Ours", num: true, wide: true, title: "Requests of this gateway there", show: (n) => count(n.in_flight) },
  { id: "bias", label: "Forecasts", num: true, wide: true, title: "Actual time over forecast time (1.00 is right), and the typical factor around that", show: forecasts, by: (n) => (n.bias === null ? -1 : Math.abs(Math.log(n.bias)) + Math.log(n.spread)), mark: (n) => (n.use === "demoted" || n.use === "silent" ? "hot" : n.use === "corrected" ? "warm" : "") },
  { id: "cached", label: "Cache", num: true, wide: true, title: "Blocks in its prefix cache, as a share of all; – where it does not tell, or is not believed", show: (n) => number(n.cached, percent) },
  { id: "note", label: "Note", wide: true, show: note, by: note, mark: (n) => (n.alarm || n.state === "down" ? "words hot" : "words") },
];

function forecasts(n) {
  if (n.use === "silent") return "silent";
  if (n.bias === null) return n.use === "demoted" ? "demoted" : dash;
  return `×${n.bias.toFixed(2)} ±${n.spread.toFixed(2)}`;
}

export function note(n) {
  const said = [n.alarm, n.why];
  if (n.state === "starting" && n.ready_in_s !== null) said.push(n.ready_in_s > 0 ? `expected in ${n.ready_in_s} s` : "later than starts usually are");
  if (n.old_s > 0) said.push(`state is ${n.old_s} s old`);
  if (n.out || n.into) said.push(`moves: ${n.out} away, ${n.into} here`);
  return said.filter(Boolean).join("; ");
}

export class NodesTable {
  constructor(onOpen) {
    this.rows = new Map();
    this.words = [];
    this.sort = { column: COLUMNS[0], down: false };
    this.body = byId("nodes").tBodies[0];
    this.current = null;
    this.byName = new Intl.Collator("en", { numeric: true });
    this.onOpen = onOpen;
    byId("nodes").tHead.rows[0].append(...COLUMNS.map((column) => this.head(column)));
    this.showSort();
    byId("node-filter").addEventListener("input", (event) => this.filter(event.target.value));
    this.body.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("click", (event) => this.open(event.target.closest("tr")));
    this.body.addEventListener("focusin", (event) => this.point(event.target.closest("tr")));
  }

  head(column) {
    const button = h("button", { type: "button", title: column.title, onclick: () => this.sortBy(column) }, column.label);
    return h("th", { scope: "col", class: classes(column), "data-column": column.id }, button);
  }

  clear() {
    this.rows.clear();
    this.body.replaceChildren();
    this.current = null;
  }

  // `changed`: fields by key of the node, all of them for a new one.
  update(changed = {}, gone = []) {
    for (const key of gone) {
      const row = this.rows.get(key);
      if (row === undefined) continue;
      if (this.current === row) this.current = null;
      row.element.remove();
      this.rows.delete(key);
    }
    for (const [key, fields] of Object.entries(changed)) {
      const row = this.rows.get(key) ?? this.add(key);
      Object.assign(row.node, fields);
      this.write(row);
    }
    this.order();
  }

  add(key) {
    const cells = COLUMNS.map((column) => {
      const text = h("span");
      const cell = h(column.id === "name" ? "th" : "td", { class: classes(column), scope: column.id === "name" ? "row" : null }, text);
      const bar = column.bar ? cell.appendChild(h("i", { class: "meter", "aria-hidden": true })) : null;
      return { cell, text, bar, mark: "" };
    });
    const element = h("tr", { tabindex: -1 }, cells.map((one) => one.cell));
    const row = { key, node: {}, element, cells };
    element.row = row;
    this.rows.set(key, row);
    return row;
  }

  write(row) {
    COLUMNS.forEach((column, index) => {
      const { cell, text, bar, mark } = row.cells[index];
      setText(text, column.show(row.node));
      if (bar) bar.style.setProperty("--share", Math.min(1, column.bar(row.node)));
      const now = column.mark ? column.mark(row.node) : "";
      if (now !== mark) {
        cell.className = `${classes(column)} ${now}`;
        row.cells[index].mark = now;
      }
      if (column.id === "note" || column.id === "name") cell.title = text.textContent;
    });
    row.text = COLUMNS.map((_, index) => row.cells[index].text.textContent).join(" ").toLowerCase() + ` ${row.node.model} ${row.node.address}`.toLowerCase();
  }

  sortBy(column) {
    const same = this.sort.column === column;
    // Of numbers the largest are looked for.
    this.sort = { column, down: same ? !this.sort.down : Boolean(column.num) };
    this.showSort();
    this.order();
  }

  showSort() {
    for (const head of byId("nodes").tHead.rows[0].cells) {
      const is = head.dataset.column === this.sort.column.id;
      head.setAttribute("aria-sort", is ? (this.sort.down ? "descending" : "ascending") : "none");
    }
  }

  filter(text) {
    this.words = text.toLowerCase().split(/\s+/).filter(Boolean);
    this.order();
  }

  // Puts the rows that are shown in order; those that are there already stay where they are.
  order() {
    const { column, down } = this.sort;
    const by = column.by ?? ((n) => n[column.id] ?? -1);
    const shown = [...this.rows.values()].filter((row) => this.words.every((word) => row.text.includes(word)));
    const value = new Map(shown.map((row) => [row, by(row.node)]));
    shown.sort((a, b) => {
      const x = value.get(a), y = value.get(b);
      const order = typeof x === "string" ? this.byName.compare(x, y) : x - y;
      return (down ? -order : order) || this.byName.compare(a.node.name, b.node.name);
    });
    const focused = document.activeElement;
    const kept = new Set(shown);
    for (const row of this.rows.values()) if (!kept.has(row)) row.element.remove();
    let at = this.body.firstChild;
    for (const { element } of shown) {
      if (element === at) at = at.nextSibling;
      else this.body.insertBefore(element, at);
    }
    if (focused !== document.activeElement && focused?.row && focused.isConnected) focused.focus({ preventScroll: true });
    if (this.current === null || !kept.has(this.current)) this.point(shown[0]?.element);
    this.shown = shown;
    this.tell(shown.length);
  }

  tell(shown) {
    const all = this.rows.size;
    setText(byId("node-count"), shown === all ? String(all) : `${shown} of ${all}`);
    byId("no-nodes").hidden = shown > 0;
    setText(byId("no-nodes"), all ? "No node matches the filter." : "The gateway has no nodes: name them with --node, or scale them.");
  }

  // The one row that Tab leads to.
  point(element) {
    const row = element?.row ?? null;
    if (row === this.current) return;
    if (this.current) this.current.element.tabIndex = -1;
    this.current = row;
    if (row) row.element.tabIndex = 0;
  }

  focus() {
    this.current?.element.focus();
  }

  open(element) {
    if (element?.row) this.onOpen(element.row.key);
  }

  key(event) {
    const row = event.target.closest("tr");
    const rows = this.shown.map((one) => one.element);
    const at = rows.indexOf(row);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + 15, PageUp: at - 15, Home: 0, End: rows.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") this.open(row);
    else if (to === undefined) return;
    else rows[Math.max(0, Math.min(rows.length - 1, to))]?.focus();
    event.preventDefault();
  }
}

function classes(column) {
  return [column.num ? "num" : "", column.wide ? "wide" : "", `c-${column.id}`].filter(Boolean).join(" ");
}
