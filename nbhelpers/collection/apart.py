"""A notebook executed here, or in a process of its own so that several run side by side.

``python -m nbhelpers.collection.apart`` is that process. It reads a line of JSON from its input and leaves
how the notebook ended in its output. When the input is closed, by us or by our death, it stops as on Ctrl-C.
"""

import _thread
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from nbhelpers.collection.execution import Failure, KernelWatch, execute_strictly

RUNNER = "the runner failed"  # kind of a failure that is not the notebook's
_GRACE = 20.0  # seconds in which a process that is stopped must have saved what ran, before it is killed


class Here:
    """A notebook executed in this process: `start` waits for its end, and then all else is known."""

    def __init__(self, source, target, parameters, cell_timeout, *, bars=False):
        self.given = source, target, parameters, cell_timeout
        self.target, self.bars = target, bars
        self.failure, self.seconds, self.peak_mb = None, 0.0, 0.0

    def start(self):
        *given, cell_timeout = self.given
        started, watch = time.monotonic(), KernelWatch(cell_timeout)
        try:
            self.failure = execute_strictly(*given, watch=watch, progress_bar=self.bars)
        except Exception as error:  # recorded whole, and the next notebook runs
            self.failure = Failure(RUNNER, str(error), trace=traceback.format_exc())
        self.seconds, self.peak_mb = time.monotonic() - started, watch.peak_mb

    def ended(self):
        return True

    def stop(self):
        """Wait until it has saved what ran, which it has."""


class Apart(Here):
    """A notebook executed in a process of its own: `start` does not wait."""

    def __init__(self, *given, threads):
        super().__init__(*given)
        self.threads = threads

    def start(self):
        self.answer = tempfile.TemporaryFile()  # noqa: SIM115, open until the process has ended
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nbhelpers.collection.apart"],
            env={"OMP_NUM_THREADS": str(self.threads)} | os.environ,
            stdin=subprocess.PIPE,
            stdout=self.answer,
            start_new_session=True,  # Ctrl-C is for the runner
        )
        source, target, *others = self.given
        with contextlib.suppress(BrokenPipeError):  # it did not come up, which its status tells
            self.process.stdin.write(json.dumps([str(source), str(target), *others]).encode() + b"\n")
            self.process.stdin.flush()

    def ended(self):
        if self.process.poll() is None:
            return False
        if answer := self.stop():
            failure, self.seconds, self.peak_mb = json.loads(answer)
            self.failure = failure and Failure(**failure)
        if status := self.process.returncode:
            self.failure = Failure(RUNNER, f"the process of its runner ended with status {status}")
        return True

    def stop(self):
        """Stop it unless it has ended, and return its answer, once."""
        if self.answer.closed:  # Ctrl-C came between its end and the word of it
            return b""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with self.answer:
            self.answer.seek(0)
            return self.answer.read()


def _end_with_input():
    sys.stdin.read()
    _thread.interrupt_main()


def _main():
    # What a kernel writes to its output is not the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born without it
    source, target, parameters, cell_timeout = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    notebook = Here(Path(source), Path(target), parameters, cell_timeout)
    with contextlib.suppress(KeyboardInterrupt):
        notebook.start()
        failure = notebook.failure and dataclasses.asdict(notebook.failure)
        json.dump([failure, notebook.seconds, notebook.peak_mb], answer)
        answer.flush()
    os._exit(0)  # the thread that waits for input must not hold the process


if __name__ == "__main__":
    _main()
