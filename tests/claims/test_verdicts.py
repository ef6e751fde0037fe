import dataclasses
import math

import pytest

from nbhelpers import nulls
from nbhelpers.claims.paper import CLAIMS, claim, paper_table, printed_range
from nbhelpers.claims.verdicts import NULL_NAMES, Claim, Criterion, Planted, judge, number, sentence
from nbhelpers.plots import VERDICTS
from nbhelpers.stats import Estimate

BELOW = Criterion(name="x", statistic="x", claimed=(0.0, 0.5), nulls=("n",), away=-1, margin=0.1)


def verdict(record, criterion=BELOW, **options):
    made = Claim(number="C0", title="", statement="", notebook="00", criteria=(criterion,))
    return judge(made, {"x": Estimate(*record)}, **options).verdict


def test_one_criterion():
    for record, expected in (
        ((0.2, 0.15, 0.25, 0.4), "supported"),
        ((0.2, 0.15, 0.25, 0.22), "explained by the null"),
        ((0.2, 0.15, 0.25, 0.0), "explained by the null"),  # on the wrong side of its null
        ((0.2, 0.15, 0.25, 0.3), "undecided"),  # the interval spans the margin
        ((0.2, 0.15, 0.25, None), "undecided"),
        ((0.2, 0.15, 0.25, math.nan), "undecided"),
        ((0.5, 0.45, 0.55, 0.9), "undecided"),  # spans the end of the claimed range
        ((0.6, 0.55, 0.65, 0.9), "contradicted"),
        ((0.6, 0.55, 0.65, 0.6), "contradicted"),  # whatever the null
    ):
        assert verdict(record) == expected
        if expected == "contradicted":
            right, wrong = Estimate(0.97, 0.95, 0.99), Estimate(0.97, 0.949, 0.99)
            assert verdict(record, planted=Planted(right, right)) == expected
            for planted in (Planted(right, wrong), Planted(wrong, right)):
                assert verdict(record, planted=planted) == "the quantity cannot tell"


def test_the_claim_may_lie_above_its_null_or_on_either_side():
    above = Criterion(name="x", statistic="x", claimed=(0.0, 1.0), nulls=("n",), away=1, margin=0.1)
    either = Criterion(name="x", statistic="x", claimed=(0.0, 1.0), nulls=("n",), away=0, margin=0.1)
    low, high = (0.2, 0.15, 0.25, 0.4), (0.6, 0.55, 0.65, 0.4)
    assert verdict(low, above) == "explained by the null"
    assert verdict(high, above) == "supported"
    assert verdict(low, either) == verdict(high, either) == "supported"
    assert verdict((0.4, 0.35, 0.45, 0.4), either) == "explained by the null"
    assert verdict((0.4, 0.2, 0.6, 0.4), either) == "undecided"
    assert verdict((0.2, 0.1, 0.3), Criterion(name="x", statistic="x", claimed=(0.0, 1.0))) == "supported"


@pytest.mark.parametrize(("away", "name"), [(1, "far above"), (-1, "below"), (0, "near")])
def test_the_most_conservative_null_comes_closest_to_meeting_the_claim(away, name):
    criterion = Criterion(name="x", statistic="x", claimed=(0.0, 1.0), nulls=("n",), away=away)
    by_name = {"below": 0.1, "near": 0.35, "far above": 0.9}
    assert criterion.most_conservative(0.3, by_name) == (name, by_name[name])


def test_nulls_have_one_name_and_every_criterion_must_hold():
    names = {null.number: f"{null.number} {null.name}" for null in nulls.NULLS}
    assert names | NULL_NAMES == names
    second = Criterion(name="y", statistic="y", claimed=(0.0, 1.0))
    both = Claim(number="C0", title="", statement="", notebook="00", criteria=(BELOW, second))
    good, bad = Estimate(0.2, 0.15, 0.25, 0.4), Estimate(2.0, 1.9, 2.1)
    assert judge(both, {"x": good, "y": Estimate(0.5, 0.4, 0.6)}).verdict == "supported"
    found = judge(both, {"x": good, "y": bad})
    assert found.verdict == "contradicted"
    assert found.reason.startswith("The y is 2.0")


def test_a_demonstration_stands_until_planted_cases_say_otherwise():
    second = Criterion(name="y", statistic="y", claimed=(0.0, 1.0))
    rules = {"criteria": (BELOW,), "second": (second,)}
    made = Claim(number="C0", title="", statement="", **rules, demonstration="blind.")
    records = {"x": Estimate(0.2, 0.15, 0.25, 0.4), "y": Estimate(0.5, 0.4, 0.6)}
    verdict, reason = judge(made, records)
    assert (verdict, reason.endswith(". But blind")) == ("the quantity cannot tell", True)
    assert judge(made, records, planted=Planted(Estimate(1, 0.96, 1), Estimate(1, 0.96, 1)))[0] == "supported"
    told = judge(made, records, planted=Planted(Estimate(0.0, 0.0, 0.04), Estimate(1, 0.96, 1))).reason
    assert "But blind; where truth is planted, the rule finds 0% of the cases and leaves 100%" in told
    assert made.other.number == "C0_second"
    assert judge(made.other, records).verdict == "supported"
    assert made.other.other is None


def test_what_was_not_measured_has_no_verdict_and_what_makes_no_sense_is_refused():
    made = Claim(number="C0", title="", statement="", notebook="08_scale", criteria=(BELOW,))
    assert judge(made, {}).verdict == "not measured"
    untested = Claim(number="C0", title="", statement="", notebook="09", untested="why")
    assert judge(untested, {}) == ("not measured", "No notebook measures it; why")
    far = dataclasses.replace(made, reach="they are larger")
    assert judge(far, {"x": Estimate(0.2, 0.15, 0.25, 0.4)}) == ("out of reach here", "they are larger")
    for record in ((math.nan, 0, 1), (0.5, 0.6, 0.7), (0.5, -math.inf, 0.7)):
        with pytest.raises(ValueError, match="x: value"):
            verdict(record)


def test_the_claims_are_c1_to_c19_and_fit_to_be_judged():
    assert [known.number for known in CLAIMS] == [f"C{k}" for k in range(1, 20)]
    names = [criterion.name for known in CLAIMS for criterion in known.criteria + known.second]
    assert len(names) == len(set(names))
    for known in CLAIMS:
        assert known.notebook or not known.criteria
        assert known.criteria or known.untested
        assert judge(known, {}).verdict in VERDICTS
        for criterion in known.criteria + known.second:
            assert criterion.name.startswith(known.number + "_")
            assert criterion.claimed[0] < criterion.claimed[1]
            assert criterion.margin > 0 or not criterion.nulls


def test_what_is_printed_is_read_from_the_tables():
    half = claim("C5").criteria[0]
    column = paper_table(1)["scale_sensitivity_0.5"]
    assert printed_range(half) == (column.min(), column.max()) == (0.030, 0.082)
    assert printed_range(claim("C3").criteria[0]) is None
    with pytest.raises(LookupError, match="C19"):
        claim("C20")


def test_what_is_undecided_says_how_many_would_decide():
    made = Claim(number="C0", title="", statement="", notebook="00", criteria=(BELOW,))
    reason = judge(made, {"x": Estimate(0.3, 0.05, 0.55, 0.9, n=3)}).reason
    assert reason.endswith("claimed range; if the number stays, 5 passages or seeds in place of 3 decide")
    assert judge(made, {"x": Estimate(0.2, 0.15, 0.25, 0.3)}).reason.endswith("the margin around its null")
    assert judge(made, {"x": Estimate(0.2, 0.15, 0.25)}).reason.endswith("Its null was not measured")


NOTHING = "attention that learned nothing"


def made(sentence="", claimed=(0.0, 0.5), nulls=(), statistic="share of it (in words)"):
    return Criterion(name="C0_x", statistic=statistic, claimed=claimed, nulls=nulls, sentence=sentence)


CASES = [
    (made("{%} of heads are mixed", (0.0, 1 / 3)), Estimate(0.4219, 0.4139, 0.4303),
     "42 % of heads are mixed [41, 43]; the claim allows at most 33 %"),
    (made("it changes by {points}", (-1.0, -0.05), ("N0", "N1")), Estimate(0.203, 0.167, 0.241, -6e-16),
     f"It changes by +20 percentage points [+17, +24]; the claim allows at most −5; {NOTHING} gives 0"),
    (made(claimed=(0.0, 1e-6), nulls=("N0", "white noise")), Estimate(1.187e-7, 1.169e-7, 1.203e-7, 9.44e-8),
     "The share of it is 1.19·10⁻⁷ [1.17, 1.20]; the claim allows at most 10⁻⁶; "
     f"{NOTHING} or white noise gives 0.94·10⁻⁷"),
    (made("they are {nats} apart", (0.1, math.inf), ("no RoPE",)), Estimate(0.278, 0.254, 0.303, 1.061),
     "They are 0.28 nats apart [0.25, 0.30]; the claim asks for at least 0.1; no RoPE: 1.06"),
    (made("it is {}"), Estimate(0.4, 0.3, 0.5, 0.2, null_low=0.1, null_high=0.3),
     f"It is 0.40 [0.30, 0.50]; the claim allows at most 0.5; {NOTHING} gives 0.20 [0.10, 0.30]"),
    (made("it is {}", (0.75, 1.25)), Estimate(1.0), "It is 1.00; the claim says 0.75 to 1.25"),
    (made("it is {}", (0.0, math.inf)), Estimate(-0.003, -0.02, 0.02), "It is 0.00 [−0.02, 0.02]"),
]  # fmt: skip


@pytest.mark.parametrize(("criterion", "estimate", "told"), CASES)
def test_a_sentence_has_the_number_its_interval_the_claim_and_the_null(criterion, estimate, told):
    assert sentence(criterion, estimate) == told


def test_every_criterion_has_one_place_for_its_number():
    for criterion in (c for known in CLAIMS for c in (*known.criteria, *known.second)):
        told = sentence(criterion, Estimate(0.25, 0.24, 0.26, 0.1))
        assert told[0].isupper() or told[0].isdigit(), told
        assert not {"{", "}", criterion.name} & set(told.split()), told
        assert number(criterion, 0.25) in told.partition(" [")[0], told
