
// Stands for the widget's model in a page of its own, where all layers are at hand and nobody answers.
async function revive(value) {
  if (value?.deflated !== undefined) {
    const bytes = Uint8Array.from(atob(value.deflated), (letter) => letter.charCodeAt(0));
    return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());
  }
  if (value === null || typeof value !== "object") return value;
  const entries = await Promise.all(Object.entries(value).map(async ([name, each]) => [name, await revive(each)]));
  return Array.isArray(value) ? entries.map(([, each]) => each) : Object.fromEntries(entries);
}

const state = await revive(JSON.parse(document.getElementById("nbh-state").textContent)), listeners = {};
const model = {
  get: (name) => state[name],
  set(name, value) {
    state[name] = value;
    const layer = name === "selected" && state.layers.find((each) => each.layer === value[0]);
    if (layer) state.layer_shown = layer;
    for (const changed of layer ? [name, "layer_shown"] : [name]) queueMicrotask(() => listeners[`change:${changed}`]?.());
  },
  on: (event, answer) => { listeners[event] = answer; },
  off: () => {},
  save_changes: () => {},
  send: () => {},
};
render({ model, el: document.getElementById("nbh") });
