"""Write what the inspector shows of a head: a picture and its numbers."""

import hashlib
import re
from pathlib import Path

import pandas as pd

from nbhelpers.files import replacing


def export_head(reading, selected, pinned, picture, folder):
    """Write a PNG and a CSV of the selected head, and of the pinned one if any.

    Parameters
    ----------
    reading : Reading
    selected, pinned : tuple of int
        (layer, head); `pinned` may be None.
    picture : bytes
        A PNG.
    folder : path
        Made if it is missing. Files of the same names are replaced.

    Returns
    -------
    dict of pathlib.Path to str
        What was written, with its media type.

    Raises
    ------
    ValueError
        If no folder is given.
    OSError
        If it cannot be written.
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
    """Return the numbers of some heads with all that says where they come from, one row per number.

    Parameters
    ----------
    reading : Reading
    heads : list of tuple of int
        (layer, head).

    Returns
    -------
    pandas.DataFrame
        Columns model, revision, text_sha256, n_tokens, protocol, layer, head, kv_group, metric, value,
        uniform, percentile.
    """
    parts = []
    for layer, head in heads:
        numbers = reading.numbers(layer, head).reset_index()
        place = {
            "model": reading.model.description.name,
            "revision": reading.model.description.revision,
            "text_sha256": hashlib.sha256(reading.text.encode()).hexdigest()[:12],
            "n_tokens": reading.n_tokens,
            "protocol": reading.protocol.hash,
            "layer": layer,
            "head": head,
            "kv_group": reading.kv_groups[head],
        }
        for at, (name, value) in enumerate(place.items()):
            numbers.insert(at, name, value)
        parts.append(numbers)
    return pd.concat(parts, ignore_index=True)
