"""The scorecard: every claim of the paper with its verdict, from the results store alone."""

import dataclasses
import hashlib
import json
import math
import shutil
import subprocess
from pathlib import Path

import pandas as pd

from nbhelpers.claims import paper
from nbhelpers.claims.verdicts import judge
from nbhelpers.stats import Estimate

from .plan import list_notebooks
from .results import load_results

PLANTED = "planted_accuracy_"  # + number of the claim, as 04_planted_truth records it
COLUMNS = ("claim", "title", "the paper", "ours", "null", "verdict", "why")


def scorecard(folder):
    """Judge every claim by what the notebooks recorded.

    Parameters
    ----------
    folder : path
        A folder of results, as given to :class:`~nbhelpers.collection.results.Results`.

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
    numbers, planted = load_results(folder), planted_accuracies(folder)
    rows = [_row(claim, numbers, planted.get(claim.number)) for claim in paper.CLAIMS]
    return pd.DataFrame(rows, columns=COLUMNS)


def criteria(folder):
    """Return every criterion that was measured, with its claimed range and where its interval lies.

    Parameters
    ----------
    folder : path
        As in :func:`scorecard`.

    Returns
    -------
    pandas.DataFrame
        Columns claim, criterion, statistic, least and most (the claimed range), printed_low, printed_high,
        value, low, high, null, range ("inside", "outside", "open"), distance ("beyond", "within", "open").
    """
    numbers = load_results(folder).set_index("name")
    measured = [(claim, c) for claim in paper.CLAIMS for c in claim.criteria if c.name in numbers.index]
    return pd.DataFrame([_criterion_row(claim, c, _record(numbers.loc[c.name])) for claim, c in measured])


def planted_accuracies(folder):
    """Return how often each claim's rule told planted cases right, as notebook 03 recorded it.

    Parameters
    ----------
    folder : path
        As in :func:`scorecard`; it need not hold any results yet.

    Returns
    -------
    dict of str to float
        By the claim's number, such as "C5"; empty where 04_planted_truth was not run into the folder.

    Raises
    ------
    ValueError
        If a file of results is damaged.
    """
    try:
        numbers = load_results(folder)
    except FileNotFoundError:
        return {}
    known = numbers[numbers.name.str.startswith(PLANTED)]
    return dict(zip(known.name.str.removeprefix(PLANTED), known.value, strict=True))


def missing_notebooks(card):
    """Return the notebooks of the collection that would measure what a scorecard misses, in order."""
    homes = {claim.number: claim.notebook for claim in paper.CLAIMS}
    missing = {homes[number] for number in card.claim[card.verdict == "not measured"]}
    return sorted(missing & {path.stem for path in list_notebooks()})


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


def _row(claim, numbers, planted_accuracy):
    known = numbers[numbers.name.isin([criterion.name for criterion in claim.criteria])]
    records = {row.name: _record(row) for row in known.itertuples(index=False)}
    verdict, why = judge(claim, records, planted_accuracy=planted_accuracy)
    found = [c for c in claim.criteria if c.name in records]
    if verdict == "not measured" and claim.notebook not in {path.stem for path in list_notebooks()}:
        why = f"{claim.notebook} is not part of the collection yet"
    return {
        "claim": claim.number,
        "title": claim.title,
        "the paper": "; ".join(_claimed(c) for c in claim.criteria) or claim.statement,
        "ours": "; ".join(f"{_short(c)} {_interval(records[c.name])}" for c in found),
        "null": "; ".join(f"{_short(c)} {_number(records[c.name].null)}" for c in found if c.null),
        "verdict": verdict,
        "why": why,
    }


def _criterion_row(claim, criterion, record):
    printed = paper.printed_range(criterion) or (None, None)
    return {
        "claim": claim.number,
        "criterion": _short(criterion),
        "statistic": criterion.statistic,
        "least": criterion.claimed[0],
        "most": criterion.claimed[1],
        "printed_low": printed[0],
        "printed_high": printed[1],
        "value": record.value,
        "low": record.low,
        "high": record.high,
        "null": record.null,
        "range": criterion.place(record),
        "distance": criterion.distance(record) if criterion.null else "",
    }


def _record(row):
    low, high = (row.value if math.isnan(end) else end for end in (row.low, row.high))
    return Estimate(row.value, low, high, None if math.isnan(row.null) else row.null)


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
