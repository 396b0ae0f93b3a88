"use strict";
// The page: a table that sorts and filters, and plotly's figures, drawn when they come into view.

const SHOWN = 100; // rows at first, and with every click for more

const byId = (id) => document.getElementById(id);
const data = (id) => JSON.parse(byId(id).textContent);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// ---- The table of all trials

const TESTS = {
  number: (cell, wanted) => cell !== null && cell >= Number(wanted),
  choice: (cell, wanted) => cell === wanted,
  text: (cell, wanted) => contains(String(cell), wanted),
};

function contains(text, wanted) {
  const low = text.toLowerCase();
  return wanted.toLowerCase().split(/\s+/).every((word) => low.includes(word));
}

function compare(first, second, direction) {
  if (first === second) return 0;
  if (first === null || first === "") return 1; // nothing comes last, whatever the direction
  if (second === null || second === "") return -1;
  return (first < second ? -1 : 1) * direction;
}

class Table {
  constructor(place, { columns, rows }) {
    this.columns = columns;
    this.rows = rows;
    this.texts = rows.map((row) => row.join(" "));
    this.sorted = { column: 0, direction: 1 };
    this.limit = SHOWN;
    this.search = element("input", { type: "search", "aria-label": "Search all columns", placeholder: "Search" });
    this.count = element("output", { "aria-live": "polite" });
    this.more = element("button", { type: "button" }, `Show ${SHOWN} more`);
    this.body = element("tbody");
    this.heads = columns.map(([title], index) => this.head(title, index));
    this.filters = columns.map(([title, kind], index) => this.filter(title, kind, index));
    const filters = this.filters.map((filter) => element("td", {}, filter));
    const head = element("thead", {}, element("tr", {}, ...this.heads), element("tr", {}, ...filters));
    const scroll = { class: "trials", tabindex: "0", role: "region", "aria-label": "All trials" };
    place.append(
      element("div", { class: "bar" }, this.search, this.count),
      element("div", scroll, element("table", {}, head, this.body)),
      element("div", { class: "bar" }, this.more),
    );
    for (const input of [this.search, ...this.filters]) {
      input.addEventListener("input", () => { this.limit = SHOWN; this.draw(); });
    }
    this.more.addEventListener("click", () => { this.limit += SHOWN; this.draw(); });
    this.draw();
  }

  head(title, index) {
    const button = element("button", { type: "button" }, title);
    button.addEventListener("click", () => {
      const again = this.sorted.column === index;
      const first = this.columns[index][1] === "number" ? -1 : 1; // the best accuracies on top
      this.sorted = { column: index, direction: again ? -this.sorted.direction : first };
      this.draw();
    });
    return element("th", { scope: "col" }, button);
  }

  filter(title, kind, index) {
    if (kind === "choice") {
      const words = [...new Set(this.rows.map((row) => row[index]))].sort();
      const options = words.map((word) => element("option", {}, word));
      return element("select", { "aria-label": `Only ${title}` }, element("option", { value: "" }, "all"), ...options);
    }
    if (kind === "number") {
      return element("input", { type: "number", step: "any", placeholder: "≥", "aria-label": `${title} at least` });
    }
    return element("input", { type: "search", placeholder: "contains", "aria-label": `${title} contains` });
  }

  matching() {
    const wanted = this.filters.map((filter) => filter.value.trim());
    const search = this.search.value.trim();
    const { column, direction } = this.sorted;
    return this.rows
      .filter((row, index) => (!search || contains(this.texts[index], search)) && row.every(
        (cell, place) => !wanted[place] || TESTS[this.columns[place][1]](cell, wanted[place])))
      .sort((first, second) => compare(first[column], second[column], direction) || first[0] - second[0]);
  }

  draw() {
    const rows = this.matching();
    const shown = rows.slice(0, this.limit);
    this.body.replaceChildren(...shown.map((row) => element("tr", {}, ...row.map((cell, place) => this.cell(cell, place)))));
    this.heads.forEach((head, index) => {
      const order = this.sorted.direction > 0 ? "ascending" : "descending";
      head.setAttribute("aria-sort", index === this.sorted.column ? order : "none");
    });
    const some = rows.length > shown.length ? `, the first ${shown.length} shown` : "";
    this.count.textContent = `${rows.length.toLocaleString("en")} of ${this.rows.length.toLocaleString("en")} trials${some}`;
    this.more.hidden = rows.length <= shown.length;
  }

  cell(cell, place) {
    const [title, kind] = this.columns[place];
    if (kind !== "number") return element("td", {}, cell);
    const text = cell === null ? "-" : title.endsWith("%") ? cell.toFixed(2) : cell.toLocaleString("en", { maximumSignificantDigits: 12 });
    return element("td", { class: "number" }, text);
  }
}

// ---- The figures

const hovers = new Map(); // what a hover says of a trial, by its number

function describe({ rows }) {
  for (const [number, state, last, , , , auxiliaries, edges] of rows) {
    const lines = [`<b>trial ${number}</b>, ${state}, ${last === null ? "-" : last.toFixed(2)} %`, auxiliaries];
    hovers.set(number, [...lines, ...edges.split("; ")].filter(Boolean).join("<br>"));
  }
}

// Colours are written as var(--name), for the style knows them in light and in dark.
function coloured(value, style) {
  if (typeof value === "string") {
    return value.startsWith("var(") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;
  }
  if (Array.isArray(value)) return value.map((each) => coloured(each, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, coloured(each, style)]));
}

function load() { // plotly's own code, as late as it can be: reading it takes the browser a while
  if (window.Plotly) return;
  document.head.append(element("script", {}, byId("plotly").textContent));
}

const TOUCH = matchMedia("(pointer: coarse)").matches; // a finger scrolls the page, and does not zoom
const CONFIG = {
  responsive: true,
  displaylogo: false,
  displayModeBar: TOUCH ? false : "hover",
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"]],
};
const drawn = new Set();

function draw(plot) {
  load();
  drawn.add(plot);
  const variants = data(`${plot.id}-figure`);
  const figure = variants[byId("stage") && !("" in variants) ? byId("stage").value : ""];
  const few = byId(`${plot.id}-few`);
  if (few) few.hidden = Boolean(figure);
  plot.hidden = !figure;
  if (!figure) return;
  const style = getComputedStyle(document.documentElement);
  for (const trace of figure.data) {
    if (trace.customdata) trace.text = trace.customdata.map((number) => hovers.get(number) ?? "");
  }
  const { data: traces, layout } = coloured(figure, style);
  layout.font.family = getComputedStyle(document.body).fontFamily;
  layout.dragmode = TOUCH ? false : "zoom";
  plot.style.minHeight = `${layout.height}px`; // plotly forgets its height when the window changes
  const axes = (layout.xaxis.tickvals ?? []).length;
  plot.style.minWidth = plot.id === "parallel" ? `${110 * axes}px` : "";
  return window.Plotly.react(plot, traces, layout, CONFIG);
}

function start() {
  if (byId("trials")) {
    const trials = data("trials-data");
    describe(trials);
    new Table(byId("trials"), trials);
  }
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && !drawn.has(target)) draw(target);
    }
  }, { rootMargin: "300px" });
  const plots = [...document.querySelectorAll(".plot")];
  const again = (wanted) => plots.filter((plot) => drawn.has(plot) && wanted(plot)).forEach(draw);
  byId("stage")?.addEventListener("change", () => again((plot) => ["parallel", "importance"].includes(plot.id)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => again(() => true));
  performance.mark("interactive");
  requestAnimationFrame(() => setTimeout(() => plots.forEach((plot) => seen.observe(plot)))); // the text first
}

start();
