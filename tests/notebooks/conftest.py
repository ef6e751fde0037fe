import functools

import pytest

from nbhelpers.lab.notebooks import run_notebooks
from nbhelpers.lab.results import load_results


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """Run a notebook of the collection at smoke size, once a session: ``smoke_run("05")`` -> NotebookRun.

    All runs share one results folder, ``run.output.parents[1] / "results"``.
    """
    out = tmp_path_factory.mktemp("smoke")
    return functools.cache(lambda name: run_notebooks([name], size="smoke", out=out, progress=False)[0])


@pytest.fixture(scope="session")
def recorded(smoke_run):
    """Run a notebook, return its recorded numbers by name: ``recorded("05")["low_band"].value``."""

    def numbers(name):
        run = smoke_run(name)
        assert run.status in ("passed", "kept"), run.error
        frame = load_results(run.output.parents[1] / "results")
        return {row.name: row for row in frame[frame.notebook == run.name].itertuples(index=False)}

    return numbers
