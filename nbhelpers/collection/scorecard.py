"""The rules of the claims before they are applied, and the verdicts after: for one notebook, for all claims.

The scorecard reads the results store alone; the tables of a notebook take what it measured itself.
"""

import hashlib
import math
import shutil
import subprocess
from pathlib import Path

import pandas as pd

from nbhelpers import stats
from nbhelpers.claims import paper
from nbhelpers.claims.verdicts import Planted, judge

from .plan import list_notebooks
from .results import estimate_of, load_results

PLANTED = {name: f"planted_{name}_" for name in Planted._fields}  # + rule, as 04_planted_truth records them
COLUMNS = ("claim", "title", "the paper", "ours", "null", "verdict", "why")
CRITERION_COLUMNS = (
    "claim", "criterion", "statistic", "least", "most", "printed_low", "printed_high",
    "value", "low", "high", "null", "range", "distance", "p", "adjusted_p",
)  # fmt: skip
SIDE = {-1: "below", 0: "away from", 1: "above"}
DISTANCE = {"beyond": "beyond its null", "within": "not beyond its null", "open": "perhaps beyond its null"}


def scorecard(folder):
    """Judge every claim by what the notebooks recorded in a folder of results, one row per claim.

    The columns are claim, title, the paper (the range claimed and the values printed), ours (value and
    interval), null, verdict, why. A claim without its measurements says which notebook makes them.
    """
    numbers, planted = load_results(folder), planted_rates(folder)
    return pd.DataFrame([_row(c, numbers, planted.get(c.number)) for c in paper.CLAIMS], columns=COLUMNS)


def scorecard_markdown(card):
    """Return a scorecard as a table in Markdown: claim, ours, the null's, and the verdict with its reason."""
    lines = ["| claim | ours [95 % interval] | its null | verdict |", "|---|---|---|---|"]
    for row in card.itertuples():
        verdict = f"**{row.verdict}**: {row.why.rstrip('.')}"
        cells = f"{row.claim} {row.title}", row.ours or "not measured", row.null or "not measured", verdict
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def criteria(folder):
    """Return every criterion that was measured, with its claimed range and where its interval lies.

    Least and most are the claimed range; `range` is "inside", "outside" or "open", `distance` "beyond",
    "within" or "open". `p` is `Criterion.p_value`, adjusted with all others as one family (Benjamini and
    Hochberg); NaN without an interval of known units.
    """
    numbers = load_results(folder).set_index("name")
    measured = [(claim, c) for claim in paper.CLAIMS for c in claim.criteria if c.name in numbers.index]
    rows = []
    for claim, c in measured:
        estimate, printed = _estimate(numbers.loc[c.name]), paper.printed_range(c) or (None, None)
        found = *estimate[:4], c.place(estimate), c.distance(estimate) if c.nulls else ""
        found = *found, c.p_value(estimate), math.nan
        rows.append((claim.number, _short(c), c.statistic, *c.claimed, *printed, *found))
    frame = pd.DataFrame(rows, columns=CRITERION_COLUMNS)
    if (known := frame.p.notna()).any():
        frame.loc[known, "adjusted_p"] = stats.false_discovery(frame.p[known].to_numpy())
    return frame


def multiplicity(criteria):
    """Return in a sentence what it changes that all criteria of a card are tested as one family."""
    tested = criteria[criteria.p.notna()]
    alone, together = (tested[tested[column] < 0.05] for column in ("p", "adjusted_p"))
    lost = [f"{row.claim} {row.criterion}" for row in alone.drop(together.index).itertuples()]
    return (
        f"Of {len(tested)} criteria {len(alone)} are decided at 5 % each on its own, {len(together)} as one "
        f"family (Benjamini and Hochberg); what that leaves open: {', '.join(lost) or 'none'}."
    )


def planted_rates(folder):
    """Return how often each rule was right about planted cases: Planted by number of claim ("C5").

    The rule of a claim's second criteria is "C5_second". Empty where 04_planted_truth was not run into the
    folder, which need not hold any results yet.
    """
    try:
        numbers = load_results(folder).set_index("name")
    except FileNotFoundError:
        return {}
    first = PLANTED["sensitivity"]
    rules = [name.removeprefix(first) for name in numbers.index if name.startswith(first)]
    return {rule: Planted(*(_estimate(numbers.loc[of + rule]) for of in PLANTED.values())) for rule in rules}


def missing_notebooks(card):
    """Return the notebooks of the collection that would measure what a scorecard misses, in order."""
    homes = {claim.number: claim.notebook for claim in paper.CLAIMS}
    missing = {homes[number] for number in card.claim[card.verdict == "not measured"]}
    return sorted(missing & {path.stem for path in list_notebooks()})


def rules_version():
    """Return what identifies the verdict rules: a hash of the source of claims, verdicts and statistics.

    In a git checkout also the last commit that changed them.
    """
    files = [*sorted(Path(paper.__file__).parent.glob("*.py")), Path(stats.__file__)]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    commit = _last_commit(files)
    return f"rules {digest}, " + (f"commit {commit}" if commit else "not a git checkout")


# Tables of one notebook


def rule_table(claims):
    """Return one row per criterion of some claims: what must be true of which statistic."""
    rows = []
    for claim in claims:
        for c in claim.criteria:
            null = f"{SIDE[c.away]} {c.null} by {c.margin:g}" if c.nulls else "–"
            rows.append((claim.number, c.statistic, told_range(*c.claimed), null))
    return pd.DataFrame(rows, columns=["claim", "statistic", "the claim puts it", "and"])


def verdict_table(claim, records):
    """Return one row per criterion: what the paper prints, what was measured, what the null says.

    `records` are estimates by name of criterion; one that is missing is shown as not measured.
    """
    rows = []
    for c in claim.criteria:
        printed = paper.printed_range(c)
        prints = "–" if printed is None else f"{printed[0]:.3g} to {printed[1]:.3g} (Table {c.printed[0]})"
        row = {"statistic": c.statistic, "the paper says": f"{told_range(*c.claimed)}; prints {prints}"}
        row |= {"we measure": "not measured", "null says": "–", "so it is": "–"}
        if estimate := records.get(c.name):
            row |= {"we measure": f"{estimate:.3f}", "so it is": so_it_is(c, estimate)}
            row["null says"] = "–" if estimate.null is None else f"{estimate.null:.3f}"
        rows.append(row)
    return pd.DataFrame(rows)


def verdict_line(claim, records, folder):
    """Return the verdict of a claim and what decided it, as a line of Markdown.

    The folder of results says whether the rule was right about planted cases.
    """
    verdict = judge(claim, records, planted=planted_rates(folder).get(claim.number))
    return f"**{claim.number}, {claim.title}: {verdict.verdict}.** {verdict.reason}."


def so_it_is(criterion, estimate):
    """Return in words where an estimate lies, seen from the claimed range and from the null."""
    so = f"{criterion.place(estimate)} the claimed range"
    return f"{so}, {DISTANCE[criterion.distance(estimate)]}" if criterion.nulls else so


def told_range(low, high):
    """Return a range in words; an end may be infinite."""
    if math.isinf(low):
        return f"at most {high:.3g}"
    return f"at least {low:.3g}" if math.isinf(high) else f"{low:.3g} to {high:.3g}"


def wrapped(frame):
    """Return a table without its index whose long cells wrap."""
    return frame.style.hide(axis="index").set_properties(**{"text-align": "left", "white-space": "normal"})


def _row(claim, numbers, planted):
    known = numbers[numbers.name.isin([criterion.name for criterion in claim.criteria])]
    records = {row.name: _estimate(row) for row in known.itertuples(index=False)}
    verdict, why = judge(claim, records, planted=planted)
    found = [c for c in claim.criteria if c.name in records]
    told = {name: "not measured" if e.null is None else f"{e.null:.3g}" for name, e in records.items()}
    if verdict == "not measured" and claim.notebook not in {path.stem for path in list_notebooks()}:
        why = f"{claim.notebook} will measure it; {claim.untested}"
    return {
        "claim": claim.number,
        "title": claim.title,
        "the paper": "; ".join(_claimed(c) for c in claim.criteria) or claim.statement,
        "ours": "; ".join(f"{_short(c)} {records[c.name]:.3g}" for c in found),
        "null": "; ".join(f"{_short(c)} {told[c.name] if c.nulls else 'has none'}" for c in found),
        "verdict": verdict,
        "why": why,
    }


def _estimate(row):
    known, value = estimate_of(row), row.value
    return known if math.isfinite(known.low) else known._replace(low=value, high=value)


def _short(criterion):
    return criterion.name.partition("_")[2].replace("_", " ")


def _claimed(criterion):
    told = f"{_short(criterion)} {told_range(*criterion.claimed)}"
    printed = paper.printed_range(criterion)
    if printed is None:
        return told
    return f"{told} (printed {printed[0]:.3g} to {printed[1]:.3g}, Table {criterion.printed[0]})"


def _last_commit(files):
    if shutil.which("git") is None:
        return None
    asked = ["git", "log", "-1", "--format=%h of %cs", "--", *map(str, files)]
    answer = subprocess.run(asked, cwd=files[0].parent, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
