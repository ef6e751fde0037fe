import itertools
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from readme_verdicts import STORED
from scipy.stats import t as t_distribution

from nbhelpers import stats
from nbhelpers.claims import paper
from nbhelpers.claims.paper import CLAIMS, claim
from nbhelpers.collection import scorecard
from nbhelpers.collection.results import Results
from nbhelpers.plots import VERDICTS, verdict_figure
from nbhelpers.stats import Estimate

# What only the code may call by these names: criteria, states of an interval, fields.
STATES = "range inside|open (?:range|distance)|outside the"
INTERNAL = re.compile(rf"\bC\d+_\w|_(?:share|change|rho|half|ratio)\b|{STATES}")


@pytest.fixture
def store(tmp_path):
    return Results("10_scale_invariance", tmp_path)


@pytest.fixture(scope="module")
def card():
    return scorecard.scorecard(STORED)


def row(card, number):
    return card.set_index("claim").loc[number]


def test_a_claim_is_judged_from_the_store_alone_and_what_is_missing_names_its_notebook(store, tmp_path):
    store.record("C12_level", Estimate(0.8, 0.79, 0.81), null=0.7)
    card = scorecard.scorecard(tmp_path)
    assert sorted(card.claim) == sorted(known.number for known in CLAIMS)
    assert row(card, "C12").verdict == row(card, "C14").verdict == row(card, "C15").verdict == "not measured"
    assert row(card, "C12").why == "Notebook 08_multiresolution measures it."
    assert row(card, "C12").isna().least, "half measured is not measured"
    assert {"08_multiresolution", "10_scale_invariance"} <= set(scorecard.missing_notebooks(card))

    store.record("C12_change", Estimate(-0.04, -0.05, -0.03), null=-0.05)
    found = row(scorecard.scorecard(tmp_path), "C12")
    assert (found.group, found.verdict) == ("not seen here", "contradicted")
    assert found.why.startswith("From 16 to 64 tokens, window entropy over its maximum changes by −0.040 [")
    assert found[list(scorecard.ANSWERS)].tolist() == ["1 of 2 numbers"] * 2 + ["not tried"] * 2
    assert found[["least", "most", "value", "low", "null"]].tolist() == [-0.02, 0.02, -0.04, -0.05, -0.05]

    store.record("table2_change_without_key_0", 0.01)
    found = row(scorecard.scorecard(tmp_path), "C12")
    assert found.group == "changes with the reading or the first token"
    assert found["same in other readings"] == "no: without the first token gives 0.0100"
    store.record("C12_readings", 0.25)
    store.record("C12_readings_alone", 0.1)
    told = row(scorecard.scorecard(tmp_path), "C12")["same in other readings"]
    assert "; of all readings 25% meet the claim, 10% where attention that learned nothing does not" in told


def test_planted_cases_say_whether_the_quantity_can_tell(store, tmp_path):
    assert scorecard.planted_rates(tmp_path) == {}
    for criterion in claim("C5").criteria:
        store.record(criterion.name, 9.0)
    found = row(scorecard.scorecard(tmp_path), "C5")
    assert (found.verdict, found["found where planted"]) == ("the quantity cannot tell", "not tried")
    store.record("planted_sensitivity_C5", Estimate(0.99, 0.96, 1.0))
    store.record("planted_specificity_C5", Estimate(0.98, 0.96, 1.0))
    assert scorecard.planted_rates(tmp_path)["C5"].usable
    found = row(scorecard.scorecard(tmp_path), "C5")
    assert (found.verdict, found.group) == ("contradicted", "not seen here")
    assert found["found where planted"] == "yes: sensitivity 99%, specificity 98%"
    assert found["also where nothing was learned"] == "no null"
    for criterion in claim("C5").second:
        store.record(criterion.name, 0.9, null=1.0)
    found = row(scorecard.scorecard(tmp_path), "C5")
    assert found["also where nothing was learned"] == "no null; by another quantity: 5 of 6 numbers"


def test_the_stored_run_tried_other_readings_of_what_its_notebooks_can_read_otherwise(card):
    tried = card[card["same in other readings"] != "not tried"]
    assert {"C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9", "C10", "C12", "C13", "C14"} == set(tried.claim)
    values = scorecard.load_results(STORED).name.tolist()
    read = [record for known in CLAIMS for c in known.criteria for _, record in c.readings]
    assert sorted(set(read)) == sorted(name for name in values if name in read)


@pytest.mark.parametrize(
    ("number", "value", "null", "group"),
    [  # of a claim whose every criterion has the same value and null, with a tight interval
        ("C9", 0.2, 0.9, "met by its control"),
        ("C13", 0.9, 0.95, "met by attention that learned nothing"),
        ("C13", 0.9, 0.1, "holds"),
        ("C13", 0.1, 0.95, "not seen here"),
        ("C11", 1e-7, 1e-7, "true of any signal"),
        ("C5", 0.05, 0.05, "the statistic measures something else"),
        ("C8", -0.1, 0.0, "open"),
        ("C7", 5.0, 0.0, "out of reach"),
    ],
)
def test_the_group_follows_from_the_records(store, tmp_path, number, value, null, group):
    for criterion in claim(number).criteria:
        half = 0.01 if number == "C8" else 1e-9
        store.record(criterion.name, Estimate(value, value - half, value + half), null=null)
    assert row(scorecard.scorecard(tmp_path), number).group == group


def test_in_short_counts_what_holds_and_names_the_surprise(card):
    told = scorecard.in_short(card)
    n_hold = (card.group == "holds").sum()
    assert told.startswith(f"Of the paper's 19 claims {n_hold or 'none'} hold")
    assert all(re.search(rf"\b{number}\b", told) for number in card.claim)
    surprise = re.search(r"Most surprising is (C\d+)", told).group(1)
    assert row(card, surprise).why in told
    with_all = scorecard.in_short(card.assign(group="holds", verdict="supported"))
    assert with_all.startswith("Of the paper's 19 claims 19 hold here (C")
    assert "surprising" not in with_all


def test_no_reader_meets_an_internal_name(card):
    cells = card.select_dtypes(exclude="number").to_numpy().ravel()
    shown = [*card.columns, *cells, scorecard.in_short(card)]
    shown += [scorecard.scorecard_markdown(card, scorecard.ANSWERS), card.to_csv()]
    every = scorecard.criteria(STORED)
    shown += [*every.sentence, *every.statistic]
    for known in CLAIMS:
        shown += scorecard.rule_table([known]).astype(str).to_numpy().ravel().tolist()
    assert [INTERNAL.findall(text) for text in shown if INTERNAL.search(text)] == []
    names = [c.name for known in CLAIMS for c in (*known.criteria, *known.second)]
    assert [name for name, text in itertools.product(names, shown) if name in text] == []


def test_the_version_of_the_rules_changes_with_their_source_and_that_of_the_statistics(monkeypatch, tmp_path):
    found = {scorecard.rules_version().split(",")[0]}
    for module in (paper, stats):
        changed = tmp_path / Path(module.__file__).name
        changed.write_bytes(Path(module.__file__).read_bytes() + b"# changed")
        monkeypatch.setattr(module, "__file__", str(changed))
        found.add(scorecard.rules_version().split(",")[0])
    assert len(found) == 3


def test_sentences_on_packaged_models_name_the_exceptions():
    yes, unlike = ({"book": "supported", "code": code} for code in ("supported", "undecided"))

    def told(**verdicts):
        return scorecard._differ(pd.DataFrame(verdicts).T.stack())

    assert told(a=yes, b=yes) == "holds on every text in 2 of 2 models: supported in all"
    found = told(a=yes, b={"book": "contradicted", "code": "not measured"}, c=unlike)
    assert found == (
        "holds on every text in 1 of 3 models: supported in a; contradicted in b; "
        "undecided in c (supported on book)"
    )


def test_criteria_are_one_family(tmp_path):
    store = Results("10_scale_invariance", tmp_path)
    store.record("C5_half", Estimate(0.2, 0.18, 0.22, n=12), null=0.03)  # far above what is claimed, .1
    store.record("C5_ratio", Estimate(1.7, 1.51, 1.89, n=12), null=1.0)  # just above the least, 1.5
    found = scorecard.criteria(tmp_path).set_axis(["half", "ratio"])
    t = {"half": 0.1 / 0.02, "ratio": 0.2 / 0.19}
    expected = {name: 2 * t_distribution.sf(x * t_distribution.ppf(0.975, 11), 11) for name, x in t.items()}
    assert found.p.to_dict() == pytest.approx(expected)
    assert found.adjusted_p["half"] == pytest.approx(2 * expected["half"])
    assert found["stands while"].tolist() == [
        "the range ends below 0.18",
        "the range begins at most at 1.51 and ends at least at 1.89",
    ]
    assert scorecard.multiplicity(found).startswith("Of 2 numbers 2 are decided")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no results"):
        scorecard.scorecard(tmp_path)
    assert scorecard.planted_rates(tmp_path) == {}, "a notebook may be the first to record"


def test_the_tables_of_one_notebook(tmp_path):
    rule = scorecard.rule_table([claim("C9"), claim("C10")])
    assert rule.claim.tolist() == ["C9", "C10", "C10"]
    told = ["the claim asks for at least 0.1", "above models without RoPE by 0.1"]
    assert rule.iloc[0, 2:].tolist() == told
    measured = {"C10_rise": Estimate(0.2, 0.18, 0.22, 0.19)}
    table = scorecard.verdict_table(claim("C10"), measured)
    assert table["we see"].str.startswith("Over training, scale sensitivity changes by 0.20 [").tolist()[0]
    assert table["we see"].tolist()[1] == "not measured"
    assert "not measured" in scorecard.verdict_line(claim("C10"), {}, tmp_path)
    (found,) = scorecard.verdict_table(claim("C11"), {}).to_dict("records")
    assert found["the paper prints"].endswith("(Table 1)")
    shown = scorecard.wrapped(table).to_html(), paper.captioned(paper.paper_table(5), 5, 6).to_html()
    assert all("version 4 of 4 June 2025</caption>" in html for html in shown)
    assert "Table 5, Table 6" in shown[1]


def texts(figure):
    return [text for text in figure.axes[0].texts if text.get_text()]


@pytest.mark.parametrize("narrow", [False, True])
def test_every_claim_has_its_words_and_its_sign_inside_the_figure(card, narrow):
    figure = verdict_figure(card, narrow=narrow)
    figure.canvas.draw()
    width = figure.bbox.width
    assert all(0 <= t.get_window_extent().x0 and t.get_window_extent().x1 <= width for t in texts(figure))
    told = " ".join(text.get_text() for text in texts(figure))
    for line in card.itertuples():
        assert f"{VERDICTS[line.verdict][0]} {line.claim} {line.title}" in told
        assert line.why.partition(". ")[0].removesuffix(".") in told
    assert len({sign for sign, _ in VERDICTS.values()}) == len(VERDICTS) == 7
    if narrow:  # a phone of 360 pixels less the margins of the page
        pixels = [t.get_fontsize() / 72 * 328 / figure.get_size_inches()[0] for t in texts(figure)]
        assert min(pixels) >= 9
    plt.close(figure)


def test_marks_stand_where_the_claimed_range_is_0_to_1():
    names = ["claim", "least", "most", "value", "low", "high", "null"]
    rows = [("C1", 10.0, 20.0, 15.0, 12.0, 18.0, 40.0), ("C2", 2.0, np.inf, 3.0, 3.0, 3.0, 2.0)]
    words = {"title": "t", "group": "open", "verdict": "undecided", "why": "Why."}
    none = dict.fromkeys(("null_low", "null_high", "printed_low", "printed_high"), np.nan)
    ax = verdict_figure(pd.DataFrame(rows, columns=names).assign(**words, **none)).axes[0]

    def drawn(marker):
        return [x for line in ax.lines if line.get_marker() == marker for x in line.get_xdata()]

    left, unit = 2.65, 2.2 / 3  # of the strips, in inches; from -1 to 2
    assert drawn("o") == pytest.approx([left + 1.5 * unit] * 2)
    assert drawn("D") == pytest.approx([left + 3 * unit - 0.12, left + unit])
    assert [note.xy[0] for note in ax.texts if not note.get_text()] == [left + 3 * unit], "off the scale"
    bands = [np.ptp(c.get_paths()[0].vertices[:, 0]) for c in ax.collections if c.get_paths()]
    assert bands[:2] == pytest.approx([unit, 2 * unit]), "the grey of a range without an end runs on"
    plt.close("all")
