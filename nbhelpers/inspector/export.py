"""What can be taken along of the inspector: a figure of one head or two, and the numbers."""

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
from nbhelpers.plots import draw_heads

BARE = ":root { color-scheme: light dark } body { margin: 0; background: light-dark(#fff, #12161b) }"
FIGURES = "png", "svg", "pdf"
ARRAYS = "attn", "key_profile", "lags", "lag_profile", "frequency", "psd", "positions", "scalogram"


def export_heads(heads, state, folder):
    """Write figures, numbers, arrays and the state of one head, or of two, into a folder; return the paths.

    `heads` are pairs of a Reading and a place (layer, head). Names hold a hash of model, revision, text and
    protocol, so that different things never have one name.
    """
    views = [reading.head(*place) for reading, place in heads]
    numbers = numbers_frame(heads)
    told = numbers[["model", "revision", "text_sha256", "n_tokens", "protocol"]].drop_duplicates()
    model = re.sub(r"[^\w.-]+", "-", heads[0][0].model.description.name)
    names = "-vs-".join(f"layer{view.layer:02d}-head{view.head:02d}" for view in views)
    stem = Path(folder).expanduser() / f"{model}-{names}-{_hash(told.to_csv())[:8]}"
    figure = draw_heads(views, heads[0][0].protocol.signal)
    arrays = {
        f"{name}_{letter}": np.asarray(getattr(view, name))
        for view, letter in zip(views, "ab", strict=False)
        for name in ARRAYS
    }
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
