from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from scipy.stats import t as t_distribution

from nbhelpers import stats
from nbhelpers.claims import paper
from nbhelpers.claims.paper import CLAIMS, claim
from nbhelpers.collection import scorecard
from nbhelpers.collection.results import Results
from nbhelpers.plots import criterion_panels
from nbhelpers.stats import Estimate


@pytest.fixture
def store(tmp_path):
    return Results("10_scale_invariance", tmp_path)


def row(card, number):
    return card.set_index("claim").loc[number]


def test_a_claim_is_judged_from_the_store_alone_and_what_is_missing_names_its_notebook(store, tmp_path):
    store.record("C5_half", Estimate(0.2, 0.18, 0.22), null=0.03)
    card = scorecard.scorecard(tmp_path)
    assert list(card.claim) == [known.number for known in CLAIMS]
    assert row(card, "C5").verdict == row(card, "C14").verdict == "not measured"
    assert "C5_ratio" in row(card, "C5").why
    assert {"08_multiresolution", "10_scale_invariance"} <= set(scorecard.missing_notebooks(card))
    assert row(card, "C15").verdict == "not measured"

    store.record("C5_ratio", Estimate(0.9, 0.8, 1.0), null=2.8)
    found = row(scorecard.scorecard(tmp_path), "C5")
    assert found.verdict == "the quantity cannot tell"
    assert "0.2 [0.18, 0.22]" in found.ours
    assert "0.03" in found.null
    assert "printed 0.03 to 0.082, Table 1" in found["the paper"]
    lines = scorecard.scorecard_markdown(scorecard.scorecard(tmp_path)).splitlines()
    assert len(lines) == 2 + len(CLAIMS)
    assert lines[6] == (
        "| C5 scale invariance | half 0.2 [0.18, 0.22]; ratio 0.9 [0.8, 1] | half 0.03; ratio 2.8 "
        f"| **the quantity cannot tell**: {claim('C5').demonstration} |"
    )
    assert lines[7].startswith(
        "| C6 uncertainty principle learned | not measured | not measured | **not measured**"
    )


def test_the_planted_rates_are_heeded(store, tmp_path):
    for criterion in claim("C12").criteria:
        store.record(criterion.name, 9.0)
    assert row(scorecard.scorecard(tmp_path), "C12").verdict == "contradicted"
    assert scorecard.planted_rates(tmp_path) == {}
    for rule, low in (("C12", 0.9), ("C12_second", 0.95)):
        for name, end in (("sensitivity", low), ("specificity", 0.96)):
            store.record(f"planted_{name}_{rule}", Estimate(0.98, end, 1.0))
    rates = scorecard.planted_rates(tmp_path)
    assert {rule: of.usable for rule, of in rates.items()} == {"C12": False, "C12_second": True}
    assert row(scorecard.scorecard(tmp_path), "C12").verdict == "the quantity cannot tell"


def test_the_version_of_the_rules_changes_with_their_source_and_that_of_the_statistics(monkeypatch, tmp_path):
    found = {scorecard.rules_version().split(",")[0]}
    for module in (paper, stats):
        changed = tmp_path / Path(module.__file__).name
        changed.write_bytes(Path(module.__file__).read_bytes() + b"# changed")
        monkeypatch.setattr(module, "__file__", str(changed))
        found.add(scorecard.rules_version().split(",")[0])
    assert len(found) == 3


def test_criteria_are_one_family(tmp_path):
    store = Results("10_scale_invariance", tmp_path)
    store.record("C5_half", Estimate(0.2, 0.18, 0.22, n=12), null=0.03)  # far above what is claimed, .1
    store.record("C5_ratio", Estimate(1.7, 1.51, 1.89, n=12), null=1.0)  # just above the least, 1.5
    found = scorecard.criteria(tmp_path).set_index("criterion")
    t = {"half": 0.1 / 0.02, "ratio": 0.2 / 0.19}
    expected = {name: 2 * t_distribution.sf(x * t_distribution.ppf(0.975, 11), 11) for name, x in t.items()}
    assert found.p.to_dict() == pytest.approx(expected)
    assert found.adjusted_p["half"] == pytest.approx(2 * expected["half"])
    assert scorecard.multiplicity(found.reset_index()).startswith("Of 2 criteria 2 are decided")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no results"):
        scorecard.scorecard(tmp_path)
    assert scorecard.planted_rates(tmp_path) == {}, "a notebook may be the first to record"


def test_every_measured_criterion_has_its_row(store, tmp_path):
    store.record("C5_half", Estimate(0.2, 0.18, 0.22), null=0.03)
    store.record("C12_level", 0.8)
    frame = scorecard.criteria(tmp_path).set_index("criterion")
    assert list(frame.index) == ["half", "level"]
    assert frame.loc["half", ["least", "most", "low", "high", "null"]].tolist() == [0, 0.1, 0.18, 0.22, 0.03]
    assert frame.range.tolist() == ["outside", "inside"]
    assert frame.distance.tolist() == ["within", "open"]  # no null was recorded for the second
    assert frame.loc["half", "printed_high"] == 0.082


def test_the_legend_of_the_panels_names_the_null_though_the_first_has_none(store, tmp_path):
    store.record("C1_mixed_share", Estimate(0.4, 0.39, 0.41))
    store.record("C5_half", Estimate(0.2, 0.18, 0.22), null=0.03)
    (legend,) = criterion_panels(scorecard.criteria(tmp_path))[0].figure.legends
    assert "most conservative null" in [text.get_text() for text in legend.get_texts()]
    plt.close("all")


def test_the_rule_holds_every_criterion():
    rule = scorecard.rule_table([claim("C9"), claim("C10")])
    assert rule.claim.tolist() == ["C9", "C10", "C10"]
    assert rule["and"].tolist()[0] == "above any arm without RoPE by 0.1"
    assert rule["and"].tolist()[2] == "–"


def test_verdicts_of_one_notebook(tmp_path):
    measured = {"C10_rise": Estimate(0.2, 0.18, 0.22, 0.19)}
    table = scorecard.verdict_table(claim("C10"), measured)
    assert table["we measure"].tolist() == ["0.200 [0.180, 0.220]", "not measured"]
    assert table["so it is"].tolist() == ["inside the claimed range, not beyond its null", "–"]
    assert "not measured" in scorecard.verdict_line(claim("C10"), {}, tmp_path)
    measured = {"C8_rope_advantage": Estimate(-0.1, -0.12, -0.08, 0.05)}
    (row,) = scorecard.verdict_table(claim("C8"), measured).to_dict("records")
    assert row["the paper says"] == "at most -0.05; prints 0.038 to 0.627 (Table 4)"
    assert row["null says"] == "0.050"
    assert "supported" in scorecard.verdict_line(claim("C8"), measured, tmp_path)
