"use strict";
// The page: a table that sorts and filters, and figures that say more where the pointer is.

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

// ---- The figures are there; a hover says what the nearest point is

const NEAR = 24; // pixels
const trialTexts = new Map(); // what a hover says of a trial, by its number

function describe({ rows }) {
  for (const [number, state, last, , , , auxiliaries, edges] of rows) {
    const lines = [`trial ${number}, ${state}, ${last === null ? "-" : last.toFixed(2)} %`, auxiliaries];
    trialTexts.set(number, [...lines, ...edges.split("; ")].filter(Boolean).join("\n"));
  }
}

class Hover {
  constructor(plot) {
    this.svg = plot.querySelector("svg");
    this.points = JSON.parse(plot.querySelector("script").textContent);
    this.note = element("div", { class: "note", role: "status", hidden: "" });
    this.ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    this.ring.setAttribute("r", 5);
    this.ring.setAttribute("class", "ring");
    plot.append(this.note);
    for (const event of ["pointermove", "pointerdown"]) {
      plot.addEventListener(event, ({ clientX, clientY }) => this.show(clientX, clientY));
    }
    plot.addEventListener("pointerleave", () => this.hide());
  }

  show(x, y) {
    const toPage = this.svg.getScreenCTM();
    const place = new DOMPoint(x, y).matrixTransform(toPage.inverse());
    let [nearest, least] = [null, NEAR / toPage.a];
    for (const point of this.points) {
      const distance = Math.hypot(point[0] - place.x, point[1] - place.y);
      if (distance < least) [nearest, least] = [point, distance];
    }
    if (!nearest) return this.hide();
    const [left, top, what] = nearest;
    this.note.textContent = typeof what === "number" ? trialTexts.get(what) : what;
    this.note.hidden = false;
    this.ring.setAttribute("cx", left);
    this.ring.setAttribute("cy", top);
    this.svg.append(this.ring);
    const at = new DOMPoint(left, top).matrixTransform(toPage);
    const { width, height } = this.note.getBoundingClientRect();
    this.note.style.left = `${Math.max(4, Math.min(at.x + 12, innerWidth - width - 16))}px`;
    this.note.style.top = `${at.y + 12 + height > innerHeight ? at.y - 12 - height : at.y + 12}px`;
  }

  hide() {
    this.note.hidden = true;
    this.ring.remove();
  }
}

function choose(stage) {
  for (const plot of document.querySelectorAll(".plot")) {
    if (plot.dataset.stage) plot.hidden = plot.dataset.stage !== stage;
  }
  byId("importance-few").hidden = byId("importance").querySelector(`[data-stage="${stage}"]`) !== null;
}

function start() {
  if (byId("trials")) {
    const trials = data("trials-data");
    describe(trials);
    new Table(byId("trials"), trials);
  }
  byId("stage")?.addEventListener("change", ({ target }) => choose(target.value));
  document.querySelectorAll(".plot").forEach((plot) => new Hover(plot));
  performance.mark("interactive");
}

start();
