"""Say which recorded numbers and tables of two runs of the collection differ, to the last digit.

    python tests/compare_results.py OLD NEW [--renamed OLD=NEW ...] [--rtol 1e-12]

OLD and NEW are output folders of ``python -m nbhelpers run``. Notebooks are matched by their names without
the number, so a collection in another order can be compared. Seconds and memory differ between any two runs
and are left out. The status is 1 if anything differs.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

MEASURED_TIME = re.compile(r"second|_ms\b|time|speed|memory|_mb\b|MB|peak|ratio_to_forward", re.IGNORECASE)


def differences(old, new, *, renamed=(), rtol=0.0):
    """Yield a line for every recorded number, table and provenance entry in which two runs differ."""
    old, new = _documents(old), _documents(new)
    for notebook in sorted(old.keys() ^ new.keys()):
        yield f"{notebook}: only in the {'old' if notebook in old else 'new'} run"
    for notebook in sorted(old.keys() & new.keys()):
        (before, old_tables), (after, new_tables) = old[notebook], new[notebook]
        yield from _numbers(notebook, _rename(before["numbers"], renamed), after["numbers"], rtol)
        old_tables = _rename(old_tables, renamed)
        for name in sorted(old_tables.keys() ^ new_tables.keys()):
            yield f"{notebook}: table {name} only in the {'old' if name in old_tables else 'new'} run"
        for name in sorted(old_tables.keys() & new_tables.keys()):
            tables = pd.read_parquet(old_tables[name]), pd.read_parquet(new_tables[name])
            yield from _table(f"{notebook}: table {name}", *tables, renamed, rtol)


def _documents(folder):
    """Return {notebook without its number: (results, {table: path})} of a run."""
    folder = Path(folder) / "results" if (Path(folder) / "results").is_dir() else Path(folder)
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no results (*.json)")
    read = {}
    for file in files:
        tables = {path.stem: path for path in (folder / file.stem).glob("*.parquet")}
        read[file.stem.split("_", 1)[-1]] = (json.loads(file.read_text(encoding="utf-8")), tables)
    return read


def _rename(entries, renamed):
    for before, after in renamed:
        entries = {re.sub(before, after, name): entry for name, entry in entries.items()}
    return entries


def _numbers(notebook, before, after, rtol):
    for name in sorted(before.keys() ^ after.keys()):
        yield f"{notebook}: {name} only in the {'old' if name in before else 'new'} run"
    for name in sorted(before.keys() & after.keys()):
        if not MEASURED_TIME.search(f"{name} {before[name]['unit']}"):
            for field in ("value", "low", "high", "null"):
                pair = before[name][field], after[name][field]
                if not _same(*(np.array(x, dtype=float) for x in pair), rtol):
                    yield f"{notebook}: {name}.{field} {pair[0]!r} -> {pair[1]!r}"


def _table(what, before, after, renamed, rtol):
    before = before.rename(columns=lambda column: next(iter(_rename({column: 0}, renamed))))
    if list(before.columns) != list(after.columns) or len(before) != len(after):
        yield f"{what}: {len(before)} rows of {list(before)} -> {len(after)} rows of {list(after)}"
        return
    for column in before:
        if MEASURED_TIME.search(column):
            continue
        pair = before[column], after[column]
        if all(pd.api.types.is_numeric_dtype(x) for x in pair):
            arrays = [x.to_numpy(dtype=float) for x in pair]
            if not _same(*arrays, rtol):
                yield f"{what}: {column} differs by up to {np.nanmax(np.abs(arrays[0] - arrays[1])):.3g}"
        elif not pair[0].astype(str).equals(pair[1].astype(str)):
            rows = np.flatnonzero((pair[0].astype(str) != pair[1].astype(str)).to_numpy())
            first = [x.astype(str).iloc[rows[0]] for x in pair]
            yield f"{what}: {column} differs in {len(rows)} rows, first {first[0]!r} -> {first[1]!r}"


def _same(x, y, rtol):
    return np.allclose(x, y, rtol=rtol, atol=0, equal_nan=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--renamed", action="append", default=[], metavar="OLD=NEW", help="regex")
    parser.add_argument("--rtol", type=float, default=0.0, help="relative difference that counts as none")
    options = parser.parse_args(arguments)
    renamed = [pair.split("=", 1) for pair in options.renamed]
    found = list(differences(options.old, options.new, renamed=renamed, rtol=options.rtol))
    print("\n".join(found) or "no difference")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
