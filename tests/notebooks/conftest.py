import dataclasses
import functools
import os
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock

from nbhelpers.claims.paper import claim
from nbhelpers.claims.verdicts import judge
from nbhelpers.collection.results import estimate_of, load_results
from nbhelpers.collection.run import load_runs, run_notebooks
from nbhelpers.zoo.tables import ZooTables


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.notebook)


@pytest.fixture(scope="module", autouse=True)
def _warm(warm_kernels):
    pass


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """Run a notebook of the collection at smoke size, once a session: ``smoke_run("07")`` -> NotebookRun.

    All runs share one results folder, ``run.output.parents[1] / "results"``, and the workers of xdist share
    the runs: the second that asks for a notebook waits for the first, and is given what it left.
    """
    base = tmp_path_factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke"
    (out / "runs").mkdir(parents=True, exist_ok=True)

    @functools.cache
    def run(name):
        with FileLock(out / f"{name[:2]}.lock"):  # "07" and "07_frequency_bands" are the same notebook
            done = [run for run in load_runs(out) if run.name[:2] == name[:2]]
            return (done or run_notebooks([name], size="smoke", out=out, progress=False))[0]

    return run


@pytest.fixture(scope="session")
def recorded(smoke_run):
    """Run a notebook, return its recorded numbers by name: ``recorded("07")["low_band"].value``."""

    def numbers(name):
        run = smoke_run(name)
        assert run.status == "passed", run.error
        frame = load_results(run.output.parents[1] / "results")
        return {row.name: row for row in frame[frame.notebook == run.name].itertuples(index=False)}

    return numbers


@pytest.fixture(scope="session")
def stored(smoke_run, recorded):
    """Run a notebook, return the tables it stored by name: ``stored("07")["heads"]``."""

    def tables(name):
        recorded(name)
        run = smoke_run(name)
        folder = run.output.parents[1] / "results" / run.name
        return {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}

    return tables


@pytest.fixture(scope="module")
def numbers(request, recorded):
    return recorded(request.path.stem.removeprefix("test_"))


@pytest.fixture(scope="module")
def tables(request, stored):
    return stored(request.path.stem.removeprefix("test_"))


@pytest.fixture(scope="session")
def shipped():
    return ZooTables.read()


@pytest.fixture(scope="session")
def verdict():
    """Apply a claim's rule, used or not, to recorded numbers: ``verdict("C5", numbers)`` is a verdict."""

    def judged(number, numbers):
        rows = {c.name: numbers[c.name] for c in claim(number).criteria if c.name in numbers}
        records = {name: estimate_of(row) for name, row in rows.items()}
        return judge(dataclasses.replace(claim(number), reach="", demonstration=""), records).verdict

    return judged


@pytest.fixture(scope="session")
def run_on():
    """Run a notebook on a zoo of its own: ``run_on("11", zoo, out)`` -> numbers by name, tables, its JSON."""

    def run(name, zoo, out, **parameters):
        parameters = {"zoo": str(zoo), **parameters}
        (done,) = run_notebooks([name], size="smoke", out=out, parameters=parameters, progress=False)
        assert done.status == "passed", done.error
        numbers = {row.name: row for row in load_results(out).itertuples(index=False)}
        tables = {p.stem: pd.read_parquet(p) for p in (out / "results" / done.name).glob("*.parquet")}
        return numbers, tables, done.output.read_text()

    return run
