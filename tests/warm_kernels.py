"""Kernels, and other processes, that need not import what every notebook imports: forks of one that did.

Each is a process of its own; papermill and jupyter_client talk to its ipykernel as to any other.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import sys
import time

import pytest
from jupyter_client.provisioning import local_provisioner

IMPORTED = """ipykernel.kernelapp seaborn scipy.stats ipywidgets
    nbhelpers.collection.results nbhelpers.collection.scorecard nbhelpers.nulls.controls nbhelpers.sweeps.rows
    nbhelpers.specifications nbhelpers.zoo nbhelpers.inspector transformers.models.llama.modeling_llama"""


class WarmKernel:
    """The process of a kernel, with what jupyter_client asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, command, *, env, **_):
        self._process = _forks().Process(target=_be_kernel, args=(command[3:], dict(env)))
        self._process.start()
        self.pid = self._process.pid
        while self.poll() is None and os.getpgid(self.pid) != self.pid:
            time.sleep(0.001)  # signals go to the group, which must be its own

    def poll(self):
        return self._process.exitcode

    def wait(self):
        self._process.join()
        return self.poll()

    def send_signal(self, number):
        os.kill(self.pid, number)


def _be_kernel(arguments, environment):  # in the folder of the process that asks for it
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["ipykernel_launcher", *arguments, f"--IPKernelApp.parent_handle={os.getppid()}"]
    # To be cropped, a figure is drawn twice.
    uncropped = "get_ipython().config.InlineBackend.print_figure_kwargs = {'bbox_inches': None}"
    sys.argv.append(f"--IPKernelApp.exec_lines={uncropped}")
    from ipykernel import kernelapp

    kernelapp.launch_new_instance()


def use(patch):
    """Start kernels by fork for as long as a monkeypatch holds."""
    patch.setattr(local_provisioner, "launch_kernel", WarmKernel)


def start(code, *arguments, log):
    """Start Python code in a process of its own, what it prints in a file; return its `Process`."""
    process = _forks().Process(target=_be_script, args=(code, arguments, dict(os.environ), log))
    process.start()
    return process


def _be_script(code, arguments, environment, log):
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})


def _forks():
    """Return the context of `multiprocessing` whose processes are forks of the warm one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED.split())
    with pytest.MonkeyPatch.context() as early:  # matplotlib reads it when it is imported
        early.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        multiprocessing.forkserver.ensure_running()
    return context
