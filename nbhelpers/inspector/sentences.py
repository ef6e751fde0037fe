"""What the inspector says, as HTML: messages, the table of numbers, the effect of an ablation, links."""

import base64
import html
import traceback

import numpy as np

from nbhelpers.metrics import metric_label

from .panels import to_png

RANK = '<abbr title="percentile among all heads">%ile</abbr>'
FORESEEN = (ValueError, LookupError, OSError, ImportError, MemoryError, RuntimeError, TypeError)


def note(text):
    """Return a message."""
    return f'<div class="nbh-note" role="status">{html.escape(text)}</div>' if text else ""


def complaint(text, *, kept=True):
    """Return an error in words; `kept` adds that what is shown is what was shown before."""
    text = text[:1].upper() + text[1:]
    text += "" if text.endswith((".", "!", "?")) else "."
    still = " What is shown is still the last good reading." if kept else ""
    return f'<div class="nbh-error" role="alert">{html.escape(text + still)}</div>'


def summary(reading, seconds):
    """Return one line about a reading."""
    n_layers, n_heads = reading.shape
    kept = f"{reading.kept.nbytes / 1e6:.0f} MB of queries and keys are kept"
    return (
        f"{reading.model.description.name}: {reading.n_tokens} tokens, {n_layers} layers × {n_heads} heads, "
        f"protocol {reading.protocol.hash}, measured in {seconds:.2f} s; {kept}. {reading.note}"
    ).strip()


def numbers_table(heads, protocol):
    """Return the numbers of the selected head, and of the pinned one if any, as a table.

    `heads` are pairs of a name and the frame of `Reading.numbers`.
    """
    names = "".join(
        f'<th scope=col><span class="nbh-of-{kind}">{name}</span></th><th scope=col>{RANK}</th>'
        for kind, (name, _) in zip(("selected", "pinned"), heads, strict=False)
    )
    rows = [f"<tr><th scope=col>metric</th>{names}<th scope=col>uniform</th></tr>"]
    for metric, first in heads[0][1].iterrows():
        own = [frame.loc[metric] for _, frame in heads]
        cells = [cell for row in own for cell in (known(row.value, ".4g"), known(row.percentile, ".0f"))]
        cells = "".join(f"<td>{cell}</td>" for cell in [*cells, known(first.uniform, ".4g")])
        label = html.escape(metric_label(metric, protocol))
        rows.append(f'<tr data-metric="{metric}"><th scope=row>{label}</th>{cells}</tr>')
    return f'<div class="nbh-numbers"><table>{"".join(rows)}</table></div>'


def ablation(result, n_predicted):
    """Return a sentence on what the loss does without a head."""
    error = float(np.std(result.changes, ddof=1) / np.sqrt(len(result.changes)))
    return note(
        f"Without layer {result.layer}, head {result.head}, the loss on these {n_predicted} predicted tokens "
        f"goes from {result.before:.4f} to {result.after:.4f} nats per token: {result.change:+.4f} ± "
        f"{error:.4f} (standard error over tokens)."
    )


def picture(pixels, described):
    """Return pixels (height, width, 3) as an image with a description for those who cannot see it."""
    height, width, _ = pixels.shape  # reserves the place, so that nothing jumps at a click
    data = base64.b64encode(to_png(pixels)).decode()
    return (
        f'<img alt="{html.escape(described)}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}">'
    )


def links(files):
    """Return links that download files (path to media type), beside the folder that they are in."""
    parts = []
    for path, media in files.items():
        data, name = base64.b64encode(path.read_bytes()).decode(), html.escape(path.name)
        parts.append(f'<a download="{name}" href="data:{media};base64,{data}">{name}</a>')
    folder = html.escape(str(next(iter(files)).parent))
    return f'<div class="nbh-note" role="status">Written to {folder}: {" · ".join(parts)}</div>'


def known(value, form):
    """Return a number in a form, a dash for what is not known."""
    return f"{value:{form}}" if np.isfinite(value) else "–"


def in_words(error):
    """Return what an exception says; the name too of one that nobody foresaw."""
    if not isinstance(error, FORESEEN):
        return f"unexpected {''.join(traceback.format_exception_only(error)).strip()}"
    words = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return words or f"{type(error).__name__} without a message"
