"""A page per executed notebook: its title, how its run ended, and the figure it shows on the home page."""

import base64
import re
import textwrap
from dataclasses import dataclass

from nbhelpers.collection.execution import WIDGET_STATE, WIDGET_VIEW, outputs, widget_tree
from nbhelpers.collection.notebook_files import nbformat
from nbhelpers.collection.plan import read_title
from nbhelpers.collection.run import NotebookRun

GALLERY = "gallery"  # tag of the cell whose figure goes to the home page
FOLD_LINES = 12  # a longer code cell is folded on the page, its output is not


@dataclass(frozen=True)
class Page:
    """What the home page says of a notebook; `figure` is a path below the source, `alt` what it shows."""

    name: str
    title: str
    question: str
    run: NotebookRun | None
    figure: str | None
    alt: str


def prepare_page(path, run, source):
    """Copy an executed notebook into Sphinx's source, a failure or the reason of a skip below its title."""
    notebook = nbformat.read(path, as_version=4)
    marker = "papermill-error-cell-tag"  # papermill's own note would come before the title
    notebook.cells = [cell for cell in notebook.cells if marker not in cell.metadata.get("tags", [])]
    text = notebook.cells[0].source if notebook.cells and notebook.cells[0].cell_type == "markdown" else ""
    title, question = read_title(text, default=path.stem)
    if not text.lstrip().startswith("# "):
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"# {title}"))
    if run and run.error is not None:
        kind, note = "error", f"This run {run.status}; what follows is the part that ran."
        if run.status == "skipped":
            kind, note = "warning", "Skipped; what follows the reason was not run."
        note = f"````{{{kind}}}\n{note}\n~~~~text\n{run.error}\n~~~~\n````"
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(note))
    _keep_core_widgets(notebook)
    _hide_code(notebook)
    describe_pictures(notebook)
    nbformat.write(notebook, source / path.name)
    figure, cell = save_figure(notebook, source / "_static" / f"{path.stem}.png")
    alt = cell.metadata["mystnb"]["image"]["alt"] if cell else ""
    return Page(path.stem, title, question, run, figure, alt)


def _keep_core_widgets(notebook):
    """Drop widgets that are shown by a picture, or whose script a page would look for in a network."""
    state = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    kept = set()
    shown = (output.get("data", {}) for _, output in outputs(notebook))
    for data in (data for data in shown if WIDGET_VIEW in data):
        tree = widget_tree(state, data[WIDGET_VIEW]["model_id"])
        modules = [state.get(model, {}).get("model_module", "") for model in tree]
        if "image/png" in data or not all(name.startswith("@jupyter-widgets/") for name in modules):
            del data[WIDGET_VIEW]
        else:
            kept |= tree
    for model in state.keys() - kept:
        del state[model]
    if not kept:
        notebook.metadata.pop("widgets", None)


def _hide_code(notebook):
    """Leave parameters and Colab's cell out; fold solutions and their output, and imports and long cells."""
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        source, tags = cell.source.strip(), set(cell.metadata.get("tags", []))
        if tags & {"colab", "parameters", "injected-parameters"}:  # the last have paths of one machine
            cell.metadata["tags"] = ["remove-cell"]
        elif "solution" in tags:
            cell.metadata["tags"] = ["hide-cell"]
            prompts = {f"code_prompt_{do}": f"{do.title()} the solution" for do in ("show", "hide")}
            cell.metadata["mystnb"] = prompts
        elif source.count("\n") >= FOLD_LINES or source.startswith(("import ", "from ")):
            cell.metadata["tags"] = [*tags, "hide-input"]


def describe_pictures(notebook):
    """Tell Sphinx what to say in place of a picture: its section's claim, and what is printed from it on."""
    printed, section = "", []
    for cell in reversed(notebook.cells):
        if cell.cell_type == "code":
            printed = " ".join([*(o.text for o in cell.outputs if o.get("name") == "stdout"), printed])
            section.append((cell, printed))
        elif headings := re.findall("^#+ (.+)", cell.source, re.MULTILINE):
            for each, told in section:
                alt = textwrap.shorten(f"{headings[-1]}. {told}", 400, placeholder=" …")
                each.metadata["mystnb"] = each.metadata.get("mystnb", {}) | {"image": {"alt": alt}}
            printed, section = "", []


def save_figure(notebook, path):
    """Save the first picture of the cell tagged for the home page; return its place and the cell."""
    for index, output in outputs(notebook):
        cell = notebook.cells[index]
        if GALLERY in cell.metadata.get("tags", []) and "image/png" in output.get("data", {}):
            path.write_bytes(base64.b64decode(output.data["image/png"]))
            return f"{path.parent.name}/{path.name}", cell
    return None, None
