"""What can be taken along of the inspector: the picture that it shows, and the numbers of its heads."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nbhelpers.files import replacing
from nbhelpers.metrics import metric_label
from nbhelpers.plots import head_map

from .map import COLOURS
from .panels import PINNED, SELECTED, AttentionPanel, CurvesPanel

SHARP = 120  # dots per inch of the static picture


def static_picture(reading, metric, views, *, span, dpi=SHARP):
    """Draw the map by a metric and the panels of one head, or of two, in one picture.

    `span` is the first and the last token of the attention map. Returns pixels, array (height, width, 3) of
    uint8. It also stands for the inspector where widgets cannot run.
    """
    top = [_map_pixels(reading, metric, views, dpi)]
    for view, colour in zip(views, (SELECTED, PINNED), strict=False):
        top.append(AttentionPanel(reading.tokens, span, colour=colour, dpi=dpi).show(view))
    rows = [np.concatenate(top, axis=1), CurvesPanel(reading, views, dpi=dpi).show(*views)]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    return np.concatenate(padded)


def export_head(reading, selected, pinned, picture, folder):
    """Write a picture (bytes of a PNG) and a CSV of the selected head, and of the pinned one if any.

    Files of the same names are replaced. Returns what was written, path to media type.
    """
    if not str(folder).strip():
        raise ValueError("no folder is given to export to; type one, such as exports")
    folder = Path(folder).expanduser()
    model = re.sub(r"[^\w.-]+", "-", reading.model.description.name)
    stem = f"{model}-layer{selected[0]:02d}-head{selected[1]:02d}-{reading.protocol.hash}"
    png, csv = folder / f"{stem}.png", folder / f"{stem}.csv"
    with replacing(png) as partial:
        partial.write_bytes(picture)
    with replacing(csv) as partial:
        numbers_frame(reading, [selected, *([pinned] if pinned else [])]).to_csv(partial, index=False)
    return {png: "image/png", csv: "text/csv"}


def numbers_frame(reading, heads):
    """Return the numbers of some heads (layer, head) with all that says where they come from, a row each."""
    parts, model = [], reading.model.description
    read = {"text_sha256": hashlib.sha256(reading.text.encode()).hexdigest()[:12]}
    read |= {"n_tokens": reading.n_tokens, "protocol": reading.protocol.hash}
    for layer, head in heads:
        place = {"model": model.name, "revision": model.revision, **read}
        place |= {"layer": layer, "head": head, "kv_group": reading.kv_groups[head]}
        numbers = reading.numbers(layer, head).reset_index()
        parts.append(numbers.assign(**place)[[*place, *numbers.columns]])
    return pd.concat(parts, ignore_index=True)


def _map_pixels(reading, metric, views, dpi):
    figure = Figure(figsize=(3.9, 4.7), dpi=dpi)
    ax = figure.add_axes((0.15, 0.11, 0.62, 0.77))
    head_map(reading.values(metric), ax=ax, kv_groups=reading.kv_groups, label=" ", cmap=COLOURS)
    figure.text(0.02, 0.955, metric_label(metric, reading.protocol), fontsize=10.5, weight="bold")
    figure.text(0.02, 0.91, f"all heads; uniform attention: {reading.null_value(metric):.3g}", fontsize=9)
    for each in (ax, ax.collections[0].colorbar.ax):
        each.tick_params(labelsize=8, length=2)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_fontsize(9)
    for view, colour in zip(views, (SELECTED, PINNED), strict=False):
        for edge, width in (("white", 4.0), (colour, 2.0)):
            ax.add_patch(Rectangle((view.head, view.layer), 1, 1, fill=False, ec=edge, lw=width, zorder=5))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
