// How the inspector draws: elements, colours, matrices as pixels, curves as SVG. It knows nothing of heads.
const NAMESPACE = "http://www.w3.org/2000/svg";

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child != null)); // strings become text, never markup
  return made;
}
const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(NAMESPACE, tag), attributes, children);

function short(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 10000)) return value.toExponential(1);
  return String(+value.toPrecision(3)).replace("-", "−");
}

// Colours: 256 of each ramp. Entry 0 is "less than the scale", entry 1 is already told apart from it.
const ANCHORS = {
  light: {
    selected: ["#ffffff", "#dfeaf6", "#a6cbe6", "#5ba0d0", "#1c65ab", "#062a5c"],
    pinned: ["#ffffff", "#fbe9dc", "#f6c39c", "#e9894c", "#bf4d10", "#5c2205"],
    change: ["#ffffff", "#7f3308", "#d9783a", "#f7f7f7", "#4d8fc9", "#0b3c78"],
  },
  dark: {
    selected: ["#12161b", "#1b2a3a", "#22507f", "#3d86c6", "#8cc3ee", "#f2f8ff"],
    pinned: ["#12161b", "#33241b", "#7a4219", "#cc752b", "#f3b27a", "#fff5ea"],
    change: ["#12161b", "#ffb37a", "#b5652a", "#2a2f36", "#3f83c4", "#a9d3fb"],
  },
};
ANCHORS.light.values = ANCHORS.dark.values = ["#00224e", "#00224e", "#414d6b", "#7c7b78", "#bcae6c", "#fee838"];
const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

function ramp(theme, name) {
  const [below, ...stops] = ANCHORS[theme][name].map(channels);
  const table = new Uint8ClampedArray(256 * 4).fill(255);
  table.set(below);
  for (let step = 1; step < 256; step++) {
    const place = ((step - 1) / 254) * (stops.length - 1);
    const at = Math.min(Math.floor(place), stops.length - 2);
    for (let c = 0; c < 3; c++)
      table[4 * step + c] = stops[at][c] + (stops[at + 1][c] - stops[at][c]) * (place - at);
  }
  return table;
}
const colourOf = (table, step) => `rgb(${table.slice(4 * step, 4 * step + 3).join(",")})`;

// Attention as bytes: 0 is less than 1e-4, then 254 steps of a logarithmic scale up to 1.
const PROBABILITY = Float32Array.from({ length: 256 }, (_, byte) => (byte ? 10 ** ((-4 * (255 - byte)) / 254) : 0));
const LINEAR = Uint8Array.from(PROBABILITY, (p) => Math.round(255 * p));

// A matrix of attention: rows of bytes, of causal attention only up to the diagonal.
function matrix(bytes, n, causal, number = 0) {
  const size = causal ? (n * (n + 1)) / 2 : n * n;
  const data = bytes.subarray(number * size, (number + 1) * size);
  const start = (query) => (causal ? (query * (query + 1)) / 2 : query * n);
  const length = (query) => (causal ? query + 1 : n);
  return { n, causal, data, start, length, at: (q, k) => (k < length(q) ? data[start(q) + k] : 0) };
}

// The first and the last entry of each of `pixels` blocks of the entries first … last.
function blocks(first, last, pixels) {
  const count = last - first + 1, from = new Int32Array(pixels), to = new Int32Array(pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    from[pixel] = first + Math.floor((pixel * count) / pixels);
    to[pixel] = count <= pixels ? from[pixel] : first + Math.ceil(((pixel + 1) * count) / pixels) - 1;
  }
  return [from, to];
}

// The largest byte of each block of a window of a matrix, −1 where the block holds no entry: nothing is lost
// between two pixels, whatever the length of the text.
function blockMax(source, [q0, q1, k0, k1], width, height) {
  const out = new Int16Array(width * height).fill(-1), column = new Int16Array(source.n);
  const [rows, lastRows] = blocks(q0, q1, height), [keys, lastKeys] = blocks(k0, k1, width);
  for (let y = 0; y < height; y++) {
    if (y && rows[y] === rows[y - 1] && lastRows[y] === lastRows[y - 1]) {
      out.copyWithin(y * width, (y - 1) * width, y * width);
      continue;
    }
    column.fill(-1, k0, k1 + 1);
    for (let query = rows[y]; query <= lastRows[y]; query++) {
      const start = source.start(query), last = Math.min(k1, source.length(query) - 1);
      for (let key = k0; key <= last; key++)
        if (source.data[start + key] > column[key]) column[key] = source.data[start + key];
    }
    for (let x = 0; x < width; x++)
      for (let key = keys[x]; key <= lastKeys[x]; key++)
        if (column[key] > out[y * width + x]) out[y * width + x] = column[key];
  }
  return out;
}

function paint(canvas, steps, table, width, height) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer), colours = new Uint32Array(table.buffer);
  for (let at = 0; at < steps.length; at++) pixels[at] = steps[at] < 0 ? 0 : colours[steps[at]];
  context.putImageData(image, 0, 0);
}

// Axes and curves.
function niceTicks(low, high, most) {
  const rough = (high - low) / Math.max(1, most), power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((times) => times * power).find((each) => each >= rough * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step)
    ticks.push(+tick.toPrecision(6));
  return ticks;
}
function powers(base, low, high, most) {
  const first = Math.ceil(Math.log(low) / Math.log(base) - 1e-9), last = Math.floor(Math.log(high) / Math.log(base) + 1e-9);
  const step = Math.max(1, Math.ceil((last - first) / most));
  return Array.from({ length: Math.floor((last - first) / step) + 1 }, (_, at) => base ** (first + at * step));
}
const SCALES = { // value → place on the axis, and its ticks
  linear: { of: (value) => value, ticks: niceTicks },
  log10: { of: Math.log10, ticks: (low, high, most) => powers(10, low, high, most) },
  log2: { of: Math.log2, ticks: (low, high, most) => powers(2, low, high, most) },
};
const power10 = (value) => (value === 1 ? "1" : `1e${Math.round(Math.log10(value))}`.replace("-", "−"));

function axis({ kind = "linear", low, high, from, to }) {
  const { of } = SCALES[kind], [a, b] = [of(low), of(high)];
  return (value) => from + ((of(Math.min(Math.max(value, low), high)) - a) / (b - a || 1)) * (to - from);
}

// A small chart. `x` and `y` are {kind, low, high, label}; `lines` are {x, y, kind, dots, bars}, `rules` are
// {at, text} across x. Returns its svg and the two axes as functions.
function chart({ width, height, title, x, y, lines = [], rules = [], between = [], alt }) {
  const box = { left: 40, right: width - 8, top: 24, bottom: height - 30 };
  const across = axis({ ...x, from: box.left, to: box.right }), up = axis({ ...y, from: box.bottom, to: box.top });
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "nbh-chart", role: "img", "aria-label": alt ?? title });
  const add = (tag, attributes, ...children) => root.append(svg(tag, attributes, ...children));
  add("text", { x: 2, y: 11, class: "nbh-title" }, title);
  for (const tick of SCALES[x.kind ?? "linear"].ticks(x.low, x.high, Math.floor((box.right - box.left) / 46))) {
    add("line", { x1: across(tick), x2: across(tick), y1: box.bottom, y2: box.bottom + 3, class: "nbh-axis" });
    add("text", { x: across(tick), y: box.bottom + 12, class: "nbh-tick nbh-middle" }, x.kind === "log10" ? power10(tick) : short(tick));
  }
  for (const tick of SCALES[y.kind ?? "linear"].ticks(y.low, y.high, y.ticks ?? 3)) {
    add("line", { x1: box.left, x2: box.right, y1: up(tick), y2: up(tick), class: "nbh-grid" });
    add("text", { x: box.left - 4, y: up(tick) + 3, class: "nbh-tick nbh-end" }, y.kind === "log10" ? power10(tick) : short(tick));
  }
  for (const at of rules) add("line", { x1: across(at), x2: across(at), y1: box.top, y2: box.bottom, class: "nbh-rule" });
  for (const { at, text } of between) add("text", { x: across(at), y: box.top + 8, class: "nbh-tick nbh-middle" }, text);
  add("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "nbh-axis" });
  add("text", { x: (box.left + box.right) / 2, y: height - 5, class: "nbh-label nbh-middle" }, x.label);
  for (const line of lines) {
    let path = "", pen = "M";
    for (let at = 0; at < line.y.length; at++) {
      if (!Number.isFinite(line.y[at]) || !Number.isFinite(line.x[at])) { pen = "M"; continue; }
      const place = `${across(line.x[at]).toFixed(1)},${up(line.y[at]).toFixed(1)}`;
      path += line.bars ? `M${across(line.x[at]).toFixed(1)},${box.bottom}L${place}` : pen + place;
      pen = "L";
    }
    add("path", { d: path, class: `nbh-line nbh-of-${line.kind}${line.bars ? " nbh-bars" : ""}` });
  }
  return { root, across, up, box };
}
