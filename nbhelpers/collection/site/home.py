"""The home page: what the collection asks, what it finds, its best figures, and the way into it."""

import html
import re
from pathlib import Path

import matplotlib.pyplot as plt

from nbhelpers.collection.notebook_files import nbformat
from nbhelpers.collection.plan import list_notebooks
from nbhelpers.collection.scorecard import ANSWERS, in_short, scorecard, scorecard_markdown
from nbhelpers.plots import verdict_figure

SCORECARD = "20_scorecard"
FIGURES = {"scorecard.png": False, "scorecard_narrow.png": True}  # file, and whether it is narrow
WAYS = {"See every verdict": SCORECARD, "Click a head": "06_head_inspector"}
WAYS |= {"Start (10 minutes)": "00_start_here"}
_HOME = Path(__file__).parent / "assets" / "home.md"


def home_page(pages, reference, folder, static):
    """Return the Markdown of the home page; `folder`, the output of a run, has the results.

    The summary figure is written to `static`, the folder ``_static`` of the pages.
    """
    tree, shown = "\n".join(reference), [name for name in reference if "reference-" not in name]
    return _HOME.read_text(encoding="utf-8").format(
        verdicts=_verdicts(pages, folder, static),
        gallery=_gallery(pages),
        counts=_counts(pages),
        rows="\n".join(map(_row, pages)),
        reference="\n" + " · ".join(f"[]({name}.md)" for name in shown) + "\n",
        names="\n".join(page.name for page in pages),
        reference_tree=f"```{{toctree}}\n:hidden:\n:caption: Reference\n\n{tree}\n```\n",
    )


def write_figures(card, folder):
    """Write the summary figure of a scorecard, wide and narrow, to a folder, for :func:`picture`."""
    for name, narrow in FIGURES.items():
        figure = verdict_figure(card, narrow=narrow)
        figure.savefig(Path(folder) / name, metadata={"Software": None, "Description": in_short(card)})
        plt.close(figure)


def picture(card, folder):
    """Return the HTML that shows the figures of a folder, the narrow one on a phone, with words in place."""
    wide, narrow = (f"{folder}/{name}" for name in FIGURES)
    phone = f'<source media="(max-width: 600px)" srcset="{narrow}">'
    return f'<picture>{phone}<img src="{wide}" alt="{html.escape(in_short(card))}" width="100%"></picture>'


def found_text(path):
    """Return the cell of a notebook that begins with Found; "" if it has none."""
    cells = nbformat.read(path, as_version=4).cells
    return next((cell.source for cell in cells if cell.source.startswith("**Found**")), "")


def _verdicts(pages, folder, static):
    """Return what was found, the ways in, and the section on the scorecard, where its notebook ran."""
    names = {page.name for page in pages}
    if SCORECARD not in names or not (folder / "results").is_dir():
        return ""
    card = scorecard(folder)
    write_figures(card, static)
    ways = " · ".join(f"[{way}]({name}.ipynb)" for way, name in WAYS.items() if name in names)
    found = re.sub("<!--.*?-->", "", found_text(list_notebooks()[0]))
    return (
        f"\n{found}\n\n{ways}\n\n## Verdicts\n\n{picture(card, static.name)}\n\n"
        "By rules committed before the notebooks that apply them; "
        f"[how they came about]({SCORECARD}.ipynb).\n\n"
        "<details><summary>The same as a table, with four answers for each claim</summary>\n\n"
        f"{in_short(card)}\n\n{scorecard_markdown(card, ANSWERS)}\n</details>\n"
    )


def _gallery(pages):
    """Return the pictures that notebooks give to the home page, each a link to its notebook."""
    figures = "\n".join(
        f":::{{figure}} {page.figure}\n:target: {page.name}.html\n:alt: {page.alt}\n\n"
        f"[{page.title}]({page.name}.ipynb)\n:::\n"
        for page in pages
        if page.figure
    )
    return f"\n## Figures\n\n::::{{container}} gallery\n{figures}::::\n" if figures else ""


def _counts(pages):
    statuses = [page.run.status for page in pages if page.run]
    passed, skipped = statuses.count("passed"), statuses.count("skipped")
    counts = f"{passed} of {len(pages)} notebooks passed, {len(statuses) - passed - skipped} did not."
    counts += f" {skipped} skipped: not to be had of this model." * bool(skipped)
    return counts if statuses else ""


def _row(page):
    title, question = (text.replace("|", "\\|") for text in (page.title, page.question))
    ending = ""
    if run := page.run:
        mark = "" if run.status in ("passed", "skipped") else "**"
        ending = f"{mark}{run.status}{mark}, {run.seconds:.0f} s, {run.peak_mb:.0f} MB"
    return f"| [{title}]({page.name}.ipynb) | {question.strip('*')} | {ending} |"
