"""How capture does on every type of transformers: the table that tests/families_walk.py measured."""

from pathlib import Path

import pandas as pd

TABLE = Path(__file__).parent.parent / "data/families.csv"  # below a line with the versions


def tested_families():
    """Return a row for each model type, task and attention stream; `attrs["versions"]` says of what.

    `verdict` is "exact" (`difference`: the largest from the model's own attention), "refused" (`said`: the
    sentence) or "cannot be built" (`said`: why, in the words of the model's own code).
    """
    table = pd.read_csv(TABLE, dtype=str, keep_default_na=False, skiprows=1)
    table.attrs["versions"] = TABLE.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    return table


def summary(table):
    """Return the counts of a table in a sentence."""
    n, largest = table["verdict"].value_counts(), pd.to_numeric(table["difference"]).max()
    return (
        f"{table['type'].nunique()} model types, {len(table)} attention streams: {n['exact']} exact (largest "
        f"difference {largest:.0e}), {n['refused']} refused in a sentence, {n['cannot be built']} whose tiny "
        f"model does not run ({table.attrs['versions']})."
    )
