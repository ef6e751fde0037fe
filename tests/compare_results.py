"""Say which recorded numbers and tables of two runs of the collection differ, to the last digit.

    python tests/compare_results.py OLD NEW [--rtol 1e-12]

OLD and NEW are output folders of ``python -m nbhelpers run``. Seconds and memory differ between any two runs
and are left out. The status is 1 if anything differs.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import pandas as pd

MEASURED_TIME = re.compile(r"second|_ms\b|time|speed|memory|_mb\b|MB|peak|ratio_to_forward", re.IGNORECASE)


def recorded(folder):
    """Return what a run recorded by name: each number with its interval and null, each column of a table."""
    folder, found = Path(folder) / "results" if (Path(folder) / "results").is_dir() else Path(folder), {}
    if not (files := sorted(folder.glob("*.json"))):
        raise FileNotFoundError(f"{folder} holds no results (*.json)")
    for file in files:
        for name, entry in json.loads(file.read_text(encoding="utf-8"))["numbers"].items():
            ends = pd.Series([entry[end] for end in ("value", "low", "high", "null")], dtype=float)
            found |= {f"{file.stem}: {name}": ends} if not MEASURED_TIME.search(name + entry["unit"]) else {}
        for table in (folder / file.stem).glob("*.parquet"):
            columns = pd.read_parquet(table).items()
            own = {f"{file.stem}: table {table.stem}: {column}": values for column, values in columns}
            found |= {name: values for name, values in own.items() if not MEASURED_TIME.search(values.name)}
    return found


def differences(old, new, *, rtol=0.0):
    """Yield a line for every recorded number and column of a table in which two runs differ."""
    old, new = recorded(old), recorded(new)
    for name in sorted(old.keys() ^ new.keys()):
        yield f"{name} only in the {'old' if name in old else 'new'} run"
    for name in sorted(old.keys() & new.keys()):
        try:
            options = {"check_dtype": False, "check_names": False, "rtol": rtol, "atol": 0}
            pd.testing.assert_series_equal(old[name], new[name], **options)
        except AssertionError as error:
            yield f"{name}: {' '.join(str(error).split())}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--rtol", type=float, default=0.0, help="relative difference that counts as none")
    found = list(differences(**vars(parser.parse_args(arguments))))
    print("\n".join(found) or "no difference")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
