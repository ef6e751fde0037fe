"""The home page: what the collection asks, what it finds, its best figures, and the way into it."""

from pathlib import Path

from nbhelpers.collection.scorecard import scorecard
from nbhelpers.collection.site.pages import Page

SCORECARD = "20_scorecard"
_STATUS = {
    "passed": "passed", "kept": "passed", "skipped": "skipped", "failed": "**failed**",
    "interrupted": "**interrupted**",
}  # fmt: skip

_HOME = """\
# What does a model's attention do across positions and scales?

Jupyter notebooks, and the package `nbhelpers` under them, that put the claims of *Beyond Position: the
emergence of wavelet-like properties in Transformers* (arXiv 2410.18067) to the test: the paper's own
definitions first, beside every number an interval over sequences and what attention that learned nothing
would give.
{verdicts}{gallery}
## Notebooks

Executed with papermill; the numbers are those of this run. {counts}

| notebook | what it asks | run |
|---|---|---|
{rows}
{reference}
```{{toctree}}
:hidden:
:caption: Notebooks

{names}
```
{reference_tree}"""


def home_page(pages: list[Page], reference: list[str], folder: Path) -> str:
    """Return the Markdown of the home page.

    Parameters
    ----------
    pages : list of Page
    reference : list of str
        Names of the reference pages; may be empty.
    folder : Path
        Output of a run; its results give the scorecard.
    """
    statuses = [page.run.status for page in pages if page.run is not None]
    skipped = statuses.count("skipped")
    failed = sum(_STATUS[status] != "passed" for status in statuses) - skipped
    counts = f"{len(statuses) - failed - skipped} of {len(pages)} notebooks passed, {failed} did not."
    if skipped:
        counts += f" {skipped} skipped: not to be had of this model."
    tree = "\n".join(reference)
    return _HOME.format(
        verdicts=_verdicts(pages, folder),
        gallery=_gallery(pages),
        counts=counts if statuses else "",
        rows="\n".join(f"| {_link(page)} | {_cell(page.question)} | {_told(page)} |" for page in pages),
        reference="\n[Reference of the package](reference.md) · [error messages](errors.md)\n"
        if tree
        else "",
        names="\n".join(page.name for page in pages),
        reference_tree=f"```{{toctree}}\n:hidden:\n:caption: Package\n\n{tree}\n```\n" if tree else "",
    )


def _verdicts(pages: list[Page], folder: Path) -> str:
    """Return the scorecard in short, where its notebook ran."""
    if SCORECARD not in {page.name for page in pages} or not (folder / "results").is_dir():
        return ""
    card = scorecard(folder)
    rows = "\n".join(
        f"| {row.claim} | {_cell(row.title)} | {_badge(row.verdict)} | {_cell(row.why)} |"
        for row in card.itertuples()
    )
    told = (
        f"By rules committed before the notebooks that apply them; [how they came about]({SCORECARD}.ipynb)."
    )
    return f"\n## Verdicts\n\n{told}\n\n| | claim | verdict | why |\n|---|---|---|---|\n{rows}\n"


def _badge(verdict: str) -> str:
    return f'<span class="verdict {verdict.replace(" ", "-")}">{verdict}</span>'


def _gallery(pages: list[Page]) -> str:
    """Return the pictures that notebooks give to the home page, each a link to its notebook."""
    shown = [page for page in pages if page.figure]
    if not shown:
        return ""
    figures = "\n".join(
        f":::{{figure}} {page.figure}\n:target: {page.name}.html\n:alt: {page.title}\n\n"
        f"[{page.title}]({page.name}.ipynb)\n:::\n"
        for page in shown
    )
    return f"\n## Figures\n\n::::{{container}} gallery\n{figures}::::\n"


def _link(page: Page) -> str:
    return f"[{_cell(page.title)}]({page.name}.ipynb)"


def _told(page: Page) -> str:
    if page.run is None:
        return ""
    return f"{_STATUS[page.run.status]}, {page.run.seconds:.0f} s, {page.run.peak_mb:.0f} MB"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
