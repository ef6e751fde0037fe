import numpy as np
import pytest
from refusals import refusals

from nbhelpers.sweeps.figures import compare_sources, rows_over
from nbhelpers.sweeps.rows import tidy

pytestmark = pytest.mark.usefixtures("close_figures")
NULL, VALUE = 0.5, 2.0


def row(source, model, value, metric="spectral_entropy", **more):
    ends = {"low": value - 0.1, "high": value + 0.1, "null": NULL} if source != "paper" else {}
    return {"source": source, "model": model, "metric": metric, "value": value} | ends | more


ROWS = tidy(
    [
        row("this notebook", "mine", VALUE, step=10, n_parameters=1e6),
        row("sweep", "owner/a", 3.0, paper="A", step=100, n_parameters=1e8),
        row("sweep", "owner/b", 1.0, null=np.nan),
        row("paper", "A", 2.5, paper="A", protocol="Table 3", step=100, n_parameters=1e8),
        row("paper", "C", 2.7, paper="C", protocol="Table 3"),
    ]
)


def marks(ax):
    return {c.get_label(): [*map(tuple, c.get_offsets())] for c in ax.collections if c.get_label()[0] != "_"}


def curves(ax):
    return {line.get_label(): line.get_xydata().tolist() for line in ax.lines}


def test_each_row_has_its_value_its_interval_its_null_and_what_the_paper_prints():
    (ax,) = compare_sources(ROWS)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["mine (this notebook)", "owner/a", "owner/b", "C (Table 3)"]
    assert marks(ax) == {
        "this notebook": [(VALUE, 0)],
        "sweep": [(3.0, 1), (1.0, 2)],
        "null": [(NULL, 0), (NULL, 1)],
        "paper": [(2.5, 1), (2.7, 3)],  # the printed model of the sweep on its line, the other on its own
    }
    lines = [line for c in ax.collections if hasattr(c, "get_segments") for line in c.get_segments()]
    ends = [line for line in lines if len(line) == 2 and np.isfinite(line).all()]
    drawn = {(*np.round(line[:, 0], 9), line[0, 1]) for line in ends}
    assert drawn == {(1.9, 2.1, 0), (2.9, 3.1, 1), (0.9, 1.1, 2)}, "intervals of the measured rows"


def test_a_printed_step_stands_at_its_step_only():
    printed = [row("paper", "A", v, paper="A", step=s, protocol="Table 5") for v, s in ((1.5, 0), (1.7, 8))]
    swept = [row("sweep", "a", 1.0, paper="A", revision=f"step{s}", step=s) for s in (8, 9)]
    (ax,) = compare_sources(tidy([*swept, *printed]))
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["a@step8", "a@step9", "A at step 0 (Table 5)"]
    assert sorted(marks(ax)["paper"]) == [(1.5, 2), (1.7, 0)]


@pytest.mark.parametrize(("over", "places"), [("step", [11, 101, 101]), ("n_parameters", [1e6, 1e8, 1e8])])
def test_a_metric_over_steps_or_sizes(over, places):
    ax = rows_over(ROWS, over, "spectral_entropy")
    assert curves(ax) == {
        "mine" if over == "step" else "this notebook": [[places[0], VALUE]],
        "sweep": [[places[1], 3.0]],  # the run without a place is left out
        "printed by the paper": [[places[2], 2.5]],
        "uniform attention": [[places[0], NULL], [places[1], NULL]],
    }
    assert ax.get_xscale() == "log"


def test_arms_have_a_curve_each_over_training():
    live = [row("this notebook", arm, v, step=s) for arm, v in (("a", 1.0), ("b", 2.0)) for s in (5, 0)]
    drawn = curves(rows_over(tidy(live), "step", "spectral_entropy"))
    expected = {"a": [[1, 1.0], [6, 1.0]], "b": [[1, 2.0], [6, 2.0]]}
    assert {name: drawn[name] for name in "ab"} == expected, "step 0 has a place"


test_refusals = refusals(
    (lambda: rows_over(ROWS, "length", "spectral_entropy"), "not over 'length'"),
    (lambda: rows_over(ROWS, "step", "low_band"), "none of the 5 rows"),
    (lambda: compare_sources(ROWS, metrics=["sink_mass"]), "no metric"),
)
