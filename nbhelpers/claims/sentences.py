"""What was measured, in sentences: the number with its interval, what the claim allows, what the null gives.

The words stand beside each criterion (`Criterion.sentence`), the numbers are those of its record.
"""

import math
import re

UNITS = {"": (1, ""), "%": (100, " %"), "points": (100, " percentage points"), "nats": (1, " nats")}
ONCE = ("points", "nats")  # long units, told with the first number alone
NATURAL = (-math.inf, -1, 0), (1, math.inf)  # ends of a range that no share or correlation can pass
TINY = 1e-4  # smaller numbers are told with a power of ten
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
UNLEARNED = "attention that learned nothing"


def sentence(criterion, estimate):
    """Return what was measured of a criterion, without a full stop, in places that its interval can tell."""
    template, unit = _template(criterion)
    null = math.nan if estimate.null is None else estimate.null
    told, word = _figures((*estimate[:3], null, estimate.null_low, estimate.null_high), unit)
    seen = re.sub(r"\{.*?\}", told[0] + word, template) + _interval(told[1:3])
    parts = [seen[0].upper() + seen[1:], claimed(criterion.claimed, unit)]
    if not math.isnan(null):
        parts.append(f"{_held_against(criterion)} {told[3]}{word * (unit not in ONCE)}{_interval(told[4:])}")
    return "; ".join(part for part in parts if part)


def claimed(claimed_range, unit=""):
    """Return the range in which a claim puts its number, in words; empty if it cannot lie outside."""
    (least, most), (below, above) = claimed_range, NATURAL
    ends = [_end(end, unit) for end in claimed_range]
    if least in below:
        return "" if most in above else f"the claim allows at most {ends[1]}"
    if most in above:
        return f"the claim asks for at least {ends[0]}"
    return f"the claim says {ends[0].removesuffix(UNITS[unit][1])} to {ends[1]}"


def _held_against(criterion):
    """Return the beginning of what the null gives, to be followed by its number."""
    known = [null for null in criterion.nulls if re.fullmatch(r"N\d", null)]
    others = [null for null in criterion.nulls if null not in known]
    unlearned = bool(known) or not others
    return " or ".join([UNLEARNED] * unlearned + others) + (" gives" if unlearned else ":")


def _figures(numbers, unit):
    """Return a value, its interval and others as text of equal places, and the unit; empty for NaN."""
    scale, word = UNITS[unit]
    value, low, high = (scale * number for number in numbers[:3])
    if 0 < abs(value) < TINY:
        exponent = math.floor(math.log10(abs(value)))
        scale, word = 10.0**-exponent, f"·10{str(exponent).translate(SUPERSCRIPTS)}"
        value, low, high = (scale * number for number in numbers[:3])
    width = high - low if high > low else abs(value) / 10
    places = min(max(-math.floor(math.log10(width / (1 if scale == 100 else 3))), 0), 4) if width else 0
    rounded = [round(scale * n, places) + 0.0 if math.isfinite(n) else None for n in numbers]  # no −0
    signs = ["+" if unit == "points" and n else "" for n in rounded]
    told = ["" if n is None else f"{n:{sign}.{places}f}" for n, sign in zip(rounded, signs, strict=True)]
    return [text.replace("-", "−") for text in told], word


def _interval(ends):
    return f" [{', '.join(ends)}]" if ends[0] != ends[1] else ""


def _end(number, unit):
    scale, word = UNITS[unit][0], "" if unit in ONCE else UNITS[unit][1]
    if 0 < abs(number) < TINY:
        mantissa, exponent = f"{number:e}".split("e")
        power = f"10{str(int(exponent)).translate(SUPERSCRIPTS)}"
        return power if float(mantissa) == 1 else f"{float(mantissa):g}·{power}"
    return f"{round(scale * number, 0 if scale == 100 else 2):g}{word}".replace("-", "−")


def _template(criterion):
    words = criterion.sentence or f"the {criterion.statistic.partition(' (')[0]} is {{}}"
    return words, re.search(r"\{(.*?)\}", words).group(1)


def number(criterion, value):
    """Return another value of a criterion's number, with its unit."""
    told, word = _figures((value, value, value), _template(criterion)[1])
    return told[0] + word
