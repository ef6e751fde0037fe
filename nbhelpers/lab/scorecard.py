"""The scorecard: every claim of the paper with its verdict, from the results store alone."""

import dataclasses
import hashlib
import json
import math
import shutil
import subprocess
from pathlib import Path

import pandas as pd

from nbhelpers.evidence import paper
from nbhelpers.evidence.verdicts import Record, judge

from .results import load_results

PLANTED = "planted_accuracy_"  # + number of the claim, as 03_null_models records it
COLUMNS = ("claim", "title", "the paper", "ours", "null", "verdict", "why")


def scorecard(folder):
    """Judge every claim by what the notebooks recorded.

    Parameters
    ----------
    folder : path
        A folder of results, as given to :class:`~nbhelpers.lab.results.Results`.

    Returns
    -------
    pandas.DataFrame
        One row per claim: claim, title, the paper (the range claimed and the values printed), ours (value and
        interval), null, verdict, why. A claim without its measurements says which notebook makes them.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder holds no results, or damaged ones.
    """
    numbers = load_results(folder)
    return pd.DataFrame([_row(claim, numbers) for claim in paper.CLAIMS], columns=COLUMNS)


def missing_notebooks(card):
    """Return the notebooks that would measure what a scorecard misses, in order."""
    homes = {claim.number: claim.notebook for claim in paper.CLAIMS}
    return sorted({homes[number] for number in card.claim[card.verdict == "not measured"]})


def rules_version():
    """Return what identifies the verdict rules: a hash of them and, in a git checkout, their last commit.

    Returns
    -------
    str
    """
    text = json.dumps([dataclasses.asdict(claim) for claim in paper.CLAIMS], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    commit = _last_commit(Path(paper.__file__))
    return f"rules {digest}, " + (f"commit {commit}" if commit else "not a git checkout")


def _row(claim, numbers):
    known = numbers[numbers.name.isin([criterion.name for criterion in claim.criteria])]
    records = {row.name: _record(row) for row in known.itertuples(index=False)}
    planted = numbers[numbers.name == PLANTED + claim.number].value
    accuracy = None if planted.empty else float(planted.iloc[0])
    verdict, why = judge(claim, records, planted_accuracy=accuracy)
    found = [c for c in claim.criteria if c.name in records]
    return {
        "claim": claim.number,
        "title": claim.title,
        "the paper": "; ".join(_claimed(c) for c in claim.criteria) or claim.statement,
        "ours": "; ".join(f"{_short(c)} {_interval(records[c.name])}" for c in found),
        "null": "; ".join(f"{_short(c)} {_number(records[c.name].null)}" for c in found if c.null),
        "verdict": verdict,
        "why": why,
    }


def _record(row):
    low, high = (row.value if math.isnan(end) else end for end in (row.low, row.high))
    return Record(row.value, low, high, None if math.isnan(row.null) else row.null)


def _short(criterion):
    return criterion.name.partition("_")[2].replace("_", " ")


def _claimed(criterion):
    least, most = criterion.claimed
    if math.isinf(most):
        told = f"at least {_number(least)}"
    elif math.isinf(least):
        told = f"at most {_number(most)}"
    else:
        told = f"{_number(least)} to {_number(most)}"
    printed = paper.printed_range(criterion)
    if printed is not None:
        told += f" (printed {_number(printed[0])} to {_number(printed[1])}, Table {criterion.printed[0]})"
    return f"{_short(criterion)} {told}"


def _interval(record):
    return f"{_number(record.value)} [{_number(record.low)}, {_number(record.high)}]"


def _number(value):
    return "not measured" if value is None else f"{value:.3g}"


def _last_commit(file):
    """Return short hash and date of the last commit of a file, None outside a git checkout."""
    if shutil.which("git") is None:
        return None
    asked = ["git", "log", "-1", "--format=%h of %cs", "--", file.name]
    answer = subprocess.run(asked, cwd=file.parent, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
