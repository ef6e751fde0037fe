
// The inspector itself. Python sends a reading and one layer; everything about the heads of that layer is drawn
// here without it. `model` is the widget's, or stands for one in a file of its own.
const NAMES = { selected: "A", pinned: "B" };
const PATIENCE = 5000, PAUSE = 800; // ms in which the kernel must answer; without a key, and typed text is read

const bytesOf = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

function arraysOf({ places, bytes }) {
  const numbers = new Float32Array(bytesOf(bytes).slice().buffer);
  return (name, row) => {
    if (!(name in places)) return null;
    const [at, shape] = places[name], size = shape.reduce((a, b) => a * b, 1);
    if (row === undefined) return numbers.subarray(at, at + size);
    const each = size / shape[0];
    return numbers.subarray(at + row * each, at + (row + 1) * each);
  };
}

function readingOf(shown) {
  const arrays = arraysOf(shown.arrays), [layers, heads] = shown.shape, owner = [];
  shown.pieces.forEach(([first], at) => {
    for (let token = first; token < (shown.pieces[at + 1]?.[0] ?? shown.n); token++) owner[token] = at;
  });
  const metrics = new Map(shown.metrics.map((metric, at) => [metric.name, { ...metric, values: arrays("values", at) }]));
  const of = (name, [layer, head]) => metrics.get(name).values[layer * heads + head];
  function percentile(name, place) {
    const own = of(name, place), known = metrics.get(name).values.filter(Number.isFinite);
    if (!Number.isFinite(own)) return NaN;
    return (100 * known.reduce((sum, value) => sum + (value < own) + 0.5 * (value === own), 0)) / known.length;
  }
  const token = (at) => `${at} “${visible(shown.pieces[owner[at]][1])}”`;
  return { ...shown, layerCount: layers, heads, metrics, of, percentile, arrays, token };
}
const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "·") || "∅";

function headOf(reading, packed, number) {
  const arrays = arraysOf(packed.arrays), rows = (name) => arrays(name, number);
  const levels = reading.levels.length, positions = reading.arrays("positions");
  const wavelets = bytesOf(packed.scalograms).subarray(number * levels * positions.length, (number + 1) * levels * positions.length);
  return {
    reading, positions, wavelets, place: [packed.layer, number], name: `layer ${packed.layer}, head ${number}`,
    attention: matrix(bytesOf(packed.attention), reading.n, reading.causal, number),
    key: rows("key"), lag: rows("lag"), psd: rows("psd"), computed: rows("computed"), measured: rows("measured"),
    amplitudes: rows("amplitudes"), waves: arrays("waves"), fit: packed.fit[number],
  };
}

function render({ model, el }) {
  let reading, layer, A, B = null, place = [...model.get("selected")], back = null, waiting = 0, started = 0, typing = 0;
  let hover = null, lock = null, view = null, side = "heads", mode = "map", log = true, second = null, order = -1;
  let theme = "light", tables = {}, current = null; // what `reading` was made of
  const root = html("div", { class: "nbh", "data-lm-suppress-shortcuts": "true", "data-tab": "heads" });
  el.append(root);
  if (model.get("still")) root.dataset.still = "true"; // a page of its own: what needs Python is not offered

  // Between this page and Python.
  const heard = () => { clearTimeout(waiting); banner.hidden = true; };
  const expect = () => { clearTimeout(waiting); waiting = setTimeout(() => { banner.hidden = false; }, PATIENCE); };
  function tell(name, value) {
    model.set(name, value);
    model.save_changes();
  }
  function ask(action, more = {}) {
    expect();
    model.send({ do: action, ...more });
  }

  // The row of controls.
  const pick = (label, options, onchange, name = label) =>
    html("label", { class: "nbh-field" }, html("span", {}, label), html("select", { onchange, class: `nbh-${name}`, "aria-label": label },
      options.map((each) => html("option", { value: each }, each))));
  const press = (text, name, title, onclick) => html("button", { type: "button", class: `nbh-${name}`, title, onclick }, text);
  const choices = model.get("choices");
  const models = html("datalist", { id: `nbh-models-${Math.random().toString(36).slice(2)}` }, choices.models.map((name) => html("option", { value: name })));
  const modelBox = html("input", { list: models.id, class: "nbh-model", "aria-label": "model: a packaged name, a Hub id, a folder or a .gguf file", onchange: measure, spellcheck: "false" });
  const lengthBox = html("input", { type: "number", min: 1, max: 1000000, class: "nbh-length", "aria-label": "tokens at most", onchange: measure });
  const textBox = html("textarea", { rows: 7, class: "nbh-typed", "aria-label": "the text that the model reads; it is measured when you pause", oninput: () => { clearTimeout(typing); typing = setTimeout(measure, PAUSE); } });
  const protocol = Object.entries(choices.protocol).map(([name, options]) =>
    pick(name.replace("_", " "), options, (event) => ask("protocol", { [name]: event.target.value }), name));
  const pop = (title, name, ...inside) => html("details", { class: `nbh-pop nbh-pop-${name}` }, html("summary", {}, title), html("div", {}, inside));
  const pin = press("Pin", "pin", "keep this head beside those selected later", () => tell("pinned", B ? null : place));
  const stop = press("Stop", "stop", "stop what runs; what is shown stays", () => ask("stop"));
  const progress = html("progress", { max: 1, class: "nbh-progress", "aria-label": "share of the work that is done" });
  const ablate = press("Ablate", "ablate", "set this head to zero and see the loss of this text", () => ask("ablate"));
  const links = html("div", { class: "nbh-links" });
  const status = html("div", { class: "nbh-status", "aria-live": "polite" });
  const ablation = html("div", { class: "nbh-ablation", "aria-live": "polite" });
  const banner = html("div", { class: "nbh-banner", role: "alert", hidden: true },
    "The kernel does not answer: it is busy with another cell, or gone. What is shown is its last reading; heads of this layer can still be opened. Run the cell again, or reload the page, to go on.");
  const controls = html("div", { class: "nbh-controls", role: "group", "aria-label": "what is read" },
    html("label", { class: "nbh-field" }, html("span", {}, "model"), modelBox, models),
    pop("text", "text", textBox),
    html("label", { class: "nbh-field" }, html("span", {}, "tokens"), lengthBox),
    pop("protocol", "protocol", protocol), pin, ablate,
    press("Export", "export", "write figures, numbers, arrays and state of the heads shown", () => ask("export")), stop, progress);
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const open = root.querySelector("details[open]");
    if (open) { open.open = false; open.querySelector("summary").focus(); }
  });
  root.addEventListener("pointerdown", (event) => {
    for (const open of root.querySelectorAll("details[open]")) if (!open.contains(event.target)) open.open = false;
  });
  function measure() {
    clearTimeout(typing);
    ask("measure", { model: modelBox.value.trim(), text: textBox.value, length: Math.max(1, Math.round(+lengthBox.value) || 1) });
  }

  // Parts of the page.
  const tabs = (name, labels, chosen, onpick) => {
    const bar = html("div", { class: `nbh-tabs nbh-tabs-${name}`, role: "group", "aria-label": `${name}: what is shown` });
    bar.set = (now) => bar.replaceChildren(...Object.entries(labels).map(([key, text]) =>
      html("button", { type: "button", "aria-pressed": String(key === now), "data-key": key, onclick: () => { bar.set(key); onpick(key); bar.querySelector(`[data-key="${key}"]`).focus(); } }, text)));
    bar.set(chosen);
    return bar;
  };
  const colourBy = html("select", { class: "nbh-metric", "aria-label": "colour by", onchange: (event) => { tell("metric", event.target.value); } });
  const against = html("select", { class: "nbh-second", "aria-label": "second metric", onchange: (event) => { second = event.target.value; drawHeads(); } });
  const modes = tabs("heads", { map: "Map", list: "List", scatter: "Scatter" }, mode, (key) => { mode = key; drawHeads(); });
  const heads = html("div", { class: "nbh-heads", tabindex: 0, role: "application", onkeydown: walk });
  const said = html("div", { class: "nbh-said", "aria-live": "polite" });
  const sides = tabs("beside", { heads: "This layer", pinned: "Pinned B", change: "A − B" }, side, (key) => { side = key; drawBeside(); });
  const beside = html("div", { class: "nbh-beside" });
  const first = attentionView("selected"), other = attentionView("pinned");
  const lin = html("button", { type: "button", class: "nbh-log", "aria-pressed": "true", title: "logarithmic or linear colours", onclick: () => { log = !log; lin.setAttribute("aria-pressed", log); lin.textContent = log ? "log" : "linear"; drawAttention(); } }, "log");
  const scale = html("span", { class: "nbh-scale", title: "colours of attention" });
  const whole = press("whole", "whole", "undo the zoom", () => { view = null; drawAttention(); });
  const text = html("div", { class: "nbh-text", tabindex: 0, role: "group", onkeydown: walkText, onmouseleave: () => look(null) });
  const reads = html("div", { class: "nbh-reads" });
  const curves = html("div", { class: "nbh-curves" });
  const numbers = html("table", { class: "nbh-numbers" });
  const part = (name, ...inside) => html("section", { class: `nbh-part nbh-part-${name}` }, inside);
  root.append(controls, banner, status, links, ablation,
    tabs("page", { heads: "Heads", attention: "Attention", text: "Text", curves: "Curves" }, "heads", (key) => { root.dataset.tab = key; resize(); }),
    html("div", { class: "nbh-main" },
      part("heads", html("div", { class: "nbh-bar" }, modes, colourBy, against), heads, said),
      part("attention", html("div", { class: "nbh-bar" }, first.title, html("span", { class: "nbh-space" }), scale, lin, whole), first.root),
      part("beside", html("div", { class: "nbh-bar" }, sides, other.title), beside)),
    part("text", html("div", { class: "nbh-bar" }, reads), text), part("curves", curves));

  // The heads: a map, a list, or two metrics against each other.
  heads.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-layer]");
    if (cell) select(+cell.dataset.layer, +cell.dataset.head);
  });
  heads.addEventListener("pointerdown", () => heads.focus({ preventScroll: true }));
  function drawHeads() {
    colourBy.value = model.get("metric");
    against.hidden = mode === "map";
    if (second === null || !reading.metrics.has(second)) second = [...reading.metrics.keys()].find((name) => name !== model.get("metric"));
    against.value = second;
    heads.replaceChildren({ map: drawMap, list: drawList, scatter: drawScatter }[mode]());
    mark();
  }
  function scaleOf(metric) {
    const known = metric.values.filter(Number.isFinite), low = Math.min(...known), high = Math.max(...known);
    return { low, high, step: (value) => (high > low ? 1 + Math.round((254 * (value - low)) / (high - low)) : 128) };
  }
  function drawMap() {
    const metric = reading.metrics.get(model.get("metric")), { low, high, step } = scaleOf(metric);
    const left = 38, top = 4, room = (heads.clientWidth || 300) - left - 58, tall = attentionSize() - 4;
    const width = Math.max(4, Math.min(28, room / reading.heads)), height = Math.max(3, Math.min(22, tall / reading.layerCount));
    const right = left + reading.heads * width, bottom = top + reading.layerCount * height;
    const drawing = svg("svg", { width: right + 58, height: bottom + 32, class: "nbh-map", "aria-hidden": "true" });
    for (let at = 0; at < reading.layerCount; at++)
      for (let head = 0; head < reading.heads; head++) {
        const value = reading.of(metric.name, [at, head]);
        drawing.append(svg("rect", { x: left + head * width, y: top + at * height, width, height, class: "nbh-cell", "data-layer": at, "data-head": head,
          fill: Number.isFinite(value) ? colourOf(tables.values, step(value)) : "#9a9a9a" }, svg("title", {}, said_of([at, head]))));
      }
    const label = (x, y, name, words) => drawing.append(svg("text", { x, y, class: name }, words));
    for (const edge of reading.edges) drawing.append(svg("line", { x1: left + edge * width, x2: left + edge * width, y1: top, y2: bottom, class: "nbh-group" }));
    for (const at of niceTicks(0, reading.layerCount - 1, tall / 26).filter(Number.isInteger)) label(left - 5, top + (at + 0.5) * height + 3, "nbh-tick nbh-end", String(at));
    for (const at of niceTicks(0, reading.heads - 1, (reading.heads * width) / 22).filter(Number.isInteger)) label(left + (at + 0.5) * width, bottom + 12, "nbh-tick nbh-middle", String(at));
    label((left + right) / 2, bottom + 27, "nbh-label nbh-middle", reading.edges.length && right - left > 150 ? "head (lines separate KV groups)" : "head");
    drawing.append(svg("text", { x: 10, y: (top + bottom) / 2, class: "nbh-label nbh-middle", transform: `rotate(-90 10 ${(top + bottom) / 2})` }, "layer"));
    const bar = Math.min(bottom - top, 180), x = right + 12;
    for (let at = 0; at < 32; at++) drawing.append(svg("rect", { x, y: top + bar - ((at + 1) * bar) / 32, width: 9, height: bar / 32 + 0.5, fill: colourOf(tables.values, 1 + Math.round((254 * at) / 31)) }));
    label(x + 13, top + 8, "nbh-tick", short(high));
    label(x + 13, top + bar, "nbh-tick", short(low));
    label(x, top + bar + 18, "nbh-tick", "uniform");
    label(x, top + bar + 30, "nbh-tick", short(metric.null));
    if (metric.null != null && metric.null >= low && metric.null <= high && high > low) {
      const y = top + bar * (1 - (metric.null - low) / (high - low));
      drawing.append(svg("line", { x1: x - 3, x2: x + 12, y1: y, y2: y, class: "nbh-null-mark" }));
    }
    const frame = ([at, head], kind) => ["nbh-halo", `nbh-frame nbh-of-${kind}`].map((name) =>
      svg("rect", { x: left + head * width, y: top + at * height, width, height, class: name }));
    const frames = svg("g", {});
    drawing.append(frames);
    drawing.mark = () => frames.replaceChildren(...(B && B.reading === reading ? frame(B.place, "pinned") : []), ...frame(place, "selected"));
    return drawing;
  }
  const places = () => reading.layers.flatMap((at) => Array.from({ length: reading.heads }, (_, head) => [at, head]));
  function drawList() {
    const names = [model.get("metric"), second];
    const key = Math.abs(order) - 1, rows = places().sort((a, b) => Math.sign(order) * (reading.of(names[key], a) - reading.of(names[key], b)));
    const header = (name, at) => html("th", { scope: "col", "aria-sort": key === at ? (order > 0 ? "ascending" : "descending") : "none" },
      html("button", { type: "button", onclick: () => { order = key === at ? -order : -(at + 1); drawHeads(); } }, reading.metrics.get(name).label + (key === at ? (order > 0 ? " ↑" : " ↓") : "")));
    const table = html("table", { class: "nbh-list" }, html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "layer.head"), names.map(header))),
      html("tbody", {}, rows.map((at) => html("tr", { "data-layer": at[0], "data-head": at[1] }, html("th", { scope: "row" }, at.join(".")), names.map((name) => html("td", {}, short(reading.of(name, at))))))));
    const holder = html("div", { class: "nbh-scroll" }, table);
    holder.mark = () => {
      table.querySelector(".nbh-current")?.classList.remove("nbh-current");
      const row = table.querySelector(`tr[data-layer="${place[0]}"][data-head="${place[1]}"]`);
      row?.classList.add("nbh-current");
      row?.scrollIntoView({ block: "nearest" });
    };
    return holder;
  }
  function drawScatter() {
    const [x, y] = [model.get("metric"), second].map((name) => reading.metrics.get(name)), [sx, sy] = [scaleOf(x), scaleOf(y)];
    const size = Math.min(heads.clientWidth || 300, attentionSize() + 30);
    const drawn = chart({ width: size, height: size, title: "", x: { low: sx.low, high: sx.high, label: x.label }, y: { low: sy.low, high: sy.high, ticks: 5 }, alt: `${y.label} against ${x.label} of all heads` });
    drawn.root.append(svg("text", { x: 2, y: 11, class: "nbh-label" }, y.label));
    const dot = (at, name) => svg("circle", { cx: drawn.across(reading.of(x.name, at)), cy: drawn.up(reading.of(y.name, at)), r: name.includes("of") ? 6 : 3.5, class: name, "data-layer": at[0], "data-head": at[1] }, svg("title", {}, `layer ${at[0]}, head ${at[1]}`));
    for (const at of places()) if (Number.isFinite(reading.of(x.name, at)) && Number.isFinite(reading.of(y.name, at))) drawn.root.append(dot(at, "nbh-dot"));
    if (x.null != null && y.null != null) drawn.root.append(svg("path", { d: `M${drawn.across(x.null) - 5},${drawn.up(y.null)}h10m-5,-5v10`, class: "nbh-line nbh-of-null" }, svg("title", {}, "uniform attention")));
    const marks = svg("g", {});
    drawn.root.append(marks);
    drawn.root.mark = () => marks.replaceChildren(...(B && B.reading === reading ? [dot(B.place, "nbh-ring nbh-of-pinned")] : []), dot(place, "nbh-ring nbh-of-selected"));
    return drawn.root;
  }
  function said_of(at) {
    const metric = reading.metrics.get(model.get("metric"));
    return `layer ${at[0]}, head ${at[1]}: ${metric.label} ${short(reading.of(metric.name, at))}`;
  }
  function mark() {
    heads.firstChild?.mark?.();
    said.textContent = said_of(place);
    heads.setAttribute("aria-label", `All heads by ${reading.metrics.get(model.get("metric")).label}. Arrow keys move. Selected: ${said.textContent}`);
  }
  function walk(event) {
    const [at, head] = place, last = reading.heads - 1;
    const moves = { ArrowUp: [at - 1, head], ArrowDown: [at + 1, head], ArrowLeft: [at, head - 1], ArrowRight: [at, head + 1],
      Home: [at, 0], End: [at, last], PageUp: [at - 5, head], PageDown: [at + 5, head] };
    if (!(event.key in moves) || event.target.tagName === "BUTTON") return;
    event.preventDefault();
    event.stopPropagation();
    let [to, next] = moves[event.key];
    const down = to >= at, known = reading.layers.filter((each) => (down ? each >= to : each <= to));
    to = known.length ? (down ? known[0] : known.at(-1)) : at;
    select(to, Math.max(0, Math.min(last, next)));
  }
  function select(at, head) {
    if (!reading.layers.includes(at)) return;
    started = performance.now();
    place = [at, head];
    mark();
    tell("selected", place);
    if (layer.layer === at) drawHead();
    else { expect(); root.dataset.waits = "true"; }
  }

  // Attention, of the selected head and beside it.
  function attentionSize() {
    const room = first.root.clientWidth || 380, wide = root.clientWidth;
    return Math.max(160, Math.min(room - 52, wide > 1350 ? 380 : wide > 800 ? 330 : room - 52));
  }
  function attentionView(kind) {
    const canvas = html("canvas", {}), over = svg("svg", { class: "nbh-over" }), readout = html("div", { class: "nbh-readout" });
    const title = html("strong", { class: `nbh-name nbh-of-${kind}` });
    const frame = html("div", { class: "nbh-attention", tabindex: 0, role: "application", onkeydown: walkAttention }, canvas, over);
    const holder = html("div", { class: "nbh-matrix" }, frame, readout);
    const self = { root: holder, title, canvas, frame, head: null, size: 0, window: null };
    let drag = null;
    const spot = (event) => {
      const box = canvas.getBoundingClientRect(), [q0, q1, k0, k1] = self.window;
      const part = (value, low, high) => Math.max(low, Math.min(high, low + Math.floor(value * (high - low + 1))));
      return { q: part((event.clientY - box.top) / box.height, q0, q1), k: part((event.clientX - box.left) / box.width, k0, k1) };
    };
    frame.addEventListener("pointermove", (event) => {
      if (!drag) return look(spot(event));
      self.cursor(drag, (drag.to = spot(event)));
    });
    frame.addEventListener("pointerleave", () => { if (!drag) look(null); });
    frame.addEventListener("pointerdown", (event) => { frame.setPointerCapture(event.pointerId); drag = spot(event); drag.to = drag; });
    frame.addEventListener("pointerup", () => {
      if (!drag) return;
      const { q, k, to } = drag, [q0, q1, k0, k1] = self.window;
      drag = null;
      if (Math.abs(to.q - q) > (q1 - q0) / 30 && Math.abs(to.k - k) > (k1 - k0) / 30)
        view = [Math.min(q, to.q), Math.max(q, to.q), Math.min(k, to.k), Math.max(k, to.k)];
      else lock = lock === q ? null : q;
      drawAttention();
      look(null);
    });
    frame.addEventListener("dblclick", () => { view = null; drawAttention(); });
    self.draw = (head, steps, table, words, size) => {
      Object.assign(self, { head, size });
      const ratio = window.devicePixelRatio || 1, pixels = Math.round(size * ratio);
      self.window = view && head.reading.n === reading.n ? view : [0, head.reading.n - 1, 0, head.reading.n - 1];
      paint(canvas, steps(self.window, pixels), table, pixels, pixels);
      canvas.style.width = canvas.style.height = `${size}px`;
      title.textContent = words;
      frame.setAttribute("aria-label", `Attention, ${words}: query by key, ${head.reading.n} tokens. Arrow keys move the cursor, Enter keeps the query, plus and minus zoom.`);
      axes();
      self.cursor();
    };
    const cursor = svg("g", {}), ticks = svg("g", {});
    over.append(ticks, cursor);
    const place_of = (at, low, high) => ((at - low + 0.5) / (high - low + 1)) * self.size;
    function axes() {
      const [q0, q1, k0, k1] = self.window, { size } = self;
      over.setAttribute("width", size + 50);
      over.setAttribute("height", size + 32);
      ticks.replaceChildren(svg("rect", { x: 44, y: 0, width: size, height: size, class: "nbh-border" }),
        ...niceTicks(q0, q1, size / 45).filter(Number.isInteger).map((at) => svg("text", { x: 40, y: place_of(at, q0, q1) + 3, class: "nbh-tick nbh-end" }, String(at))),
        ...niceTicks(k0, k1, size / 55).filter(Number.isInteger).map((at) => svg("text", { x: 44 + place_of(at, k0, k1), y: size + 12, class: "nbh-tick nbh-middle" }, String(at))),
        svg("text", { x: 44 + size / 2, y: size + 27, class: "nbh-label nbh-middle" }, "key (token)"),
        svg("text", { x: 10, y: size / 2, class: "nbh-label nbh-middle", transform: `rotate(-90 10 ${size / 2})` }, "query (token)"));
    }
    self.cursor = (from, to) => {
      if (!self.head) return;
      const marks = [], [q0, q1, k0, k1] = self.window, { size } = self;
      const line = (at, vertical, name) => marks.push(vertical ? svg("line", { x1: 44 + at, x2: 44 + at, y1: 0, y2: size, class: name }) : svg("line", { x1: 44, x2: 44 + size, y1: at, y2: at, class: name }));
      if (lock !== null && lock >= q0 && lock <= q1) line(place_of(lock, q0, q1), false, "nbh-lock");
      const same = self.head.reading.n === reading.n;
      if (hover?.k != null && same) {
        line(place_of(hover.q, q0, q1), false, "nbh-cross");
        line(place_of(hover.k, k0, k1), true, "nbh-cross");
        const weight = self.head.attention.at(hover.q, hover.k);
        const seen = !reading.causal || hover.k <= hover.q;
        readout.textContent = `query ${reading.token(hover.q)} → key ${reading.token(hover.k)}: ${seen ? (weight ? PROBABILITY[weight].toPrecision(2) : "below 1e−4") : "not seen, it comes later"}`;
      } else readout.textContent = "drag to zoom, click to keep a query";
      if (to) {
        const [x0, x1] = [from.k, to.k].map((at) => 44 + place_of(at, k0, k1)), [y0, y1] = [from.q, to.q].map((at) => place_of(at, q0, q1));
        marks.push(svg("rect", { x: Math.min(x0, x1), y: Math.min(y0, y1), width: Math.abs(x1 - x0), height: Math.abs(y1 - y0), class: "nbh-zoom" }));
      }
      cursor.replaceChildren(...marks);
    };
    return self;
  }
  function walkAttention(event) {
    const step = event.shiftKey ? 10 : 1, at = hover ?? { q: lock ?? reading.n - 1, k: 0 }, k = at.k ?? 0, last = reading.n - 1;
    const held = (value) => Math.max(0, Math.min(last, value));
    const moves = { ArrowUp: { q: held(at.q - step), k }, ArrowDown: { q: held(at.q + step), k }, ArrowLeft: { q: at.q, k: held(k - step) }, ArrowRight: { q: at.q, k: held(k + step) } };
    if (event.key in moves) look(moves[event.key]);
    else if (event.key === "Enter") { lock = lock === at.q ? null : at.q; look(at); }
    else if (event.key === "Escape" || event.key === "0") { lock = null; view = null; drawAttention(); look(null); }
    else if (event.key === "+" || event.key === "=" || event.key === "-") {
      const [q0, q1, k0, k1] = view ?? [0, last, 0, last], factor = event.key === "-" ? 2 : 0.5;
      const zoom = (low, high, centre) => { const half = Math.max(4, ((high - low) * factor) / 2); return [held(Math.round(centre - half)), held(Math.round(centre + half))]; };
      view = [...zoom(q0, q1, at.q), ...zoom(k0, k1, k)];
      if (view[0] === 0 && view[1] === last && view[2] === 0 && view[3] === last) view = null;
      drawAttention();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
  const shades = (table) => (log ? table : Uint8ClampedArray.from(table, (_, at) => table[4 * LINEAR[at >> 2] + (at & 3)]));
  function drawAttention() {
    const size = attentionSize();
    const stops = [0, 64, 128, 192, 255].map((step) => colourOf(shades(tables.selected), step)).join(",");
    scale.replaceChildren("1e−4 ", html("i", { style: `background: linear-gradient(90deg, ${stops})` }), " 1");
    whole.disabled = view === null;
    first.draw(A, (window, pixels) => blockMax(A.attention, window, pixels, pixels), shades(tables.selected), `A · ${A.name}`, size);
    drawBeside();
  }
  function drawBeside() {
    if (!B && side !== "heads") sides.set((side = "heads"));
    for (const button of sides.children) button.disabled = !B && button.dataset.key !== "heads" || side_differs(button.dataset.key);
    other.title.hidden = side === "heads";
    if (side === "heads") return drawThumbnails();
    const size = attentionSize(), ours = (window, pixels) => blockMax(B.attention, window, pixels, pixels);
    if (side === "pinned") other.draw(B, ours, shades(tables.pinned), `B · ${B.name}${B.reading === reading ? "" : ` · ${B.reading.model}, another reading`}`, size);
    else other.draw(B, (window, pixels) => {
      const theirs = blockMax(A.attention, window, pixels, pixels);
      return ours(window, pixels).map((b, at) => (b < 0 ? b : Math.round(log ? 128 + (theirs[at] - b) / 2 : 128 + 127 * (PROBABILITY[theirs[at]] - PROBABILITY[b]))));
    }, tables.change, "blue: more in A, orange: in B", size);
    beside.replaceChildren(other.root);
  }
  const side_differs = (key) => key === "change" && B && (B.reading.n !== reading.n || B.reading.causal !== reading.causal);
  function drawThumbnails() {
    const columns = Math.ceil(Math.sqrt(reading.heads)), size = Math.max(24, Math.floor(attentionSize() / columns) - 14);
    const look = [size, theme, log].join(), known = beside.firstChild;
    if (known?.layer === layer && known.look === look) // another head of the same layer: nothing is painted anew
      return [...known.children].forEach((each, head) => each.setAttribute("aria-pressed", String(head === place[1])));
    const grid = html("div", { class: "nbh-thumbnails", style: `grid-template-columns: repeat(${columns}, ${size}px)` });
    const table = shades(tables.selected), ratio = window.devicePixelRatio || 1, pixels = Math.round(size * ratio), n = reading.n - 1;
    for (let head = 0; head < reading.heads; head++) {
      const canvas = html("canvas", { style: `width:${size}px;height:${size}px` });
      paint(canvas, blockMax(matrix(bytesOf(layer.attention), reading.n, reading.causal, head), [0, n, 0, n], pixels, pixels), table, pixels, pixels);
      grid.append(html("button", { type: "button", class: "nbh-thumbnail", "aria-pressed": String(head === place[1]), "aria-label": `layer ${layer.layer}, head ${head}`, onclick: () => select(layer.layer, head) }, canvas, html("span", {}, String(head))));
    }
    beside.replaceChildren(Object.assign(grid, { layer, look }), html("div", { class: "nbh-readout" }, `attention of the ${reading.heads} heads of layer ${layer.layer}`));
  }

  // The text: what a query reads, or what is read of each token on average.
  function look(at) {
    hover = at;
    for (const each of [first, other]) each.cursor();
    shadeText();
  }
  const ends = () => reading.pieces.map(([start], at) => [start, (reading.pieces[at + 1]?.[0] ?? reading.n) - 1]);
  function drawText() {
    text.replaceChildren(...reading.pieces.map(([, words], at) => html("span", { "data-piece": at, dir: "auto" }, words)));
  }
  const pieceOf = (event) => (event.target.dataset.piece === undefined ? null : ends()[+event.target.dataset.piece][1]);
  text.addEventListener("mouseover", (event) => { const q = pieceOf(event); if (q !== null) look({ q, k: null }); });
  text.addEventListener("click", (event) => { const q = pieceOf(event); if (q !== null) { lock = lock === q ? null : q; look({ q, k: null }); } });
  function walkText(event) {
    const q = hover?.q ?? lock ?? -1, to = { ArrowRight: q + 1, ArrowLeft: q - 1, Home: 0, End: reading.n - 1 }[event.key];
    if (event.key === "Enter" && q >= 0) lock = lock === q ? null : q;
    else if (event.key === "Escape") lock = hover = null;
    else if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    look(to === undefined ? hover : { q: Math.max(0, Math.min(reading.n - 1, to)), k: null });
  }
  function shadeText() {
    const q = hover?.q ?? lock, dark = theme === "dark", weights = [];
    ends().forEach(([start, stop], at) => {
      let weight = 0;
      for (let key = start; key <= stop; key++) weight += q == null ? A.key[key] : PROBABILITY[A.attention.at(q, key)];
      weights.push([weight, at]);
      const span = text.children[at], shade = Math.min(1, weight);
      span.style.backgroundColor = shade < 1e-3 ? "" : `rgb(${dark ? "84,160,230" : "43,122,199"}, ${(0.08 + 0.72 * shade ** 0.6).toFixed(2)})`;
      span.className = (q != null && q >= start && q <= stop ? "nbh-query" : "") + (hover?.k != null && hover.k >= start && hover.k <= stop ? " nbh-key" : "");
      span.title = weight.toPrecision(2);
    });
    const top = weights.sort((a, b) => b[0] - a[0]).slice(0, 5).filter(([weight]) => weight >= 1e-3);
    const list = top.map(([weight, at]) => `${reading.token(reading.pieces[at][0])} ${weight.toPrecision(2)}`).join("  ·  ");
    reads.replaceChildren(html("strong", {}, q == null ? "Mean attention to each token" : `Query ${reading.token(q)} reads`), html("span", {}, `${list}${q == null ? "  —  point at a word to see what it reads; click keeps it" : ""}`));
  }

  // Curves and numbers.
  function drawCurves() {
    if (!curves.clientWidth) return; // behind another tab
    const both = B ? [["pinned", B], ["selected", A]] : [["selected", A]], { n } = reading;
    const width = root.clientWidth > 800 ? Math.floor((curves.clientWidth - 36 - Math.max(284, (curves.clientWidth - 36) / 4)) / 3) : curves.clientWidth, height = 132, share = { kind: "log10", low: 1e-5, high: 1 };
    const axis_of = { key: Float32Array.from({ length: n }, (_, at) => at), lag: reading.arrays("lags"), psd: reading.arrays("frequency") };
    const shift = reading.causal ? 1 : 0, moved = (lags) => (shift ? lags.map((lag) => lag + 1) : lags);
    const lines = (name, place_of = (x) => x) => [{ x: place_of(axis_of[name]), y: reading.arrays(name), kind: "null" },
      ...both.map(([kind, head]) => ({ x: place_of(name === "key" ? head[name].map((_, at) => at) : head.reading.arrays({ lag: "lags", psd: "frequency" }[name])), y: head[name], kind }))];
    const drawn = [];
    const draw = (options) => drawn.push(chart({ width, height, ...options }).root);
    draw({ title: "mean attention to a key", x: { low: 0, high: n - 1, label: "key (token)" }, y: share, lines: lines("key") });
    draw({ title: "mean attention at a lag", x: shift ? { kind: "log2", low: 1, high: n, label: "lag + 1 (tokens)" } : { low: 1 - n, high: n - 1, label: "lag (tokens; negative looks ahead)" }, y: share, lines: lines("lag", moved) });
    drawn.push(kernelChart(width, height));
    numbersPlace.replaceChildren(numbers);
    drawn.push(numbersPlace);
    const limits = [0, ...reading.band_edges, 0.5], names = limits.length === 4 ? ["low", "mid", "high"] : [], frequency = axis_of.psd;
    draw({ title: `power of the ${reading.signal.replace("_", " ")}`, x: { low: frequency.at(0) < 0 ? -0.5 : 0, high: 0.5, label: "frequency (cycles/token)" }, y: share, lines: lines("psd"),
      rules: reading.band_edges, between: names.map((text, at) => ({ text, at: (limits[at] + limits[at + 1]) / 2 })) });
    drawn.push(waveletChart(width, height));
    drawn.push(pairChart(width, height));
    curves.replaceChildren(...drawn);
  }
  const numbersPlace = html("div", { class: "nbh-numbers-place" });
  function missing(width, height, title) {
    return html("div", { class: "nbh-chart nbh-missing", style: `width:${width}px;height:${height}px` }, html("strong", {}, title), html("p", {}, reading.no_kernel || "no kernel"));
  }
  function kernelChart(width, height) {
    const title = "logit by lag, and predicted", heads_shown = B?.measured ? [["pinned", B], ["selected", A]] : [["selected", A]];
    if (!A.computed) return missing(width, height, title);
    const centred = (values) => { const known = values.filter(Number.isFinite), mean = known.reduce((a, b) => a + b, 0) / (known.length || 1); return values.map((value) => value - mean); };
    const lines = heads_shown.map(([kind, head]) => ({ kind, y: centred(head.measured) }));
    lines.push({ kind: "law", y: centred(A.computed) });
    const all = lines.flatMap((line) => [...line.y.filter(Number.isFinite)]), high = Math.max(0.1, ...all), low = Math.min(-0.1, ...all);
    for (const line of lines) line.x = line.y.map((_, lag) => lag + 1);
    const [r, r2] = A.fit ?? [];
    return chart({ width, height, title: `logit by lag; dashed: predicted, R² ${short(r2)}`, x: { kind: "log2", low: 1, high: A.measured.length, label: "lag + 1 (tokens)" },
      y: { low, high, ticks: 6 }, lines, alt: `Mean logit at each lag less its mean, and what mean query and key predict: r ${short(r)}, R squared ${short(r2)}` }).root;
  }
  function pairChart(width, height) {
    const title = "rotary pairs: |mean q · mean k|", turning = A.waves ? [...A.waves].map((wave, at) => [wave, at]).filter(([wave]) => Number.isFinite(wave)) : [];
    if (!turning.length) return missing(width, height, title);
    const x = turning.map(([wave]) => wave), line = (kind, head) => ({ kind, bars: kind === "selected", x, y: turning.map(([, at]) => head.amplitudes[at]) });
    const lines = [...(B?.amplitudes?.length === A.amplitudes.length ? [line("pinned", B)] : []), line("selected", A)];
    const longest = Math.max(...x), high = Math.max(...lines.flatMap((each) => each.y)) || 1;
    return chart({ width, height, title, x: { kind: "log10", low: Math.min(...x), high: longest * 1.01, label: "wavelength (tokens); line: this text" }, y: { low: 0, high, ticks: 4 },
      lines, rules: reading.n < longest ? [reading.n] : [], alt: `Amplitude of ${x.length} rotary pairs by wavelength; the strongest turns in ${short(x[lines.at(-1).y.indexOf(Math.max(...lines.at(-1).y))])} tokens` }).root;
  }
  function waveletChart(width, height) {
    const { levels } = reading, { positions } = A, made = chart({ width, height, title: `${reading.wavelet} coefficients |W| by level`, x: { low: positions[0], high: positions.at(-1), label: reading.signal === "lag_profile" ? "lag (tokens)" : "key (token)" }, y: { low: 0, high: 1, ticks: 0 } });
    made.root.querySelectorAll(".nbh-grid, .nbh-end").forEach((each) => each.remove());
    const { left, right, top, bottom } = made.box, shownHeads = B && B.reading === reading ? [["selected", A], ["pinned", B]] : [["selected", A]];
    shownHeads.forEach(([kind, head], number) => {
      const high = (bottom - top) / shownHeads.length, pixels = Math.round((right - left) * (window.devicePixelRatio || 1));
      const canvas = html("canvas", {}), rows = levels.length, source = { n: positions.length, data: head.wavelets, start: (row) => row * positions.length, length: () => positions.length };
      const steps = blockMax(source, [0, rows - 1, 0, positions.length - 1], pixels, rows);
      paint(canvas, steps, tables[kind], pixels, rows);
      made.root.append(svg("image", { href: canvas.toDataURL(), x: left, y: top + number * high, width: right - left, height: high - 2, preserveAspectRatio: "none", class: "nbh-pixels" }));
      levels.forEach((name, row) => { if (!number && (rows < 8 / shownHeads.length || row % 2 === 0)) made.root.append(svg("text", { x: left - 4, y: top + ((row + 0.5) * (high - 2)) / rows + 3, class: "nbh-tick nbh-end" }, name)); });
    });
    return made.root;
  }
  function drawNumbers() {
    const shownHeads = [["selected", A], ...(B && B.reading === reading ? [["pinned", B]] : [])];
    const names = [...new Set([model.get("metric"), ...reading.six])].slice(0, 7);
    numbers.replaceChildren(html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "of this head"), shownHeads.map(([kind, head]) => [html("th", { scope: "col", class: `nbh-of-${kind}` }, `${NAMES[kind]} ${head.place.join(".")}`), html("th", { scope: "col", title: "percentile among all heads" }, "%ile")]), html("th", { scope: "col", title: "uniform attention, dotted in the curves" }, "··· uniform"))),
      html("tbody", {}, names.map((name) => { const metric = reading.metrics.get(name);
        return html("tr", { "data-metric": name }, html("th", { scope: "row", title: metric.label }, metric.short), shownHeads.map(([, head]) => [html("td", {}, short(reading.of(name, head.place))), html("td", {}, Number.isFinite(reading.percentile(name, head.place)) ? reading.percentile(name, head.place).toFixed(0) : "–")]), html("td", {}, short(metric.null))); })));
  }

  // What changes together.
  function drawHead() {
    A = headOf(reading, layer, place[1]);
    if (back && B === null && model.get("pinned")?.join() === place.join()) {
      [B, side] = [A, "pinned"];
      sides.set(side);
      const to = back;
      back = null;
      return select(...to);
    }
    pin.textContent = B ? "Unpin" : "Pin";
    mark();
    drawAttention();
    drawCurves();
    drawNumbers();
    shadeText();
    delete root.dataset.waits;
    root.dataset.drawn = place.join(".");
    root.dataset.milliseconds = (performance.now() - started).toFixed(1);
  }
  function pinned() {
    const at = model.get("pinned");
    if (!at) B = null;
    else if (at[0] === layer.layer) B = headOf(reading, layer, at[1]);
    else { B = null; back = place; return select(...at); }
    side = B ? "pinned" : "heads";
    sides.set(side);
    drawHead();
  }
  function drawAll() {
    current = model.get("shown");
    reading = readingOf(current);
    layer = model.get("layer_shown");
    place = [...model.get("selected")];
    hover = lock = view = null;
    const options = () => [...reading.metrics.values()].map(({ name, label }) => html("option", { value: name }, label));
    colourBy.replaceChildren(...options());
    against.replaceChildren(...options());
    const asked = model.get("asked");
    for (const [box, name] of [[modelBox, "model"], [lengthBox, "length"], [textBox, "text"]]) if (document.activeElement !== box) box.value = asked[name];
    Object.entries(asked.protocol).forEach(([name, value]) => { const box = root.querySelector(`select.nbh-${name}`); if (![...box.options].some((each) => each.value === value)) box.append(html("option", { value }, value)); box.value = value; });
    ablate.disabled = Boolean(reading.no_loss);
    ablate.title = reading.no_loss || "set this head to zero and see the loss of this text";
    drawText();
    const again = B && B.reading.model === reading.model && JSON.stringify(B.reading.pieces) === JSON.stringify(reading.pieces);
    if (again) B = null; // the same text under another protocol
    drawHead();
    drawHeads();
    if (again) pinned();
  }
  function retheme() {
    const lab = document.body.dataset.jpThemeLight, dark = lab ? lab === "false" : window.matchMedia("(prefers-color-scheme: dark)").matches;
    theme = root.dataset.theme = dark ? "dark" : "light";
    tables = Object.fromEntries(Object.keys(ANCHORS[theme]).map((name) => [name, ramp(theme, name)]));
  }
  function resize() {
    if (!reading || !root.clientWidth) return;
    drawHeads();
    drawAttention();
    drawCurves();
  }
  function tellStatus() {
    const { kind = "note", text: words = "" } = model.get("status");
    status.textContent = words;
    status.className = `nbh-status nbh-${kind}`;
    status.setAttribute("role", kind === "error" ? "alert" : "status");
  }
  function tellShare() {
    stop.disabled = progress.hidden = model.get("share") < 0;
    progress.value = Math.max(0, model.get("share"));
  }
  const listen = {
    "change:shown": () => { heard(); links.replaceChildren(); drawAll(); },
    "change:layer_shown": () => { heard(); layer = model.get("layer_shown"); if (layer.layer === place[0] && model.get("shown") === current) drawHead(); },
    "change:selected": () => { const now = [...model.get("selected")]; if (now.join() !== place.join()) { place = now; mark(); if (layer.layer === now[0]) drawHead(); } },
    "change:pinned": () => { if ((model.get("pinned")?.join() ?? null) !== (B?.place.join() ?? null)) pinned(); },
    "change:metric": () => { drawHeads(); drawNumbers(); },
    "change:status": () => { heard(); tellStatus(); },
    "change:share": () => { heard(); tellShare(); },
    "change:ablation": () => { ablation.textContent = model.get("ablation"); },
    "comm_live_update": () => { banner.hidden = false; },
    "msg:custom": ({ files = [] }, buffers) => { heard(); links.replaceChildren(...files.map((name, at) => html("a", { download: name, href: URL.createObjectURL(new Blob([buffers[at]])) }, name))); },
  };
  for (const [event, answer] of Object.entries(listen)) model.on(event, answer);
  const query = window.matchMedia("(prefers-color-scheme: dark)"), again = () => { const before = theme; retheme(); if (theme !== before) { resize(); shadeText(); } };
  query.addEventListener("change", again);
  const bodyWatch = new MutationObserver(again);
  bodyWatch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
  let width = 0;
  const sizeWatch = new ResizeObserver(() => { if (root.clientWidth !== width) { width = root.clientWidth; resize(); } });
  retheme();
  tellStatus();
  tellShare();
  ablation.textContent = model.get("ablation");
  drawAll();
  if (model.get("pinned")) pinned();
  sizeWatch.observe(root);
  return () => {
    for (const [event, answer] of Object.entries(listen)) model.off(event, answer);
    query.removeEventListener("change", again);
    bodyWatch.disconnect();
    sizeWatch.disconnect();
    clearTimeout(waiting);
  };
}

export default { render };
