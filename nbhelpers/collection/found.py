"""The numbers in the texts of the collection, each followed by ``<!--name of a record-->``, and their source.

``<!--name:null-->`` (or low, high) names another part of a record, ``<!--07/name-->`` a record of another
notebook; the name of a parameter stands for its value. All are those of one reference run.
"""

import re
from importlib import resources

import nbformat
import pandas as pd

MARKED = re.compile(r"([−+-]?[\d,]*\.?\d+(?:e[−+-]?\d+)?)( %)?<!--(?:(\d\d)/)?(.+?)(?::(null|low|high))?-->")
REFERENCE = resources.files("nbhelpers.data") / "scorecard" / "found.csv"
COLUMNS = ["notebook", "name", "value", "low", "high", "null"]


def cited(text, notebook=""):
    """Yield number, half of its last digit, notebook ("07"), record and part for each marked number."""
    for digits, percent, other, name, part in MARKED.findall(text):
        plain, scale = digits.replace("−", "-").replace(",", ""), 100 if percent else 1
        mantissa, _, power = plain.partition("e")
        half = 0.5 * 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
        yield float(plain) / scale, half / scale, other or notebook[:2], name, part or "value"


def found_text(path):
    """Return the cell of a notebook that begins with Found; "" if it has none."""
    cells = nbformat.read(path, as_version=4).cells
    return next((cell.source for cell in cells if cell.source.startswith("**Found**")), "")


def reference():
    """Return the numbers of the reference run that the texts cite, by (number of the notebook, name)."""
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
