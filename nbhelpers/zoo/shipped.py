"""Read what is shipped of the zoo: runs, their measurements, the sequences they were measured on."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file

from nbhelpers.inputs.files import shipped_folder
from nbhelpers.zoo.measure import Yardstick

MEASUREMENTS, RUNS, TOKENS = "measurements.parquet", "runs.parquet", "tokens.safetensors"


def zoo_measurements(**where):
    """Return the measurements of all runs as one tidy table.

    Parameters
    ----------
    **where : value or list of values
        Only the rows with these values in the columns named, read without the others:
        ``zoo_measurements(metric="spectral_entropy", signal="key_profile", seed=[0, 1])``.

    Returns
    -------
    pandas.DataFrame
        Columns run, arm, encoding, mask, bos, preset, seed, step, signal, sequence, layer, head, metric,
        value. `arm` is the run without its seed ("rope", "rope-bidirectional", "rope-mini"); the columns from
        `step` on are those of :func:`nbhelpers.zoo.measure.measure_checkpoint`. Names are categorical. The
        provenance is in ``attrs``.

    Raises
    ------
    FileNotFoundError
        If nothing is shipped.
    KeyError, LookupError
        If there is no such column, or no row with these values.
    """
    return _read_table(MEASUREMENTS, where)


def zoo_runs(**where):
    """Return one row per run: its settings, cost, final losses and the n-gram losses beside them.

    Parameters, errors and provenance are those of :func:`zoo_measurements`. Losses are in nats per predicted
    token. The n-gram columns are NaN for bidirectional runs, whose task is another.
    """
    return _read_table(RUNS, where)


def zoo_yardstick():
    """Return the sequences that every run was measured on, as a :class:`nbhelpers.zoo.measure.Yardstick`.

    Raises
    ------
    FileNotFoundError
        If nothing is shipped.
    """
    tensors = _tokens()
    return Yardstick(**{name: tensors[name].long() for name in Yardstick.__dataclass_fields__})


def first_batches():
    """Return the windows of the first updates of every run of seed 0, (update, batch, position + 1).

    Raises
    ------
    FileNotFoundError
        If nothing is shipped.
    """
    return _tokens()["first_batches"].long()


def _tokens():
    return load_file(_shipped(TOKENS))


def _shipped(file):
    path = shipped_folder() / file
    if not path.exists():
        raise FileNotFoundError(
            f"No zoo is shipped with this installation: there is no {file} in nbhelpers/data/zoo. Make it "
            "with: python -m nbhelpers.zoo.training train-all, then python -m nbhelpers.zoo.training collect"
        )
    return path


def _read_table(file, where):
    path = _shipped(file)
    schema = pq.read_schema(path)
    unknown = [name for name in where if name not in schema.names]
    if unknown:
        raise KeyError(f"{file} has no column {unknown[0]!r}; it has {', '.join(schema.names)}")
    filters = [(name, "in", list(v) if isinstance(v, (list, tuple)) else [v]) for name, v in where.items()]
    table = pq.read_table(path, filters=filters or None)
    if table.num_rows == 0:
        asked = ", ".join(f"{name}={value!r}" for name, value in where.items())
        raise LookupError(f"No row of {file} has {asked}.")
    words = [field.name for field in schema if pa.types.is_large_string(field.type)]
    frame = table.to_pandas(categories=words)
    frame.attrs = json.loads(schema.metadata[b"nbhelpers"])
    return frame
