import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from nbhelpers.zoo.dynamics import breakpoints_with_intervals
from nbhelpers.zoo.plots import NOTHING, arm_curves, arm_points, breakpoint_marks, live_panels, share_bars
from nbhelpers.zoo.train import Snapshot

pytestmark = pytest.mark.usefixtures("close_figures")


def test_points_are_the_seeds_and_the_bar_their_mean(ax):
    arm_points({"rope": [0.1, 0.3], "t5": [0.5]}, ax=ax, nulls={"rope": 0.9})
    marks = [line for line in ax.lines if len(line.get_xdata()) == 2]
    assert marks[0].get_xdata().tolist() == [0.1, 0.3]
    bars = [collection.get_segments()[0] for collection in ax.collections]
    assert [bar[0][0] for bar in bars] == [pytest.approx(0.2), 0.5]
    assert 0.9 in [float(np.ravel(line.get_xdata())[0]) for line in ax.lines]


def test_curves_are_over_log_updates_with_their_mean(ax):
    steps = np.array([0, 1, 10, 100])
    arm_curves({"alibi": (steps, np.array([[1.0, 2, 3, 4], [3.0, 4, 5, 6]]))}, ax=ax)
    mean = ax.lines[-1]
    assert mean.get_xdata() == pytest.approx(np.log10(steps + 1))
    assert mean.get_ydata() == pytest.approx([2, 3, 4, 5])
    arm_curves({"rope": (steps, steps), "t5": (steps, steps)}, ax=ax, named=["rope"])
    assert ([text.get_text().strip() for text in ax.texts], ax.lines[-1].get_color()) == (["rope"], "0.75")


def test_knots_have_their_intervals(ax):
    x = np.log10(np.arange(40) + 1.0)
    curve = np.clip((x - x[8]) / (x[20] - x[8]), 0, 1)
    breakpoints = breakpoints_with_intervals(x, np.tile(curve, (2, 3, 1)))
    breakpoint_marks(x, breakpoints, ax=ax)
    assert len(ax.collections) == len(breakpoints.fit.knots) == 2
    assert ax.lines[0].get_ydata() == pytest.approx(curve, abs=1e-9)


def test_shares_stand_in_rows_of_metrics(ax):
    frame = pd.DataFrame(
        [("low_band", "mask", 0.4, 0.1, 0.8), ("low_band", "BOS", 0.2, 0.0, 0.5)],
        columns=["metric", "factor", "share", "low", "high"],
    )
    share_bars(frame, ax=ax)
    assert [line.get_xdata()[0] for line in ax.lines] == [0.4, 0.2]
    rows = [np.ravel(line.get_ydata())[0] for line in ax.lines]
    assert rows[0] < 0 < rows[1]
    empty = [share_bars(frame[:0], ax=plt.subplots()[1]), arm_points({}), arm_curves({})]
    assert [ax.texts[0].get_text() for ax in empty] == [NOTHING] * 3


def test_live_panels_draw_what_is_now():
    frequency = np.linspace(0, 0.5, 9)

    def snapshot(step, entropy):
        return Snapshot(step, 1.0 * step, 7.0, frequency, np.full((2, 2, 9), 1 / 9), np.full((2, 2), entropy))

    figure = plt.figure()
    for snapshots in ([snapshot(0, 0.5)], [snapshot(0, 0.5), snapshot(9, 2.0)]):
        axes = live_panels(snapshots, figure=figure)
    assert len(figure.axes) == 3, "drawn anew, not on top"
    assert axes[1].lines[0].get_xdata() == pytest.approx([0, 1])
    assert axes[1].lines[0].get_ydata() == pytest.approx([0.5, 2.0])
