import functools
import os

import pytest
from filelock import FileLock

from nbhelpers.lab.notebooks import run_notebooks
from nbhelpers.lab.results import load_results


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """Run a notebook of the collection at smoke size, once a session: ``smoke_run("05")`` -> NotebookRun.

    All runs share one results folder, ``run.output.parents[1] / "results"``, and the workers of xdist share
    the runs: the second that asks for a notebook waits, and is told "kept".
    """
    base = tmp_path_factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke"
    out.mkdir(exist_ok=True)

    @functools.cache
    def run(name):
        with FileLock(out / f"{name[:2]}.lock"):  # "05" and "05_frequency_bands" are the same notebook
            return run_notebooks([name], size="smoke", out=out, progress=False)[0]

    return run


@pytest.fixture(scope="session")
def recorded(smoke_run):
    """Run a notebook, return its recorded numbers by name: ``recorded("05")["low_band"].value``."""

    def numbers(name):
        run = smoke_run(name)
        assert run.status in ("passed", "kept"), run.error
        frame = load_results(run.output.parents[1] / "results")
        return {row.name: row for row in frame[frame.notebook == run.name].itertuples(index=False)}

    return numbers
