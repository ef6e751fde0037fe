"""Colours of the head map, and the picture that stands for the inspector where widgets cannot run."""

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nbhelpers.plots import head_map

from .panels import PINNED, SELECTED, AttentionPanel, CurvesPanel

COLOURS = "cividis"  # the same order of lightness for every kind of colour vision
UNKNOWN = "#bbbbbb"
SHARP = 120  # dots per inch of the static picture


def map_colours(values):
    """Return the colour of every head and the limits of the scale.

    Parameters
    ----------
    values : numpy.ndarray, shape (layer, head)
        NaN is grey; where all values are equal, all get the colour of the middle.

    Returns
    -------
    list of list of str
        ``#rrggbb``, (layer, head).
    tuple of float
        Lowest and highest value.
    """
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    scaled = Normalize(low, high)(values) if high > low else np.where(np.isfinite(values), 0.5, np.nan)
    palette = matplotlib.colormaps[COLOURS].with_extremes(bad=UNKNOWN)
    return _hexadecimal(palette(np.ma.masked_invalid(scaled), bytes=True)), (low, high)


def gradient(steps=16):
    """Return the colours of the scale from low to high as ``#rrggbb``."""
    return _hexadecimal(matplotlib.colormaps[COLOURS](np.linspace(0, 1, steps), bytes=True)[None])[0]


def static_picture(reading, metric, views, *, span, dpi=SHARP):
    """Draw the map and the panels of a head in one picture.

    Parameters
    ----------
    reading : Reading
    metric : str
        Of the map.
    views : list of HeadView
        The selected head, then the pinned one if any.
    span : tuple of int
        Tokens of the attention map.
    dpi : int

    Returns
    -------
    numpy.ndarray, shape (height, width, 3)
        uint8.
    """
    top = [_map_pixels(reading, metric, views, dpi)]
    for view, colour in zip(views, (SELECTED, PINNED), strict=False):
        panel = AttentionPanel(reading.tokens, span, colour=colour, dpi=dpi)
        panel.set(view)
        top.append(panel.pixels())
    curves = CurvesPanel(reading, len(views), dpi=dpi)
    curves.set(views)
    rows = [np.concatenate(top, axis=1), curves.pixels()]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    return np.concatenate(padded)


def _map_pixels(reading, metric, views, dpi):
    figure = Figure(figsize=(3.9, 4.7), dpi=dpi)
    ax = figure.add_axes((0.15, 0.11, 0.62, 0.77))
    head_map(reading.values(metric), ax=ax, kv_groups=reading.kv_groups, label=" ", cmap=COLOURS)
    figure.text(0.02, 0.955, metric.replace("_", " "), fontsize=10.5, weight="bold")
    figure.text(0.02, 0.91, f"all heads; uniform attention: {reading.null_value(metric):.3g}", fontsize=9)
    for each in (ax, ax.collections[0].colorbar.ax):
        each.tick_params(labelsize=8, length=2)
    ax.set_xlabel(ax.get_xlabel(), fontsize=9)
    ax.set_ylabel(ax.get_ylabel(), fontsize=9)
    for view, colour in zip(views, (SELECTED, PINNED), strict=False):
        for edge, width in (("white", 4.0), (colour, 2.0)):
            ax.add_patch(Rectangle((view.head, view.layer), 1, 1, fill=False, ec=edge, lw=width, zorder=5))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _hexadecimal(pixels):
    """Return (…, …, 4) bytes as lists of ``#rrggbb``."""
    return [["#" + bytes(pixel[:3]).hex() for pixel in row] for row in pixels.tolist()]
