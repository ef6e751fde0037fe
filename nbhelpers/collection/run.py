"""Run the collection with papermill: every failure counted, what is done kept, the next run resumes.

A run leaves under its output folder ``executed/NAME.ipynb`` (saved after every cell), ``runs/NAME.json``
(what was run with which parameters, and how it ended) and ``results/`` (numbers and tables).
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.arguments import checked, path
from nbhelpers.collection.apart import RUNNER, Apart, Here
from nbhelpers.collection.notebook_files import nbformat
from nbhelpers.collection.plan import plan_runs, select_notebooks
from nbhelpers.collection.scorecard import PLANTED, conclude, conclude_second, planted_rates, verdict_line
from nbhelpers.files import refused, unwritable, writable_folder, write_text
from nbhelpers.inputs.files import file_fingerprint
from nbhelpers.inputs.memory import available_memory
from nbhelpers.words import duration

_READERS = ("load_results(", "scorecard(")  # in the source of a notebook that reads what others measured
_JUDGES = tuple(f"{judge.__name__}(" for judge in (planted_rates, verdict_line, conclude, conclude_second))
_PLANTED = "planted_"  # in the source of one that records what was found of the rules
_POLL_SECONDS = 0.3
_USUAL_MB = 1500  # of a notebook that was not run before
_WRITTEN = ("results", "cache")  # parameters that name a folder to write to
_RECORDED = ("name", "status", "seconds", "error", "peak_mb")
_VERSIONED = ("torch", "transformers", "numpy", "pywavelets", "pandas")  # a change makes earlier runs stale


@dataclass(frozen=True)
class NotebookRun:
    """How the run of one notebook ended."""

    name: str
    status: str  # passed, skipped, failed, interrupted, or kept: it ended well earlier and nothing changed
    seconds: float  # of the clock, of the earlier run if kept
    error: str | None  # with the cell and its traceback; the reason of a skip
    output: Path  # of a failed notebook the part that ran
    peak_mb: float = 0.0  # the largest memory of the kernel and its children


@checked(model=path)
def run_notebooks(
    names=None,
    *,
    size="reader",
    model=None,
    out,
    parameters=None,
    cell_timeout=600,
    folder=None,
    resume=True,
    jobs=1,
    progress=True,
):
    """Run notebooks, each in a fresh kernel; a failed one does not stop the others.

    `names` and `folder` are as in `select_notebooks`; `size`, `model` and `parameters` as in `plan_runs`,
    paths as seen from the working folder. A parameter `results` is given ``<out>/results``, and `cache`, the
    profiles that notebooks share, ``<out>/profiles``. Up to `jobs` notebooks run at a time, as far as memory
    is free, each with its share of the cores; one that reads what others record waits for them.

    `cell_timeout` is in seconds for one cell, longer where the machine is busy (see `execution.CellClock`).
    With `resume`, what ended well earlier in `out` with the same source, package, versions, parameters and
    files that these name is kept. Wrong input raises before anything runs, Ctrl-C once the finished part of
    each notebook is saved.
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
    log = _Log(planned, out, jobs, enabled=progress)
    runs = _Runner(out, cell_timeout, resume, jobs, log).run(planned)
    log.summary(runs)
    return runs


def load_runs(out):
    """Return what the last runs into `out` recorded, sorted by name."""
    files = sorted(Path(out).glob("runs/*.json"))
    return [_as_run(record, Path(out)) for record in map(_read_record, files) if record]


@dataclass(frozen=True)
class _Runner:
    out: Path
    cell_timeout: float
    resume: bool
    jobs: int
    log: "_Log"

    def run(self, planned):
        """Run all, up to `jobs` at a time; on an error or Ctrl-C what runs is stopped, its part saved."""
        waiting, running, ended = dict(enumerate(planned)), {}, {}
        sources = {number: _source(plan) for number, plan in waiting.items()}
        try:
            while waiting or running:
                for number in [n for n in waiting if self._may_start(n, sources, ended)]:
                    if len(running) >= self.jobs or (running and not self._has_room(waiting[number])):
                        break
                    plan = waiting.pop(number)
                    record = {"name": plan.name, "versions": _versions(), "parameters": plan.parameters}
                    record["fingerprint"] = self._fingerprint(plan)
                    if kept := self._kept(record):
                        ended[number] = kept
                        self.log.done(number, kept)
                        continue
                    self.log.start(number, plan)
                    execution = self._execution(plan)
                    running[number] = record, execution
                    execution.start()
                for number, (record, execution) in list(running.items()):
                    if execution.ended():
                        ended[number] = self._settled(record, execution)
                        del running[number]
                        self.log.done(number, ended[number])  # last: Ctrl-C keeps what was told
                if running:
                    time.sleep(_POLL_SECONDS)
        except BaseException as error:
            for _, execution in running.values():
                execution.stop()
            if isinstance(error, KeyboardInterrupt):
                for record, _ in running.values():
                    self._write(record | _ending("interrupted", "interrupted by Ctrl-C"))
                self.log.interrupted(len(ended), [record["name"] for record, _ in running.values()])
            raise
        return [ended[number] for number in range(len(planned))]

    def _settled(self, record, execution):
        """Record how a notebook ended; raise if the disk refused it, for it would refuse the next one too."""
        failure, status = execution.failure, "passed"
        if refused(failure):
            if failure.kind == RUNNER:
                execution.target.unlink(missing_ok=True)  # papermill may have written half of it
                raise unwritable(execution.target, failure.message)
            writable_folder(self.out)  # raises, unless it was another disk that refused a cell
        if failure:
            status = "skipped" if failure.kind == "skipped" else "failed"
        error = failure and (failure.message if status == "skipped" else str(failure))
        record = record | _ending(status, error, execution.seconds, execution.peak_mb)
        record["has_results"] = self._file("results", record["name"]).is_file()
        self._write(record)
        return _as_run(record, self.out)

    def _may_start(self, number, sources, ended):
        """Return whether the earlier notebooks have ended whose records this one may read."""
        reads, awaited = _reads(sources[number]), [n for n in range(number) if n not in ended]
        if reads == "planted":
            awaited = [n for n in awaited if _PLANTED in sources[n] and not _reads(sources[n])]
        return not (reads and awaited)

    def _has_room(self, plan):
        usual = _read_record(self._file("runs", plan.name)).get("peak_mb") or _USUAL_MB
        return available_memory() >= 2**20 * usual

    def _kept(self, record):
        """Return the earlier run of the same content that ended well, if its files are still there."""
        earlier = _read_record(self._file("runs", record["name"])) if self.resume else {}
        if earlier.get("status") not in ("passed", "skipped"):
            return None
        key = json.loads(json.dumps({name: record[name] for name in ("fingerprint", "parameters")}))
        files = [self._file("executed", earlier["name"])]
        files += [self._file("results", earlier["name"])] * bool(earlier.get("has_results"))
        same = key.items() <= earlier.items() and all(file.is_file() for file in files)
        return _as_run(earlier, self.out, status="kept") if same else None

    def _execution(self, plan):
        # what an earlier run recorded: if this one fails, nothing stale is left
        self._file("results", plan.name).unlink(missing_ok=True)
        shutil.rmtree(self.out / "results" / plan.name, ignore_errors=True)
        given = plan.source, self._file("executed", plan.name), plan.parameters, self.cell_timeout
        if self.jobs == 1:
            return Here(*given, bars=self.log.bars)
        return Apart(*given, threads=max(1, (os.cpu_count() or 1) // self.jobs))

    def _write(self, record):
        text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
        write_text(self._file("runs", record["name"]), text + "\n")

    def _file(self, folder, name):
        return self.out / folder / f"{name}{'.ipynb' if folder == 'executed' else '.json'}"

    def _fingerprint(self, plan):
        """Return a hash of what a run depends on: package, versions, cells (not outputs), files it reads."""
        source, root = _source(plan), Path(__file__).parents[1]
        digest = hashlib.sha256((json.dumps(_versions(), sort_keys=True) + source).encode())
        for file in sorted(root.rglob("*.py")):
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
        reads, planted = _reads(source), PLANTED["sensitivity"].encode()
        for file in sorted((self.out / "results").glob("*.json")) if reads else ():
            content = file.read_bytes()
            if file.stem != plan.name and (reads == "all" or planted in content):
                digest.update(content)
        read = [value for name, value in plan.parameters.items() if name not in _WRITTEN]
        for value in (value for value in read if isinstance(value, str) and value and os.path.exists(value)):
            place = Path(value).resolve()  # what changed, or is seen from elsewhere, is something else
            for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
                digest.update(f"{file}\0{file_fingerprint(file) if file.is_file() else ''}".encode())
        return digest.hexdigest()


def _source(plan):
    cells = nbformat.read(plan.source, as_version=4).cells
    return "".join(f"{cell.cell_type}\0{cell.source}\0" for cell in cells)


def _reads(source):
    """Return which results a notebook's source reads: "all", "planted" (what was found of rules) or ""."""
    if any(word in source for word in _READERS):
        return "all"
    return "planted" if any(word in source for word in _JUDGES) else ""


def _versions():
    packages = {name: importlib.metadata.version(name) for name in _VERSIONED}
    return {"python": platform.python_version()} | packages


def _ending(status, error, seconds=0.0, peak_mb=0.0):
    return {"status": status, "seconds": round(seconds, 2), "error": error, "peak_mb": round(peak_mb, 1)}


def _read_record(file):
    """Return what a run left in a file; {} where there is none."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return {name: record[name] for name in _RECORDED} | record
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        print(f"{file} is not a record of a run ({error!r}): its notebook runs again", file=sys.stderr)
    return {}


def _as_run(record, out, **changes):
    known = {name: record[name] for name in _RECORDED} | changes
    return NotebookRun(**known, output=out / "executed" / f"{record['name']}.ipynb")


class _Log:
    """Plain lines about a run on stdout: one when a notebook starts, one when it ends."""

    def __init__(self, planned, out, jobs, *, enabled):
        self.out, self.jobs = out, jobs
        self.say = functools.partial(print, flush=True) if enabled else lambda *_: None
        self.names = [plan.name for plan in planned]
        self.bars = enabled and sys.stderr.isatty() and not os.environ.get("TQDM_DISABLE")
        records = [_read_record(out / "runs" / f"{name}.json") for name in self.names]
        # seconds of earlier runs that got to the end, to estimate the time left
        self.expected = {r["name"]: r["seconds"] for r in records if r and r["status"] == "passed"}

    def start(self, number, plan):
        for note in plan.notes:
            self.say(f"note: {note}")
        left = [self.expected.get(name) for name in self.names[number:]]
        estimate = "" if None in left else f"  (about {duration(sum(left) / self.jobs)} left)"
        self.say(f"[{number + 1}/{len(self.names)}] {plan.name}: start{estimate}")

    def done(self, number, run):
        self.expected[run.name] = run.seconds
        told = f"{run.status} in {duration(run.seconds)}, peak {run.peak_mb:.0f} MB"
        if run.status == "kept":
            ended = f"passed in {duration(run.seconds)}" if run.error is None else "was skipped"
            told = f"kept (nothing changed since it {ended})"
        self.say(f"[{number + 1}/{len(self.names)}] {run.name}: {told}")
        if run.error is not None:
            self.say("\n".join(f"    {line}" for line in run.error.splitlines()))

    def interrupted(self, n_ended, names):
        done = f"{n_ended} of {len(self.names)} notebooks are done and kept in {self.out}"
        told = f"interrupted in {' and '.join(names)}; {done}."
        self.say(f"{told} The same command resumes; --fresh starts again.")

    def summary(self, runs):
        statuses = [run.status for run in runs]
        asked = ("passed", "kept", "failed", *(["skipped"] if "skipped" in statuses else []))
        told = ", ".join(f"{statuses.count(status)} {status}" for status in asked)
        self.say(f"{len(runs)} notebooks: {told}; executed notebooks and results in {self.out}")
