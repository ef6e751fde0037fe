"""The numbers that 04_planted_truth records at smoke size: 12 planted cases of 3 sequences, 4 layers and 256
tokens."""

import numpy as np
import pytest

from nbhelpers.claims.paper import claim
from nbhelpers.claims.planted import BANKS, PLANTED_CLAIMS, TRUTH

pytestmark = pytest.mark.notebook


def test_every_case_is_judged_by_every_rule(numbers, tables):
    cases = tables["cases"]
    assert numbers["planted_cases"].value == 12
    assert len(cases) == 12 * len(PLANTED_CLAIMS)
    assert set(cases.bank) == set(BANKS)
    truth = [TRUTH[bank][number].holds for bank, number in zip(cases.bank, cases.claim, strict=True)]
    assert cases.holds.tolist() == truth
    assert (cases.told == ((cases.verdict == "supported") == cases.holds)).all()


def wilson(k, n, z=1.959963984540054):
    """95 % interval of a share k/n, from its formula."""
    centre = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    return centre - half, centre + half


@pytest.mark.parametrize("number", PLANTED_CLAIMS)
@pytest.mark.parametrize(("name", "holds"), [("sensitivity", True), ("specificity", False)])
def test_rates_are_shares_of_cases_told_right(numbers, tables, number, name, holds):
    told = tables["cases"].query("claim == @number and holds == @holds").told
    row = numbers[f"planted_{name}_{number}"]
    assert row.value == pytest.approx(told.mean())
    assert (row.low, row.high) == pytest.approx(wilson(told.sum(), len(told)), abs=1e-9)


def test_what_is_supported_lies_in_the_claimed_ranges(tables):
    cases, statistics = tables["cases"], tables["statistics"]
    key = ["claim", "bank", "strength", "seed"]
    joined = statistics.merge(cases[[*key, "verdict"]], on=key)
    ranges = {c.name: c.claimed for number in PLANTED_CLAIMS for c in claim(number).criteria}
    supported = joined[joined.verdict == "supported"]
    assert len(supported) > 0
    assert all(
        ranges[row.criterion][0] <= row.value <= ranges[row.criterion][1] for row in supported.itertuples()
    )


def test_area_is_the_share_of_pairs_in_order(numbers, tables):
    for name, own in tables["statistics"].groupby("criterion"):
        yes, no = (own.value[own.holds == holds].to_numpy() for holds in (True, False))
        above = np.mean([(a > b) + 0.5 * (a == b) for a in yes for b in no])
        assert numbers[f"planted_area_{name}"].value == pytest.approx(max(above, 1 - above)), name


def test_what_little_noise_leaves_is_told(tables):
    mild = tables["cases"].query("strength == 0.25")
    told = mild.groupby("claim").told.all()
    assert told[["C1", "C2", "C14"]].all(), "sink and local heads, 1/f noise, and the wavelet bank"
    assert not (tables["cases"].query("bank == 'iid'").verdict == "supported").any()


@pytest.mark.parametrize(
    ("name", "expected", "room"),
    [
        # Six other passages of 128 tokens: 0.98 to 1.11, and 1.07 to 1.33.
        ("noise", 1.05, 0.12),
        ("key_noise", 1.17, 0.28),
        # Nine cases of 6 layers at the same strength.
        ("C2_low_wavelet", 0.752, 0.03),
        ("C2_low_gabor", 0.613, 0.03),
        ("C2_low_one_over_f", 0.480, 0.03),
    ],
)
def test_noise_is_where_a_larger_run_found_it(numbers, name, expected, room):
    assert numbers[name].value == pytest.approx(expected, abs=room)
