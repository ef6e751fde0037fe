import math

import pytest

from nbhelpers.claims.paper import claim
from nbhelpers.collection.judging import rule_table, told_range, verdict_line, verdict_table
from nbhelpers.stats import Estimate


@pytest.mark.parametrize(
    ("ends", "told"),
    [((-math.inf, -0.05), "at most -0.05"), ((3.0, math.inf), "at least 3"), ((1.5, 2.5), "1.5 to 2.5")],
)
def test_ranges_in_words(ends, told):
    assert told_range(*ends) == told


def test_the_rule_holds_every_criterion():
    rule = rule_table([claim("C9"), claim("C10")])
    assert rule.claim.tolist() == ["C9", "C10", "C10"]
    assert rule["and"].tolist()[0] == "above the nearest of the arms without RoPE by 0.1"
    assert rule["and"].tolist()[2] == "–"


def test_what_was_not_measured_is_said():
    known = claim("C10")
    table = verdict_table(known, {"C10_rise": Estimate(0.2, 0.18, 0.22, 0.19)})
    assert table["we measure"].tolist() == ["0.200 [0.180, 0.220]", "not measured"]
    assert table["so it is"].tolist() == ["inside the claimed range, not beyond its null", "–"]
    assert "not measured" in verdict_line(known, {})


def test_the_printed_numbers_stand_beside_the_claim():
    (row,) = verdict_table(claim("C8"), {"C8_rope_advantage": Estimate(-0.1, -0.12, -0.08, 0.05)}).to_dict(
        "records"
    )
    assert row["the paper says"] == "at most -0.05; prints 0.038 to 0.627 (Table 4)"
    assert row["null says"] == "0.050"
    assert "supported" in verdict_line(claim("C8"), {"C8_rope_advantage": Estimate(-0.1, -0.12, -0.08, 0.05)})
