import matplotlib
import pytest
from tiny_notebooks import make_notebook
from tiny_sweeps import play_in

matplotlib.use("agg")


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


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A sweep's folder; the runs of sweeps are played, see `tiny_sweeps`."""
    from nbhelpers.lab import sweep_worker

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield play_in(tmp_path)
    sweep_worker._CHILDREN.end_finished()  # where a test was the worker itself


@pytest.fixture
def close_figures():
    """Close the figures of a test: ``pytestmark = pytest.mark.usefixtures("close_figures")``."""
    from matplotlib import pyplot as plt

    yield
    plt.close("all")


@pytest.fixture
def ax():
    """The axes of a figure of their own."""
    from matplotlib import pyplot as plt

    return plt.subplots()[1]
