"""Execute one notebook with papermill and miss no way in which it can fail.

Papermill alone lets pass an error inside an output widget and a cell that leaves the kernel early,
and says little of a hang or a dead kernel. `execute_strictly` turns each into a `Failure` that names
the cell, and leaves the part that was executed on disk. A notebook that ends itself with `skip_notebook`
is no failure but `Skipped`.
"""

import math
import os
import re
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from nbhelpers.collection.skip import SKIPPED

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ADDED_TAGS = {"papermill-error-cell-tag", "injected-parameters"}  # cells papermill adds to the source


@dataclass(frozen=True)
class Failure:
    """Why a notebook failed, and where.

    Attributes
    ----------
    kind : str
        ``error``, ``timeout``, ``dead kernel``, ``widget error``, ``cell not run`` or ``no kernel``.
    message : str
        What happened, in a sentence.
    cell : int or None
        Number of the cell in the stored notebook, counted from 1 over all its cells.
    source : str
        The first lines of that cell.
    trace : str
        The traceback, without colours.
    """

    kind: str
    message: str
    cell: int | None = None
    source: str = ""
    trace: str = ""

    def __str__(self) -> str:
        where = "outside any cell" if self.cell is None else f"in cell {self.cell}"
        lines = [f"{self.kind} {where}: {self.message}"]
        lines += [f"    | {line}" for line in self.source.splitlines()]
        return "\n".join(lines + ([self.trace] if self.trace else []))


@dataclass(frozen=True)
class Skipped:
    """Why a notebook ended itself; see `nbhelpers.collection.skip.skip_notebook`."""

    reason: str


class PeakMemory:
    """The largest resident memory of this process's children while the context is open, in MB.

    Sampled five times a second, so a shorter peak can be missed.
    """

    def __init__(self) -> None:
        self.megabytes = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.2):
            resident = sum(_resident_bytes(child) for child in me.children(recursive=True))
            self.megabytes = max(self.megabytes, resident / 2**20)


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:  # it ended between the listing and the question
        return 0


class _CellClock:
    """Tells nbclient how long each cell may take, and afterwards whether the last one overran."""

    def __init__(self, cell_timeout: float, deadline: float | None) -> None:
        self.cell_timeout = cell_timeout
        self.deadline = math.inf if deadline is None else deadline
        self.started = self.limit = math.inf

    def __call__(self, cell: Any) -> float:
        self.started = time.monotonic()
        # nbclient reads 0 as "no limit"
        self.limit = max(0.1, min(self.cell_timeout, self.deadline - self.started))
        return self.limit

    def ran_out(self) -> bool:
        return time.monotonic() - self.started >= self.limit

    def message(self) -> str:
        if self.limit < self.cell_timeout:
            return (
                f"still running after {self.limit:.3g} s, when the whole run's time was spent (total_timeout)"
            )
        return f"still running after {self.limit:.3g} s (cell_timeout); give it more time or a smaller size"


def execute_strictly(
    source: Path,
    target: Path,
    parameters: Mapping[str, Any],
    *,
    cell_timeout: float = 600,
    deadline: float | None = None,
    progress_bar: bool = False,
) -> Failure | Skipped | None:
    """Execute a notebook in a fresh kernel, in the notebook's own folder.

    Parameters
    ----------
    source, target : Path
        The notebook as stored and where the executed one goes. It is saved after every cell.
    parameters : mapping
        Values for the ``parameters`` cell; names are not checked here (see `plan_runs`).
    cell_timeout : float
        Seconds one cell may take.
    deadline : float, optional
        Value of ``time.monotonic()`` at which the cell then running is stopped.
    progress_bar : bool
        Show papermill's bar over the cells.

    Returns
    -------
    Failure, Skipped or None
        None if every cell ran and nothing failed; Skipped if the notebook ended itself with a reason.
    """
    clock = _CellClock(cell_timeout, deadline)
    try:
        with tempfile.TemporaryDirectory(prefix="nb-") as sockets:
            papermill.execute_notebook(
                source,
                target,
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                cwd=source.parent,
                progress_bar=progress_bar,
                execution_timeout=math.ceil(cell_timeout),  # for requests outside cells
                timeout_func=clock,
                interrupt_on_timeout=True,  # the traceback then shows where the cell hung
                error_on_timeout={"ename": "CellTimeout", "evalue": "", "traceback": []},
                config=_kernel_transport(sockets),
                # a kernel stopped in mid-cell logs an error of its own; what matters is in the cells
                extra_arguments=["--IPKernelApp.log_level=50"],
            )
    except PapermillExecutionError as error:
        if error.ename in ("KeyboardInterrupt", "CellExecutionError") and clock.ran_out():
            return _failed_midway(target, "timeout", clock.message())
        return _failure(target, "error", f"{error.ename}: {error.evalue}", _cell_with_error)
    except CellTimeoutError:  # the kernel did not even answer the interrupt
        return _failed_midway(
            target, "timeout", clock.message() + "; it ignored the interrupt and was killed"
        )
    except DeadKernelError:
        message = "the kernel died; killed for want of memory, a crash in compiled code, or os._exit"
        return _failed_midway(target, "dead kernel", message)
    except KeyboardInterrupt:
        _failed_midway(target, "interrupted", "stopped by Ctrl-C")
        raise
    except RuntimeError:  # what jupyter_client and nbclient raise when a kernel does not come up
        return Failure(
            "no kernel", "the kernel did not start or stopped answering", trace=traceback.format_exc()
        )
    return _skipped(target) or _silent_failure(target)


def _kernel_transport(folder: str) -> Config:
    """Return settings that give the kernel sockets in a folder of its own; TCP ports can be snatched."""
    if sys.platform == "win32":
        return Config()
    return Config({"KernelManager": {"transport": "ipc", "ip": os.path.join(folder, "k")}})


def _skipped(target: Path) -> Skipped | None:
    """Return the reason of a notebook that ended itself, and write it as plain text where it stood."""
    notebook = nbformat.read(target, as_version=4)
    for cell in notebook.cells:
        for place, output in enumerate(cell.get("outputs", [])):
            shown = _plain("".join(output.get("traceback", [])))
            if output.output_type == "error" and shown.startswith(SKIPPED):
                cell.outputs[place] = nbformat.v4.new_output("stream", text=shown + "\n")
                cell.metadata.papermill.update(exception=False, status="completed")
                notebook.metadata.papermill.exception = None
                nbformat.write(notebook, target)
                return Skipped(shown.removeprefix(SKIPPED))
    return None


def _silent_failure(target: Path) -> Failure | None:
    """Return the failure that papermill let pass, if any."""
    notebook = nbformat.read(target, as_version=4)
    for index, error in widget_errors(notebook):
        trace = _plain("\n".join(error.get("traceback", [])))
        message = f"{error.get('ename')}: {error.get('evalue')} (inside an output widget)"
        return _describe(notebook, index, "widget error", message, trace)
    for index, cell in enumerate(notebook.cells):
        skipped = "skip-execution" in cell.metadata.get("tags", [])
        if cell.cell_type == "code" and cell.source.strip() and not skipped and cell.execution_count is None:
            message = "never ran, because a cell before it left the notebook (SystemExit)"
            return _describe(notebook, index, "cell not run", message, "")
    return None


def widget_errors(notebook: nbformat.NotebookNode) -> Iterator[tuple[int | None, Mapping[str, Any]]]:
    """Yield (index of the cell that shows the widget, error) for errors that output widgets caught.

    Parameters
    ----------
    notebook : NotebookNode
        An executed notebook with its widget state. The index is None for a widget no cell shows.
    """
    state = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for model_id, model in state.items():
        for output in model.get("state", {}).get("outputs", ()):
            if output.get("output_type") == "error":
                yield _cell_showing(notebook, state, model_id), output


def _cell_showing(notebook: nbformat.NotebookNode, state: Mapping[str, Any], model_id: str) -> int | None:
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            shown = output.get("data", {}).get(WIDGET_VIEW, {}).get("model_id")
            if shown and model_id in _widget_tree(state, shown):
                return index
    return None


def _widget_tree(state: Mapping[str, Any], root: str) -> set[str]:
    """Return the ids of a widget and of all widgets it refers to."""
    found, waiting = set(), [root]
    while waiting:
        model_id = waiting.pop()
        if model_id not in found:
            found.add(model_id)
            waiting += re.findall(r"IPY_MODEL_(\w+)", str(state.get(model_id, {}).get("state", {})))
    return found


def _failure(target: Path, kind: str, message: str, find_cell: Callable) -> Failure:
    notebook = nbformat.read(target, as_version=4)
    index = find_cell(notebook)
    outputs = [] if index is None else notebook.cells[index].get("outputs", [])
    traces = ["\n".join(output.traceback) for output in outputs if output.output_type == "error"]
    return _describe(notebook, index, kind, message, _plain("\n".join(traces)))


def _failed_midway(target: Path, kind: str, message: str) -> Failure:
    """Describe a stop in the middle of a cell, and write it into the executed notebook too."""
    failure = _failure(target, kind, message, _last_cell_begun)
    notebook = nbformat.read(target, as_version=4)
    index = _last_cell_begun(notebook)
    if index is None:
        return failure
    cell = notebook.cells[index]
    if cell.cell_type == "code":
        cell.outputs.append(
            nbformat.v4.new_output("error", ename=kind, evalue=message, traceback=[f"{kind}: {message}"])
        )
    for later in notebook.cells[index + 1 :]:  # papermill marks them completed
        later.metadata.setdefault("papermill", {})["status"] = "pending"
    nbformat.write(notebook, target)
    return failure


def _describe(
    notebook: nbformat.NotebookNode, index: int | None, kind: str, message: str, trace: str
) -> Failure:
    if index is None:
        return Failure(kind, message, trace=trace)
    cell = notebook.cells[index]
    before = [c for c in notebook.cells[: index + 1] if not _ADDED_TAGS & set(c.metadata.get("tags", []))]
    lines = cell.source.splitlines()
    head = "\n".join(lines[:6] + (["…"] if len(lines) > 6 else []))
    return Failure(kind, message, cell=len(before), source=head, trace=trace)


def _cell_with_error(notebook: nbformat.NotebookNode) -> int | None:
    for index, cell in enumerate(notebook.cells):
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            return index
    return _last_cell_begun(notebook)


def _last_cell_begun(notebook: nbformat.NotebookNode) -> int | None:
    begun = [
        index
        for index, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and cell.metadata.get("papermill", {}).get("start_time")
    ]
    return begun[-1] if begun else None


def _plain(text: str) -> str:
    return _ANSI.sub("", text)
