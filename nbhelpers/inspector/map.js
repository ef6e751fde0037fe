// The layer × head map: an SVG of one cell per head that is clicked or walked with the arrow keys.
const SVG = "http://www.w3.org/2000/svg";
const LEFT = 44, TOP = 8, BAR = 14;

function element(name, attributes, parent, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function short(value) {
  if (value === null || !Number.isFinite(value)) return "unknown";
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 10000) ? value.toExponential(1) : String(+value.toPrecision(3));
}

function sizes(layers, heads) {
  const width = Math.max(9, Math.min(30, Math.floor(230 / heads)));
  const height = Math.max(4, Math.min(20, Math.floor(340 / layers)));
  return { width, height };
}

function every(count, room) {
  for (const step of [1, 2, 4, 5, 10, 20]) if (count / step <= room) return step;
  return 50;
}

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "nbh-keys";
  root.tabIndex = 0;
  root.setAttribute("role", "application");
  // The shortcuts of JupyterLab are to leave the arrow keys alone here.
  root.setAttribute("data-lm-suppress-shortcuts", "true");
  const drawing = document.createElementNS(SVG, "svg");
  const said = document.createElement("div");
  said.className = "nbh-map-said";
  said.setAttribute("aria-live", "polite");
  root.append(drawing, said);
  el.append(root);

  let cell, frames;

  function draw() {
    const colours = model.get("colours"), layers = colours.length, heads = layers ? colours[0].length : 0;
    drawing.replaceChildren();
    if (!layers) return;
    cell = sizes(layers, heads);
    const right = LEFT + heads * cell.width, bottom = TOP + layers * cell.height;
    drawing.setAttribute("width", right + 82);
    drawing.setAttribute("height", bottom + 40);
    drawing.setAttribute("aria-hidden", "true");
    colours.forEach((row, layer) => row.forEach((fill, head) => {
      const place = { x: LEFT + head * cell.width, y: TOP + layer * cell.height };
      const box = element("rect", { ...place, ...cell, fill, class: "nbh-cell",
        "data-layer": layer, "data-head": head }, drawing);
      element("title", {}, box, described(layer, head));
      box.addEventListener("click", () => select(layer, head));
    }));
    for (const edge of model.get("group_edges")) {
      const x = LEFT + edge * cell.width;
      element("line", { x1: x, x2: x, y1: TOP, y2: bottom, class: "nbh-group" }, drawing);
    }
    axes(layers, heads, right, bottom);
    scale(right + 16, bottom);
    frames = element("g", {}, drawing);
    mark();
  }

  function axes(layers, heads, right, bottom) {
    const rows = every(layers, 16), columns = every(heads, heads * cell.width / 18);
    for (let layer = 0; layer < layers; layer += rows)
      element("text", { x: LEFT - 5, y: TOP + (layer + 0.5) * cell.height, class: "nbh-tick nbh-end" }, drawing, layer);
    for (let head = 0; head < heads; head += columns)
      element("text", { x: LEFT + (head + 0.5) * cell.width, y: bottom + 12, class: "nbh-tick nbh-middle" }, drawing, head);
    const middle = (TOP + bottom) / 2;
    element("text", { x: 10, y: middle, class: "nbh-axis nbh-middle", transform: `rotate(-90 10 ${middle})` }, drawing, "layer");
    const head = model.get("group_edges").length ? "head (lines part the KV groups)" : "head";
    element("text", { x: (LEFT + right) / 2, y: bottom + 30, class: "nbh-axis nbh-middle" }, drawing, head);
  }

  function scale(x, bottom) {
    const steps = model.get("gradient"), [low, high] = model.get("limits");
    const height = Math.min(bottom - TOP, 200), each = height / steps.length;
    steps.forEach((fill, k) => element("rect", { x, y: TOP + height - (k + 1) * each, width: BAR, height: each + 0.5, fill }, drawing));
    element("text", { x: x + BAR + 4, y: TOP + 6, class: "nbh-tick" }, drawing, short(high));
    element("text", { x: x + BAR + 4, y: TOP + height - 4, class: "nbh-tick" }, drawing, short(low));
    const nothing = model.get("null_value");
    element("text", { x, y: TOP + height + 16, class: "nbh-tick" }, drawing, "uniform:");
    element("text", { x, y: TOP + height + 30, class: "nbh-tick" }, drawing, short(nothing));
    if (nothing === null || nothing < low || nothing > high || high === low) return;
    const y = TOP + height * (1 - (nothing - low) / (high - low));
    element("line", { x1: x - 4, x2: x + BAR + 3, y1: y, y2: y, class: "nbh-null" }, drawing);
  }

  function mark() {
    if (!frames) return;
    frames.replaceChildren();
    const pinned = model.get("pinned");
    if (pinned.length) frame(pinned, "nbh-pinned");
    const selected = model.get("selected");
    frame(selected, "nbh-selected");
    said.textContent = described(...selected);
    root.setAttribute("aria-label", `Map of heads by ${model.get("label")}. Arrow keys move. Now ${said.textContent}`);
  }

  function frame([layer, head], name) {
    const place = { x: LEFT + head * cell.width, y: TOP + layer * cell.height, ...cell };
    element("rect", { ...place, class: "nbh-halo" }, frames);
    element("rect", { ...place, class: name }, frames);
  }

  function described(layer, head) {
    const row = model.get("values")[layer] ?? [];
    return `layer ${layer}, head ${head}: ${model.get("label")} ${short(row[head] ?? null)}`;
  }

  function select(layer, head) {
    const colours = model.get("colours");
    const held = (value, count) => Math.max(0, Math.min(count - 1, value));
    model.set("selected", [held(layer, colours.length), held(head, colours[0].length)]);
    model.save_changes();
  }

  root.addEventListener("keydown", (event) => {
    const [layer, head] = model.get("selected"), last = model.get("colours")[0]?.length - 1;
    const moves = {
      ArrowUp: [layer - 1, head], ArrowDown: [layer + 1, head], ArrowLeft: [layer, head - 1],
      ArrowRight: [layer, head + 1], Home: [layer, 0], End: [layer, last],
      PageUp: [layer - 5, head], PageDown: [layer + 5, head],
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation();
    select(...moves[event.key]);
  });
  root.addEventListener("pointerdown", () => root.focus({ preventScroll: true }));

  model.on("change:colours change:values change:label", draw);
  model.on("change:selected change:pinned", mark);
  draw();
}

export default { render };
