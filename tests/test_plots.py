import dataclasses

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib.collections import LineCollection, PathCollection

from nbhelpers.plots import band_bars, compare_rows, head_map, layer_trend
from nbhelpers.protocol import PAPER
from nbhelpers.stats import student_interval
from nbhelpers.table import HeadTable

pytestmark = pytest.mark.usefixtures("close_figures")
N_SEQUENCES, N_LAYERS, N_HEADS = 5, 3, 4


@pytest.fixture
def table():
    shares = np.random.default_rng(0).dirichlet([6, 3, 1], size=(N_SEQUENCES, N_LAYERS, N_HEADS))
    metrics = dict(zip(("low_band", "mid_band", "high_band"), np.moveaxis(shares, -1, 0), strict=True))
    metrics["spectral_entropy"] = np.random.default_rng(1).normal(2.5, 0.3, size=shares.shape[:3])
    return HeadTable(metrics, [0, 0, 1, 1])


# The average is 2; with one sequence or the other left out it is 1 or 9.
AVERAGED = HeadTable({"low_band": np.tile([[[2.0]], [[1.0]], [[9.0]]], (3, 4))}, [0, 0, 1, 1], averaged=True)


def drawn_cells(ax):
    return ax.collections[0].get_array().reshape(N_LAYERS, N_HEADS)


def test_head_map_draws_the_mean_over_sequences_and_parts_the_kv_groups(table, ax):
    assert head_map(table, "spectral_entropy", ax=ax) is ax
    np.testing.assert_allclose(drawn_cells(ax), table.values("spectral_entropy").mean(0), rtol=1e-12)
    assert ax.get_ylabel() == "layer"
    assert ax.collections[0].colorbar.ax.get_ylabel() == "spectral entropy (nats)"
    assert [line.get_xdata()[0] for line in ax.lines] == [2]
    bits = table.with_provenance(protocol=PAPER.replace(log_base=2).to_dict())
    head_map(bits, "spectral_entropy", ax=ax)
    assert ax.collections[-1].colorbar.ax.get_ylabel() == "spectral entropy (bits)"
    assert layer_trend(bits, ["spectral_entropy"], ax=ax).get_ylabel() == "bits"


def test_layers_without_attention_are_blank(table, ax):
    sparse = dataclasses.replace(table, layers=[1, 2, 4])
    drawn = head_map(sparse, "spectral_entropy", ax=ax).collections[0].get_array()
    cells = np.ma.filled(drawn.reshape(5, N_HEADS), np.nan)
    np.testing.assert_allclose(cells[[1, 2, 4]], table.values("spectral_entropy").mean(0), rtol=1e-12)
    assert np.isnan(cells[[0, 3]]).all()
    ax.clear()
    assert sorted(set(layer_trend(sparse, ["low_band"], ax=ax).lines[0].get_xdata())) == [1, 2, 4]


@pytest.mark.parametrize("kv_groups", [None, [0, 1, 2, 3]])
def test_head_map_of_an_array(ax, kv_groups):
    values = np.arange(12.0).reshape(3, 4)
    head_map(values, ax=ax, center=5.0, label="log ratio", vmin=-1, kv_groups=kv_groups)
    np.testing.assert_array_equal(drawn_cells(ax), values)
    assert not ax.lines, "there are no groups to part"
    assert ax.collections[0].colorbar.ax.get_ylabel() == "log ratio"
    assert ax.collections[0].norm.vmin == -1
    head_map(AVERAGED, "low_band", ax=ax)
    assert (ax.collections[-1].get_array() == 2).all(), "of averaged signals the average alone"


@pytest.mark.parametrize("order", ["layer", "share"])
def test_band_bars_stack_the_shares_of_each_head(table, ax, order):
    assert band_bars(table, ax=ax, order=order) is ax
    heads = table.per_head()
    keys = ["layer", "head"] if order == "layer" else ["low_band"]
    expected = heads.sort_values(keys)[["low_band", "mid_band", "high_band"]].to_numpy()
    # from left to right, and within a place from the bottom up
    bars = sorted((round(p.get_x() + p.get_width() / 2), p.get_y(), p.get_height()) for p in ax.patches)
    heights = np.array([height for *_, height in bars]).reshape(-1, 3)
    np.testing.assert_allclose(heights, expected, rtol=1e-9)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["high band", "mid band", "low band"]
    if order == "layer":
        assert [line.get_xdata()[0] for line in ax.lines] == [3.5, 7.5], "between the layers"


def test_layer_trend_draws_means_over_heads_and_the_interval_over_sequences(table, ax):
    assert layer_trend(table, ["low_band", "mid_band"], ax=ax) is ax
    for line, metric in zip(ax.lines, ["low_band", "mid_band"], strict=False):
        np.testing.assert_allclose(line.get_ydata(), table.values(metric).mean((0, 2)), rtol=1e-9)
    ends = student_interval(table.values("low_band").mean(-1)[:, 0])[1:3]  # at layer 0
    outline = ax.collections[0].get_paths()[0].vertices
    at_zero = outline[outline[:, 0] == 0, 1]
    np.testing.assert_allclose([at_zero.min(), at_zero.max()], ends)
    assert ax.get_ylabel() == "relative band power"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["low band", "mid band"]


ROWS = [
    ("Pythia", "spectral_entropy", 2.8, np.nan, np.nan, "paper"),
    ("SmolLM2", "spectral_entropy", 2.6, 2.5, 2.7, "this notebook"),
    ("Pythia", "low_band", 0.7, np.nan, np.nan, "paper"),
    ("SmolLM2", "low_band", 0.65, 0.64, 0.66, "this notebook"),
    ("uniform", "low_band", 0.99, np.nan, np.nan, "null"),
]
COMPARISON = pd.DataFrame(ROWS, columns=["row", "metric", "value", "low", "high", "source"])


def test_compare_rows_draws_points_and_intervals():
    axes = compare_rows(COMPARISON, plt.subplots(1, 2)[1])
    assert [ax.get_xlabel() for ax in axes] == ["spectral entropy (nats)", "low band (relative band power)"]
    drawn = axes[1].collections
    points = {tuple(at) for c in drawn if isinstance(c, PathCollection) for at in c.get_offsets()}
    assert points == {(0.7, 0.0), (0.65, 1.0), (0.99, 2.0)}
    lines = [line.tolist() for c in drawn if isinstance(c, LineCollection) for line in c.get_segments()]
    assert [[0.64, 1.0], [0.66, 1.0]] in lines
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["Pythia", "SmolLM2", "uniform"]
    assert axes[0].get_ylim()[0] > axes[0].get_ylim()[1], "the first row is on top"
    given = plt.subplots()[1]
    assert list(compare_rows(COMPARISON.drop(columns=["low", "high"]), given, metrics=["low_band"])) == [
        given
    ]
    assert len(given.collections) == 3  # one group of points for each source, no line


@pytest.mark.parametrize(
    "draw", [head_map, lambda table, _: band_bars(table), lambda table, m: layer_trend(table, [m])]
)
def test_without_ax_a_new_figure_is_made_and_all_else_is_left_alone(table, draw):
    before = table.frame()
    with sns.axes_style("darkgrid"):
        theme = dict(matplotlib.rcParams)
        assert draw(table, "low_band") is not draw(table, "low_band")
        assert dict(matplotlib.rcParams) == theme
    pd.testing.assert_frame_equal(table.frame(), before)


def test_bad_input_is_refused(table):
    for draw, message in (
        (head_map, "say which metric"),
        (lambda table: head_map(np.zeros(7)), r"\(7,\)"),
        (lambda table: head_map(np.zeros((2, 4)), kv_groups=[0, 0, 1]), "3 heads"),
        (lambda table: head_map(table, "colour"), "no metric 'colour'"),
        (lambda table: layer_trend(AVERAGED, ["low_band"]), "one value per sequence"),
        (lambda table: compare_rows(COMPARISON.drop(columns="source"), []), "source missing"),
        (lambda table: compare_rows(COMPARISON.replace("paper", "theirs"), []), "unknown source"),
        (lambda table: compare_rows(COMPARISON, [], metrics=["mid_band"]), "no metric"),
        (lambda table: compare_rows(COMPARISON, plt.subplots()[1]), "need 2 axes"),
    ):
        with pytest.raises((ValueError, KeyError), match=message):
            draw(table)
