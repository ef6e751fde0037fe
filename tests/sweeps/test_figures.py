"""Figures of a sweep's rows beside those of a notebook and of the paper: what is drawn where."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from nbhelpers.sweeps.figures import compare_sources, rows_over
from nbhelpers.sweeps.rows import COLUMNS, NUMBERS, TEXTS

pytestmark = pytest.mark.usefixtures("close_figures")
NULL, VALUE = 0.5, 2.0


def tidy(*rows):
    frame = pd.DataFrame([dict.fromkeys(TEXTS, "") | line for line in rows], columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(NUMBERS, float))


def row(source, model, value, metric="spectral_entropy", **more):
    ends = {"low": value - 0.1, "high": value + 0.1, "null": NULL} if source != "paper" else {}
    return {"source": source, "model": model, "metric": metric, "value": value} | ends | more


@pytest.fixture
def rows():
    return tidy(
        row("this notebook", "mine", VALUE, step=10, n_parameters=1e6),
        row("sweep", "owner/a", 3.0, paper="A", step=100, n_parameters=1e8),
        row("sweep", "owner/b", 1.0, null=np.nan),
        row("paper", "A", 2.5, paper="A", protocol="Table 3", step=100, n_parameters=1e8),
        row("paper", "C", 2.7, paper="C", protocol="Table 3"),
    )


def marks(ax):
    """The points of a panel by what the legend calls them: name → [(x, line)]."""
    return {
        c.get_label(): [tuple(at) for at in c.get_offsets()]
        for c in ax.collections
        if c.get_label()[0] != "_"
    }


def test_each_row_has_its_value_its_null_and_what_the_paper_prints(rows):
    (ax,) = compare_sources(rows)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["mine (this notebook)", "owner/a", "owner/b", "C (Table 3)"]
    assert marks(ax) == {
        "this notebook": [(VALUE, 0)],
        "sweep": [(3.0, 1), (1.0, 2)],
        "null": [(NULL, 0), (NULL, 1)],
        "paper": [(2.5, 1), (2.7, 3)],  # the printed model of the sweep on its line, the other on its own
    }
    told = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert told == ["this notebook", "sweep", "uniform attention", "printed by the paper"]
    assert ax.get_xlabel() == "spectral entropy\n(nats)"


def test_intervals_are_drawn_where_there_are_any(rows):
    (ax,) = compare_sources(rows)
    lines = [line for c in ax.collections if hasattr(c, "get_segments") for line in c.get_segments()]
    ends = [(*line[:, 0], line[0, 1]) for line in lines if len(line) == 2 and np.isfinite(line).all()]
    drawn = {(round(low, 9), round(high, 9), place) for low, high, place in ends}
    assert drawn == {(1.9, 2.1, 0), (2.9, 3.1, 1), (0.9, 1.1, 2)}


def test_a_printed_step_stands_at_its_step_only():
    printed = [row("paper", "A", v, paper="A", step=s, protocol="Table 5") for v, s in ((1.5, 0), (1.7, 8))]
    swept = [row("sweep", "a", 1.0, paper="A", revision=f"step{s}", step=s) for s in (8, 9)]
    (ax,) = compare_sources(tidy(*swept, *printed))
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["a@step8", "a@step9", "A at step 0 (Table 5)"]
    assert sorted(marks(ax)["paper"]) == [(1.5, 2), (1.7, 0)]


def test_axes_that_are_given_are_drawn_on(rows):
    more = pd.concat([rows, rows.assign(metric="low_band")])
    given = plt.subplots(1, 2)[1]
    axes = compare_sources(more, axes=given, metrics=["low_band", "spectral_entropy"])
    assert list(axes) == list(given)
    labels = ["low band (relative\nband power)", "spectral entropy\n(nats)"]
    assert [ax.get_xlabel() for ax in axes] == labels
    assert axes[1].get_legend() is not None
    with pytest.raises(ValueError, match="no metric"):
        compare_sources(rows, metrics=["sink_mass"])


@pytest.mark.parametrize(("over", "places"), [("step", [11, 101, 101]), ("n_parameters", [1e6, 1e8, 1e8])])
def test_a_metric_over_steps_or_sizes(rows, over, places):
    ax = rows_over(rows, over, "spectral_entropy")
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert list(lines) == [
        "mine" if over == "step" else "this notebook",
        "sweep",
        "printed by the paper",
        "uniform attention",
    ]
    points = list(lines.values())
    assert points[0] == [[places[0], VALUE]]
    assert points[1] == [[places[1], 3.0]], "the run without a place is left out"
    assert points[2] == [[places[2], 2.5]]
    assert points[3] == [[places[0], NULL], [places[1], NULL]]
    assert ax.get_xscale() == "log"
    assert ax.get_ylabel() == "spectral entropy (nats)"


def test_arms_have_a_curve_each_over_training():
    live = [row("this notebook", arm, v, step=s) for arm, v in (("a", 1.0), ("b", 2.0)) for s in (5, 0)]
    lines = {
        line.get_label(): line.get_xydata().tolist()
        for line in rows_over(tidy(*live), "step", "spectral_entropy").lines
    }
    assert lines["a"] == [[1, 1.0], [6, 1.0]], "step 0 has a place"
    assert lines["b"] == [[1, 2.0], [6, 2.0]]


def test_refusals(rows):
    with pytest.raises(ValueError, match="over step or n_parameters, not over 'length'"):
        rows_over(rows, "length", "spectral_entropy")
    with pytest.raises(ValueError, match="none of the 5 rows has low_band and a known step"):
        rows_over(rows, "step", "low_band")
