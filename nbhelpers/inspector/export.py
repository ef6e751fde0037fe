"""What leaves a reading: for the widget's page plain lists and bytes, to files figures, numbers, a page.

Attention is sent as one byte per entry, a logarithmic scale from `LEAST_ATTENTION` to 1; curves as float32.
"""

import base64
import hashlib
import html
import json
import re
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.files import replacing
from nbhelpers.inputs.text import pieces_of
from nbhelpers.metrics import find_metric, metric_label
from nbhelpers.plots import LEAST_ATTENTION, draw_heads
from nbhelpers.protocol import BANDS
from nbhelpers.stats import agreement

STEPS = 254  # from LEAST_ATTENTION (byte 1) to 1 (byte 255), 3.7 % apart; what is less is byte 0
SIX = (*BANDS, "spectral_entropy", "positional_entropy", "sink_mass", "self_mass")
BARE = ":root { color-scheme: light dark } body { margin: 0; background: light-dark(#fff, #12161b) }"
FIGURES = "png", "svg", "pdf"
ARRAYS = "attn", "key_profile", "lags", "lag_profile", "frequency", "psd", "positions", "scalogram"


def to_bytes(attn, *, causal):
    """Return attention (head, query, key) as bytes; of causal attention only the keys up to the query."""
    entries = np.asarray(attn, dtype=np.float32)
    if causal:
        entries = entries[:, np.tri(entries.shape[1], dtype=bool)]  # (head, entry)
    with np.errstate(divide="ignore"):  # 0 has a byte, too
        below = np.log(entries) * np.float32(STEPS / np.log(LEAST_ATTENTION))  # steps below 1
    return np.clip(STEPS + 1 - np.rint(below), 0, STEPS + 1).astype(np.uint8).tobytes()


def pack_reading(reading):
    """Return what does not change with the layer: texts, axes, the null's curves, metrics of all heads."""
    view = reading.head(*reading.nearest_head(0, 0))
    groups = np.asarray(reading.kv_groups)
    edges = (np.flatnonzero(np.diff(groups)) + 1).tolist()
    protocol, described = reading.protocol, reading.model.description
    nulls = {"key": view.null_key_profile, "lag": view.null_lag_profile, "psd": view.null_psd}
    values = np.stack([reading.values(name) for name in reading.metrics])  # (metric, layer, head)
    axes = {"lags": view.lags, "frequency": view.frequency, "positions": view.positions}

    def told(name):
        label = {"label": metric_label(name, protocol), "short": find_metric(name, protocol).label}
        return {"name": name, **label, "null": _number(reading.null_value(name))}

    return {
        "model": described.name,
        "shape": list(reading.shape),
        "layers": list(reading.layers),
        "edges": edges if len(edges) + 1 < len(groups) else [],  # heads before which another KV group begins
        "n": reading.n_tokens,
        "pieces": [*map(list, pieces_of(reading.model.tokenizer, reading.token_ids[0].tolist()))],
        "causal": bool(view.lags[0] == 0),
        "signal": protocol.signal,
        "band_edges": [edge / 2 for edge in protocol.edges],
        "wavelet": protocol.wavelet,
        "levels": list(view.levels),
        "no_kernel": reading.no_kernel,
        "no_loss": reading.no_loss,
        "metrics": [told(name) for name in reading.metrics],
        "six": [name for name in SIX if name in reading.metrics][:6],
        "arrays": _packed({"values": values} | nulls | axes),
    }


def pack_layer(reading, layer, *, wait):
    """Return everything of one layer's heads; `wait` as in :meth:`Reading.head`."""
    views = [reading.head(layer, head, wait=wait) for head in range(reading.shape[1])]
    causal = bool(views[0].lags[0] == 0)
    curves = {"key": "key_profile", "lag": "lag_profile", "psd": "psd"}
    curves = {name: [getattr(view, field) for view in views] for name, field in curves.items()}
    fit = []
    if reading.rotations:
        kernels = reading.kernels(layer)
        curves |= {"computed": kernels.computed, "measured": kernels.measured}
        curves |= {"waves": kernels.wavelengths, "amplitudes": kernels.amplitudes}
        fit = [[*map(_number, each)] for each in np.transpose(agreement(kernels.computed, kernels.measured))]
    scalograms = np.stack([view.scalogram for view in views])
    return {
        "layer": layer,
        "attention": to_bytes(reading.attention(layer, wait=wait).numpy(), causal=causal),
        "scalograms": to_bytes(np.minimum(scalograms, 1), causal=False),  # (head, level, position)
        "fit": fit,
        "arrays": _packed(curves),
    }


def _packed(arrays):
    """Return arrays as one piece of memory, and where each is: name → [first number, shape]."""
    places, parts, at = {}, [], 0
    for name, array in arrays.items():
        array = np.asarray(array, dtype=np.float32)
        places[name] = [at, list(array.shape)]
        parts.append(array.tobytes())
        at += array.size
    return {"places": places, "bytes": b"".join(parts)}


def _number(value):
    """Return a number as JSON knows it, None for NaN and infinities."""
    return float(value) if np.isfinite(value) else None


def export_heads(heads, state, folder):
    """Write figures, numbers, arrays and state of one or two heads, (Reading, (layer, head)) each, into a
    folder; return the paths. Names hold a hash of model, revision, text and protocol, so that different
    things never have one name."""
    views = [reading.head(*place) for reading, place in heads]
    numbers = numbers_frame(heads)
    told = numbers[["model", "revision", "text_sha256", "n_tokens", "protocol"]].drop_duplicates()
    model = re.sub(r"[^\w.-]+", "-", heads[0][0].model.description.name)
    names = "-vs-".join(f"layer{view.layer:02d}-head{view.head:02d}" for view in views)
    stem = Path(folder).expanduser() / f"{model}-{names}-{_hash(told.to_csv())[:8]}"
    figure = draw_heads(views, heads[0][0].protocol.signal)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # as it lies now, for all formats
    lettered = zip(views, "ab", strict=False)
    arrays = {f"{name}_{letter}": getattr(view, name) for view, letter in lettered for name in ARRAYS}
    writers = {kind: partial(figure.savefig, format=kind, dpi=300) for kind in FIGURES}
    writers["csv"] = partial(numbers.to_csv, index=False)
    writers["json"] = lambda file: file.write(json.dumps(state, indent=1).encode())
    writers["npz"] = lambda file: np.savez(file, **arrays)
    written = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in writers}
    for kind, path in written.items():
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            writers[kind](file)
    return [*written.values()]


def to_page(scripts, style, state, title):
    """Return one HTML file that needs no network: the scripts, the style and what they show."""

    def plain(value):
        if isinstance(value, bytes):
            return {"deflated": base64.b64encode(zlib.compress(value, 9)).decode()}
        raise TypeError(f"a page cannot hold {type(value).__name__}")

    shown = json.dumps(state, default=plain).replace("<", "\\u003c")  # a text may hold </script>
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{BARE}\n{style}</style>"
        f'<body><main id="nbh"></main><script type="application/json" id="nbh-state">{shown}</script>'
        f'<script type="module">{scripts}</script></body></html>'
    )


def numbers_frame(heads):
    """Return the numbers of heads, (Reading, (layer, head)) each, with all that says where they come from."""
    parts = []
    for reading, (layer, head) in heads:
        model = reading.model.description
        place = {"model": model.name, "revision": model.revision, "text_sha256": _hash(reading.text)}
        place |= {"n_tokens": reading.n_tokens, "protocol": reading.protocol.hash}
        place |= {"layer": layer, "head": head, "kv_group": reading.kv_groups[head]}
        numbers = reading.numbers(layer, head).reset_index()
        parts.append(numbers.assign(**place)[[*place, *numbers.columns]])
    return pd.concat(parts, ignore_index=True)


def _hash(text):
    return hashlib.sha256(text.encode()).hexdigest()[:12]
