"""Numbers in words, as progress lines and plans show them; warnings."""

import sys
import warnings


def duration(seconds):
    """Return a time span in words: "12 s", "3 min 20 s", "1.5 h"; "?" for NaN."""
    if seconds != seconds:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{seconds / 3600:.1f} h"


def listed(numbers):
    """Return ascending whole numbers in words: "0 to 5" where none is left out, else "1, 3, 5"."""
    if len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def first_names(names):
    """Return the first three of some names in words."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def memory(megabytes):
    """Return a memory size in words: "512 MB", "12 GB"; "?" for NaN."""
    if megabytes != megabytes:
        return "?"
    return f"{megabytes:.0f} MB" if megabytes < 10_000 else f"{megabytes / 1024:.0f} GB"


def warn(message):
    """Warn at the line outside this package that a call came from."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "nbhelpers":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
