"""What an executor's worker does with a run: hand it to a child process, watch it, record how it ended.

The run happens in a child because nothing less stops one: a signal handler of Python waits until a call into
torch returns, a thread cannot be ended at all, and Dask runs tasks in threads. A child can be killed at any
time, its memory is given back whole, and when the system kills it for want of memory the worker lives on to
say so. It imports the library once, keeps the model of its last run, and serves until the sweep ends.

This module imports neither torch nor pandas: a worker stays small beside its child.
"""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

import nbhelpers
from nbhelpers.sweeps.sweep_records import new_record, read_record, write_record

STARTUP_SECONDS = 600  # for the child to import the library, from a slow network disk if need be
POLL_SECONDS = 0.5
ATTEMPTS = 2  # a run whose process was killed goes once more: the reason may have been another process


class Child:
    """A process that does runs, see `nbhelpers.sweeps.sweep_child`."""

    def __init__(self, out, lease, threads):
        root = str(Path(nbhelpers.__file__).parents[1])
        inherited = os.environ.get("PYTHONPATH")
        environment = os.environ | {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"PYTHONPATH": root + (os.pathsep + inherited if inherited else "")}
        if threads is not None:
            environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        log = Path(out) / "logs" / f"{socket.gethostname()}-{os.getpid()}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nbhelpers.sweeps.sweep_child", lease],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the sweep, which ends its children itself
            )
        self.lease, self.threads, self.log = lease, threads, log
        self.model_key = None
        self.peak_bytes = 0

    def start(self):
        """Wait until the library is imported; return None, or what came instead as `ask` does."""
        reply = {"status": "ready"} if self.model_key is not None else self._wait(STARTUP_SECONDS)
        if reply["status"] == "timeout":
            told = f"its process did not start within {STARTUP_SECONDS} s; see logs/{self.log.name}"
            return {"status": "failed", "error": told}
        return None if reply["status"] == "ready" else reply

    def ask(self, request, *, timeout):
        """Send a request and wait for the reply.

        Returns
        -------
        dict
            The child's reply, or ``{"status": "timeout" | "killed" | "interrupted"}``; after these the child
            is gone.
        """
        self.peak_bytes = 0
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return self._ended()
        return self._wait(timeout)

    def _wait(self, seconds):
        deadline = None if seconds is None else time.monotonic() + seconds
        while not select.select([self.process.stdout], [], [], POLL_SECONDS)[0]:
            self._note_memory()
            if not Path(self.lease).exists():
                self.kill()
                return {"status": "interrupted"}
            if deadline is not None and time.monotonic() > deadline:
                self.kill()
                return {"status": "timeout"}
        self._note_memory()
        line = self.process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else self._ended()

    def _ended(self):
        code = self.process.wait()
        self._close()
        status = "killed" if Path(self.lease).exists() else "interrupted"
        return {"status": status, "signal": -code if code < 0 else None, "code": code}

    def _note_memory(self):
        self.peak_bytes = max(self.peak_bytes, sum(_resident(process) for process in self._tree()))

    def _tree(self):
        try:
            child = psutil.Process(self.process.pid)
            return [child, *child.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def is_wanted(self):
        """Return whether the child lives and its sweep goes on."""
        return self.process.poll() is None and Path(self.lease).exists()

    def kill(self):
        """End the child and the kernels it may have started."""
        for process in self._tree():
            try:
                process.kill()
            except psutil.NoSuchProcess:  # it ended by itself meanwhile
                continue
        self.process.wait()
        self._close()

    def _close(self):
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # a request that the dead child did not read
            self.process.stdin.close()


def _resident(process):
    try:
        return process.memory_info().rss
    except psutil.Error:  # it ended between the listing and the question
        return 0


class _Children:
    """The idle children of this process; a worker with several threads has several."""

    def __init__(self):
        self._idle = []
        self._lock = threading.Lock()

    def take(self, out, lease, threads, model_key):
        self.end_finished()
        with self._lock:
            mine = [child for child in self._idle if child.lease == lease]
            mine.sort(key=lambda child: child.model_key != model_key)
            if mine:
                self._idle.remove(mine[0])
        return mine[0] if mine else Child(out, lease, threads)

    def give_back(self, child, model_key):
        child.model_key = model_key
        with self._lock:
            self._idle.append(child)

    def end_finished(self):
        """End the idle children of sweeps that are over, which a worker of a cluster outlives."""
        with self._lock:
            over = [child for child in self._idle if not child.is_wanted()]
            self._idle = [child for child in self._idle if child not in over]
        for child in over:
            child.kill()


# An executor calls a function in a process that outlives the call, and offers no other place for the child.
_CHILDREN = _Children()


def run_in_worker(task):
    """Do one run and return its record, which is also written to the sweep's folder.

    Parameters
    ----------
    task : dict
        ``run`` (fields of a Run), ``id``, ``label``, ``settings``, ``model_key``, ``out``, ``lease`` (a file
        that exists as long as the sweep goes on), ``cache``, ``timeout`` (seconds or None) and ``threads``.

    Returns
    -------
    dict
        With ``status`` done, failed or interrupted, ``seconds``, ``peak_mb``, ``error`` and ``attempts``.
    """
    earlier = read_record(task["out"], task["id"])
    if earlier.get("lease") != task["lease"]:
        earlier = {}
    if earlier.get("status") in ("done", "failed"):  # the executor lost the answer and asks again
        return earlier
    if not Path(task["lease"]).exists():  # taken from the queue after the sweep was interrupted
        return new_record(task) | {"status": "interrupted", "error": "not started", "attempts": 0}
    attempts = earlier.get("attempts", 0)
    record = new_record(task) | {"host": socket.gethostname(), "pid": os.getpid()}
    told = f"its worker was killed {attempts} times while it ran; the machine may have too little memory"
    ending = {"status": "failed", "error": told}
    while attempts < ATTEMPTS:
        attempts += 1
        write_record(task["out"], record | {"status": "running", "error": None, "attempts": attempts})
        reply, measured = _attempt(task)
        record |= measured
        ending = _ending(reply, task, attempts)
        if reply["status"] != "killed":
            break
    record |= ending | {"attempts": attempts}
    write_record(task["out"], record)
    return record


def _attempt(task):
    child = _CHILDREN.take(task["out"], task["lease"], task["threads"], task["model_key"])
    reply = child.start()
    started = time.monotonic()
    if reply is None:
        reply = child.ask({key: task[key] for key in ("run", "id", "out", "cache")}, timeout=task["timeout"])
        if reply["status"] in ("done", "failed"):
            _CHILDREN.give_back(child, task["model_key"])
    measured = {
        "seconds": round(time.monotonic() - started, 2),
        "peak_mb": round(child.peak_bytes / 2**20, 1),
        "log": child.log.name,
    }
    return reply, measured


def _ending(reply, task, attempts):
    """Return status and error of a record from what the child replied, or how it ended."""
    if reply["status"] == "timeout":
        error = f"still running after {task['timeout']:g} s (timeout); its process was killed"
        return {"status": "failed", "error": error}
    if reply["status"] == "interrupted":
        return {"status": "interrupted", "error": "the sweep was interrupted"}
    if reply["status"] == "killed":
        number = reply["signal"]
        how = f"was killed by signal {number}" if number else f"ended with exit status {reply['code']}"
        hint = "; signal 9 often means that memory ran out" if number == 9 else ""
        return {"status": "failed", "error": f"its process {how}, {attempts} times{hint}"}
    return reply
