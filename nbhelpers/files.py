"""Write files whole or not at all; tables as Parquet with their provenance inside."""

import contextlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

METADATA = b"nbhelpers"  # the key of our JSON in the schema of a Parquet file


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path` that takes its name when the block ends without an error.

    A reader, or a crash, then sees the old file or the new one, never half. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_parquet(frame, path, metadata=None, **options):
    """Write a DataFrame without its index, and a dict of JSON types, to one Parquet file; return its path."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    if metadata is not None:
        own = {METADATA: json.dumps(metadata).encode()}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **own})
    with replacing(path) as partial:
        pq.write_table(table, partial, **options)
    return Path(path)


def read_parquet(path, **options):
    """Return the DataFrame and the dict that :func:`write_parquet` wrote; None if it wrote no dict.

    `options` are those of `pyarrow.parquet.read_table`. A file that is damaged is a ``ValueError``.
    """
    table = _read(pq.read_table, path, **options)
    return table.to_pandas(), _own_metadata(table.schema)


def read_parquet_metadata(path):
    """Return the dict alone, which costs the end of the file; None and errors as :func:`read_parquet`."""
    return _own_metadata(_read(pq.read_schema, path))


def _read(read, path, **options):
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return read(path, **options)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({str(error).strip()}).") from error


def _own_metadata(schema):
    return json.loads((schema.metadata or {}).get(METADATA, b"null"))
