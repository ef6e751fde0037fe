"""Execute one notebook with papermill and miss no way in which it can fail.

Papermill lets pass an error inside an output widget and a cell that leaves the kernel early, and says little
of a hang or a dead kernel; here each is a `Failure` that names the cell.
"""

import contextlib
import logging
import math
import os
import re
import signal
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from queue import Empty

from nbhelpers.collection.notebook_files import nbformat

# isort: split
import papermill
import psutil
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from nbhelpers.collection.skip import SKIPPED
from nbhelpers.files import write_text

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ADDED_TAGS = {"papermill-error-cell-tag", "injected-parameters"}  # cells papermill adds to the source
_WORKING = 0.05  # a cell that uses less than this share of one core is waiting, not working
# A kernel imports a million objects that stay; the collector need not walk them so often, nor at exit.
_LESS_GC = "__import__('gc').set_threshold(50_000); __import__('atexit').register(__import__('gc').freeze)"
# Figures are shown and closed first, or pyplot draws each a second time, for a window that is not there.
_SHOW_FIRST = """get_ipython().events.register('post_execute', lambda name='matplotlib_inline.backend_inline':
    name in __import__('sys').modules and __import__('sys').modules[name].flush_figures())"""
_GRACE = 5.0  # seconds in which an interrupted kernel must have ended, before it is killed


@dataclass(frozen=True)
class Failure:
    """Why a notebook failed, and where."""

    kind: str  # error, timeout, dead kernel, widget error, cell not run, interrupted, no kernel or skipped
    message: str  # the reason, if skipped
    cell: int | None = None  # from 1, of the stored notebook, all cells counted
    source: str = ""  # first lines of the cell
    trace: str = ""

    def __str__(self):
        where = "outside any cell" if self.cell is None else f"in cell {self.cell}"
        lines = [f"{self.kind} {where}: {self.message}"]
        lines += [f"    | {line}" for line in self.source.splitlines()]
        return "\n".join(lines + ([self.trace] if self.trace else []))


class CellClock:
    """Tells when a cell has run for too long, by a limit in seconds that a busy machine stretches.

    A cell runs over when the clock and the CPU time of its kernel have both passed the limit, or when for as
    long as the limit it has used next to no CPU time, for it waits for what does not come.
    """

    def __init__(self, limit):
        self.limit = limit
        self._began = self._worked = None

    def overrun(self, clock, cpu):
        """Return why the cell must end, given both times in seconds, or None; called again and again."""
        if self._began is None:
            self._began = self._worked = clock, cpu
        if cpu - self._worked[1] >= _WORKING * self.limit:
            self._worked = clock, cpu
        if min(clock - self._began[0], cpu - self._began[1]) >= self.limit:
            still = f"still running after {self.limit:.6g} s of CPU time (cell_timeout)"
            return f"{still}; give it more time or a smaller size"
        if clock - self._worked[0] >= self.limit:
            return f"waited for {self.limit:.6g} s and computed next to nothing (cell_timeout)"
        return None


class KernelWatch:
    """While the context is open, watch the children of this process that were not there before: a kernel's.

    `peak_mb` is their largest resident memory, looked at five times a second. A cell that runs over
    `cell_timeout`, see `CellClock`, is interrupted, and killed if it goes on; `stopped` then says why.
    """

    def __init__(self, cell_timeout=600):
        self.cell_timeout = cell_timeout
        self.peak_mb, self.stopped = 0.0, None
        self._clock = None  # of the cell that runs
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._others = set(psutil.Process().children(recursive=True))
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._closed.set()
        self._thread.join()

    def cell_begins(self, **cell):  # nbclient calls both
        self._clock = CellClock(self.cell_timeout)

    def cell_ends(self, **cell):
        self._clock = None

    def _watch(self):
        me = psutil.Process()
        while not self._closed.wait(0.2):
            kernel = [child for child in me.children(recursive=True) if child not in self._others]
            usage = [_usage(process) for process in kernel]
            self.peak_mb = max(self.peak_mb, sum(memory for memory, _ in usage))
            if (clock := self._clock) and kernel:
                self.stopped = clock.overrun(time.monotonic(), sum(cpu for _, cpu in usage))
                if self.stopped:
                    return self._stop(kernel[0].pid)

    def _stop(self, kernel):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(kernel, signal.SIGINT)  # the traceback then shows where the cell was
            if not self._closed.wait(_GRACE):
                os.killpg(kernel, signal.SIGKILL)


def _usage(process):
    """Return resident memory in MB and CPU seconds, those of its ended children included."""
    try:
        return process.memory_info().rss / 2**20, sum(process.cpu_times()[:4])
    except psutil.Error:  # it ended between the listing and the question
        return 0.0, 0.0


@contextlib.contextmanager
def _answers_looked_for():
    """Look for a kernel's answers every second: nbclient can miss one while it writes to a widget."""
    get_msg = AsyncZMQSocketChannel.get_msg

    async def looking(channel, timeout=None):
        left = timeout if timeout is not None else math.inf
        while left > 1:
            with contextlib.suppress(Empty):
                return await get_msg(channel, 1)
            left -= 1
        return await get_msg(channel, left)

    AsyncZMQSocketChannel.get_msg = looking
    try:
        yield
    finally:
        AsyncZMQSocketChannel.get_msg = get_msg


def execute_strictly(source, target, parameters, *, watch, progress_bar=False):
    """Execute a notebook in a fresh kernel, in the working folder; return its Failure, None if it ran well.

    `target` is saved after every cell. `watch` holds the limits and keeps the peak memory.
    """
    # On Ctrl-C a socket may be closed under a callback, which is no news; what a kernel says is in its cells.
    logging.getLogger("tornado.general").setLevel(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory(prefix="nb-") as sockets, _answers_looked_for(), watch:
            papermill.execute_notebook(
                source,
                target,
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                cwd=Path.cwd(),
                progress_bar=progress_bar,
                iopub_timeout=60,  # seconds for the last output of a cell that ended; a machine may be busy
                on_cell_execute=watch.cell_begins,
                on_cell_executed=watch.cell_ends,
                # sockets in a folder of its own: TCP ports can be snatched
                config=Config({"KernelManager": {"transport": "ipc", "ip": os.path.join(sockets, "k")}}),
                # a kernel stopped in mid-cell logs an error of its own; what matters is in the cells
                extra_arguments=[
                    "--IPKernelApp.log_level=50",
                    *(f"--IPKernelApp.exec_lines={line}" for line in (_LESS_GC, _SHOW_FIRST)),
                ],
            )
    except PapermillExecutionError as error:
        if watch.stopped:
            return _failed_midway(target, "timeout", watch.stopped)
        notebook = nbformat.read(target, as_version=4)
        failed = (index for index, output in outputs(notebook) if output.output_type == "error")
        index = next(failed, _last_cell_begun(notebook))
        return _failure(notebook, index, "error", f"{error.ename}: {error.evalue}")
    except DeadKernelError:
        kind, why = "dead kernel", "killed for want of memory, a crash in compiled code, or os._exit"
        if watch.stopped:
            kind, why = "timeout", f"{watch.stopped}; it ignored the interrupt and was killed"
        return _failed_midway(target, kind, why)
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # else the cell's task tells its end too
        try:
            _failed_midway(target, "interrupted", "stopped by Ctrl-C")
        except (OSError, ValueError):  # stopped before it was there, or while it was written
            target.unlink(missing_ok=True)
        raise
    except RuntimeError:  # what jupyter_client and nbclient raise when a kernel does not come up
        return Failure("no kernel", "the kernel did not come up or fell silent", trace=traceback.format_exc())
    if watch.stopped:
        return _failed_midway(target, "timeout", f"{watch.stopped}; it caught the interrupt and went on")
    notebook = nbformat.read(target, as_version=4)
    return _skipped(notebook, target) or _silent_failure(notebook)


def outputs(notebook):
    """Return every output of a notebook with the index of its cell."""
    return [(i, output) for i, cell in enumerate(notebook.cells) for output in cell.get("outputs", ())]


def _skipped(notebook, target):
    """Return the reason of a notebook that ended itself, and write it as plain text where it stood."""
    for index, output in outputs(notebook):
        shown = _plain(output.get("traceback", []))
        if output.output_type == "error" and shown.startswith(SKIPPED):
            cell = notebook.cells[index]
            cell.outputs[cell.outputs.index(output)] = nbformat.v4.new_output("stream", text=shown + "\n")
            cell.metadata.papermill.update(exception=False, status="completed")
            notebook.metadata.papermill.exception = None
            write_text(target, nbformat.writes(notebook) + "\n")
            return Failure("skipped", shown.removeprefix(SKIPPED))
    return None


def _silent_failure(notebook):
    """Return the failure that papermill let pass, if any."""
    for index, error in _widget_errors(notebook):
        message = f"{error.get('ename')}: {error.get('evalue')} (inside an output widget)"
        return _failure(notebook, index, "widget error", message, error.get("traceback", []))
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            message = "never ran, because a cell before it left the notebook (SystemExit)"
            return _failure(notebook, index, "cell not run", message)
    return None


def _widget_errors(notebook):
    """Yield (index of the cell that shows the widget, or None, error) for errors in output widgets."""
    state = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    shown = [(at, output.get("data", {}).get(WIDGET_VIEW, {})) for at, output in outputs(notebook)]
    trees = [(at, widget_tree(state, view["model_id"])) for at, view in shown if view]
    for model_id, model in state.items():
        for output in model.get("state", {}).get("outputs", ()):
            if output.get("output_type") == "error":
                yield next((index for index, tree in trees if model_id in tree), None), output


def widget_tree(state, root):
    """Return the ids of a widget and of all widgets that its state refers to, at any depth."""
    found, waiting = set(), [root]
    while waiting:
        model_id = waiting.pop()
        if model_id not in found:
            found.add(model_id)
            waiting += re.findall(r"IPY_MODEL_(\w+)", str(state.get(model_id, {}).get("state", {})))
    return found


def _failed_midway(target, kind, message):
    """Describe a stop in the middle of a cell, and write it into the executed notebook too."""
    notebook = nbformat.read(target, as_version=4)
    index = _last_cell_begun(notebook)
    failure = _failure(notebook, index, kind, message)
    if index is not None:
        shown = nbformat.v4.new_output("error", ename=kind, evalue=message, traceback=[f"{kind}: {message}"])
        notebook.cells[index].outputs.append(shown)
        for later in notebook.cells[index + 1 :]:  # papermill marks them completed
            later.metadata.setdefault("papermill", {})["status"] = "pending"
        write_text(target, nbformat.writes(notebook) + "\n")
    return failure


def _failure(notebook, index, kind, message, trace=()):
    """Return a failure in the cell of that index; its traceback is that of the cell if none is given."""
    if index is None:
        return Failure(kind, message, trace=_plain(trace))
    cell = notebook.cells[index]
    if not trace:
        trace = [line for output in cell.get("outputs", ()) for line in output.get("traceback", ())]
    before = [c for c in notebook.cells[: index + 1] if not _ADDED_TAGS & set(c.metadata.get("tags", []))]
    lines = cell.source.splitlines()
    head = "\n".join(lines[:6] + ["…"] * (len(lines) > 6))
    return Failure(kind, message, len(before), head, _plain(trace))


def _last_cell_begun(notebook):
    code = [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    begun = [index for index, cell in code if cell.metadata.get("papermill", {}).get("start_time")]
    return begun[-1] if begun else None


def _plain(lines):
    return _ANSI.sub("", "\n".join(lines))
