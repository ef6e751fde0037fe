import numpy as np
import pytest
from oracles import assert_near

from nbhelpers.claims.paper import CLAIMS
from nbhelpers.claims.planted import KINDS, TEST

LITERAL = ("C1", "C3", "C15", "C16", "C4", "C5", "C6", "C14")
SECONDS = [known for known in CLAIMS if known.second]


def test_every_kind_is_judged_by_every_second_rule_that_its_truth_decides(tables):
    cases = tables["cases"]
    judged = set(zip(cases.kind, cases.rule, strict=True))
    kinds = TEST if set(cases.bank) == {"test"} else KINDS
    expected = {(k, c.other.number) for k in kinds for c in SECONDS if c.number not in KINDS[k].open}
    assert judged == expected
    rules = cases.rule.str.removesuffix("_second")
    holds = [rule in KINDS[kind].holds for kind, rule in zip(cases.kind, rules, strict=True)]
    assert cases.holds.tolist() == holds
    for table in (cases, tables["literal"]):
        assert (table.right == ((table.verdict == "supported") == table.holds)).all()


def wilson(k, n, z=1.959963984540054):
    centre = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    return centre - half, centre + half


@pytest.mark.parametrize("rule", [*LITERAL, *(c.other.number for c in SECONDS)])
@pytest.mark.parametrize(("name", "holds"), [("sensitivity", True), ("specificity", False)])
def test_rates_are_shares_of_cases_judged_correctly(numbers, tables, rule, name, holds):
    cases = tables["cases"].query("bank == 'test'") if rule.endswith("second") else tables["literal"]
    right = cases[(cases.rule == rule) & (cases.holds == holds)].right
    row = numbers[f"planted_{name}_{rule}"]
    assert row.value == pytest.approx(right.mean())
    assert (row.low, row.high) == pytest.approx(wilson(right.sum(), len(right)), abs=1e-9)


def test_the_second_rules_say_yes_and_no_and_areas_are_those_of_a_slow_loop(tables, numbers):
    cases = tables["cases"].query("bank == 'test'")
    assert cases.groupby(["rule", "holds"]).right.mean().min() >= 0.9
    literal = tables["literal"].query("holds").groupby("rule").right.mean()
    assert literal[["C4", "C5", "C6", "C14"]].max() == 0, "the literal rules never say yes"
    assert literal[["C1", "C3"]].min() >= 0.5
    effects = tables["literal"].query("rule in ['C15', 'C16'] and not holds").groupby("kind").right.mean()
    assert len(effects) == 7
    assert effects.min() >= 0.8
    for name, own in tables["statistics"].groupby("criterion"):
        yes, no = (own.value[own.holds == holds].to_numpy() for holds in (True, False))
        above = np.mean([(a > b) + 0.5 * (a == b) for a in yes for b in no])
        assert numbers[f"planted_area_{name}"].value == pytest.approx(max(above, 1 - above)), name
    passed = tables["printed"].set_index("criterion")["printed values that pass"]
    assert (passed[["C6_rho", "C5_half", "C11_error"]] == "0% of 7").all()


def test_noise_is_where_a_larger_run_found_it(numbers):
    # Six other passages of 128 tokens: 0.98 to 1.11, and 1.07 to 1.33.
    assert_near(numbers, {"noise": (1.05, 0.12), "key_noise": (1.17, 0.28)})
    assert numbers["kinds_in_all_bands"].value >= 5, "noise of the model's strength puts many kinds there"
