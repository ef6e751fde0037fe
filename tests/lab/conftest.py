import functools

import pytest
from tiny_notebooks import make_notebook

from nbhelpers.lab.notebooks import run_notebooks


@pytest.fixture
def folder(tmp_path):
    """An empty folder of notebooks."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    return folder


@pytest.fixture
def notebook(folder):
    """Make a notebook in the folder: ``notebook("01_name", "code of a cell", …)``."""
    return lambda name, *cells, **options: make_notebook(folder / f"{name}.ipynb", *cells, **options)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """Run a notebook of the collection at smoke size, once a session: ``smoke_run("05")`` -> NotebookRun.

    All runs share one results folder, ``run.output.parents[1] / "results"``.
    """
    out = tmp_path_factory.mktemp("smoke")
    return functools.cache(lambda name: run_notebooks([name], size="smoke", out=out, progress=False)[0])
