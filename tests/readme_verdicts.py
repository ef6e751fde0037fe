"""Write README's verdicts and figures from a run of the collection, and store the numbers behind them.

    python tests/readme_verdicts.py OUT COMMIT

OUT is the output folder of ``make demo``, COMMIT the state of the repository that was run. With OUT alone, as
``make figures`` calls it, README's figures are drawn and the numbers stored that the texts cite ("Found");
without both the stored numbers are judged anew, after a change of rules or words.
"""

import hashlib
import re
import sys
from pathlib import Path

import nbformat
import pandas as pd
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nbhelpers.claims.paper import CLAIMS
from nbhelpers.collection.plan import list_notebooks
from nbhelpers.collection.results import REFERENCE, Results, estimate_of, load_provenance, load_results
from nbhelpers.collection.scorecard import BESIDE, PLANTED, in_short, scorecard, scorecard_markdown
from nbhelpers.collection.site.home import found_text, picture, write_figures
from nbhelpers.collection.site.pages import GALLERY, save_figure

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FIGURES = ROOT / "notebooks" / "figures"
STORED = ROOT / "nbhelpers" / "data" / "scorecard"
DRAWN = re.compile(r"\(notebooks/figures/(\d\d_\w+)\.png\)")
BEGIN, END = "<!-- verdicts: python tests/readme_verdicts.py -->\n", "<!-- end of verdicts -->"
BLOCK = re.compile(f"(?<={BEGIN}).*(?={END})", re.S)
MARKED = re.compile(r"([−+-]?[\d,]*\.?\d+(?:e[−+-]?\d+)?)( %)?<!--(?:(\d\d)/)?(.+?)(?::(null|low|high))?-->")


def texts():
    """Yield the texts that cite numbers, README's and the cells that begin with Found, and their notebook."""
    yield README.read_text(encoding="utf-8"), ""
    for path in list_notebooks():
        yield found_text(path), path.stem


def cited(text, notebook=""):
    """Yield number, half of its last digit, notebook ("07"), record and part for each marked number.

    A mark is ``<!--name of a record-->``, ``<!--name:null-->`` (or low, high) for another part of the record,
    ``<!--07/name-->`` for one of another notebook; the name of a parameter stands for its value.
    """
    for digits, percent, other, name, part in MARKED.findall(text):
        plain, scale = digits.replace("−", "-").replace(",", ""), 100 if percent else 1
        mantissa, _, power = plain.partition("e")
        half = 0.5 * 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
        yield float(plain) / scale, half / scale, other or notebook[:2], name, part or "value"


def store(out, folder, commit):
    """Store what the scorecard reads of a run, and what was run."""
    store = Results("scorecard", folder)
    criteria = [criterion for claim in CLAIMS for criterion in claim.criteria + claim.second]
    judged = {name for c in criteria for name in (c.name, *dict(c.readings).values())}
    for row in load_results(out).itertuples():
        if row.name in judged or row.name.startswith(tuple(PLANTED.values())):
            store.record(row.name, estimate_of(row))
    facts = load_provenance(out)
    run = facts["07_frequency_bands"]
    run = {name: run[name] for name in ("corpus", "n_sequences", "length", "versions")} | run["model"]
    planted = {name: facts["04_planted_truth"][name] for name in ("length", "planted")}
    store.provenance(commit=commit, command="make demo", run=run, planted_truth=planted)


def store_found(out):
    """Store the numbers of a run that texts cite, in place of those of earlier runs."""
    names = {(number, name) for text, own in texts() for *_, number, name, _ in cited(text, own)}
    known = pd.read_csv(REFERENCE)
    numbers = pd.concat([known, load_results(out)[known.columns]])
    numbers = numbers[[pair in names for pair in zip(numbers.notebook.str[:2], numbers.name, strict=True)]]
    numbers = numbers.drop_duplicates(["notebook", "name"], keep="last").sort_values(["notebook", "name"])
    numbers.to_csv(REFERENCE, index=False, float_format="%.6g")


def figure_code(path):
    """Return a digest of the code of a notebook's section that draws its tagged figure, up to it."""
    code = []
    for cell in nbformat.read(path, as_version=4).cells:
        code = [] if cell.cell_type == "markdown" else [*code, cell.source]
        if GALLERY in cell.metadata.get("tags", []):
            return hashlib.sha256("\n".join(code).encode()).hexdigest()


def draw_figures(out, readme):
    """Store the figures of notebooks that README shows, each with a digest of the code that drew it."""
    for name in DRAWN.findall(readme):
        path = Path(out) / "executed" / f"{name}.ipynb"
        made = PngInfo()
        save_figure(nbformat.read(path, as_version=4), FIGURES / f"{name}.png")
        made.add_text("Code", figure_code(path))
        with Image.open(FIGURES / f"{name}.png") as image:
            image.save(FIGURES / f"{name}.png", pnginfo=made, optimize=True)


def block(folder=STORED):
    """Return what stands between README's two marks."""
    (facts,) = load_provenance(folder).values()
    of = "{name} on {n_sequences} passages of {length} tokens of {corpus}".format(**facts["run"])
    card = scorecard(folder)
    shown = picture(card, FIGURES.relative_to(ROOT).as_posix())
    folded = "<details><summary>The same in words and as a table, with the reasons</summary>"
    table = f"{folded}\n\n{in_short(card)}\n\n{scorecard_markdown(card, BESIDE)}\n</details>"
    return f"\n{shown}\n\nFrom `{facts['command']}` at commit `{facts['commit']}`: {of}.\n\n{table}\n\n"


if __name__ == "__main__":
    if sys.argv[1:]:
        store_found(sys.argv[1])
        draw_figures(sys.argv[1], README.read_text(encoding="utf-8"))
    if sys.argv[2:]:
        store(sys.argv[1], STORED, sys.argv[2])
    write_figures(scorecard(STORED), FIGURES)
    README.write_text(BLOCK.sub(lambda _: block(), README.read_text(encoding="utf-8")), encoding="utf-8")
