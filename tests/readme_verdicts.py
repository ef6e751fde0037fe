"""Write README's verdicts and their figure from a run of the collection, and store the numbers behind them.

    python tests/readme_verdicts.py OUT COMMIT

OUT is the output folder of ``make demo``, COMMIT the state of the repository that was run. Without them the
stored numbers are judged anew, after a change of rules or words.
"""

import re
import sys
from pathlib import Path

from nbhelpers.claims.paper import CLAIMS
from nbhelpers.collection.results import Results, estimate_of, load_provenance, load_results
from nbhelpers.collection.scorecard import BESIDE, PLANTED, in_short, scorecard, scorecard_markdown
from nbhelpers.collection.site.home import picture, write_figures

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FIGURES = ROOT / "notebooks" / "figures"
STORED = ROOT / "nbhelpers" / "data" / "scorecard"
BLOCK = re.compile(
    r"(?<=<!-- verdicts: python tests/readme_verdicts.py -->\n).*(?=<!-- end of verdicts -->)", re.S
)


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


def block(folder=STORED):
    """Return what stands between README's two marks."""
    (facts,) = load_provenance(folder).values()
    of = "{name} on {n_sequences} passages of {length} tokens of {corpus}".format(**facts["run"])
    card = scorecard(folder)
    shown = f"{in_short(card)}\n\n{picture(card, FIGURES.relative_to(ROOT).as_posix())}"
    folded = "<details><summary>The same as a table, with the reasons</summary>"
    table = f"{folded}\n\n{scorecard_markdown(card, BESIDE)}\n</details>"
    return f"\n{shown}\n\nFrom `{facts['command']}` at commit `{facts['commit']}`: {of}.\n\n{table}\n\n"


if __name__ == "__main__":
    if sys.argv[1:]:
        store(sys.argv[1], STORED, sys.argv[2])
    write_figures(scorecard(STORED), FIGURES)
    README.write_text(BLOCK.sub(lambda _: block(), README.read_text(encoding="utf-8")), encoding="utf-8")
