"""From recorded numbers to a verdict, by rules that are data and were fixed before the measurement.

A claim is split into criteria. Each names one statistic, the range in which the claim puts it, and the null
it must differ from. :func:`judge` compares intervals with both and knows nothing of any particular claim.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

VERDICTS = (
    "supported",
    "explained by the null",
    "contradicted",
    "undecided",
    "not testable here",
    "not measured",
)
LEAST_ACCURACY = 0.95  # of planted cases that a rule must tell right before it is used on a model


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One statistic of a claim and what must be true of it.

    Attributes
    ----------
    name : str
        Under which notebooks record the statistic.
    statistic : str
        What it is, in words, with its unit.
    claimed : tuple of float
        The range in which the claim puts it; an end may be infinite.
    null : str
        Which nulls it is held against, in words; :meth:`most_conservative` chooses the one recorded.
        Empty if the statistic is itself a difference from a null.
    away : int
        On which side of the null the claim lies: 1 above, −1 below, 0 either.
    margin : float
        How far from the null, at least, in the unit of the statistic.
    printed : tuple of (int, str), optional
        Table and column of the paper that print it.
    """

    name: str
    statistic: str
    claimed: tuple[float, float]
    null: str = ""
    away: int = 0
    margin: float = 0.0
    printed: tuple[int, str] | None = None

    def most_conservative(self, value, nulls):
        """Return the null that comes closest to meeting the claim, as (name, number).

        Parameters
        ----------
        value : float
            What was measured.
        nulls : mapping of str to float
            At least one.

        Returns
        -------
        tuple of (str, float)
            The largest where the claim puts the value above its null, the smallest where it puts it below,
            else the nearest to the value.
        """
        reach = {name: self.away * null if self.away else -abs(null - value) for name, null in nulls.items()}
        name = max(reach, key=reach.get)
        return name, nulls[name]

    def place(self, record):
        """Return whether the interval lies "inside" the claimed range, "outside" it, or is "open"."""
        least, most = self.claimed
        if least <= record.low and record.high <= most:
            return "inside"
        return "outside" if record.high < least or record.low > most else "open"

    def distance(self, record):
        """Return whether the interval is "beyond" the null by the margin, "within" it, or "open"."""
        if not self.null:
            return "beyond"
        if record.null is None or math.isnan(record.null):
            return "open"
        ends = record.low - record.null, record.high - record.null
        if self.away:
            least, most = sorted(self.away * end for end in ends)
        else:
            least = max(ends[0], -ends[1], 0.0)
            most = max(abs(end) for end in ends)
        return "beyond" if least >= self.margin else "within" if most < self.margin else "open"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says, and the rule that judges it.

    Attributes
    ----------
    number : str
        C1 … C19.
    title, statement : str
        A few words; what the paper says and where.
    notebook : str
        Which notebook measures it.
    criteria : tuple of Criterion
        All must hold. Empty for a claim without a test here.
    untested : str
        Why there is no test, where there is none, or what the test leaves out.
    """

    number: str
    title: str
    statement: str
    notebook: str = ""
    criteria: tuple[Criterion, ...] = ()
    untested: str = ""


class Verdict(NamedTuple):
    """One of :data:`VERDICTS` and, in words, what decided it."""

    verdict: str
    reason: str


def judge(claim, records, *, planted_accuracy=None):
    """Judge a claim by its criteria.

    Parameters
    ----------
    claim : Claim
    records : mapping of str to Estimate
        What was measured, by name of criterion; more than needed does no harm.
    planted_accuracy : float, optional
        Share of planted cases classified correctly. Below :data:`LEAST_ACCURACY` the rule is not used.

    Returns
    -------
    Verdict
        *not testable here*: there are no criteria. *not measured*: a criterion has no record.
        *contradicted*: an interval lies outside the claimed range. *supported*: all lie inside and beyond
        their nulls. *explained by the null*: all lie inside, one or more within the margin of its null.
        *undecided*: anything else, or the rule failed on planted cases.

    Raises
    ------
    ValueError
        For a record that is not finite or whose value lies outside its interval.
    """
    if not claim.criteria:
        return Verdict("not testable here", claim.untested)
    missing = [criterion.name for criterion in claim.criteria if criterion.name not in records]
    if missing:
        return Verdict("not measured", f"no record of {', '.join(missing)}; run {claim.notebook}")
    if planted_accuracy is not None and planted_accuracy < LEAST_ACCURACY:
        told = f"tells {planted_accuracy:.0%} of planted cases right, of {LEAST_ACCURACY:.0%} needed"
        verdict, reason = "undecided", f"the rule {told}"
    else:
        verdict, reason = _of_criteria(claim, records)
    left_out = f". Not tested: {claim.untested.rstrip('.')}" if claim.untested else ""
    return Verdict(verdict, reason + left_out)


def _of_criteria(claim, records):
    found = {c: _checked(c, records[c.name]) for c in claim.criteria}
    places = {c.name: c.place(record) for c, record in found.items()}
    distances = {c.name: c.distance(record) for c, record in found.items()}
    outside, unclear = _having(places, "outside"), _having(places, "open")
    within, close = _having(distances, "within"), _having(distances, "open")
    if outside:
        return Verdict("contradicted", f"outside the claimed range: {outside}")
    if unclear:
        return Verdict("undecided", f"the interval spans an end of the claimed range: {unclear}")
    if within:
        return Verdict("explained by the null", f"no further from the null than the margin: {within}")
    if close:
        return Verdict("undecided", f"the interval spans the margin around the null, or no null: {close}")
    return Verdict("supported", "every criterion lies in its claimed range and beyond its null")


def _having(states, state):
    return ", ".join(name for name, found in states.items() if found == state)


def _checked(criterion, record):
    if not all(map(math.isfinite, record[:3])) or not record.low <= record.value <= record.high:
        raise ValueError(
            f"{criterion.name}: value {record.value} with interval [{record.low}, {record.high}]; a record "
            "needs finite numbers, the value inside its interval"
        )
    return record
