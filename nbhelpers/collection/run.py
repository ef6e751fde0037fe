"""Run the collection with papermill: every failure counted, what is done kept, the next run resumes.

A run leaves under its output folder ``executed/NAME.ipynb`` (saved after every cell), ``runs/NAME.json``
(what was run with which parameters, and how it ended) and ``results/`` (numbers and tables).
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from nbhelpers.arguments import checked, path
from nbhelpers.collection.execution import KernelWatch, execute_strictly
from nbhelpers.collection.plan import PlannedRun, list_notebooks, plan_runs, select_notebooks
from nbhelpers.collection.scorecard import PLANTED
from nbhelpers.files import refused, replacing, unwritable, writable_folder
from nbhelpers.inputs.files import file_fingerprint
from nbhelpers.words import duration

__all__ = ["NotebookRun", "list_notebooks", "load_runs", "run_notebooks"]

_READERS = ("load_results(", "scorecard(")  # in the source of a notebook that reads what the others measured
_JUDGES = ("planted_rates(", "verdict_line(")  # of one that reads what was found of the rules alone
_WRITTEN = ("results", "cache")  # parameters that name a folder to write to
_RECORDED = ("name", "status", "seconds", "error", "peak_mb")
_VERSIONED = ("torch", "transformers", "numpy", "pywavelets", "pandas")  # a change makes earlier runs stale


@dataclass(frozen=True)
class NotebookRun:
    """How the run of one notebook ended.

    `status` is ``passed``, ``skipped`` (the model cannot give what the notebook shows), ``failed``, ``kept``
    (ended well earlier with the same source and parameters), or in a record on disk also ``interrupted``.
    """

    name: str
    status: str
    seconds: float  # of the clock, of the earlier run if kept
    error: str | None  # with the cell and its traceback; the reason of a skip
    output: Path  # of a failed notebook the part that ran
    peak_mb: float = 0.0  # the largest memory of the kernel and its children


@checked(model=path)
def run_notebooks(
    names: Iterable[str | Path] | None = None,
    *,
    size: str = "reader",
    model: str | None = None,
    out: str | Path,
    parameters: Mapping[str, Any] | None = None,
    cell_timeout: float = 600,
    total_timeout: float | None = None,
    folder: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
) -> list[NotebookRun]:
    """Run notebooks one after the other, each in a fresh kernel; a failed one does not stop the others.

    `names` and `folder` are as in `select_notebooks`. The parameters of each notebook come from the `size`
    (smoke, reader or full: ``sizes.toml`` beside the notebooks), then from `model`, then from `parameters`;
    paths are seen from the working folder. A parameter `results` is given ``<out>/results``, and `cache`, the
    profiles that notebooks share, ``<out>/profiles``.

    `cell_timeout` is in seconds for one cell, longer where the machine is busy (see `execution.CellClock`);
    `total_timeout` for the whole call. With `resume`, what ended well earlier in `out` with the same source,
    package, versions, parameters and files that these name is kept.

    Raises LookupError, ValueError or FileNotFoundError, before anything runs, for an unknown notebook, size
    or parameter; UnwritableError where `out` is a file or its disk full or read-only, also halfway; and
    KeyboardInterrupt on Ctrl-C, after the finished part of the current notebook is saved.
    """
    out = Path(out).resolve()
    sweep = (parameters or {}).get("sweep")
    if sweep is not None and not Path(sweep).is_dir():
        raise FileNotFoundError(f"there is no folder of a sweep at {Path(sweep).resolve()} (sweep={sweep!r})")
    paths = select_notebooks(names, folder=folder)
    places = {"results": out / "results", "cache": out / "profiles"}
    planned = plan_runs(paths, size=size, model=model, parameters=parameters, places=places)
    for sub in ("executed", "runs", "results"):
        writable_folder(out / sub)
    deadline = None if total_timeout is None else time.monotonic() + total_timeout
    log = _Log(planned, out, enabled=progress)
    runner = _Runner(out, _code_fingerprint(), cell_timeout, deadline, resume, log)
    runs = []
    for number, plan in enumerate(planned):
        try:
            runs.append(runner.run(number, plan))
        except KeyboardInterrupt:
            log.interrupted(runs, plan)
            raise
    log.summary(runs)
    return runs


def load_runs(out: str | Path) -> list[NotebookRun]:
    """Return what the last runs into `out` recorded, sorted by name; FileNotFoundError if there is none."""
    folder = Path(out) / "runs"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: nothing was run into {out}")
    records = [_read_record(file) for file in sorted(folder.glob("*.json"))]
    return [_as_run(record, Path(out)) for record in records if record is not None]


@dataclass(frozen=True)
class _Runner:
    out: Path
    code: str
    cell_timeout: float
    deadline: float | None
    resume: bool
    log: "_Log"

    def run(self, number: int, plan: PlannedRun) -> NotebookRun:
        record_file = self.out / "runs" / f"{plan.name}.json"
        key = {"fingerprint": self._fingerprint(plan), "parameters": plan.parameters}
        earlier = _read_record(record_file)
        if self.resume and earlier is not None and self._still_good(earlier, key):
            run = _as_run(earlier, self.out, status="kept")
            self.log.done(number, run)
            return run
        self.log.start(number, plan)
        record = {"name": plan.name, "versions": _versions(), **key}
        try:
            record |= self._execute(plan)
        except KeyboardInterrupt:
            _write_record(record_file, record | _ending("interrupted", "interrupted by Ctrl-C"))
            raise
        record["has_results"] = self._results_file(plan.name).is_file()
        _write_record(record_file, record)
        run = _as_run(record, self.out)
        self.log.done(number, run)
        return run

    def _execute(self, plan: PlannedRun) -> dict[str, Any]:
        started = time.monotonic()
        if self.deadline is not None and started >= self.deadline:
            return _ending("failed", "not started: the time of the whole run was spent (total_timeout)")
        # what an earlier run recorded: if this one fails, nothing stale is left
        self._results_file(plan.name).unlink(missing_ok=True)
        shutil.rmtree(self.out / "results" / plan.name, ignore_errors=True)
        target = self.out / "executed" / f"{plan.name}.ipynb"
        watch = KernelWatch(self.cell_timeout, self.deadline)
        options = {"watch": watch, "progress_bar": self.log.bars}
        try:
            failure = execute_strictly(plan.source, target, plan.parameters, **options)
        except Exception as error:  # of the runner itself: recorded whole, and the next notebook runs
            failure = f"the runner failed:\n{traceback.format_exc()}"
            if refused(error):
                target.unlink(missing_ok=True)  # papermill may have written half of it
                raise unwritable(target, error) from error
        if refused(failure):
            writable_folder(self.out)  # raises, unless it was another disk that refused a cell
        spent = time.monotonic() - started, watch.peak_mb
        if getattr(failure, "kind", "") == "skipped":
            return _ending("skipped", failure.message, *spent)
        return _ending("failed", str(failure), *spent) if failure else _ending("passed", None, *spent)

    def _still_good(self, earlier: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
        same = all(earlier.get(name) == json.loads(json.dumps(value)) for name, value in key.items())
        files = [self.out / "executed" / f"{earlier['name']}.ipynb"]
        files += [self._results_file(earlier["name"])] if earlier.get("has_results") else []
        return same and earlier["status"] in ("passed", "skipped") and all(file.is_file() for file in files)

    def _results_file(self, name: str) -> Path:
        return self.out / "results" / f"{name}.json"

    def _fingerprint(self, plan: PlannedRun) -> str:
        """Return a hash of all that a run depends on: package, cells (not outputs), files it reads."""
        digest = hashlib.sha256(self.code.encode())
        cells = nbformat.read(plan.source, as_version=4).cells
        for cell in cells:
            digest.update(f"{cell.cell_type}\0{cell.source}\0".encode())
        for file in self._results_read("\n".join(cell.source for cell in cells)):
            digest.update(b"" if file.stem == plan.name else file.read_bytes())
        for name, value in plan.parameters.items():
            if name in _WRITTEN or not (isinstance(value, str) and value and os.path.exists(value)):
                continue
            place = Path(value).resolve()  # what changed, or is seen from elsewhere, is something else
            for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
                digest.update(f"{file}\0{file_fingerprint(file) if file.is_file() else ''}".encode())
        return digest.hexdigest()

    def _results_read(self, source: str) -> list[Path]:
        """Return the files of results that a notebook's source reads: all, or those with planted truth."""
        files = sorted((self.out / "results").glob("*.json"))
        if any(reader in source for reader in _READERS):
            return files
        if not any(judge in source for judge in _JUDGES):
            return []
        return [file for file in files if PLANTED["sensitivity"] in file.read_text(encoding="utf-8")]


def _code_fingerprint() -> str:
    """Return a hash of the package's source and of the versions beneath it."""
    digest = hashlib.sha256(json.dumps(_versions(), sort_keys=True).encode())
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in _VERSIONED}
    return {"python": platform.python_version()} | packages


def _ending(status: str, error: str | None, seconds: float = 0.0, peak_mb: float = 0.0) -> dict[str, Any]:
    return {"status": status, "seconds": round(seconds, 2), "error": error, "peak_mb": round(peak_mb, 1)}


def _write_record(file: Path, record: Mapping[str, Any]) -> None:
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
    with replacing(file) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def _read_record(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return {name: record[name] for name in _RECORDED} | record
    except (ValueError, KeyError, TypeError) as error:
        print(f"{file} is not a record of a run ({error!r}): its notebook runs again", file=sys.stderr)
        return None


def _as_run(record: Mapping[str, Any], out: Path, **changes: Any) -> NotebookRun:
    known = {name: record[name] for name in _RECORDED} | changes
    return NotebookRun(**known, output=out / "executed" / f"{record['name']}.ipynb")


class _Log:
    """Plain lines about a run on stdout: one when a notebook starts, one when it ends."""

    def __init__(self, planned: list[PlannedRun], out: Path, *, enabled: bool) -> None:
        self.enabled, self.out = enabled, out
        self.names = [plan.name for plan in planned]
        self.bars = enabled and sys.stderr.isatty() and not os.environ.get("TQDM_DISABLE")
        records = [_read_record(out / "runs" / f"{name}.json") for name in self.names]
        # seconds of earlier runs that got to the end, to estimate the time left
        self.expected = {r["name"]: r["seconds"] for r in records if r and r["status"] == "passed"}

    def say(self, text: str) -> None:
        if self.enabled:
            print(text, flush=True)

    def start(self, number: int, plan: PlannedRun) -> None:
        for note in plan.notes:
            self.say(f"note: {note}")
        left = [self.expected.get(name) for name in self.names[number:]]
        estimate = "" if None in left else f"  (about {duration(sum(left))} left)"
        self.say(f"{self._place(number)} {plan.name}: start{estimate}")

    def done(self, number: int, run: NotebookRun) -> None:
        self.expected[run.name] = run.seconds
        told = f"{run.status} in {duration(run.seconds)}, peak {run.peak_mb:.0f} MB"
        if run.status == "kept":
            ended = f"passed in {duration(run.seconds)}" if run.error is None else "was skipped"
            told = f"kept (nothing changed since it {ended})"
        self.say(f"{self._place(number)} {run.name}: {told}")
        if run.error is not None:
            self.say("\n".join(f"    {line}" for line in run.error.splitlines()))

    def interrupted(self, runs: list[NotebookRun], plan: PlannedRun) -> None:
        done = f"{len(runs)} of {len(self.names)} notebooks are done and kept in {self.out}"
        self.say(f"interrupted in {plan.name}; {done}. The same command resumes there; --fresh starts again.")

    def summary(self, runs: list[NotebookRun]) -> None:
        statuses = [run.status for run in runs]
        asked = ("passed", "kept", "failed", *(["skipped"] if "skipped" in statuses else []))
        told = ", ".join(f"{statuses.count(status)} {status}" for status in asked)
        self.say(f"{len(runs)} notebooks: {told}; executed notebooks and results in {self.out}")

    def _place(self, number: int) -> str:
        return f"[{number + 1}/{len(self.names)}]"
