"""A page per executed notebook: its title, how its run ended, and the figure it shows on the home page."""

import base64
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

from nbhelpers.collection.run import NotebookRun
from nbhelpers.collection.site.widgets import keep_core_widgets

GALLERY = "gallery"  # tag of the cell whose figure goes to the home page
FOLD_LINES = 12  # a longer code cell is folded on the page, its output is not


@dataclass(frozen=True)
class Page:
    """What the home page tells of a notebook.

    Attributes
    ----------
    name, title, question : str
    run : NotebookRun or None
        How it ended.
    figure : str or None
        Picture for the home page, a path below the source.
    """

    name: str
    title: str
    question: str
    run: NotebookRun | None
    figure: str | None


def prepare_page(path: Path, run: NotebookRun | None, source: Path) -> Page:
    """Copy an executed notebook into Sphinx's source, a failure told under its title."""
    notebook = nbformat.read(path, as_version=4)
    marker = "papermill-error-cell-tag"  # papermill's own note would come before the title
    notebook.cells = [cell for cell in notebook.cells if marker not in cell.metadata.get("tags", [])]
    text = notebook.cells[0].source if notebook.cells and notebook.cells[0].cell_type == "markdown" else ""
    title, question = read_title(text, default=path.stem)
    if not text.lstrip().startswith("# "):
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"# {title}"))
    if run is not None and run.status in ("failed", "interrupted"):
        note = f"This run {run.status}; what follows is the part that ran.\n~~~~text\n{run.error}\n~~~~"
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(f"````{{error}}\n{note}\n````"))
    if run is not None and run.status == "skipped":
        note = f"Skipped; what follows the reason was not run.\n~~~~text\n{run.error}\n~~~~"
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(f"````{{warning}}\n{note}\n````"))
    keep_core_widgets(notebook)
    _fold_long_code(notebook)
    nbformat.write(notebook, source / path.name)
    return Page(path.stem, title, question, run, _save_figure(notebook, path.stem, source))


def read_title(text: str, *, default: str) -> tuple[str, str]:
    """Return (title, question) of a title cell: its heading, and its first sentence that asks.

    Parameters
    ----------
    text : str
        Markdown of the first cell.
    default : str
        The title if the cell has no heading.

    Returns
    -------
    tuple of str
        The question is the first sentence below the heading if none ends in a question mark.
    """
    heading = re.search(r"^# +(.+)$", text, flags=re.MULTILINE)
    title = heading.group(1).strip() if heading else default
    below = text[heading.end() :] if heading else text
    paragraphs = [" ".join(part.split()) for part in below.split("\n\n") if part.strip()]
    sentences = [
        sentence for part in paragraphs for sentence in re.split(r"(?<=[.?!])\s+|(?<=[.?!]\*\*)\s+", part)
    ]
    asked = [sentence for sentence in sentences if sentence.rstrip("*_").endswith("?")]
    return title, (asked or sentences or [""])[0]


def _fold_long_code(notebook) -> None:
    """Mark imports and long code cells, so that the page shows their source on demand."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            lines = cell.source.strip().splitlines()
            if len(lines) > FOLD_LINES or (lines and lines[0].startswith(("import ", "from "))):
                cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]


def _save_figure(notebook, name: str, source: Path) -> str | None:
    """Save the first picture of the cell tagged for the home page; None if there is none."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and GALLERY in cell.metadata.get("tags", []):
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    picture = f"_static/{name}.png"
                    (source / picture).write_bytes(base64.b64decode(output.data["image/png"]))
                    return picture
    return None
