import pytest

from nbhelpers.collection.plan import list_notebooks
from nbhelpers.collection.results import load_results


@pytest.mark.parametrize("name", [path.stem for path in list_notebooks()])
def test_notebook_runs_and_records(smoke_run, name):
    run = smoke_run(name)
    assert run.status == "passed", run.error
    numbers = load_results(run.output.parents[1])
    assert name in set(numbers["notebook"])
