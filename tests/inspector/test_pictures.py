"""Labels, colours and panels: what is drawn is what was given, and the kept frame changes nothing."""

import matplotlib
import numpy as np
import pytest

from nbhelpers.inspector import panels
from nbhelpers.inspector.export import static_picture
from nbhelpers.inspector.map import UNKNOWN, gradient, map_colours
from nbhelpers.inspector.reading import read_text
from nbhelpers.protocol import PAPER

MIDDLE = "#" + bytes(matplotlib.colormaps["cividis"](0.5, bytes=True)[:3]).hex()
TEXT = "the whale and the sea costs $5 and $6 and the ship that sails the sea " * 3


@pytest.fixture(scope="module")
def reading(tiny_llama):
    return read_text(tiny_llama, TEXT, length=64)


def test_tokens_become_labels():
    tokens = [" the", "\n", "", "鯨", "a" * 40]
    labels = ["·the", "↵", "∅", panels.MISSING, "a" * (panels.LONGEST_LABEL - 1) + "…"]
    assert [panels.readable(token) for token in tokens] == labels


def test_map_colours_follow_the_order_of_the_values():
    values = np.array([[0.0, 0.5], [1.0, np.nan]])
    assert map_colours(values) == ([[gradient()[0], MIDDLE], [gradient()[-1], UNKNOWN]], (0.0, 1.0))
    assert map_colours(np.full((1, 2), 3.0)) == ([[MIDDLE, MIDDLE]], (3.0, 3.0))
    assert map_colours(np.full((1, 2), np.nan)) == ([[UNKNOWN, UNKNOWN]], (0.0, 1.0))
    red, green, blue = np.array([matplotlib.colors.to_rgb(colour) for colour in gradient(8)]).T
    assert (np.diff(0.2126 * red + 0.7152 * green + 0.0722 * blue) > 0).all(), "lightness rises"


def test_attention_panel_draws_each_entry_in_the_colour_of_its_value(reading):
    view, span = reading.head(1, 2), (3, 18)
    pixels = panels.AttentionPanel(reading.tokens, span).show(view)
    n = span[1] - span[0] + 1
    size = pixels.shape[0]
    side, left, top = 0.67 * size / n, 0.2 * size, (1 - 0.19 - 0.67) * size
    for row, column in ((0, 0), (5, 2), (9, 9), (15, 1), (2, 14)):
        value = np.clip(view.attn[span[0] + row, span[0] + column], panels.LOWEST, 1)
        share = np.log(value / panels.LOWEST) / np.log(1 / panels.LOWEST)  # of the logarithmic scale
        wanted = np.array(matplotlib.colormaps["viridis"](share, bytes=True)[:3], dtype=int)
        got = pixels[int(top + (row + 0.5) * side), int(left + (column + 0.5) * side)].astype(int)
        assert np.abs(got - wanted).max() <= 3


def test_a_second_head_on_a_kept_frame_equals_a_new_figure_and_a_pinned_one_adds_lines(reading):
    first, second = reading.head(0, 0), reading.head(1, 3)
    for make in (
        lambda: panels.AttentionPanel(reading.tokens, (0, 63)),
        lambda: panels.CurvesPanel(reading, [first]),
    ):
        kept = make()
        before, after = kept.show(first), kept.show(second)
        assert (before != after).any()
        assert (after == make().show(second)).all()
    both = panels.CurvesPanel(reading, [first, second])
    assert (both.show(first, second) != both.show(first, first)).any()


def test_every_protocol_can_be_drawn(reading):
    for changes in (
        {"signal": "lag_profile", "sided": "two"},
        {"sink": "drop_renormalise", "edges": (0.5,)},
        {"mode": "periodization", "wavelet": "haar"},
    ):
        changed = reading.under(PAPER.replace(**changes))
        view = changed.head(0, 1)
        assert panels.to_png(panels.CurvesPanel(changed, [view]).show(view)).startswith(b"\x89PNG")


def test_labels_that_fonts_or_mathematics_would_choke_on(reading):
    tokens = ["$x$", "鯨", "\n", "_^{"] * 16
    panels.AttentionPanel(tokens, (0, 63)).show(reading.head(0, 0))  # a warning is an error here


def test_the_static_picture_grows_with_the_heads(reading):
    views = [reading.head(0, 0), reading.head(1, 1)]
    one, two = (static_picture(reading, "low_band", views[:n], span=(0, 63), dpi=50) for n in (1, 2))
    assert one.shape[2] == two.shape[2] == 3
    assert two.shape[1] > one.shape[1]
