"""What a sweep leaves of each run: a record of how it went, its table, a summary of the table.

``runs/ID.json``, ``tables/ID.parquet`` and ``summaries/ID.parquet`` under the sweep's folder, each written
whole or not at all, so that what exists can be trusted when the sweep is resumed. ``grid.json`` says which
runs the sweep is to do.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nbhelpers import __version__
from nbhelpers.files import replacing

FOLDERS = ("runs", "tables", "summaries")
PLAN = "grid.json"


def record_file(out: Path, run_id: str) -> Path:
    """Return where the record of a run is."""
    return Path(out) / "runs" / f"{run_id}.json"


def table_file(out: Path, run_id: str) -> Path:
    """Return where the table of a run is."""
    return Path(out) / "tables" / f"{run_id}.parquet"


def summary_file(out: Path, run_id: str) -> Path:
    """Return where the summary of a run's table is."""
    return Path(out) / "summaries" / f"{run_id}.parquet"


def write_plan(out: Path, plan: Mapping[str, Any]) -> None:
    """Write which runs a sweep is to do: the fields of its grid."""
    with replacing(Path(out) / PLAN) as partial:
        partial.write_text(json.dumps(plan, indent=1, ensure_ascii=False), encoding="utf-8")


def read_plan(out: Path) -> dict[str, Any] | None:
    """Return what `write_plan` wrote; None if there is nothing, as in a folder of an earlier version.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    file = Path(out) / PLAN
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); the command of the sweep writes it anew") from error
    if not isinstance(plan, dict) or not isinstance(plan.get("runs"), list):
        raise ValueError(f"{file} is not the grid of a sweep: it holds no list of runs")
    return plan


def new_record(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the record of a run holds before it began."""
    named = {key: task[key] for key in ("id", "label", "settings", "lease")}
    return named | {"version": __version__, "seconds": 0.0, "peak_mb": 0.0, "facts": {}, "trace": None}


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a run under its ``id``."""
    with replacing(record_file(out, record["id"])) as partial:
        partial.write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False), encoding="utf-8")


def read_record(out: Path, run_id: str) -> dict[str, Any]:
    """Return the record of a run; empty if there is none or it is damaged, so that the run runs again."""
    try:
        record = json.loads(record_file(out, run_id).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get("id") == run_id else {}


def read_records(out: Path) -> list[dict[str, Any]]:
    """Return all records of a sweep's folder."""
    return [read_record(out, file.stem) for file in sorted((Path(out) / "runs").glob("*.json"))]


def is_whole(out: Path, run_id: str) -> bool:
    """Return whether a run is done and its two files are Parquet to their end."""
    if read_record(out, run_id).get("status") != "done":
        return False
    try:
        for file in (table_file(out, run_id), summary_file(out, run_id)):
            pq.read_metadata(file)  # the footer, which comes last
    except (OSError, pa.ArrowException):
        return False
    return True


def remove_leftovers(out: Path) -> None:
    """Delete the temporary files of killed processes; only for the holder of the folder's lock."""
    for folder in FOLDERS:
        for partial in (Path(out) / folder).glob(".*.partial"):
            partial.unlink()
