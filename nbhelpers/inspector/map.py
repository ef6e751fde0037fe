"""The clickable layer × head map; its drawing and its keys are in ``map.js``."""

from pathlib import Path

import anywidget
import numpy as np
import traitlets

from nbhelpers.plots import metric_label

from .figures import gradient, map_colours

HERE = Path(__file__).parent


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
            self.label = metric_label(metric)
            self.colours = colours
