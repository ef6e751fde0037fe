"""From recorded numbers to a verdict and its sentence, by rules that are data, fixed before the measurement.

A claim is split into criteria: one statistic each, the range in which the claim puts it, the nulls it must
differ from, and its sentence. :func:`judge` compares intervals with both and knows nothing of any claim.
"""

import dataclasses
import math
import re
from collections import namedtuple
from dataclasses import dataclass
from typing import NamedTuple

from nbhelpers.stats import Estimate

LEAST_RATE = 0.95  # of planted cases that a rule must tell right, where a claim holds and where it does not
SECOND = "_second"  # after the number of a claim: the same claim, held against a quantity that can carry it
NUMBERED = ("N0 uniform", "N1 random weights", "N2 permuted", "N3 iid softmax", "N4 exponential")
NULL_NAMES = {name[:2]: name for name in NUMBERED}  # of the null models that rules name by number
OUTCOMES = {  # the first that is true of a criterion decides about its claim
    "outside": "contradicted",
    "open range": "undecided",
    "within": "explained by the null",
    "open distance": "undecided",
    "beyond": "supported",
}
RATES = "where truth is planted, the rule finds {:.0%} of the cases and leaves {:.0%} of the others alone"
NEAREST = {1: "the largest of", 0: "the nearest of", -1: "the smallest of"}
UNITS = {"": (1, ""), "%": (100, " %"), "points": (100, " percentage points"), "nats": (1, " nats")}
ONCE = ("points", "nats")  # long units, told with the first number alone
NATURAL = (-math.inf, -1, 0), (1, math.inf)  # ends of a range that no share or correlation can pass
TINY = 1e-4  # smaller numbers are told with a power of ten
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
UNLEARNED = "attention that learned nothing"
Verdict = namedtuple("Verdict", ("verdict", "reason"))  # of `nbhelpers.plots.VERDICTS`, and what decided it


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One statistic of a claim and what must be true of it."""

    name: str  # under which notebooks record the statistic
    statistic: str  # what it is, in words, with its unit
    claimed: tuple[float, float]  # the range in which the claim puts it; an end may be infinite
    nulls: tuple[str, ...] = ()  # what it is held against: null models by number, others in words
    less: tuple[str, ...] = ()  # nulls; the statistic is a difference from the largest of them
    away: int = 0  # on which side of the null the claim lies: 1 above, −1 below, 0 either
    margin: float = 0.0  # how far from the null at least, in the unit of the statistic
    printed: tuple[int, str] | None = None  # table and column of the paper
    sentence: str = ""  # what was seen, with the unit of its number in braces
    readings: tuple[tuple[str, str], ...] = ()  # what else was read, in words, and its record

    @property
    def null(self):
        """What the statistic is held against, in words; empty without nulls."""
        names = ", ".join(NULL_NAMES.get(name, name) for name in self.nulls)
        return f"{NEAREST[self.away]} {names}" if len(self.nulls) > 1 else names

    def most_conservative(self, value, nulls):
        """Return the null nearest to the claim, (name, number): the largest if it lies above its null."""
        reach = {name: self.away * null if self.away else -abs(null - value) for name, null in nulls.items()}
        name = max(reach, key=reach.get)
        return name, nulls[name]

    def place(self, estimate):
        """Return whether the interval lies "inside" the claimed range, "outside" it, or is "open"."""
        least, most = self.claimed
        if least <= estimate.low and estimate.high <= most:
            return "inside"
        return "outside" if estimate.high < least or estimate.low > most else "open"

    def distance(self, estimate):
        """Return whether value less null, with its interval, is "beyond" the margin, "within" or "open"."""
        if not self.nulls:
            return "beyond"
        if estimate.null is None or math.isnan(estimate.null):
            return "open"
        low, high = estimate.gap[1:3]
        least, most = max(low, -high, 0.0), max(abs(low), abs(high))
        if self.away:
            least, most = sorted((self.away * low, self.away * high))
        return "beyond" if least >= self.margin else "within" if most < self.margin else "open"

    def p_value(self, estimate):
        """Return the p-value of the nearer end of the range or, if larger, of the margin; NaN without."""
        p_values = [estimate.p_at(end) for end in self.claimed if math.isfinite(end)]
        inside = self.claimed[0] <= estimate.value <= self.claimed[1]
        if inside and self.nulls and estimate.null is not None:
            sides = [self.away] if self.away else [-1, 1]
            p_values += [estimate.gap.p_at(side * self.margin) for side in sides]
        return max(p_values, default=math.nan)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says, and the rule that judges it: all of its criteria must hold."""

    number: str
    title: str
    statement: str
    notebook: str = ""  # that measures it
    criteria: tuple[Criterion, ...] = ()
    second: tuple[Criterion, ...] = ()  # the same claim, held against a quantity that can carry it
    demonstration: str = ""  # why the quantity of the criteria cannot carry the claim, in a sentence
    reach: str = ""  # why what is measured here is out of the claim's reach, in a sentence
    untested: str = ""  # what the criteria leave out; of a claim without any, why

    @property
    def other(self):
        """The claim with its second criteria in the place of the first; None without."""
        if not self.second:
            return None
        second = {"criteria": self.second, "second": (), "demonstration": "", "untested": ""}
        return dataclasses.replace(self, number=self.number + SECOND, **second)


class Planted(NamedTuple):
    """How often a rule is right about planted attention: Estimates with their Wilson intervals, n cases."""

    sensitivity: Estimate  # share of the cases where the claim holds that are judged "supported"
    specificity: Estimate  # share of the others that are not

    @property
    def usable(self):
        """Whether both intervals lie above :data:`LEAST_RATE`."""
        return min(rate.low for rate in self) >= LEAST_RATE


def judge(claim, records, *, planted=None):
    """Judge a claim by its criteria, from what was measured: `records`, an Estimate by name of criterion.

    *out of reach here*: the claim is about models of another kind. *not measured*: there are no criteria, or
    one has no record. *the quantity cannot tell*: the rule is not :attr:`Planted.usable`, or the claim says
    by what demonstration its quantity cannot carry it. *contradicted*: an interval lies outside the claimed
    range. *supported*: all lie inside and beyond their nulls. *explained by the null*: all lie inside, one or
    more within the margin of its null. *undecided*: else.
    """
    if claim.reach:
        return Verdict("out of reach here", claim.reach)
    if not claim.criteria or any(criterion.name not in records for criterion in claim.criteria):
        measured = f"Notebook {claim.notebook} measures it" if claim.criteria else "No notebook measures it"
        return Verdict("not measured", "; ".join(filter(None, [measured, claim.untested.rstrip(".")])))
    state, criterion = deciding(claim, records)
    estimate = records[criterion.name]
    verdict, reason = OUTCOMES[state], sentence(criterion, estimate)
    if claim.demonstration if planted is None else not planted.usable:
        verdict, why = "the quantity cannot tell", [claim.demonstration.rstrip(".")]
        if planted:
            why.append(RATES.format(*(rate.value for rate in planted)))
        reason += ". But " + "; ".join(filter(None, why))
    elif verdict == "undecided":
        reason += _spans(state, criterion, estimate)
    left_out = f". Not tested: {claim.untested.rstrip('.')}" if claim.untested else ""
    return Verdict(verdict, reason + left_out)


def _spans(state, criterion, estimate):
    """Return what the interval of an undecided criterion spans, and how many units would narrow it enough."""
    ends, what = [end for end in criterion.claimed if math.isfinite(end)], "an end of the claimed range"
    if state == "open distance":
        if estimate.null is None or math.isnan(estimate.null):
            return ". Its null was not measured"
        ends, what = [-criterion.margin, criterion.margin], "the margin around its null"
        estimate = estimate.gap
    nearest, needed = min(abs(estimate.value - end) for end in ends), ""
    if nearest and estimate.n and estimate.n > 0:  # nor NaN
        n = math.ceil(estimate.n * ((estimate.high - estimate.low) / 2 / nearest) ** 2)
        needed = f"; if the number stays, {n} passages or seeds in place of {estimate.n:.0f} decide"
    return f". The interval spans {what}{needed}"


def deciding(claim, records):
    """Return the first of :data:`OUTCOMES` true of a criterion, and which; the last if all are beyond."""
    found = []
    for criterion in claim.criteria:
        value, low, high = (estimate := records[criterion.name])[:3]
        if not all(map(math.isfinite, (value, low, high))) or not low <= value <= high:
            told = f"{criterion.name}: value {value} with interval [{low}, {high}]"
            raise ValueError(f"{told}; a record needs finite numbers, the value inside its interval")
        place, distance = criterion.place(estimate), criterion.distance(estimate)
        states = place.replace("open", "open range"), distance.replace("open", "open distance")
        found.append((states, criterion))
    for state in OUTCOMES:
        for states, criterion in reversed(found) if state == "beyond" else found:
            if state in states:
                return state, criterion


def sentence(criterion, estimate):
    """Return what was measured of a criterion, without a full stop, in places that its interval can tell."""
    template, unit = _template(criterion)
    null = math.nan if estimate.null is None else estimate.null
    told, word = _figures((*estimate[:3], null, estimate.null_low, estimate.null_high), unit)
    seen = re.sub(r"\{.*?\}", told[0] + word, template) + _interval(told[1:3])
    parts = [seen[0].upper() + seen[1:], claimed(criterion.claimed, unit)]
    if not math.isnan(null):
        others = [name for name in criterion.nulls if name not in NULL_NAMES]
        unlearned = len(others) < max(len(criterion.nulls), 1)
        held = " or ".join([UNLEARNED] * unlearned + others) + (" gives" if unlearned else ":")
        parts.append(f"{held} {told[3]}{word * (unit not in ONCE)}{_interval(told[4:])}")
    return "; ".join(filter(None, parts))


def claimed(claimed_range, unit=""):
    """Return the range in which a claim puts its number, in words; empty if it cannot lie outside."""
    (least, most), (below, above) = claimed_range, NATURAL
    ends = [_end(end, unit) for end in claimed_range]
    if least in below:
        return "" if most in above else f"the claim allows at most {ends[1]}"
    if most in above:
        return f"the claim asks for at least {ends[0]}"
    return f"the claim says {ends[0].removesuffix(UNITS[unit][1])} to {ends[1]}"


def _figures(numbers, unit):
    """Return a value, its interval and others as text of equal places, and the unit; empty for NaN."""
    scale, word = UNITS[unit]
    if 0 < abs(scale * numbers[0]) < TINY:
        exponent = math.floor(math.log10(abs(scale * numbers[0])))
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
    return words, re.search(r"\{(.*?)\}", words)[1]


def number(criterion, value):
    """Return another value of a criterion's number, with its unit."""
    told, word = _figures((value, value, value), _template(criterion)[1])
    return told[0] + word
