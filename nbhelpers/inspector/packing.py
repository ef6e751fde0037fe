"""What the widget's page gets: plain lists, and arrays as bytes that its script reads without a copy.

Attention is sent as one byte per entry, a logarithmic scale from :data:`LOWEST` to 1; curves as float32.
"""

import numpy as np

from nbhelpers.inputs.text import pieces_of
from nbhelpers.metrics import find_metric, metric_label
from nbhelpers.plots import LEAST_ATTENTION
from nbhelpers.protocol import BANDS
from nbhelpers.stats import agreement

LOWEST = LEAST_ATTENTION  # has a byte of its own; what is less is byte 0
STEPS = 254  # from LOWEST (byte 1) to 1 (byte 255), 3.7 % apart
SIX = (*BANDS, "spectral_entropy", "positional_entropy", "sink_mass", "self_mass")


def to_bytes(attn, *, causal):
    """Return attention (head, query, key) as bytes; of causal attention only the keys up to the query."""
    entries = np.asarray(attn, dtype=np.float32)
    if causal:
        entries = entries[:, np.tri(entries.shape[1], dtype=bool)]  # (head, entry)
    with np.errstate(divide="ignore"):  # 0 has a byte, too
        below = np.log(entries) * np.float32(STEPS / np.log(LOWEST))  # steps below 1
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
