"""A claim's rule before it is applied, and its verdict after, as the tables a notebook shows."""

import math

import pandas as pd

from nbhelpers.claims.paper import printed_range
from nbhelpers.claims.verdicts import judge

SIDE = {-1: "below", 0: "away from", 1: "above"}
DISTANCE = {"beyond": "beyond its null", "within": "not beyond its null", "open": "perhaps beyond its null"}


def rule_table(claims):
    """Return one row per criterion of some claims: what must be true of which statistic.

    Parameters
    ----------
    claims : sequence of nbhelpers.claims.verdicts.Claim

    Returns
    -------
    pandas.DataFrame
    """
    rows = []
    for claim in claims:
        for c in claim.criteria:
            null = f"{SIDE[c.away]} {c.null} by {c.margin:g}" if c.null else "–"
            rows.append((claim.number, c.statistic, told_range(*c.claimed), null))
    return pd.DataFrame(rows, columns=["claim", "statistic", "the claim puts it", "and"])


def verdict_table(claim, records):
    """Return one row per criterion: what the paper prints, what was measured, what the null says.

    Parameters
    ----------
    claim : nbhelpers.claims.verdicts.Claim
    records : mapping of str to nbhelpers.stats.Estimate
        By name of criterion; one that is missing is shown as not measured.

    Returns
    -------
    pandas.DataFrame
    """
    rows = []
    for c in claim.criteria:
        printed = printed_range(c)
        prints = "–" if printed is None else f"{printed[0]:.3g} to {printed[1]:.3g} (Table {c.printed[0]})"
        row = {"statistic": c.statistic, "the paper says": f"{told_range(*c.claimed)}; prints {prints}"}
        record = records.get(c.name)
        if record is None:
            rows.append(row | {"we measure": "not measured", "null says": "–", "so it is": "–"})
            continue
        row["we measure"] = f"{record.value:.3f} [{record.low:.3f}, {record.high:.3f}]"
        row["null says"] = "–" if record.null is None else f"{record.null:.3f}"
        row["so it is"] = f"{c.place(record)} the claimed range" + (
            f", {DISTANCE[c.distance(record)]}" if c.null else ""
        )
        rows.append(row)
    return pd.DataFrame(rows)


def verdict_line(claim, records, *, planted_accuracy=None):
    """Return the verdict of a claim and what decided it, as a line of Markdown."""
    verdict = judge(claim, records, planted_accuracy=planted_accuracy)
    return f"**{claim.number}, {claim.title}: {verdict.verdict}.** {verdict.reason}."


def told_range(low, high):
    """Return a range in words; an end may be infinite."""
    if math.isinf(low):
        return f"at most {high:g}"
    return f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


def wrapped(frame):
    """Return a table without its index whose long cells wrap."""
    return frame.style.hide(axis="index").set_properties(**{"text-align": "left", "white-space": "normal"})
