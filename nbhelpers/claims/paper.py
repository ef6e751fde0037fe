"""The paper (Ruscio et al., arXiv:2410.18067) as data: its printed numbers, its claims, their rules."""

from importlib import resources
from pathlib import Path

import pandas as pd
import yaml

from nbhelpers.arguments import checked, one_of

from .verdicts import Claim, Criterion

VERSION = "version 4 of 4 June 2025"  # from which every table was typed
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of libyaml, ten times as fast, where it is there
PRINTED = Path(str(resources.files("nbhelpers.data"))) / "paper"
RULES = PRINTED / "claims.yaml"
TABLES = {int(file.name[5]): file.name for file in sorted(PRINTED.glob("table*.csv"))}


@checked(number=one_of(*TABLES))
def paper_table(number):
    """Return a table of the paper as :data:`VERSION` prints it, a row per model (table 5: per checkpoint).

    1 scale sensitivity, correlation and reconstruction error; 2 window entropy; 3 spectral entropy and
    selectivity over heads; 4 position encodings; 5 checkpoints; 6 sizes; 7 wavelet entropy.
    """
    return pd.read_csv(PRINTED / TABLES[number])


def captioned(frame, *tables):
    """Return a table to show whose caption says which tables of the paper are in it, and of which version."""
    listed = ", ".join(f"Table {number}" for number in tables)
    return frame.style.format(precision=3, na_rep="–").set_caption(f"{listed} of the paper, {VERSION}")


def _claims():
    loaded = yaml.load(RULES.read_text(encoding="utf-8"), Loader=LOADER)
    plain = {list: tuple, dict: lambda readings: tuple(readings.items())}  # of what YAML holds
    for claim in loaded:
        for kind in ("criteria", "second"):
            rules = claim.get(kind, ())
            rules = [{name: plain.get(type(v), lambda v: v)(v) for name, v in r.items()} for r in rules]
            claim[kind] = tuple(Criterion(**rule) for rule in rules)
    return tuple(Claim(**claim) for claim in loaded)


CLAIMS = _claims()


def rule_changes():
    """Return what was changed in the rules, oldest first: date, rule, before, after, why, digest after it."""
    return pd.read_csv(PRINTED / "rule_changes.csv", dtype=str)


def claim(number):
    """Return the claim of a number such as "C5"; a LookupError lists those there are."""
    if number not in (known := {claim.number: claim for claim in CLAIMS}):
        listed = ", ".join(f"{claim.number} {claim.title}" for claim in CLAIMS)
        raise LookupError(f"no claim is called {number!r}; there are {listed}")
    return known[number]


def printed_range(criterion):
    """Return the least and largest value that the paper prints for a criterion, or None."""
    if criterion.printed is None:
        return None
    number, column = criterion.printed
    values = paper_table(number)[column]
    return float(values.min()), float(values.max())
