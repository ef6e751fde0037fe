"""The clickable layer × head map and its colours; its drawing and its keys are in ``map.js``."""

from pathlib import Path

import anywidget
import matplotlib
import numpy as np
import traitlets
from matplotlib.colors import Normalize

from nbhelpers.metrics import metric_label

HERE = Path(__file__).parent
COLOURS = "cividis"  # the same order of lightness for every kind of colour vision
UNKNOWN = "#bbbbbb"


class HeadMap(anywidget.AnyWidget):
    """A map of heads by one metric; `selected` follows clicks and arrow keys."""

    _esm = HERE / "map.js"
    _css = HERE / "map.css"

    colours = traitlets.List().tag(sync=True)  # (layer, head) of "#rrggbb"
    values = traitlets.List().tag(sync=True)  # (layer, head); None where unknown
    limits = traitlets.List([0.0, 1.0]).tag(sync=True)
    null_value = traitlets.Float(None, allow_none=True).tag(sync=True)
    gradient = traitlets.List().tag(sync=True)
    group_edges = traitlets.List().tag(sync=True)  # heads before which another KV group begins
    label = traitlets.Unicode().tag(sync=True)
    selected = traitlets.List([0, 0]).tag(sync=True)
    pinned = traitlets.List().tag(sync=True)  # (layer, head), or empty

    def show(self, reading, metric):
        """Colour the map by a metric of a reading."""
        values = reading.values(metric)  # (layer, head)
        groups = np.asarray(reading.kv_groups)
        edges = np.flatnonzero(np.diff(groups)) + 1
        colours, limits = map_colours(values)
        with self.hold_sync():
            self.values = [[float(v) if np.isfinite(v) else None for v in row] for row in values]
            self.limits, self.gradient = list(limits), gradient()
            self.group_edges = edges.tolist() if len(edges) + 1 < len(groups) else []
            null = reading.null_value(metric)
            self.null_value = null if np.isfinite(null) else None
            self.label = metric_label(metric, reading.protocol)
            self.colours = colours


def map_colours(values):
    """Return the colour ``#rrggbb`` of every head, list (layer, head), and the limits of the scale.

    NaN is grey; where all values are equal, all get the colour of the middle.
    """
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    scaled = Normalize(low, high)(values) if high > low else np.where(np.isfinite(values), 0.5, np.nan)
    palette = matplotlib.colormaps[COLOURS].with_extremes(bad=UNKNOWN)
    return _hexadecimal(palette(np.ma.masked_invalid(scaled), bytes=True)), (low, high)


def gradient(steps=16):
    """Return the colours of the scale from low to high."""
    return _hexadecimal(matplotlib.colormaps[COLOURS](np.linspace(0, 1, steps), bytes=True)[None])[0]


def _hexadecimal(pixels):
    """Return (…, …, 4) bytes as lists of ``#rrggbb``."""
    return [["#" + bytes(pixel[:3]).hex() for pixel in row] for row in pixels.tolist()]
