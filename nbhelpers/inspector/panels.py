"""The panels of a head: figures whose frame is drawn once and whose data are drawn at every click.

A click has a third of a second, and drawing axes, ticks and token labels anew takes more than that. So limits
are fixed (which also makes heads comparable), everything that no head changes is kept as pixels, and a click
draws lines, images and titles over a copy of them.
"""

import functools
import io

import numpy as np
from matplotlib import font_manager, ft2font
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

# Okabe and Ito's colours, told apart by line style too.
SELECTED, PINNED, NULL = "#0072b2", "#d55e00", "#595959"
LINES = {SELECTED: "-", PINNED: "--", NULL: ":"}
FLOOR = 1e-5  # smallest share that the logarithmic axes show
LOWEST = 1e-4  # smallest attention and wavelet coefficient that has a colour of its own
DPI = 84
MOST_LABELS = 32  # tokens that can be named along an axis
LONGEST_LABEL = 12  # characters of a token
MISSING, NEW_LINE, SPACE, EMPTY = "\u25a1", "\u21b5", "\u00b7", "\u2205"


class Panel:
    """A figure with a kept frame; subclasses declare what moves and `set` it to the views of heads."""

    def __init__(self, figsize, dpi=DPI):
        self.figure = Figure(figsize=figsize, dpi=dpi)
        self.canvas = FigureCanvasAgg(self.figure)
        self.moving = []
        self._frame = None

    def move(self, artist):
        """Declare an artist to change with the head, and return it."""
        artist.set_animated(True)
        self.moving.append(artist)
        return artist

    def pixels(self):
        """Return what is drawn now, array (height, width, 3) of uint8."""
        if self._frame is None:
            self.canvas.draw()
            self._frame = self.canvas.copy_from_bbox(self.figure.bbox)
        self.canvas.restore_region(self._frame)
        for artist in self.moving:
            artist.draw(self.canvas.renderer)
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()

    def show(self, *views):
        """Draw some HeadViews, the selected one first, and return the pixels."""
        self.set(*views)
        return self.pixels()


class AttentionPanel(Panel):
    """Where a head looks inside a span of tokens: the first and the last shown, of queries and keys alike."""

    def __init__(self, tokens, span, *, colour=SELECTED, dpi=DPI):
        super().__init__((4.7, 4.7), dpi)
        self.span = span
        first, last = span
        count = last - first + 1
        ax = self.figure.add_axes((0.2, 0.19, 0.67, 0.67))
        edges = (first - 0.5, last + 0.5)
        look = {"cmap": "viridis", "interpolation": "nearest", "aspect": "equal"}
        blank, extent = np.full((count, count), LOWEST), (*edges, *edges[::-1])
        self._image = self.move(ax.imshow(blank, norm=LogNorm(LOWEST, 1), extent=extent, **look))
        _name_tokens(ax, first, [readable(token) for token in tokens[first : last + 1]])
        ax.set_xlabel("key (token)", fontsize=9)
        ax.set_ylabel("query (token)", fontsize=9)
        self._title = self.move(self.figure.text(0.02, 0.955, "", color=colour, fontsize=10.5, weight="bold"))
        shown = f"tokens {first} to {last}" if count < len(tokens) else f"all {len(tokens)} tokens"
        self.figure.text(0.02, 0.91, f"attention (probability), {shown}", fontsize=9, color="0.25")
        _colour_bar(self.figure, self._image, (0.89, 0.19, 0.025, 0.67), labelsize=8)

    def set(self, view):
        first, last = self.span
        self._image.set_data(np.clip(view.attn[first : last + 1, first : last + 1], LOWEST, 1))
        self._title.set_text(f"{view.name} (KV group {view.kv_group})")


class CurvesPanel(Panel):
    """Key profile, lag profile, spectrum and scalogram of a head, and of a pinned one over it."""

    def __init__(self, reading, views, *, dpi=DPI):
        super().__init__((8.8, 4.7), dpi)
        self._colours = (SELECTED, PINNED)[: len(views)]
        protocol = reading.protocol
        self._signal, self._edges, self._wavelet = protocol.signal, protocol.edges, protocol.wavelet
        self._n = reading.n_tokens
        example = views[0]  # of the shapes, and of the null
        axes = self.figure.add_axes
        self._key = self._key_axes(axes((0.08, 0.59, 0.38, 0.29)), example)
        self._lag = self._lag_axes(axes((0.58, 0.59, 0.38, 0.29)), example)
        self._psd = self._psd_axes(axes((0.08, 0.12, 0.38, 0.31)), example)
        self._scalograms = self._scalogram_axes(example)
        self._names = self._legend()

    def set(self, *views):
        for number, view in enumerate(views):
            self._key[number].set_ydata(np.clip(view.key_profile, FLOOR, 1))
            self._lag[number].set_ydata(np.clip(view.lag_profile, FLOOR, 1))
            self._psd[number].set_ydata(np.clip(view.psd, FLOOR, 1))
            self._scalograms[number].set_data(np.clip(view.scalogram, LOWEST, 1))
            self._names[number].set_text(view.name)

    def _key_axes(self, ax, example):
        x = np.arange(self._n)
        _frame(ax, "key profile", "key (token number)", "mean attention")
        ax.set_xlim(0, self._n - 1)
        return self._lines(ax, x, example.null_key_profile)

    def _lag_axes(self, ax, example):
        if example.lags[0] < 0:
            _frame(ax, "lag profile", "lag (tokens; negative looks ahead)", "")
            ax.set_xlim(example.lags[0], example.lags[-1])
            return self._lines(ax, example.lags, example.null_lag_profile)
        _frame(ax, "lag profile", "lag + 1 (tokens)", "")
        ax.set_xscale("log", base=2)
        ax.set_xlim(1, self._n)
        ax.xaxis.set_minor_locator(NullLocator())
        return self._lines(ax, example.lags + 1, example.null_lag_profile)

    def _psd_axes(self, ax, example):
        name = self._signal.replace("_", " ")
        _frame(ax, f"spectrum of the {name}", "frequency (cycles/token)", "share of power")
        ax.set_xlim(example.frequency.min(), example.frequency.max())
        limits = [0.0, *(edge / 2 for edge in self._edges), 0.5]
        names = ("low", "mid", "high") if len(limits) == 4 else [""] * len(limits)
        for edge in limits[1:-1]:
            ax.axvline(edge, color="0.6", lw=0.9)
        for left, right, band in zip(limits, limits[1:], names, strict=False):
            place = ((left + right) / 2, 1.02)
            ax.text(*place, band, transform=ax.get_xaxis_transform(), ha="center", fontsize=8, color="0.3")
        ax.set_title(ax.get_title(loc="left"), fontsize=9.5, loc="left", pad=13)
        return self._lines(ax, example.frequency, example.null_psd)

    def _lines(self, ax, x, null):
        """Draw the null, which stays, and return a line for each head."""
        ax.plot(x, np.clip(null, FLOOR, 1), color=NULL, ls=LINES[NULL], lw=1.3)
        blank = np.full(len(x), FLOOR)
        return [self.move(ax.plot(x, blank, color=c, ls=LINES[c], lw=1.2)[0]) for c in self._colours]

    def _scalogram_axes(self, example):
        images, count = [], len(self._colours)
        height = 0.31 if count == 1 else 0.135
        for row in range(count):
            ax = self.figure.add_axes((0.58, 0.12 + (count - 1 - row) * 0.175, 0.34, height))
            blank = np.full((len(example.levels), len(example.positions)), LOWEST)
            ends = (example.positions[0] - 0.5, example.positions[-1] + 0.5)
            look = {"cmap": "cividis", "aspect": "auto", "interpolation": "nearest"}
            image = ax.imshow(blank, norm=LogNorm(LOWEST, 1), extent=(*ends, len(blank) - 0.5, -0.5), **look)
            images.append(self.move(image))
            ax.set_yticks(range(len(blank)), example.levels, fontsize=8 if count == 1 else 7)
            ax.tick_params(labelsize=8 if count == 1 else 7, length=2)
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.spines[:].set_color(self._colours[row])
            if row == 0:
                ax.set_title(f"{self._wavelet} coefficients |W|, by level", fontsize=9.5, loc="left", pad=3)
            if row < count - 1:
                ax.xaxis.set_major_formatter(NullFormatter())
                continue
            where = "lag (tokens)" if self._signal == "lag_profile" else "key (token number)"
            ax.set_xlabel(where, fontsize=8.5, labelpad=1)
        _colour_bar(self.figure, images[0], (0.935, 0.12, 0.012, 0.31), labelsize=7)
        return images

    def _legend(self):
        """Name the lines above the axes and return the names that change."""
        names = [self.move(self._key_of(x, c)) for x, c in zip((0.08, 0.32), self._colours, strict=False)]
        self._key_of(0.58, NULL).set_text("uniform attention (null)")
        return names

    def _key_of(self, x, colour):
        self.figure.add_artist(Line2D([x, x + 0.04], [0.966, 0.966], color=colour, ls=LINES[colour], lw=1.5))
        return self.figure.text(x + 0.05, 0.965, "", fontsize=9.5, va="center", color=colour)


def readable(token):
    """Return a token as a label: visible blanks, a box for what the font lacks, at most 12 characters."""
    known = _characters()
    text = token.replace("\n", NEW_LINE).replace("\t", " ").replace(" ", SPACE) or EMPTY
    text = "".join(character if ord(character) in known else MISSING for character in text)
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


@functools.cache
def _characters():
    """Return the code points that the font of the figures can draw."""
    return frozenset(ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


def to_png(pixels):
    """Return an array (height, width, 3) of uint8 as the bytes of a PNG."""
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png", pil_kwargs={"compress_level": 1})
    return buffer.getvalue()


def _name_tokens(ax, first, labels):
    step = -(-len(labels) // MOST_LABELS)
    places = np.arange(first, first + len(labels), step)
    size = 8 if len(places) <= 24 else 7
    for axis, rotation in ((ax.xaxis, 90), (ax.yaxis, 0)):
        axis.set_ticks(places, labels[::step], fontsize=size, rotation=rotation)
        axis.set_tick_params(length=2, pad=1.5)
        for label in axis.get_ticklabels():
            label.set_parse_math(False)  # a token may hold a dollar sign


def _frame(ax, title, x, y):
    ax.set_title(title, fontsize=9.5, loc="left", pad=3)
    ax.set_xlabel(x, fontsize=8.5, labelpad=1)
    ax.set_ylabel(y, fontsize=8.5, labelpad=1)
    ax.set_yscale("log")
    ax.set_ylim(FLOOR / 1.5, 1.5)
    ax.yaxis.set_major_locator(FixedLocator([1e-4, 1e-2, 1]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.tick_params(labelsize=8, length=2)
    ax.spines[["top", "right"]].set_visible(False)


def _colour_bar(figure, image, box, *, labelsize):
    bar = figure.colorbar(image, cax=figure.add_axes(box))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=labelsize, length=2)
