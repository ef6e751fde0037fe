"""The results store: named numbers and tables a notebook measured, written as they come.

A folder of results holds, per notebook, ``NOTEBOOK.json`` (numbers and provenance) and
``NOTEBOOK/TABLE.parquet``. The files carry no time stamp: the same seed gives the same bytes.
"""

import html
import json
import math
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import pandas as pd

from nbhelpers.arguments import RULES, plain, real
from nbhelpers.files import reading, write_parquet, write_text
from nbhelpers.stats import Estimate

ENDS = ("low", "high", "null", "null_low", "null_high", "gap_low", "gap_high", "n")  # of an Estimate
PARTS = ("notebook", "numbers", "tables", "provenance")  # of a file of results
COLUMNS = ("notebook", "name", "value", *ENDS, "unit", "note")
REFERENCE = resources.files("nbhelpers.data") / "scorecard" / "found.csv"


class Results:
    """What one run of a notebook, such as "07_frequency_bands", measured; in a folder that all share.

    Creating it empties what an earlier run of the same notebook left in the folder.
    """

    def __init__(self, notebook, folder):
        self.notebook = _file_name(notebook, "notebook")
        self.folder = Path(RULES["folder"]("folder", folder))
        self._numbers, self._tables, self._facts = {}, {}, {}  # entries by name
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in (self.folder / notebook).glob("*.parquet"):
            stale.unlink()
        self._write()

    def record(self, name, estimate, *, null=None, unit="", note=""):
        """Record a number, with its interval and null if it is an estimate, and write it to disk at once.

        Numbers must be finite; numpy and torch scalars are taken too. The name is unique within the notebook;
        `null`, what attention that learned nothing gives, stands in for the estimate's own.
        """
        self.record_all({name: estimate}, nulls={name: null}, unit=unit, note=note)

    def record_all(self, estimates, *, nulls=None, unit="", note=""):
        """Record several numbers by name, beside their nulls of the same names, as :meth:`record` does."""
        for name, estimate in estimates.items():
            self._numbers[name] = self._entry(name, estimate, (nulls or {}).get(name), unit, note)
        self._write()

    def _entry(self, name, estimate, null, unit, note):
        for label, text in (("name", name), ("unit", unit), ("note", note)):
            RULES["label"](label, text)
        if name in self._numbers:
            raise ValueError(f"{name!r} is already recorded; choose another name, or make Results anew")
        given = estimate if isinstance(estimate, Estimate) else Estimate(estimate)
        given = given if null is None else given.against(null)
        entry = {end: getattr(given, end) for end in ENDS}
        for pair in (("low", "high"), ("null_low", "null_high"), ("gap_low", "gap_high")):
            if all(math.isnan(entry[end]) for end in pair):
                entry |= dict.fromkeys(pair)
        entry = {end: n if n is None else _number(f"{name}: {end}", n) for end, n in entry.items()}
        if given.low > given.high:
            raise ValueError(f"{name}: low {entry['low']} is above high {entry['high']}")
        return entry | {"value": _number(f"{name}: value", given.value), "unit": unit, "note": note}

    def tables(self, **frames):
        """Store several tables by name, as :meth:`table` does."""
        for name, frame in frames.items():
            self.table(name, frame)

    def table(self, name, frame):
        """Store a table as Parquet; an index other than 0, 1, 2, … becomes columns."""
        _file_name(name, "table")
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(f"table {name}: expected a pandas DataFrame, got {type(frame).__name__}")
        if name in self._tables:
            raise ValueError(f"table {name!r} is already stored by {self.notebook}; choose another name")
        plain = frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()
        if odd := [column for column in plain.columns if not isinstance(column, str)]:
            raise TypeError(f"table {name}: column names must be strings, got {odd[:5]}")
        write_parquet(plain, self.folder / self.notebook / f"{name}.parquet")
        self._tables[name] = {"rows": len(plain), "columns": list(plain.columns)}
        self._write()

    def provenance(self, **facts):
        """Add facts about where the numbers come from (model, corpus, seed); the last of a name stays.

        Facts are strings, finite numbers, booleans, None, and lists or mappings of these.
        """
        self._facts |= {name: _plain_fact(name, fact) for name, fact in facts.items()}
        self._write()

    @property
    def frame(self):
        """The numbers recorded so far, columns as `load_results` gives them."""
        return _as_frame([{"notebook": self.notebook, "numbers": self._numbers}])

    def _repr_html_(self):
        shown = self.frame.drop(columns=["notebook", "gap_low", "gap_high"])
        table = shown.to_html(index=False, border=0, float_format="{:.4g}".format, na_rep="")
        told = f"{len(shown)} numbers recorded by <code>{html.escape(self.notebook)}</code>"
        other = html.escape(differences(self.notebook, self.frame))
        return f"<details><summary>{told}</summary>{table}</details>" + (f"<p>{other}</p>" if other else "")

    def _write(self):
        document = dict(zip(PARTS, (self.notebook, self._numbers, self._tables, self._facts), strict=True))
        text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
        write_text(self.folder / f"{self.notebook}.json", text + "\n")


def load_results(folder):
    """Return every recorded number of a folder, one row each, sorted by notebook and name.

    The folder is that given to `Results`, or a run's output folder that holds it as ``results/``. Columns are
    :data:`COLUMNS`: gap_low and gap_high are the interval of value less null where it was taken over pairs,
    n counts the units of the interval.
    """
    return _as_frame(_load_documents(folder))


def estimate_of(row):
    """Return the Estimate in a row of :func:`load_results`, as it was recorded."""
    found = Estimate(row.value, **{end: getattr(row, end) for end in ENDS})
    return found._replace(**{end: None for end in ("null", "n") if math.isnan(getattr(row, end))})


def load_provenance(folder):
    """Return the recorded facts of a folder, keyed by notebook."""
    return {document["notebook"]: document["provenance"] for document in _load_documents(folder)}


def reference():
    """Return the numbers of the reference run that texts cite, by (number of the notebook, name)."""
    frame = pd.read_csv(str(REFERENCE))
    return frame.set_index([frame.notebook.str[:2], "name"])


def differences(notebook, numbers):
    """Return in a sentence which cited numbers came out otherwise in a run; "" if none did.

    `numbers` has the columns name, value, low and high. A number agrees if its interval holds that of the
    reference run, or, without an interval, if the two differ by at most a tenth.
    """
    known, told = reference().value, []
    for row in numbers.itertuples():
        was = known.get((notebook[:2], row.name), row.value)
        room = abs(was) / 10
        low, high = (row.low, row.high) if row.low < row.high else (row.value - room, row.value + room)
        told += [f"{row.name} is {row.value:.3g}, not {was:.3g}"] * (not low <= was <= high)
    return f"Other than in Found, which is of SmolLM2-135M: {'; '.join(told)}." if told else ""


def _load_documents(folder):
    folder = Path(folder)
    folder = folder / "results" if (folder / "results").is_dir() else folder
    if not (files := sorted(folder.glob("*.json"))):
        raise FileNotFoundError(f"{folder} holds no results (*.json); run the notebooks that record them")
    for file in files:
        with reading(file, "; delete it and run its notebook again"):
            document = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
            yield {part: document[part] for part in PARTS}


def _refuse_constant(token):
    raise ValueError(f"{token} is not strict JSON")


def _as_frame(documents):
    rows = [{"notebook": d["notebook"], "name": k} | n for d in documents for k, n in d["numbers"].items()]
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(["notebook", "name"], ignore_index=True)
    return frame.astype(dict.fromkeys(("value", *ENDS), float))


def _number(label, value):
    real()(label, value)  # finite; zero-dimensional arrays and tensors are taken too
    return plain(value)


def _file_name(name, label):
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ValueError(f"{label} name {name!r} cannot be a file name; use letters, digits, _, - and .")
    return name


def _plain_fact(name, fact):
    if fact is None or isinstance(fact, (str, bool)):
        return fact
    if isinstance(fact, Path):
        return str(fact)
    if isinstance(fact, Mapping):
        return {str(key): _plain_fact(f"{name}.{key}", value) for key, value in fact.items()}
    if isinstance(fact, (list, tuple)):
        return [_plain_fact(f"{name}[{place}]", value) for place, value in enumerate(fact)]
    return _number(f"provenance {name}", fact)
