import math

import pytest

from nbhelpers.claims.paper import CLAIMS
from nbhelpers.claims.sentences import number, sentence
from nbhelpers.claims.verdicts import Criterion
from nbhelpers.stats import Estimate

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
    for criterion in (c for claim in CLAIMS for c in (*claim.criteria, *claim.second)):
        told = sentence(criterion, Estimate(0.25, 0.24, 0.26, 0.1))
        assert told[0].isupper() or told[0].isdigit(), told
        assert not {"{", "}", criterion.name} & set(told.split()), told
        assert number(criterion, 0.25) in told.partition(" [")[0], told
