"""Turn executed notebooks into a site that needs no network: Sphinx, myst-nb and a bundled MathJax."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nbformat

from nbhelpers.lab.notebooks import NotebookRun, load_runs
from nbhelpers.lab.scorecard import scorecard

SCORECARD = "15_scorecard"

_MATHJAX = "sphinx-mathjax-offline/static/mathjax/tex-svg-full.js"  # one file, draws with no font to load
_STATUS = {"passed": "passed", "kept": "passed", "failed": "**failed**", "interrupted": "**interrupted**"}

_CONF = """\
project = "nbhelpers"
author = "the nbhelpers authors"
extensions = ["myst_nb", "sphinx.ext.mathjax"]
html_theme = "sphinx_book_theme"
html_title = "nbhelpers"
html_static_path = ["_static"]
html_theme_options = {"home_page_in_toc": True, "show_navbar_depth": 1, "use_fullscreen_button": False}
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # the default loads a script from a network; a widget shows its picture or text instead
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["amsmath", "dollarmath"]
mathjax_path = "tex-svg-full.js"
mathjax3_config = {"svg": {"fontCache": "global"}}
"""

_INDEX = """\
# Notebooks

Executed with papermill; the numbers are those of this run. {counts}

| notebook | what it asks | run |
|---|---|---|
{rows}
{verdicts}
```{{toctree}}
:hidden:

{names}
```
"""


@dataclass(frozen=True)
class _Page:
    name: str
    title: str
    question: str
    run: NotebookRun | None


def build_site(executed_folder: str | Path, out: str | Path, *, show_warnings: bool = True) -> Path:
    """Build pages from executed notebooks, without running them and without a network.

    Parameters
    ----------
    executed_folder : path
        Folder of executed notebooks. Where a folder ``runs`` lies beside it (see `run_notebooks`), the
        pages tell how each run ended; a failed notebook's page begins with its error.
    out : path
        Folder of the pages; ``index.html`` is the first.
    show_warnings : bool
        Print Sphinx's warnings on stderr; they are kept in ``<out>/sphinx-warnings.txt`` too.

    Returns
    -------
    Path
        The index page.

    Raises
    ------
    FileNotFoundError
        If there is no executed notebook.
    RuntimeError
        If Sphinx fails; the message ends with what it said.
    """
    executed = Path(executed_folder)
    notebooks = sorted(executed.glob("*.ipynb"))
    if not notebooks:
        state = "holds no executed notebook" if executed.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{executed} {state}; run the notebooks first: python -m nbhelpers run --out {out}"
        )
    runs = (
        {run.name: run for run in load_runs(executed.parent)} if (executed.parent / "runs").is_dir() else {}
    )
    mathjax = importlib.metadata.distribution("sphinx-mathjax-offline").locate_file(_MATHJAX)
    with tempfile.TemporaryDirectory(prefix="site-") as scratch:  # Sphinx wants its source outside its output
        source = Path(scratch).resolve() / "source"
        (source / "_static").mkdir(parents=True)
        pages = [_prepare_page(path, runs.get(path.stem), source) for path in notebooks]
        (source / "index.md").write_text(_index(pages, _verdicts(executed)), encoding="utf-8")
        (source / "conf.py").write_text(_CONF, encoding="utf-8")
        shutil.copy(str(mathjax), source / "_static")
        told = _run_sphinx(source, Path(out).resolve())
    (Path(out) / "sphinx-warnings.txt").write_text(told, encoding="utf-8")
    if told and show_warnings:
        print(f"sphinx warns:\n{told}", file=sys.stderr)
    return Path(out) / "index.html"


def _run_sphinx(source: Path, out: Path) -> str:
    """Build the pages and return Sphinx's warnings, files named as seen from its source folder."""
    warnings = source.parent / "warnings.txt"
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-b",
        "html",
        "-d",
        source.parent / "doctrees",
        "-w",
        warnings,
    ]
    done = subprocess.run([*command, source, out], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"sphinx failed with status {done.returncode}:\n{done.stderr[-3000:]}")
    return warnings.read_text(encoding="utf-8").replace(f"{source}/", "")


def _prepare_page(path: Path, run: NotebookRun | None, source: Path) -> _Page:
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
    notebook.metadata.pop("widgets", None)  # without the widgets' script their state is dead weight
    nbformat.write(notebook, source / path.name)
    return _Page(path.stem, title, question, run)


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


def _verdicts(executed: Path) -> str:
    """Return the scorecard in short, where its notebook ran."""
    if not (executed / f"{SCORECARD}.ipynb").is_file() or not (executed.parent / "results").is_dir():
        return ""
    card = scorecard(executed.parent)
    rows = "\n".join(f"| {row.claim} | {_cell(row.title)} | {row.verdict} |" for row in card.itertuples())
    head = (
        f"\n## Verdicts\n\n[How they came about]({SCORECARD}.ipynb)\n\n| | claim | verdict |\n|---|---|---|\n"
    )
    return f"{head}{rows}\n"


def _index(pages: list[_Page], verdicts: str) -> str:
    rows = [
        f"| [{_cell(page.title)}]({page.name}.ipynb) | {_cell(page.question)} | {_told(page)} |"
        for page in pages
    ]
    statuses = [page.run.status for page in pages if page.run is not None]
    failed = sum(_STATUS[status] != "passed" for status in statuses)
    counts = (
        f"{len(statuses) - failed} of {len(pages)} notebooks passed, {failed} did not." if statuses else ""
    )
    names = "\n".join(page.name for page in pages)
    return _INDEX.format(counts=counts, rows="\n".join(rows), verdicts=verdicts, names=names)


def _told(page: _Page) -> str:
    if page.run is None:
        return ""
    return f"{_STATUS[page.run.status]}, {page.run.seconds:.0f} s, {page.run.peak_mb:.0f} MB"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
