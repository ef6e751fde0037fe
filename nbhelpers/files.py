"""Write files whole or not at all; tables as Parquet and tensors with their provenance inside."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from nbhelpers.arguments import RULES

METADATA = "nbhelpers"  # the key of our JSON in the metadata of a file
# In the words of the system, which safetensors, Arrow and the errors of other processes repeat.
DISK_REFUSES = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS))


class UnwritableError(OSError):
    """A place that cannot be written: a full or read-only disk, a file instead of a folder, no right to."""


@contextlib.contextmanager
def _writing(path, errors=()):
    """Make an `UnwritableError` of what says that a disk is full or read-only, and of other `errors`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UnwritableError) or not (isinstance(error, errors) or refused(error)):
            raise
        raise unwritable(path, error) from error


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path that takes the name of `path`, whole, if the block ends without an error."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    with _writing(path, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path, text):
    """Write a text file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing_folder(path):
    """Yield an empty folder beside `path` that takes its place, as a file does in :func:`replacing`."""
    path = Path(path)
    partial, before = (path.with_name(f".{path.name}.{os.getpid()}.{word}") for word in ("partial", "before"))
    with _writing(path):
        partial.mkdir(parents=True)
        try:
            yield partial
            if path.exists():
                os.replace(path, before)
            os.replace(partial, path)
        finally:
            for folder in (partial, before):
                shutil.rmtree(folder, ignore_errors=True)  # there only after a failure, or a success


def writable_folder(path):
    """Make a folder where there is none; return its absolute path. `UnwritableError` if it takes no file."""
    path = Path(path).absolute()
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise UnwritableError(f"{place} is a file where a folder is to be written; give another folder")
    with _writing(path, OSError):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(bytes(2**16))  # a disk that does not take these is full
    return path


def refused(error):
    """Return whether an error, or its text, says that a disk is full or read-only."""
    return any(words in str(error) for words in DISK_REFUSES)


def unwritable(path, error):
    """Return the `UnwritableError` that says of a path in a sentence what an error says of it."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    hint = "make room, or give another folder" if refused(error) else "give another folder"
    return UnwritableError(f"{path} cannot be written ({reason}); {hint}")


def write_parquet(frame, path, metadata=None, **options):
    """Write a DataFrame without its index, and a dict of JSON types, to one Parquet file; return its path."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    if metadata is not None:
        own = {METADATA.encode(): json.dumps(metadata).encode()}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **own})
    with replacing(path) as partial:
        pq.write_table(table, partial, **options)
    return Path(path)


def read_parquet(path, **options):
    """Return the DataFrame and the dict, or None, that :func:`write_parquet` wrote, or a ValueError."""
    with reading(path):
        return pq.read_table(path, **options).to_pandas(), read_parquet_metadata(path)


def read_parquet_metadata(path):
    """Return the dict alone, which costs the end of the file; None and errors as :func:`read_parquet`."""
    with reading(path):
        return json.loads((pq.read_schema(path).metadata or {}).get(METADATA.encode(), b"null"))


def write_tensors(tensors, path, metadata):
    """Write tensors by name, and a dict of JSON types, to one safetensors file."""
    from safetensors.torch import save_file  # late: a sweep reads and writes tables without torch

    with replacing(path) as partial:
        save_file(tensors, partial, metadata={METADATA: json.dumps(metadata)})


def read_tensors(path):
    """Return the tensors and the dict that :func:`write_tensors` wrote, {} if another program did."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return tensors, json.loads((file.metadata() or {}).get(METADATA, "{}"))


@contextlib.contextmanager
def reading(path, way_out="."):
    """Make whatever fails while a file is read a ``ValueError`` that says it is damaged, and a way out."""
    if not Path(RULES["path"]("path", path)).exists():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        yield
    except (SafetensorError, pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({str(error).strip()}){way_out}") from error
