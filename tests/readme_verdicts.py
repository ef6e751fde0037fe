"""Write README's table of verdicts from a run of the collection, and store the numbers it comes from.

    python tests/readme_verdicts.py OUT COMMIT

OUT is the output folder of ``make demo``, COMMIT the state of the repository that was run.
"""

import re
import sys
from pathlib import Path

from nbhelpers.claims.paper import CLAIMS
from nbhelpers.collection.results import Results, estimate_of, load_provenance, load_results
from nbhelpers.collection.scorecard import PLANTED, scorecard, scorecard_markdown

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
STORED = ROOT / "nbhelpers" / "data" / "scorecard"
BLOCK = re.compile(
    r"(?<=<!-- verdicts: python tests/readme_verdicts.py -->\n).*(?=<!-- end of verdicts -->)", re.S
)


def store(out, folder, commit):
    """Store what the scorecard reads of a run, and what was run."""
    store = Results("scorecard", folder)
    judged = {criterion.name for claim in CLAIMS for criterion in claim.criteria + claim.second}
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
    card = scorecard_markdown(scorecard(folder))
    return f"\nFrom `{facts['command']}` at commit `{facts['commit']}`: {of}.\n\n{card}\n"


if __name__ == "__main__":
    store(sys.argv[1], STORED, sys.argv[2])
    README.write_text(BLOCK.sub(lambda _: block(), README.read_text(encoding="utf-8")), encoding="utf-8")
