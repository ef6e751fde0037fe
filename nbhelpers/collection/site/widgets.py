"""Which widgets of an executed notebook a page can draw: those made of core widgets alone."""

VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
_CORE = "@jupyter-widgets/"
_REFERENCE = "IPY_MODEL_"


def keep_core_widgets(notebook) -> None:
    """Drop widgets that are shown by a picture, or need more than the core widgets, and their state.

    A page without a kernel can draw sliders and boxes from their saved state; a widget with a script of its
    own it would look for in a network.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
        Executed; changed in place.
    """
    state = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    kept = set()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if VIEW not in data:
                continue
            models = _reachable(data[VIEW]["model_id"], state)
            core = all(state.get(m, {}).get("model_module", "").startswith(_CORE) for m in models)
            if "image/png" in data or not core:
                del data[VIEW]
            else:
                kept |= models
    if kept:
        whole = notebook.metadata["widgets"][STATE]
        whole["state"] = {model: entry for model, entry in state.items() if model in kept}
    else:
        notebook.metadata.pop("widgets", None)


def _reachable(model, state) -> set:
    """Return a model and every model its state refers to, at any depth."""
    found, waiting = set(), [model]
    while waiting:
        model = waiting.pop()
        if model not in found:
            found.add(model)
            waiting += _references(state.get(model, {}).get("state", {}))
    return found


def _references(value) -> list:
    if isinstance(value, str):
        return [value.removeprefix(_REFERENCE)] if value.startswith(_REFERENCE) else []
    if isinstance(value, dict):
        value = list(value.values())
    return [model for part in value for model in _references(part)] if isinstance(value, list) else []
